// Sparse files of which only a few pieces are data: quicker than a copy, because nothing is read and
// no program is started.
import * as fs from 'node:fs/promises';
import { heed, throwIfAborted } from './errors.ts';
import { throughTemp } from './files.ts';
import type { SparsePieces } from './host.ts';
import type { Operation } from './operation.ts';

const MODE = 0o600;

export function writeSparse(op: Operation, path: string, sizeBytes: number, pieces: SparsePieces): Promise<void> {
  return heed(op, `write ${path}`, () =>
    throughTemp(op, path, async (temp) => {
      await using file = await fs.open(temp, 'wx', MODE);
      await file.truncate(sizeBytes);
      for await (const { offset, bytes } of pieces) {
        throwIfAborted(op, `write ${path}`);
        for (let done = 0; done < bytes.byteLength; ) {
          done += (await file.write(bytes, done, bytes.byteLength - done, offset + done)).bytesWritten;
        }
      }
    }),
  );
}
