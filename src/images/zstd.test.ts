import { zstdDecompressSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { packedWithZstd } from './zstd.ts';

async function packed(chunks: readonly Uint8Array[], slow: boolean): Promise<Buffer> {
  async function* source() {
    for (const chunk of chunks) {
      if (slow) await new Promise((resolve) => setTimeout(resolve, 2));
      yield chunk;
    }
    if (slow) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const parts: Uint8Array[] = [];
  for await (const part of packedWithZstd(source())) parts.push(part);
  return Buffer.concat(parts);
}

test('the same pieces give the same bytes, however quickly they and the end come', async () => {
  for (const sizes of [[5], [12, 70_000], [12, 300, 12], [12, 1_000_000, 12], []]) {
    const chunks = sizes.map((size, at) => Buffer.alloc(size, `some text ${at} that is packed`));
    const [quick, slow] = [await packed(chunks, false), await packed(chunks, true)];
    expect(slow.equals(quick), String(sizes)).toBe(true);
    if (sizes.length > 0) expect(zstdDecompressSync(quick).equals(Buffer.concat(chunks))).toBe(true);
  }
});

test('who stops reading, and a source that fails, end it', async () => {
  let ended = false;
  async function* endless() {
    try {
      for (;;) yield Buffer.alloc(100_000, Math.random().toString());
    } finally {
      ended = true;
    }
  }
  for await (const _ of packedWithZstd(endless())) break;
  await expect.poll(() => ended).toBe(true);
  async function* failing() {
    yield Buffer.from('some');
    throw new Error('no more');
  }
  await expect(
    (async () => {
      for await (const _ of packedWithZstd(failing()));
    })(),
  ).rejects.toThrow('no more');
});
