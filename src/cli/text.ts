// Hutch's API is text. Node replaces bytes that are no UTF-8 before we see them; what was lost that way
// is refused with its place, instead of another value reaching the sandbox.
import { readFileSync } from 'node:fs';
import { type Args, usage } from './args.ts';
import type { Leaf } from './verb.ts';

const REPLACED = '\ufffd';
const HINT = 'Hutch passes text on; bytes go by stdin, or as a file with hutch cp';

/** @throws HutchError `invalid_argument` naming the word as its user would count it. */
export function refuseLostBytes(argv: readonly string[], leaf: Leaf, args: Args): void {
  if (!argv.some((word) => word.includes(REPLACED))) return;
  const raw = words(readFileSync('/proc/self/cmdline')).slice(-argv.length);
  for (const [at, bytes] of raw.entries()) {
    if (isText(bytes)) continue;
    const inCommand = at - (argv.length - args.command.length);
    const place = leaf.command !== undefined && inCommand >= 0 ? `CMD argument ${inCommand}` : `argument ${at + 1}`;
    throw usage(`${inCommand === 0 ? 'CMD' : place} is not UTF-8: '${shown(bytes)}'`, HINT);
  }
}

/** A variable of our own environment, as it is handed on. */
export function ownVariable(env: Readonly<Record<string, string | undefined>>, name: string, where: string): string | undefined {
  const value = env[name];
  if (value === undefined || !value.includes(REPLACED)) return value;
  const prefix = Buffer.from(`${name}=`);
  const raw = words(readFileSync('/proc/self/environ')).find((pair) => pair.subarray(0, prefix.byteLength).equals(prefix));
  if (raw !== undefined && !isText(raw)) throw usage(`${where}: the value of ${name} is not UTF-8`, HINT);
  return value;
}

/** @throws HutchError `invalid_argument`. */
export function textOf(bytes: Uint8Array, what: string): string {
  if (!isText(bytes)) throw usage(`${what} is not UTF-8`, HINT);
  return Buffer.from(bytes).toString('utf8');
}

function isText(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

function words(bytes: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let from = 0; from < bytes.byteLength; ) {
    const end = bytes.indexOf(0, from);
    found.push(bytes.subarray(from, end < 0 ? bytes.byteLength : end));
    from = (end < 0 ? bytes.byteLength : end) + 1;
  }
  return found;
}

/** `caf\xe9`, and not a megabyte of it. */
function shown(bytes: Buffer): string {
  const cut = bytes.subarray(0, 64);
  const text = [...cut].map((byte) =>
    byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`,
  );
  return text.join('') + (bytes.byteLength > cut.byteLength ? '…' : '');
}
