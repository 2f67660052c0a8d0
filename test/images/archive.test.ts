// Images in files, by skopeo and by ourselves: what one writes the other reads, and what is damaged is
// refused as from a registry.
import { execFileSync, spawnSync } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { chmod, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, type MadeImage, member, TYPES, tar } from './archives.ts';
import { type Place, place, readTree, treeOf } from './place.ts';
import { fakeRegistry } from './registry.ts';

const op = testOperation();
const LOWER = tar(
  { path: 'etc/keep', content: 'keep' },
  { path: 'etc/drop', content: 'x' },
  { path: 'bin/tool', content: 't', mode: 0o4755, uid: 5 },
);
const UPPER = tar({ path: 'etc/.wh.drop' }, { path: 'link', type: 'hardlink', link: 'x' }, { path: 'x', content: 'x' });
const GOOD = tar({ path: 'etc/.wh.drop' }, { path: 'x', content: 'x' }, { path: 'link', type: 'hardlink', link: 'x' });
const MADE = image([LOWER, GOOD], { config: { Cmd: ['tool'], Env: ['A=1'] } });

async function* chunks(bytes: Buffer): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += 10_000) yield bytes.subarray(at, at + 10_000);
}

/** An OCI layout as one archive. */
function layout(made: MadeImage, ref?: string, changes: Readonly<Record<string, Buffer | null>> = {}): Buffer {
  const descriptor = {
    mediaType: TYPES.manifest,
    digest: digestOf(made.manifest),
    size: made.manifest.byteLength,
    ...(ref === undefined ? {} : { annotations: { 'org.opencontainers.image.ref.name': ref } }),
  };
  const files: Record<string, Buffer | null> = {
    'oci-layout': Buffer.from('{"imageLayoutVersion":"1.0.0"}'),
    'index.json': Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [descriptor] })),
    ...Object.fromEntries([...made.blobs.values(), made.manifest].map((bytes) => [`blobs/sha256/${digestOf(bytes).slice(7)}`, bytes])),
    ...changes,
  };
  return tar(...Object.entries(files).flatMap(([path, content]) => (content === null ? [] : [{ path, content }])));
}

async function exported(at: Place, digest: string, names: readonly string[]): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of await at.library.export(op, [{ digest, names }])) parts.push(Buffer.from(chunk));
  return Buffer.concat(parts);
}

function skopeo(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync('skopeo', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`skopeo ${args.join(' ')}: ${stderr}`);
  return stdout;
}

const by = (program: string) => (bytes: Buffer) => execFileSync(program, ['-c'], { input: bytes });
/** Each way in which an archive may be packed, none at all among them. */
const PACKINGS: readonly ((bytes: Buffer) => Buffer)[] = [
  (bytes) => bytes,
  (bytes) => gzipSync(bytes),
  (bytes) => zstdCompressSync(bytes),
  by('xz'),
  by('bzip2'),
];

test('an OCI layout, plain, in gzip and in zstd, is the image that a registry gives', { timeout: 60_000 }, async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  await using pulling = await place();
  const pulled = await pulling.pull(`${registry.name}/web:1`);
  for (const pack of PACKINGS) {
    await using here = await place();
    const {
      images: [imported],
    } = await here.library.import(op, chunks(pack(layout(MADE, 'team/web:1'))));
    expect(imported?.names).toEqual(['team/web:1']);
    expect([imported?.image.record.digest, imported?.image.rootDigest]).toEqual([pulled.record.digest, pulled.rootDigest]);
    expect((await here.left()).staging).toEqual([]);
  }
});

