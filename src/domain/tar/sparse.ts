// The maps of sparse files, in the four forms that GNU tar has had for them.

import { ArchiveError, shown } from '../archive-error.ts';
import type { DataPiece } from './entry.ts';
import { fieldNumber } from './fields.ts';

export const SPARSE_PIECES_MAX = 65_536;
const IN_HEADER = { at: 386, count: 4, more: 482 };
const IN_BLOCK = { at: 0, count: 21, more: 504 };

/** The oldest: in the header, and in blocks after it. */
export async function gnuPieces(header: Buffer, path: string, nextBlock: () => Promise<Buffer>): Promise<readonly DataPiece[]> {
  const pieces: DataPiece[] = [];
  const add = (block: Buffer, { at, count }: typeof IN_HEADER) => {
    for (let index = 0; index < count; index += 1) {
      const offset = fieldNumber(block, at + 24 * index, 12, 'offset');
      const length = fieldNumber(block, at + 24 * index + 12, 12, 'length');
      if (length > 0) pieces.push({ offset, length });
    }
  };
  add(header, IN_HEADER);
  let more = header[IN_HEADER.more] === 1;
  while (more) {
    if (pieces.length > SPARSE_PIECES_MAX) throw tooMany(path);
    const block = await nextBlock();
    add(block, IN_BLOCK);
    more = block[IN_BLOCK.more] === 1;
  }
  return pieces;
}

/** Form 0.1 and, joined, 0.0: `offset,length,offset,length`. */
export function mapPieces(map: string, path: string): readonly DataPiece[] {
  const numbers = map === '' ? [] : map.split(',');
  if (numbers.length > 2 * SPARSE_PIECES_MAX) throw tooMany(path);
  if (numbers.length % 2 !== 0) throw damaged(path);
  const pieces: DataPiece[] = [];
  for (let at = 0; at < numbers.length; at += 2) {
    pieces.push({ offset: whole(numbers[at], path), length: whole(numbers[at + 1], path) });
  }
  return pieces.filter(({ length }) => length > 0);
}

/** Form 1.0: lines of decimal numbers in blocks in front of the data. */
export async function pieceLines(path: string, nextBlock: () => Promise<Buffer>): Promise<readonly DataPiece[]> {
  let text = '';
  const line = async (): Promise<number> => {
    for (;;) {
      const end = text.indexOf('\n');
      if (end >= 0) {
        const number = text.slice(0, end);
        text = text.slice(end + 1);
        return whole(number, path);
      }
      if (text.length > 32) throw damaged(path);
      text += (await nextBlock()).toString('latin1');
    }
  };
  const count = await line();
  if (count > SPARSE_PIECES_MAX) throw tooMany(path);
  const pieces: DataPiece[] = [];
  for (let index = 0; index < count; index += 1) {
    const offset = await line();
    const length = await line();
    if (length > 0) pieces.push({ offset, length });
  }
  return pieces;
}

/** In order, apart, inside the file, and as much as the archive has. */
export function checkPieces(
  pieces: readonly DataPiece[],
  { sizeBytes, storedBytes, path }: { readonly sizeBytes: number; readonly storedBytes: number; readonly path: string },
): void {
  let end = 0;
  let total = 0;
  for (const { offset, length } of pieces) {
    if (offset < end || offset + length > sizeBytes) throw damaged(path);
    end = offset + length;
    total += length;
  }
  if (total !== storedBytes) throw damaged(path);
}

function whole(text: string | undefined, path: string): number {
  if (text === undefined || !/^\d{1,15}$/.test(text)) throw damaged(path);
  return Number(text);
}

function damaged(path: string): ArchiveError {
  return new ArchiveError(`the map of the holes in ${shown(path)} is damaged`);
}

function tooMany(path: string): ArchiveError {
  return new ArchiveError(`${shown(path)} has more than ${SPARSE_PIECES_MAX} pieces`);
}
