// What is written packed with zstd: the same bytes give the same packed bytes, for one release of the library.
import { createZstdCompress, type ZstdCompress } from 'node:zlib';

export async function* packedWithZstd(source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const packer = createZstdCompress();
  const feeding = feed(packer, source);
  feeding.catch((error: unknown) => packer.destroy(error instanceof Error ? error : new Error(String(error))));
  for await (const chunk of packer) yield chunk as Uint8Array;
  await feeding;
}

/** The end is told when all before it is packed: told earlier, the last piece would carry it, or not, as it happens to come. */
async function feed(packer: ZstdCompress, source: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const chunk of source)
    await new Promise<void>((done, failed) => {
      packer.once('close', failed); // its reader has gone
      packer.write(chunk, (error) => {
        packer.off('close', failed);
        if (error == null) done();
        else failed(error);
      });
    });
  packer.end();
}