test('what is exported is read by skopeo, as an OCI layout and as docker save writes it, and comes back as the same image', {
  timeout: 60_000,
}, async () => {
  await using here = await place();
  const {
    images: [first],
  } = await here.library.import(op, chunks(layout(MADE)));
  if (first === undefined) throw new Error('nothing was imported');
  const { digest } = first.image.record;
  const archive = await exported(here, digest, ['team/web:1']);
  expect(await exported(here, digest, ['team/web:1'])).toEqual(archive);
  const file = join(here.dir, 'out.tar');
  await writeFile(file, archive);
  expect(JSON.parse(skopeo('inspect', '--config', `oci-archive:${file}`))).toMatchObject({ config: { Cmd: ['tool'], Env: ['A=1'] } });
  expect(skopeo('inspect', '--raw', `oci-archive:${file}`)).toBe(MADE.manifest.toString());
  // By another program, and in its form.
  const saved = join(here.dir, 'saved.tar');
  skopeo('copy', `docker-archive:${file}:docker.io/team/web:1`, `docker-archive:${saved}:docker.io/team/web:2`);
  await using other = await place();
  const {
    images: [again],
  } = await other.library.import(op, createReadStream(file));
  expect([again?.image.record.digest, again?.names]).toEqual([digest, ['team/web:1']]);
  const {
    images: [theirs],
  } = await other.library.import(op, createReadStream(saved));
  expect(theirs?.names).toEqual(['team/web:2']);
  expect(theirs?.image.rootDigest).toBe(first.image.rootDigest);
});

test('of what is for several machines, side by side in an archive, what runs here is taken', async () => {
  await using here = await place();
  const arm = image([LOWER], { top: { architecture: 'arm64' } });
  const listed = (made: MadeImage, os: string, architecture: string) => ({
    mediaType: TYPES.manifest,
    digest: digestOf(made.manifest),
    size: made.manifest.byteLength,
    platform: { os, architecture },
  });
  const archive = (...manifests: object[]) =>
    layout(MADE, undefined, {
      ...Object.fromEntries([...arm.blobs.values(), arm.manifest].map((bytes) => [`blobs/sha256/${digestOf(bytes).slice(7)}`, bytes])),
      'index.json': Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })),
    });
  const many = archive(listed(arm, 'linux', 'arm64'), listed(MADE, 'linux', 'amd64'), listed(arm, 'unknown', 'unknown'));
  const { images } = await here.library.import(op, chunks(many), 'team/web:1');
  expect(images.map(({ image: { record }, names }) => [record.digest, names])).toEqual([[digestOf(MADE.config), ['team/web:1']]]);
  await expect(here.library.import(op, chunks(archive(listed(arm, 'linux', 'arm64'))))).rejects.toMatchObject({
    code: 'failed_precondition',
    message: 'the archive is not there for linux/amd64; it is for linux/arm64',
  });
});

test('docker load is given names with a tag, and containerd whole ones', async () => {
  await using here = await place();
  const [first] = (await here.library.import(op, chunks(layout(MADE)))).images;
  if (first === undefined) throw new Error('nothing was imported');
  const { digest } = first.image.record;
  const archive = await readTree(await exported(here, digest, ['debian', 'web:1', '127.0.0.1:5000/web:2', `web@${digest}`]));
  const said = (path: string) => JSON.parse(archive.get(path)?.content.toString() ?? '');
  expect(said('manifest.json')).toMatchObject([{ RepoTags: ['debian:latest', 'web:1', '127.0.0.1:5000/web:2'] }]);
  const named = said('index.json').manifests.map(({ annotations }: { annotations: Record<string, string> }) => Object.values(annotations));
  expect(named.slice(1, 3)).toEqual([
    ['docker.io/library/web:1', '1'],
    ['127.0.0.1:5000/web:2', '2'],
  ]);
});

test('a name of one’s own is for one image, however many names it has in the archive; of two none is kept', {
  timeout: 60_000,
}, async () => {
  await using here = await place();
  const [first] = (await here.library.import(op, chunks(layout(MADE)))).images;
  if (first === undefined) throw new Error('nothing was imported');
  const several = await exported(here, first.image.record.digest, ['team/web:1', 'team/web:2']);
  const index = { 'manifest.json': null };
  const other = image([LOWER], { config: { Cmd: ['other'] } });
  const both = [MADE, other].map(({ manifest }) => ({
    ...{ mediaType: TYPES.manifest, digest: digestOf(manifest), size: manifest.byteLength },
  }));
  const two = layout(MADE, undefined, {
    ...index,
    'index.json': Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: both })),
    ...Object.fromEntries([...other.blobs.values(), other.manifest].map((bytes) => [`blobs/sha256/${digestOf(bytes).slice(7)}`, bytes])),
  });
  await using there = await place();
  const one = await there.library.import(op, chunks(several), 'mine:1');
  expect(one.images.map(({ image: { record }, names }) => [record.digest, names])).toEqual([[first.image.record.digest, ['mine:1']]]);
  expect((await there.library.import(op, chunks(several))).images.map(({ names }) => names)).toEqual([['team/web:1', 'team/web:2']]);
  await using empty = await place();
  await expect(empty.library.import(op, chunks(two), 'mine:1')).rejects.toMatchObject({
    code: 'failed_precondition',
    message: 'there are 2 images in the archive: one name is too few',
  });
  expect(await empty.left()).toMatchObject({ staging: [], images: [] });
});

