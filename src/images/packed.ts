// A layer as a registry is sent it: compressed with gzip, which every client takes. What came of it is remembered beside the layer, so
// that one that the registry has is not compressed again to find that out.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { constants, createGzip } from 'node:zlib';
import * as z from 'zod';
import { hashed } from '../domain/hashed.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { TAR_TYPE } from './archive-parts.ts';
import type { Blobs } from './blobs.ts';

/** Measured on a root file system of Debian: the default, 6, takes 1.8 times as long for 3 % less. */
const LEVEL = 4;
const MEMORY_BYTES_MAX = 4096;
/** Another one may give other bytes, and so another digest. */
const PACKER = `gzip ${LEVEL}, zlib ${process.versions.zlib}`;

const remembered = z.object({
  packer: z.literal(PACKER),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  sizeBytes: z.int().positive(),
});

type Plain = { readonly digest: string; readonly sizeBytes: number; readonly path: string };
export type Layer = {
  readonly digest: string;
  readonly sizeBytes: number;
  readonly mediaType: string;
  /** Its bytes from there on. */
  readonly open: (op: Operation, offset: number) => AsyncIterable<Uint8Array>;
};

/**
 * A layer of the store's that is a bare tar archive, compressed in `staging` at the latest when it is opened.
 * @throws HutchError `failed_precondition` where it is not what its digest says, `resource_exhausted` where the disk is full.
 */
export async function packedLayer(op: Operation, host: Host, blobs: Blobs, plain: Plain, staging: string): Promise<Layer> {
  const memory = blobs.packedPath(plain.digest);
  const known = await recall(op, host, memory);
  let packed: Promise<Layer> | null = null;
  const pack = (): Promise<Layer> => {
    packed ??= packLayer(op, host, plain, staging);
    return packed;
  };
  if (known !== null) {
    return {
      ...{ digest: known.digest, sizeBytes: known.sizeBytes, mediaType: `${TAR_TYPE}+gzip` },
      async *open(opening, offset) {
        yield* (await pack()).open(opening, offset);
      },
    };
  }
  const { digest, sizeBytes } = await pack();
  const written = join(staging, 'packed.json');
  await host.remove(op, written);
  await host.appendFile(op, written, Buffer.from(JSON.stringify({ packer: PACKER, digest, sizeBytes })));
  await host.rename(op, written, memory);
  return await pack();
}

/** Into `staging`, under the digest that it has as it is. */
export async function packLayer(op: Operation, host: Host, { digest, sizeBytes, path }: Plain, staging: string): Promise<Layer> {
  const file = join(staging, `${digest.slice(7)}.gz`);
  const plain = createHash('sha256');
  const packed = createHash('sha256');
  let done = 0;
  const read = async function* (): AsyncGenerator<Uint8Array> {
    for await (const chunk of hashed(host.readStream(op, path), plain)) {
      done += chunk.byteLength;
      op.progress({ step: 'push', detail: `compressing ${digest.slice(7, 19)}`, done, total: sizeBytes, unit: 'bytes' });
      yield chunk;
    }
  };
  await host.makeDir(op, staging, 0o700);
  await host.remove(op, file);
  const gzip = createGzip({ level: LEVEL, memLevel: constants.Z_MAX_MEMLEVEL, chunkSize: 256 * 1024 });
  await pipeline(read, gzip, async (chunks) => await host.appendStream(op, file, hashed(chunks as AsyncIterable<Uint8Array>, packed)), {
    signal: op.signal,
  });
  if (`sha256:${plain.digest('hex')}` !== digest) {
    throw op.error('failed_precondition', `the layer ${digest} cannot be pushed: it has changed on disk`, {
      hint: 'hutch image verify names what else has',
    });
  }
  const made = { digest: `sha256:${packed.digest('hex')}`, sizeBytes: (await host.stat(op, file))?.sizeBytes ?? 0 };
  return { ...made, mediaType: `${TAR_TYPE}+gzip`, open: (opening, offset) => host.readStream(opening, file, offset) };
}

async function recall(op: Operation, host: Host, path: string): Promise<z.infer<typeof remembered> | null> {
  if ((await host.stat(op, path)) === null) return null;
  const text = Buffer.from(await host.readFile(op, path, MEMORY_BYTES_MAX)).toString();
  try {
    return remembered.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null; // cut off by a loss of power: it is made anew
  }
}
