// What is written packed with zstd: the same bytes give the same packed bytes, for one release of the library.
import { pipeline } from 'node:stream/promises';
import { createZstdCompress } from 'node:zlib';

export async function* packedWithZstd(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const packer = createZstdCompress();
  const feeding = pipeline(source, packer);
  feeding.catch(() => {}); // it is waited for below
  for await (const chunk of packer) yield chunk as Uint8Array;
  await feeding;
}
