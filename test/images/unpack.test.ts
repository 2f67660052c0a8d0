// Layers are read in pieces that lie in one memory: what comes out of the unpacker is what went in, whole, however it was
// packed and wherever its reader leaves off.
import { createHash, randomBytes } from 'node:crypto';
import { readdirSync, readlinkSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, expect, test } from 'vitest';
import { ArchiveError } from '../../src/domain/archive-error.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { unpacked } from '../../src/images/layers/unpack.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';

const dir = await mkdtemp(join(tmpdir(), 'hutch-unpack-'));
afterAll(() => rm(dir, { recursive: true, force: true }));
const host = nodeHost();
const path = join(dir, 'layer');
/** Hardly to be made smaller, so that it comes in many pieces; and much smaller ones. */
const content = Buffer.concat([randomBytes(3_000_000), Buffer.alloc(5_000_000, 'a'), randomBytes(77)]);
const sha = (...parts: readonly Uint8Array[]) => createHash('sha256').update(Buffer.concat(parts)).digest('hex');

async function read(packed: Uint8Array, bytesMax = 100_000_000): Promise<string> {
  await writeFile(path, packed);
  const hash = createHash('sha256');
  for await (const chunk of unpacked(testOperation(), host, path, bytesMax)) hash.update(chunk);
  return hash.digest('hex');
}

const isOpen = () => readdirSync('/proc/self/fd').some((fd) => linkOf(fd) === path);

function linkOf(fd: string): string | null {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return null; // closed meanwhile
  }
}

/** A frame that says nothing, as pzstd and zstd:chunked have them. */
const SKIPPED = Buffer.from('502a4d180400000061626364', 'hex');

test('what is packed comes out as it went in, of one member or of several', async () => {
  expect(await read(gzipSync(content))).toBe(sha(content));
  expect(await read(Buffer.concat([gzipSync(content), gzipSync(content)]))).toBe(sha(content, content));
  expect(await read(zstdCompressSync(content))).toBe(sha(content));
  expect(await read(Buffer.concat([zstdCompressSync(content), SKIPPED, zstdCompressSync(content), SKIPPED]))).toBe(sha(content, content));
  expect(await read(content)).toBe(sha(content));
});

test('what is cut off, damaged or too much is refused, and the file is let go of', async () => {
  const packed = gzipSync(content);
  const damaged = Buffer.from(packed);
  damaged.fill(0xff, 1_000_000, 1_000_100);
  for (const wrong of [packed.subarray(0, 2_000_000), packed.subarray(0, packed.byteLength - 1), damaged])
    await expect(read(wrong)).rejects.toThrow(ArchiveError);
  for (const garbage of ['garbage', '\0'.repeat(100_000), gzipSync('x')])
    await expect(read(Buffer.concat([zstdCompressSync(content), Buffer.from(garbage)]))).rejects.toThrow(
      'what follows its end is no frame',
    );
  await expect(read(packed, 4_000_000)).rejects.toThrow('more than 4000000 bytes');
  await eventually('the file is closed', () => !isOpen());
});

test('whoever reads no further leaves nothing open', async () => {
  await writeFile(path, gzipSync(content));
  for await (const chunk of unpacked(testOperation(), host, path, 100_000_000)) if (chunk.byteLength > 0) break;
  await eventually('the file is closed', () => !isOpen());
});