test('a bit that flips on the disk, in a layer or in what sandboxes see, is found by verify, and is not exported', async () => {
  await using registry = await fakeRegistry();
  registry.put('web', '1', MADE);
  await using here = await place();
  const { library } = here;
  const name = `${registry.name}/web:1`;
  const {
    path,
    record: { digest },
  } = await here.pull(name);
  const [layer] = (await library.layers(op, digest)).map((one) => library.blobs.path(one.digest));
  if (layer === undefined) throw new Error('no layer is kept');

  await flipBit(layer);
  await expect(library.verify(op, digest)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/^the layer sha256:\w+ has changed on disk$/),
    hint: expect.stringContaining(layer),
  });
  const refused = { code: 'failed_precondition', message: expect.stringContaining(`${layer} has changed on disk`) };
  await expect(exported(here, digest, [])).rejects.toMatchObject(refused);
  await flipBit(layer);
  expect(await library.verify(op, digest)).toBe(3);

  await flipBit(path);
  const damaged = { code: 'failed_precondition', message: expect.stringContaining('rootfs.squashfs has changed') };
  await expect(library.verify(op, digest)).rejects.toMatchObject(damaged);
  await rm(dirname(path), { recursive: true }); // as its hint says
  await here.pull(name);
  expect(await library.verify(op, digest)).toBe(3);
  expect((await here.left()).staging).toEqual([]);
});

async function flipBit(path: string): Promise<void> {
  const bytes = await readFile(path);
  const at = bytes.byteLength >> 1;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  await chmod(path, 0o600);
  await writeFile(path, bytes);
}

test('an image whose layers are not kept is exported as one layer', async () => {
  await using here = await place();
  const {
    images: [first],
  } = await here.library.import(op, chunks(layout(MADE)));
  if (first === undefined) throw new Error('nothing was imported');
  await here.library.dropLayers(op, new Set(), true);
  await using other = await place();
  const {
    images: [again],
  } = await other.library.import(op, chunks(await exported(here, first.image.record.digest, [])));
  if (again === undefined) throw new Error('nothing was imported');
  expect(again.image.source).toMatchObject({ layers: [expect.anything()] });
  expect(again.image.record.config).toEqual(first.image.record.config);
  const [one, two] = [await treeOf(first.image), await treeOf(again.image)];
  expect(Object.fromEntries([...two].filter(([path]) => path !== ''))).toEqual(
    Object.fromEntries([...one].filter(([path]) => path !== '')),
  );
  expect((await here.left()).staging).toEqual([]);
});

test('a root file system is an image of one layer, whichever way it is packed', async () => {
  for (const pack of PACKINGS) {
    await using here = await place();
    const {
      images: [imported],
    } = await here.library.import(op, chunks(pack(LOWER)));
    if (imported === undefined) throw new Error('nothing was imported');
    expect(imported.names).toEqual([]);
    const tree = await treeOf(imported.image);
    expect(tree.get('bin/tool')).toMatchObject({ mode: 0o4755, uid: 5 });
    await here.library.verify(op, imported.image.record.digest);
  }
});

