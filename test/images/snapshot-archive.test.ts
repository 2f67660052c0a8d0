// The file of a snapshot, as hostile as it can be made: it is taken up whole, or refused with one sentence, and no part of it is
// written to a place that it names.
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ArchiveError } from '../../src/domain/archive-error.ts';
import { through } from '../../src/images/layers/unpack.ts';
import { blobPath, header } from '../../src/images/oci/layout-tar.ts';
import { archiveBytes, readArchive, writeArchive } from '../../src/images/snapshot/archive.ts';
import { artifactOf, type SnapshotConfig } from '../../src/images/snapshot/artifact.ts';
import { packPieces, unpackPieces } from '../../src/images/snapshot/pieces.ts';
import { packedWithZstd } from '../../src/images/zstd.ts';

const PAGE = 4096;
const DIGEST = `sha256:${'a'.repeat(64)}`;
/** The last two are the same. */
const FILES = [Buffer.from('state of the devices'), Buffer.alloc(5 * PAGE, 7), Buffer.alloc(PAGE, 9), Buffer.alloc(PAGE, 9)];
const CONFIG: SnapshotConfig = {
  version: 1,
  name: 'ready',
  backend: 'qemu',
  contents: 'memory and disk',
  createdAtMs: 1,
  image: { digest: DIGEST, names: ['debian'], travels: true },
  kernel: { digest: DIGEST, version: '6.1' },
  made: { name: 'web' },
  secretNames: [],
  machine: {},
  parts: ['state', 'memory/base', 'memory/1', 'memory/2'].map((name, at) => {
    const bytes = FILES[at]?.byteLength ?? 0;
    return { name, bytes, dataBytes: bytes };
  }),
};

async function* of(...chunks: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* chunks;
}

async function all(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const found: Uint8Array[] = [];
  for await (const chunk of chunks) found.push(Buffer.from(chunk));
  return Buffer.concat(found);
}

type Part = { digest: string; sizeBytes: number; open: () => AsyncIterable<Uint8Array> };

async function partOf(wire: Buffer): Promise<Part> {
  const digest = `sha256:${createHash('sha256').update(wire).digest('hex')}`;
  return { digest, sizeBytes: wire.byteLength, open: () => of(wire) };
}

async function partsOf(files: readonly Buffer[]): Promise<Part[]> {
  return await Promise.all(
    files.map(async (file) =>
      partOf(
        await all(
          packedWithZstd(
            packPieces(file.byteLength, [[0, file.byteLength]], async (offset, length) => file.subarray(offset, offset + length)),
          ),
        ),
      ),
    ),
  );
}

async function archiveOf(config: SnapshotConfig = CONFIG, parts?: readonly Part[]): Promise<Buffer> {
  const own = parts ?? (await partsOf(FILES));
  return await all(writeArchive(artifactOf(config, own), own));
}

/** What was taken up, by the number of the part. */
async function taken(bytes: Buffer, step = 65_536): Promise<{ config: SnapshotConfig; files: Map<number, Buffer> }> {
  const files = new Map<number, Buffer>();
  const source = (async function* () {
    for (let at = 0; at < bytes.byteLength; at += step) yield bytes.subarray(at, at + step);
  })();
  const config = await readArchive<SnapshotConfig>(source, {
    begin: async (said) => said,
    wants: () => true,
    async part(said, at, packed, also) {
      const part = said.parts[at];
      if (part === undefined) throw new Error('there is no such part');
      const file = Buffer.alloc(part.bytes);
      const bounds = { sizeBytes: part.bytes, dataBytes: part.dataBytes };
      for await (const piece of unpackPieces(through(packed, 'zstd'), bounds)) file.set(piece.bytes, piece.offset);
      for (const number of [at, ...also]) files.set(number, file);
    },
  });
  return { config, files };
}

const good = await archiveOf();

function isRight({ config, files }: Awaited<ReturnType<typeof taken>>): boolean {
  return JSON.stringify(config) === JSON.stringify(CONFIG) && FILES.every((file, at) => files.get(at)?.equals(file));
}

test('what is written is taken up, is as long as it is said to be, and is the same each time', async () => {
  const parts = await partsOf(FILES);
  expect(archiveBytes(artifactOf(CONFIG, parts), parts)).toBe(good.byteLength);
  expect((await archiveOf()).equals(good)).toBe(true);
  for (const step of [1, 511, 512, 65_536]) expect(isRight(await taken(good, step)), `in steps of ${step}`).toBe(true);
});

test('cut off anywhere, it is refused with one sentence', async () => {
  // Each boundary of a block, and what lies on both sides of it.
  for (let at = 0; at < good.byteLength; at += 512)
    for (const length of [at, at + 1, at + 511]) {
      const error: unknown = await taken(good.subarray(0, Math.min(length, good.byteLength - 1))).catch((cause: unknown) => cause);
      expect(error, `cut after ${length} bytes`).toBeInstanceOf(ArchiveError);
      expect((error as Error).message.length).toBeLessThan(300);
    }
});

