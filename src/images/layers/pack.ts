// One layer, read once: what it says goes to whoever asks, and the content of its files to tar2sqfs, under no name
// but the number of its entry. No file of an image is ever made on this machine but the packed result.
// The same layer gives the same bytes.
import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { hashed } from '../../domain/hashed.ts';
import { padding, type TarEntry } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { TarReader } from '../../domain/tar/reader.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { gathered } from '../chunks.ts';
import { PACK_OPTIONS } from '../pack.ts';
import type { PackedLayer } from '../squashfs/format.ts';
import { readPacked } from '../squashfs/read.ts';

/** A layer, unpacked, from its beginning. */
export type LayerSource = AsyncIterable<Uint8Array>;

/** So many entries are looked at before others get their turn. */
const ENTRIES_PER_TURN = 2_000;
/** A directory of tar2sqfs's is a list. */
const FILES_PER_DIRECTORY = 1_024;
const OUTPUT_BYTES_MAX = 1024 * 1024;

export type LayerRead = {
  readonly packed: PackedLayer;
  /** `sha256:…` of the whole of it, unpacked. */
  readonly diffId: string;
  /** All that it says, in order. */
  readonly entries: readonly TarEntry[];
};

/** What a disk that is full may still have. */
const FULL_BYTES = 1024 * 1024;

/** What tar2sqfs could not do. */
export class PackFailed extends Error {
  readonly isDiskFull: boolean;
  constructor(said: string, isDiskFull: boolean) {
    super(said);
    this.isDiskFull = isDiskFull;
  }
}

/**
 * `onEntry` is told of each entry before its content is read, and may throw. `known`: the layer's digest, unpacked, where somebody else
 * makes sure of it.
 */
export async function packLayer(
  op: Operation,
  host: Host,
  onEntry: (ordinal: number, entry: TarEntry) => void,
  source: LayerSource,
  out: string,
  known: string | null = null,
): Promise<LayerRead> {
  const hash = createHash('sha256');
  const entries: TarEntry[] = [];
  const given = { bytes: 0 };
  const contents = counted(gathered(contentsOf(onEntry, known === null ? hashed(source, hash) : source, entries), 'in-place'), given);
  const { exitCode, stderr } = await host.run(op, ['tar2sqfs', ...PACK_OPTIONS, '--no-xattr', out], {
    input: contents,
    outputBytesMax: OUTPUT_BYTES_MAX,
  });
  if (exitCode !== 0) {
    // It says "I/O error" of a full disk too, and takes away what it wrote: what is free now was less, by no more than it was given.
    const { freeBytes } = await host.fileSystem(op, dirname(out));
    const said = new TextDecoder().decode(stderr);
    throw new PackFailed(said, freeBytes < FULL_BYTES + (/I\/O error/.test(said) ? given.bytes : 0));
  }
  return { packed: await readPacked(op, host, out), diffId: known ?? `sha256:${hash.digest('hex')}`, entries };
}

async function* counted(chunks: AsyncIterable<Uint8Array>, given: { bytes: number }): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    given.bytes += chunk.byteLength;
    yield chunk;
  }
}

async function* contentsOf(
  onEntry: (ordinal: number, entry: TarEntry) => void,
  source: LayerSource,
  entries: TarEntry[],
): AsyncGenerator<Uint8Array> {
  await using reader = new TarReader(source);
  for (let ordinal = 0; ; ordinal += 1) {
    const entry = await reader.next();
    if (entry === null) break;
    onEntry(ordinal, entry);
    entries.push(entry);
    if (ordinal % ENTRIES_PER_TURN === 0) await turn();
    if (entry.type !== 'file' || entry.sizeBytes === 0) continue;
    yield tarHeader(numbered(ordinal, entry.sizeBytes));
    yield* reader.content();
    yield ZEROS.subarray(0, padding(entry.sizeBytes));
  }
  await reader.drain();
  yield TAR_END;
}

const ZEROS = Buffer.alloc(512);

/** What is asked back of the packed layer is which entry a file was: its time says it. */
function numbered(ordinal: number, sizeBytes: number) {
  return {
    type: 'file',
    path: `${Math.floor(ordinal / FILES_PER_DIRECTORY)}/${ordinal}`,
    link: '',
    mode: 0o600,
    uid: 0,
    gid: 0,
    mtimeSeconds: ordinal,
    sizeBytes,
    devMajor: 0,
    devMinor: 0,
    xattrs: null,
  } as const;
}