test('an archive in xz that is damaged, or unpacks into too much, is refused, and leaves nothing', async () => {
  await using here = await place({ limits: { layerBytesMax: 4 * 1024 ** 2 } });
  const packed = (bytes: Buffer) => execFileSync('xz', ['-c'], { input: bytes });
  const whole = packed(LOWER);
  await expect(here.library.import(op, chunks(whole.subarray(0, whole.length - 8)))).rejects.toThrow(/damaged: xz: .*[Uu]nexpected end/);
  await expect(here.library.import(op, chunks(packed(Buffer.alloc(8 * 1024 ** 2))))).rejects.toThrow(/more than there is room for/);
  expect((await here.left()).staging).toEqual([]);
});

test('an archive that lies is refused, and leaves nothing in staging', { timeout: 60_000 }, async () => {
  await using here = await place({ limits: { contentBytesMax: 1024 * 1024, layerBytesMax: 4 * 1024 * 1024 } });
  const layerName = `blobs/sha256/${[...MADE.blobs.keys()].at(-1)?.slice(7)}`;
  const saved = (value: unknown) => tar({ path: 'manifest.json', content: JSON.stringify(value) }, { path: 'a.json', content: '{}' });
  const cases: [archive: Buffer, error: RegExp][] = [
    [Buffer.from('nothing of the kind'.repeat(100)), /no tar archive/],
    [Buffer.from('six so'), /no tar archive, or one that is cut off after 6 bytes/],
    [Buffer.alloc(0), /nothing in it/],
    [Buffer.from('514649fb00000003', 'hex'), /qcow2 image that is cut off/],
    [layout(MADE).subarray(0, 2_000), /cut off|not in it|no JSON/],
    [layout(MADE, undefined, { [layerName]: null }), /is not in it/],
    [layout(MADE, undefined, { [layerName]: Buffer.from('other') }), /not what its name says/],
    [layout(MADE, undefined, { 'index.json': Buffer.from('{') }), /no JSON/],
    [layout(MADE, undefined, { 'index.json': Buffer.from('{"schemaVersion":2,"manifests":[]}') }), /no image in it/],
    [layout(MADE, undefined, { 'index.json': MADE.manifest }), /no index/],
    [layout(image([UPPER])), /which is not there/],
    [layout(image([tar({ path: 'bomb', content: Buffer.alloc(2 * 1024 * 1024) })])), /more than 1048576 bytes/],
    [tar({ path: 'big', content: Buffer.alloc(5 * 1024 * 1024) }), /more than 1048576 bytes/],
    [gzipSync(tar({ path: 'big', content: Buffer.alloc(5 * 1024 * 1024) })), /more than 4194304 bytes/],
    [tar({ path: 'first', content: Buffer.alloc(3 * 1024 * 1024) }).subarray(0, 2_500_000), /cut off/],
    // Of docker save: its configuration says what a layer is.
    [
      tar(
        { path: 'manifest.json', content: JSON.stringify([{ Config: `${'a'.repeat(64)}.json`, Layers: [`${'b'.repeat(64)}/layer.tar`] }]) },
        {
          path: `${'a'.repeat(64)}.json`,
          content: JSON.stringify({ architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [digestOf(UPPER)] } }),
        },
        { path: `${'b'.repeat(64)}/layer.tar`, content: LOWER },
      ),
      /layer 'b+\/layer\.tar' is not what 'a+\.json' says: its content is sha256:/,
    ],
    [saved([]), /not as docker save writes it/],
    [saved([{ Config: 'a.json', Layers: 5 }]), /not as docker save writes it/],
    [saved([{ Config: '../../etc/passwd', RepoTags: null, Layers: [] }]), /'\.\.\/\.\.\/etc\/passwd' is not in it/],
    [
      Buffer.concat([
        member({ path: `${'a'.repeat(64)}/layer.tar`, type: 'symlink', link: '../../../etc/passwd' }),
        saved([{ Config: `${'a'.repeat(64)}/layer.tar`, Layers: [] }]),
      ]),
      /is not in it/,
    ],
  ];
  for (const [archive, expected] of cases) {
    const outcome = await here.library.import(op, chunks(archive)).then(
      (images) => images,
      (error: unknown) => error,
    );
    expect(outcome, String(expected)).toMatchObject({ code: 'failed_precondition', message: expect.stringMatching(expected) });
    expect((await here.left()).staging).toEqual([]);
  }
  expect(await readFile('/etc/passwd', 'utf8')).toContain('root:');
});
