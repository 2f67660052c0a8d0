// Archives with layers that are large enough to have a file of their own while they come: what comes out is what comes out of
// the same archive when it is packed, where nothing can be looked at on its way.
import { randomBytes } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, type MadeImage, tar } from './archives.ts';
import { type Place, place, treeOf } from './place.ts';

const op = testOperation();
const MIB = 1024 * 1024;
const LOWER = tar(
  { path: 'srv/', type: 'directory' },
  { path: 'srv/lower', content: randomBytes(1.5 * MIB), uid: 7 },
  { path: 'keep', content: 'k' },
);
const UPPER = tar(
  { path: 'srv/.wh.lower' },
  { path: 'upper', content: randomBytes(2 * MIB) },
  { path: 'link', type: 'hardlink', link: 'keep' },
);
const UPPER_ALONE = tar({ path: 'upper', content: randomBytes(MIB) });
const HALVES = tar({ path: 'a', content: randomBytes(MIB) }, { path: 'b', content: randomBytes(MIB) });

async function* chunks(bytes: Buffer, size = 64 * 1024): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield Buffer.from(bytes.subarray(at, at + size));
}

const hex = (digest: string) => digest.slice(7);

/** Of a layer: `docker save` has a number that says nothing, or its digest, and skopeo its digest. */
const NAMES = {
  older: (layer: Buffer) => `${hex(digestOf(Buffer.from(digestOf(layer))))}/layer.tar`,
  newer: (layer: Buffer) => `blobs/sha256/${hex(digestOf(layer))}`,
  skopeo: (layer: Buffer) => `${hex(digestOf(layer))}.tar`,
};

/** As `docker save` writes it; `changed`: what stands in place of a layer. */
function saved(
  made: MadeImage,
  layers: readonly Buffer[],
  changed: ReadonlyMap<Buffer, Buffer> = new Map(),
  nameOf: (layer: Buffer) => string = NAMES.older,
): Buffer {
  const [digest, bytes] = [digestOf(made.config), made.config];
  return tar(
    ...layers.map((layer) => ({ path: nameOf(layer), content: changed.get(layer) ?? layer })),
    { path: `${hex(digest)}.json`, content: bytes },
    {
      path: 'manifest.json',
      content: JSON.stringify([{ Config: `${hex(digest)}.json`, RepoTags: ['large:1'], Layers: layers.map(nameOf) }]),
    },
  );
}

/** Content by its digest: megabytes are compared slowly. */
async function summaryOf(one: Parameters<typeof treeOf>[0]) {
  return [...(await treeOf(one))].map(([path, { content, ...said }]) => [path, said, digestOf(content)]);
}

async function imported(here: Place, archive: Buffer, size?: number) {
  const {
    images: [one],
  } = await here.library.import(op, chunks(archive, size));
  if (one === undefined) throw new Error('there was no image in it');
  return one.image;
}

test('large layers are the same image however they come, and are kept as they are', { timeout: 60_000 }, async () => {
  const layers = [LOWER, UPPER, HALVES];
  await using packed = await place();
  const expected = await imported(packed, gzipSync(saved(image(layers), layers), { level: 1 }));
  const kept = (await packed.left()).blobs;
  const tree = await summaryOf(expected);
  for (const [size, nameOf] of [
    [10_000, NAMES.older],
    [3 * MIB, NAMES.newer],
    [64 * 1024, NAMES.skopeo],
  ] as const) {
    await using here = await place();
    const one = await imported(here, saved(image(layers), layers, new Map(), nameOf), size);
    expect([one.record.digest, one.rootDigest]).toEqual([expected.record.digest, expected.rootDigest]);
    expect(await here.left()).toEqual({ staging: [], images: [hex(one.record.digest)], blobs: kept });
    // Another image with layers of this one, and one that is new.
    const others = [LOWER, UPPER, tar({ path: 'new', content: randomBytes(MIB) })];
    await imported(here, saved(image(others), others, new Map(), nameOf), size);
    expect(await summaryOf(one)).toEqual(tree);
  }
});