test('with any bit flipped it is refused, or nothing of it is another', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 0, max: good.byteLength * 8 - 1 }), async (bit) => {
      const bytes = Buffer.from(good);
      const at = Math.floor(bit / 8);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit % 8));
      const outcome = await taken(bytes).catch((cause: unknown) => cause);
      if (outcome instanceof Error) expect(outcome).toBeInstanceOf(ArchiveError);
      else expect(isRight(outcome as Awaited<ReturnType<typeof taken>>)).toBe(true);
    }),
    { numRuns: 400 },
  );
});

type Case = readonly [what: string, bytes: () => Promise<Buffer>, why: RegExp];

const text = (value: unknown): string => JSON.stringify(value);
const said = (change: object): SnapshotConfig => ({ ...CONFIG, ...change }) as SnapshotConfig;

/** A manifest and a description that say whatever they like, with digests that are right. */
async function lying(
  manifest: (json: Record<string, unknown>) => void,
  config: (json: Record<string, unknown>) => void = () => {},
): Promise<Buffer> {
  const parts = await partsOf(FILES);
  const { manifest: own, config: ownConfig, type } = artifactOf(CONFIG, parts);
  const description = JSON.parse(ownConfig.toString()) as Record<string, unknown>;
  config(description);
  const configBytes = Buffer.from(text(description));
  const json = JSON.parse(own.toString()) as Record<string, unknown>;
  const digest = `sha256:${createHash('sha256').update(configBytes).digest('hex')}`;
  json['config'] = { ...(json['config'] as object), digest, size: configBytes.byteLength };
  manifest(json);
  const bytes = Buffer.from(text(json));
  const manifestDigest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
  return await all(writeArchive({ manifest: bytes, config: configBytes, configDigest: digest, manifestDigest, type }, parts));
}

function entry(path: string, content: Buffer): Buffer {
  return Buffer.concat([header(path, content.byteLength), content, Buffer.alloc((512 - (content.byteLength % 512)) % 512)]);
}

/** In place of the first part. */
async function withPart(wire: Buffer): Promise<Buffer> {
  const [, ...rest] = await partsOf(FILES);
  return await archiveOf(CONFIG, [await partOf(wire), ...rest]);
}

const zstd = async (bytes: Buffer): Promise<Buffer> => await all(packedWithZstd(of(bytes)));
const END = Buffer.alloc(1024);

