// The fields of a tar header. Numbers are octal text, or, where that is too short, binary.
import { ArchiveError } from '../archive-error.ts';

export function fieldText(header: Buffer, at: number, length: number): string {
  const field = header.toString('latin1', at, at + length);
  const end = field.indexOf('\0');
  return end < 0 ? field : field.slice(0, end);
}

export function fieldNumber(header: Buffer, at: number, length: number, name: string, sign: 'unsigned' | 'signed' = 'unsigned'): number {
  const first = header[at] ?? 0;
  const value = (first & 0x80) === 0 ? octal(header, at, length, name) : binary(header.subarray(at, at + length));
  if (value < 0n && sign === 'unsigned') throw new ArchiveError(`a header has a negative ${name}`);
  if (value > BigInt(Number.MAX_SAFE_INTEGER) || value < BigInt(Number.MIN_SAFE_INTEGER)) {
    throw new ArchiveError(`a header has a ${name} that is too large`);
  }
  return Number(value);
}

function octal(header: Buffer, at: number, length: number, name: string): bigint {
  const text = header
    .toString('latin1', at, at + length)
    .replace(/^[ \0]+/, '')
    .replace(/[ \0].*$/s, '');
  if (text === '') return 0n;
  if (!/^[0-7]+$/.test(text)) throw new ArchiveError(`a header has a ${name} that is no number`);
  return BigInt(`0o${text}`);
}

/** Two's complement, big-endian, of which the first bit only says that it is binary. */
function binary(field: Buffer): bigint {
  const isNegative = ((field[0] ?? 0) & 0x40) !== 0;
  let value = BigInt((field[0] ?? 0) & 0x3f);
  for (const byte of field.subarray(1)) value = (value << 8n) | BigInt(byte);
  return isNegative ? value - (1n << BigInt(8 * (field.byteLength - 1) + 6)) : value;
}