test('a layer that is hashed and copied by another thread is the same too, and what lies of it is refused', {
  timeout: 60_000,
}, async () => {
  const large = tar({ path: 'large', content: randomBytes(9 * MIB) }, { path: 'small', content: 's' });
  const layers = [UPPER_ALONE, large];
  const archive = saved(image(layers), layers);
  await using packed = await place();
  const expected = await imported(packed, gzipSync(archive, { level: 1 }));
  await using here = await place();
  const one = await imported(here, archive, MIB + 3);
  expect([one.record.digest, one.rootDigest]).toEqual([expected.record.digest, expected.rootDigest]);
  expect(await here.left()).toEqual({ ...(await packed.left()), staging: [] });
  await using other = await place();
  const changed = Buffer.from(large);
  changed[changed.byteLength / 2] = (changed[changed.byteLength / 2] ?? 0) ^ 1;
  await expect(imported(other, saved(image(layers), layers, new Map([[large, changed]])))).rejects.toThrow(/its content is sha256:/);
  await expect(imported(other, archive.subarray(0, UPPER_ALONE.byteLength + 5 * MIB))).rejects.toThrow(/cut off/);
  expect(await other.left()).toMatchObject({ staging: [], images: [] });
});

test('an archive with large layers that lies or ends is refused as any other, and leaves nothing', { timeout: 60_000 }, async () => {
  await using here = await place({ limits: { contentBytesMax: 4 * MIB } });
  const layers = [LOWER, UPPER];
  const good = saved(image(layers), layers);
  const bomb = tar({ path: 'bomb', content: Buffer.alloc(5 * MIB) });
  const nowhere = tar({ path: 'noise', content: randomBytes(MIB) }, { path: 'link', type: 'hardlink', link: 'nowhere' });
  const cases: [archive: Buffer, error: RegExp][] = [
    [good.subarray(0, 700_000), /cut off/],
    [good.subarray(0, LOWER.byteLength + 900_000), /cut off/],
    [saved(image(layers), layers, new Map([[LOWER, HALVES]])), /layer\.tar' is not what 'large:1' says: its content is sha256:/],
    [
      saved(image([LOWER, nowhere]), [LOWER, nowhere]),
      /layer 2 of 2 of large:1 cannot be used: .*hard link to 'nowhere', which is not there/,
    ],
    [saved(image([LOWER, bomb]), [LOWER, bomb]), /files have more than 4194304 bytes/],
    [saved(image([LOWER, LOWER.subarray(0, MIB + 5)]), [LOWER, LOWER.subarray(0, MIB + 5)]), /cut off/],
    [saved(image([LOWER, randomBytes(2 * MIB)]), [LOWER]), /has 1 layers, and its configuration 2/],
  ];
  for (const [archive, error] of cases) {
    await expect(imported(here, archive)).rejects.toThrow(error);
    expect(await here.left()).toMatchObject({ staging: [], images: [] });
  }
});

test('a root file system in which something is called as in an archive of images is one all the same', { timeout: 60_000 }, async () => {
  await using here = await place();
  const root = tar(
    { path: 'first', content: 'first' },
    { path: `blobs/sha256/${'a'.repeat(64)}`, content: randomBytes(MIB + 7) },
    { path: `${'b'.repeat(64)}/layer.tar`, content: HALVES },
    { path: 'last', content: 'last' },
  );
  const one = await imported(here, root, 100_000);
  expect(
    [...(await treeOf(one))].filter(([, { type }]) => type === 'file').map(([path, { content }]) => [path, digestOf(content)]),
  ).toEqual(
    [
      [`blobs/sha256/${'a'.repeat(64)}`, digestOf(root.subarray(1536, 1536 + MIB + 7))],
      [`${'b'.repeat(64)}/layer.tar`, digestOf(HALVES)],
      ['first', digestOf(Buffer.from('first'))],
      ['last', digestOf(Buffer.from('last'))],
    ].toSorted(),
  );
  expect(await here.left()).toMatchObject({ staging: [], blobs: [hex(digestOf(root))] });
});

test('an import that ends early leaves nothing, whatever was being packed', { timeout: 60_000 }, async () => {
  await using here = await place();
  const layers = [LOWER, HALVES, UPPER];
  const archive = saved(image(layers), layers);
  async function* broken(): AsyncGenerator<Uint8Array> {
    yield* chunks(archive.subarray(0, LOWER.byteLength + HALVES.byteLength + 2_000));
    throw new Error('the sender is gone');
  }
  await expect(here.library.import(op, broken())).rejects.toThrow(/the sender is gone/);
  expect(await here.left()).toEqual({ staging: [], images: [], blobs: [] });
});