const CASES: readonly Case[] = [
  ['nothing', async () => Buffer.alloc(0), /cut off/],
  ['zeros', async () => Buffer.alloc(10_240), /cut off/],
  ['text', async () => Buffer.from('hello'.repeat(500)), /no tar archive/],
  ['an archive of something else', async () => Buffer.concat([entry('etc/passwd', Buffer.from('root')), END]), /no archive of a snapshot/],
  ['a path that leads out', async () => Buffer.concat([entry('../../etc/passwd', Buffer.from('root')), END]), /no archive of a snapshot/],
  ['an absolute path', async () => Buffer.concat([entry('/etc/passwd', Buffer.from('root')), END]), /no archive of a snapshot/],
  [
    'a layout of another version',
    async () => Buffer.concat([entry('oci-layout', Buffer.from('{"imageLayoutVersion":"2.0.0"}')), END]),
    /another version/,
  ],
  ['something after it', async () => Buffer.concat([good, Buffer.from('x')]), /after its end/],
  ['an entry after its last', async () => Buffer.concat([good.subarray(0, -1024), entry('more', Buffer.from('x')), END]), /something else/],
  ['no end', async () => good.subarray(0, -1024), /cut off/],
  ['half an end', async () => good.subarray(0, -512), /cut off/],
  ['a manifest of another kind', () => lying((json) => (json['artifactType'] = 'application/vnd.example')), /no snapshot, but/],
  ['no kind', () => lying((json) => delete json['artifactType']), /no snapshot/],
  ['a later version', () => lying((json) => (json['artifactType'] = 'application/vnd.hutch.snapshot.v3+json')), /of version 3/],
  [
    'a version 2 that brings nothing',
    () =>
      lying(
        () => {},
        (json) => (json['version'] = 2),
      ),
    /does not say what it brings/,
  ],
  [
    'a version 1 that brings something',
    () =>
      lying(
        () => {},
        (json) => (json['brings'] = { rootfs: null, archive: null }),
      ),
    /does not say what it brings/,
  ],
  [
    'an image whose command is no list',
    () =>
      lying(
        () => {},
        (json) => Object.assign(json, { version: 2, brings: { rootfs: { config: { command: 1 }, createdAtMs: 0 }, archive: null } }),
      ),
    /description is damaged: 'brings/,
  ],
  [
    'a later description',
    () =>
      lying(
        () => {},
        (json) => (json['version'] = 7),
      ),
    /of version 7/,
  ],
  ['fewer parts in the manifest', () => lying((json) => (json['layers'] as unknown[]).pop()), /4, and|3 parts/],
  [
    'more parts than there may be',
    () => lying((json) => (json['layers'] = Array(300).fill((json['layers'] as unknown[])[0]))),
    /manifest is damaged/,
  ],
  [
    'a part with a negative length',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { bytes: -1 }),
      ),
    /parts\.0\.bytes/,
  ],
  [
    'a part with an immense length',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { bytes: 2 ** 60 }),
      ),
    /parts\.0\.bytes/,
  ],
  [
    'a part with half a byte',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { bytes: 0.5 }),
      ),
    /parts\.0\.bytes/,
  ],
  [
    'a part called like a path',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { name: '../../etc/passwd' }),
      ),
    /parts\.0\.name/,
  ],
  [
    'a part called like a control character',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { name: 'a\u001b[2J' }),
      ),
    /parts\.0\.name/,
  ],
  [
    'two parts of one name',
    () =>
      lying(
        () => {},
        (json) => Object.assign((json['parts'] as object[])[0] ?? {}, { name: 'memory/1' }),
      ),
    /two parts have one name/,
  ],
  [
    'a description with more in it',
    () =>
      lying(
        () => {},
        (json) => (json['path'] = '/etc'),
      ),
    /description is damaged/,
  ],
  [
    'a backend that nobody knows',
    () =>
      lying(
        () => {},
        (json) => (json['backend'] = 'other'),
      ),
    /backend/,
  ],
  [
    'a digest that is none',
    () =>
      lying(
        () => {},
        (json) => (json['image'] = { digest: 'sha256:0', names: [] }),
      ),
    /image\.digest/,
  ],
  [
    'a part whose length the manifest has wrong',
    () => lying((json) => Object.assign((json['layers'] as object[])[0] ?? {}, { size: 5 })),
    /its manifest says 5/,
  ],
  [
    'a part whose digest the manifest has wrong',
    () => lying((json) => Object.assign((json['layers'] as object[])[0] ?? {}, { digest: DIGEST })),
    /where/,
  ],
  ['parts that are not packed', () => withPart(Buffer.from('plain')), /does not unpack/],
  ['a part with nothing in it', async () => withPart(await zstd(Buffer.alloc(0))), /does not begin/],
  ['a part of zeros that are far too many', async () => withPart(await zstd(Buffer.alloc(64 * 1024 * 1024))), /does not begin/],
  [
    'a part that goes on for ever behind its end',
    async () => {
      const wire: Buffer[] = [];
      const [file = Buffer.alloc(0)] = FILES;
      for await (const chunk of packPieces(file.byteLength, [[0, file.byteLength]], async () => file)) wire.push(Buffer.from(chunk));
      return withPart(await zstd(Buffer.concat([...wire, Buffer.alloc(64 * 1024 * 1024)])));
    },
    /after its end/,
  ],
  [
    'a part that is longer than is said',
    async () => archiveOf(said({ parts: CONFIG.parts.map((part) => ({ ...part, bytes: PAGE, dataBytes: PAGE })) })),
    /does not begin/,
  ],
  [
    'an index with two snapshots',
    async () => {
      const parts = await partsOf(FILES);
      const { manifestDigest, manifest } = artifactOf(CONFIG, parts);
      const one = { digest: manifestDigest, size: manifest.byteLength };
      return Buffer.concat([
        entry('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')),
        entry('index.json', Buffer.from(text({ schemaVersion: 2, manifests: [one, one] }))),
        END,
      ]);
    },
    /more than one/,
  ],
  [
    'an index that is no JSON',
    async () =>
      Buffer.concat([entry('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')), entry('index.json', Buffer.from('{')), END]),
    /no JSON/,
  ],
  [
    'an immense index',
    async () => Buffer.concat([entry('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')), header('index.json', 2 ** 33)]),
    /at most/,
  ],
  [
    'a manifest that names itself',
    async () =>
      Buffer.concat([
        entry('oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')),
        entry('index.json', Buffer.from(text({ schemaVersion: 2, manifests: [{ digest: DIGEST, size: 2 }] }))),
        entry(blobPath(DIGEST), Buffer.from('{}')),
        END,
      ]),
    /has another digest/,
  ],
];

test('each of the hostile files is refused with one sentence that says what it is', async () => {
  for (const [what, bytes, why] of CASES) {
    const error: unknown = await taken(await bytes()).catch((cause: unknown) => cause);
    expect(error, what).toBeInstanceOf(ArchiveError);
    expect((error as Error).message, what).toMatch(why);
    expect((error as Error).message, what).not.toMatch(/[\u0000-\u001f]/);
  }
});
