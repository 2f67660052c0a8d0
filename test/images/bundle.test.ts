// Images and kernels in one archive, for a machine that has no network: what comes out is what went in, by digest; what
// lies is refused.
import { spawnSync } from 'node:child_process';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type PreparedKernel, verifyKernel } from '../../src/images/kernel.ts';
import { KernelLibrary } from '../../src/images/kernels.ts';
import { GUEST_MODULES } from '../../src/images/modules.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, TYPES, tar } from './archives.ts';
import { tinyKernel, tinyModule } from './payloads.ts';
import { type Place, place, readTree, treeOf } from './place.ts';
import { fakeRegistry } from './registry.ts';
import { signed } from './signed.ts';

const op = testOperation();
const VERSION = '6.9.1-mine';
const SHARED = tar({ path: 'etc/shared', content: 'in both' });
const WEB = image([SHARED, tar({ path: 'web', content: 'w' })], { config: { Cmd: ['web'] } });
const DATABASE = image([SHARED, tar({ path: 'database', content: 'd' })]);

async function kernelOf(at: Place): Promise<PreparedKernel> {
  const library = new KernelLibrary(at.host, at.library.paths, {});
  const archive = tar(
    { path: `vmlinux-${VERSION}`, content: Buffer.from(tinyKernel()) },
    { path: 'modules/modules.order', content: GUEST_MODULES.map((name) => `kernel/${name}.ko\n`).join('') },
    { path: 'modules/modules.builtin', content: '' },
    ...GUEST_MODULES.map((name) => ({ path: `modules/kernel/${name}.ko`, content: Buffer.from(tinyModule(['depends=', `name=${name}`])) })),
  );
  return await library.import(op, chunks(archive));
}

async function* chunks(bytes: Buffer): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function bundled(): Promise<{ bytes: Buffer; kernel: PreparedKernel }> {
  await using registry = await fakeRegistry();
  registry.put('web', '1', WEB);
  registry.put('database', '2', DATABASE);
  await using here = await place();
  const web = await here.pull(`${registry.name}/web:1`);
  const database = await here.pull(`${registry.name}/database:2`);
  const kernel = await kernelOf(here);
  const wanted = [
    { digest: web.record.digest, names: ['web:1', 'web:latest'] },
    { digest: database.record.digest, names: ['database:2'] },
  ];
  const parts: Uint8Array[] = [];
  for await (const chunk of await here.library.export(op, wanted, [kernel])) parts.push(Buffer.from(chunk));
  expect((await here.left()).staging).toEqual([]);
  return { bytes: Buffer.concat(parts), kernel };
}

test('images and kernels go into one archive and come back by their digests, on a machine without a network', {
  timeout: 60_000,
}, async () => {
  const { bytes, kernel } = await bundled();
  // What two of them have is there once.
  const paths = [...(await readTree(bytes)).keys()];
  expect(new Set(paths).size).toBe(paths.length);
  await using there = await place();
  const file = join(there.dir, 'all.tar');
  await writeFile(file, bytes);
  for (let round = 0; round < 2; round += 1) {
    const { images, kernels } = await there.library.import(op, createReadStream(file));
    expect(images.map(({ image: { record }, names }) => [record.digest, names])).toEqual([
      [digestOf(WEB.config), ['web:1', 'web:latest']],
      [digestOf(DATABASE.config), ['database:2']],
    ]);
    expect(kernels.map(({ record: { digest, version } }) => [digest, version])).toEqual([[kernel.record.digest, VERSION]]);
  }
  await verifyKernel(op, there.host, there.library.paths, kernel.record.digest);
  for (const { digest } of [WEB, DATABASE].map(({ config }) => ({ digest: digestOf(config) }))) await there.library.verify(op, digest);
  expect((await there.left()).staging).toEqual([]);
});

test('kernels alone are an archive too', { timeout: 60_000 }, async () => {
  await using here = await place();
  const kernel = await kernelOf(here);
  await using there = await place();
  const { images, kernels } = await there.library.import(op, await here.library.export(op, [], [kernel]));
  expect([images, kernels.map(({ record }) => record.id)]).toEqual([[], [kernel.record.id]]);
});

test('a kernel in an archive that is not what it says is refused, and leaves nothing', { timeout: 60_000 }, async () => {
  const { bytes } = await bundled();
  const members = [...(await readTree(bytes))].map(([path, { content }]) => ({ path, content }));
  const isKernel = (content: Buffer): boolean => content.equals(Buffer.from(tinyKernel()));
  const described =
    members.find(({ content }) => content.includes('"vmlinux"') && content.includes('"recipe"'))?.content ?? Buffer.alloc(0);
  const artifact =
    members.find(({ content }) => content.includes('"layers"') && content.includes('hutch.kernel'))?.content ?? Buffer.alloc(0);
  /** Its description says something else, under digests that are right. */
  const saying = (change: (text: string) => string): readonly { path: string; content: Buffer }[] => {
    const config = Buffer.from(change(described.toString()));
    const manifest = Buffer.from(
      artifact
        .toString()
        .replace(digestOf(described), digestOf(config))
        .replace(`"size":${described.byteLength}`, `"size":${config.byteLength}`),
    );
    const index = (content: Buffer) => Buffer.from(content.toString().replace(digestOf(artifact), digestOf(manifest)));
    return [
      ...members.map(({ path, content }) => ({ path, content: path === 'index.json' ? index(content) : content })),
      ...[config, manifest].map((content) => ({ path: `blobs/sha256/${digestOf(content).slice(7)}`, content })),
    ];
  };
  const cases: [archive: readonly { path: string; content: Buffer }[], error: RegExp][] = [
    [
      members.map((one) => (isKernel(one.content) ? { ...one, content: Buffer.concat([one.content, Buffer.from('x')]) } : one)),
      /not what its name says/,
    ],
    [members.filter(({ content }) => !isKernel(content)), /is not in it/],
    [members.filter(({ content }) => content !== described), /is not in it/],
    [saying((text) => text.replace('virtio_blk.ko', '../../etc.ko')), /description of a kernel in it is damaged/],
    [saying((text) => text.replace(/"recipe": \d+/, '"recipe": 99')), /description of a kernel in it is damaged/],
    [saying(() => 'no json'), /description of a kernel in it is damaged/],
    // A file of the archive that is no kernel.
    [
      saying((text) => text.replace(/"vmlinux": "[0-9a-f]{64}"/, `"vmlinux": "${digestOf(WEB.config).slice(7)}"`)),
      /none that sandboxes can boot/,
    ],
  ];
  for (const [archive, error] of cases) {
    await using there = await place();
    await expect(there.library.import(op, chunks(tar(...archive))), String(error)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(error),
    });
    expect(await there.left(), String(error)).toMatchObject({ staging: [], images: [] });
    expect(await new KernelLibrary(there.host, there.library.paths, {}).here(op)).toEqual([]);
  }
});

/** Two images of one registry, the second behind an index; what of them is signed, and by whom. */
async function signedBundle(sign: (registry: Awaited<ReturnType<typeof fakeRegistry>>, index: string) => void, keyPath: string | null) {
  await using registry = await fakeRegistry();
  registry.put('team/web', '1', WEB);
  registry.put('team/database', 'plain', DATABASE);
  const platform = { os: 'linux', architecture: 'amd64' };
  const listed = [{ mediaType: TYPES.manifest, digest: digestOf(DATABASE.manifest), size: DATABASE.manifest.byteLength, platform }];
  const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: TYPES.index, manifests: listed }));
  sign(registry, registry.putManifest('team/database', '2', index, TYPES.index));
  await using here = await place(keyPath === null ? {} : { policy: { signed: [{ pattern: '**', keyPath }] } });
  const names = [`${registry.name}/team/web:1`, `${registry.name}/team/database:2`];
  const wanted = [];
  for (const name of names) wanted.push({ digest: (await here.pull(name)).record.digest, names: [name] });
  return { names, members: await exported(here, wanted) };
}

type Members = readonly { readonly path: string; readonly content: Buffer }[];

async function exported(from: Place, wanted: Parameters<Place['library']['export']>[1]): Promise<Members> {
  const parts: Uint8Array[] = [];
  for await (const chunk of await from.library.export(op, wanted)) parts.push(Buffer.from(chunk));
  return [...(await readTree(Buffer.concat(parts)))].map(([path, { content }]) => ({ path, content }));
}

test('signatures travel in an archive, and are judged where it comes out, without a network', { timeout: 60_000 }, async () => {
  await using keys = await place();
  const keyPath = join(keys.dir, 'cosign.pub');
  const own = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const stranger = generateKeyPairSync('ed25519');
  await writeFile(keyPath, own.publicKey.export({ type: 'spki', format: 'pem' }));
  const { members, names } = await signedBundle((registry, index) => {
    signed(registry, 'team/web', digestOf(WEB.manifest), own.privateKey);
    signed(registry, 'team/database', index, own.privateKey);
  }, keyPath);
  const strict = { policy: { signed: [{ pattern: '**/team/**', keyPath }] } };
  await using there = await place(strict);
  const { images } = await there.library.import(op, chunks(tar(...members)));
  expect(images.map(({ image: { record } }) => record.digest)).toEqual([WEB, DATABASE].map(({ config }) => digestOf(config)));
  // From there they go on, and an archive without the list of docker save has them as well.
  const again = await exported(
    there,
    images.map(({ image: { record }, names: called }) => ({ digest: record.digest, names: called })),
  );
  expect(new Set(again.map(({ path }) => path))).toEqual(new Set(members.map(({ path }) => path)));
  const asLayout = again.filter(({ path }) => path !== 'manifest.json');
  await using third = await place(strict);
  expect((await third.library.import(op, chunks(tar(...asLayout)))).images).toHaveLength(2);

  const without = await signedBundle(() => {}, null);
  const strangers = await signedBundle(
    (registry, index) => {
      signed(registry, 'team/web', digestOf(WEB.manifest), stranger.privateKey);
      signed(registry, 'team/database', index, stranger.privateKey);
    },
    await publicKey(keys, stranger.publicKey),
  );
  const onlyWeb = members.filter(({ content }) => !content.includes('"manifests":[{') || content.includes('cosign/sigs'));
  const index = members.find(({ path }) => path === 'index.json')?.content.toString() ?? '';
  // The signature of the one image beside the other, whose own is gone.
  const listed = JSON.parse(index) as { manifests: { annotations?: Record<string, string> }[] };
  const isSignature = ({ annotations = {} }: { annotations?: Record<string, string> }) => annotations['kind'] !== undefined;
  expect(listed.manifests.filter(isSignature)).toHaveLength(2);
  const [first] = listed.manifests.filter(isSignature);
  const one = Buffer.from(JSON.stringify({ ...listed, manifests: [...listed.manifests.filter((each) => !isSignature(each)), first] }));
  const payload = members.find(({ content }) => content.includes('cosign container image signature'));
  const cases: [what: string, archive: Members, code: string, message: RegExp][] = [
    ['none', without.members, 'permission_denied', /may not be imported: images\.signed wants .* it has no signature/],
    ['of a stranger', strangers.members, 'permission_denied', /may not be imported: .* none is by that key/],
    [
      'of one of two',
      members.map((each) => (each.path === 'index.json' ? { ...each, content: one } : each)),
      'permission_denied',
      /no signature/,
    ],
    ['without the index that was signed', onlyWeb, 'permission_denied', /team\/database:2 may not be imported/],
    [
      'changed',
      members.map((each) => (each === payload ? { ...each, content: Buffer.from('{}') } : each)),
      'failed_precondition',
      /not what its name says/,
    ],
  ];
  for (const [what, archive, code, message] of cases) {
    await using elsewhere = await place(strict);
    const refused = elsewhere.library.import(op, chunks(tar(...archive)));
    await expect(refused, what).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
    expect((await elsewhere.left()).staging, what).toEqual([]);
  }
  // Under a name that no rule is about it may come; a name that one is about it may not be given.
  const [web] = await exported(there, [{ digest: digestOf(WEB.config), names: [] }]).then((all) => [
    all.filter(({ content }) => !content.includes('cosign')),
  ]);
  await using free = await place(strict);
  await expect(free.library.import(op, chunks(tar(...(web ?? []))), names[0])).rejects.toMatchObject({ code: 'permission_denied' });
  expect((await free.library.import(op, chunks(tar(...(web ?? []))), 'mine:1')).images).toMatchObject([{ names: ['mine:1'] }]);
  await using closed = await place({ policy: { allow: ['docker.io/**'] } });
  await expect(closed.library.import(op, chunks(tar(...members)))).rejects.toMatchObject({
    message: expect.stringContaining('images.allow'),
  });
});

async function publicKey(at: Place, key: KeyObject): Promise<string> {
  const path = join(at.dir, 'stranger.pub');
  await writeFile(path, key.export({ type: 'spki', format: 'pem' }));
  return path;
}

/** Images without layers: of a user's files, in each form that they may lie in, and one that Hutch made. */
async function withoutLayers(here: Place) {
  const files = join(here.dir, 'mine');
  await mkdir(join(files, 'root/etc'), { recursive: true });
  await chmod(here.dir, 0o711); // machines run as users of their own
  await writeFile(join(files, 'root/etc/motd'), 'mine\n', { mode: 0o640 });
  await writeFile(join(files, 'root/large'), Buffer.alloc(300_000, 'x'));
  await writeFile(join(files, 'initrd'), '070701 an initrd');
  const ran = spawnSync('sh', [
    '-c',
    'cd "$0" && tar -c -C root . > root.tar && tar2sqfs --quiet --compressor=lz4 root.squashfs < root.tar && truncate -s 8M root.ext4 && mkfs.ext4 -q -d root root.ext4',
    files,
  ]);
  expect(ran.stderr.toString()).not.toContain('rror');
  const kernel = await kernelOf(here);
  const own = { digest: kernel.record.digest, files: [] };
  const { library } = here;
  const bare = { initrd: null, kernel: null };
  const packed = await library.register(op, { rootfs: join(files, 'root'), ...bare });
  const promoted = await library.register(op, { rootfs: join(files, 'root.squashfs'), initrd: join(files, 'initrd'), kernel: own });
  const images = [
    packed,
    promoted,
    await library.register(op, { rootfs: join(files, 'root.squashfs'), ...bare }),
    await library.register(op, { rootfs: join(files, 'root.ext4'), ...bare }),
    await library.register(op, { rootfs: join(files, 'root.tar'), ...bare }),
  ];
  for (const { record } of [packed, promoted]) await library.promote(op, record.digest);
  const made = `sha256:${await here.host.sha256(op, join(files, 'root.squashfs'))}`;
  const said = { config: { ...NOTHING, command: ['sh'] }, createdAtMs: 7 };
  images.push(await library.takeRootfs(op, { path: join(files, 'root.squashfs'), digest: made, said, bytesMax: 2 ** 30 }));
  // As layers they are there already: of these the archive has only those.
  for (const name of ['root.tar', 'root.ext4'])
    for (const { image: each } of (await library.import(op, createReadStream(join(files, name)))).images) images.push(each);
  return { images, kernel };
}
const NOTHING = { env: {}, entrypoint: [], command: [], workdir: null, user: null, stopSignal: null, exposedPorts: [] };

test('an image without layers comes out of an archive under its digest: of a user’s files, or made by Hutch', {
  timeout: 120_000,
}, async () => {
  await using here = await place();
  const { images, kernel } = await withoutLayers(here);
  expect(new Set(images.map(({ record }) => record.digest)).size).toBe(images.length);
  const wanted = images.map(({ record }, at) => ({ digest: record.digest, names: [`mine:${at}`] }));
  const members = await exported(here, wanted);
  // For others it is there too, as one layer.
  const saved = JSON.parse(members.find(({ path }) => path === 'manifest.json')?.content.toString() ?? '') as unknown[];
  expect(saved).toHaveLength(images.length);
  await using there = await place();
  for (let round = 0; round < 2; round += 1) {
    const brought = await there.library.import(op, chunks(tar(...members)));
    const found = new Map(brought.images.map(({ image: each, names }) => [each.record.digest, names]));
    expect(found).toEqual(new Map(wanted.map(({ digest, names }) => [digest, names])));
    expect(brought.kernels.map(({ record }) => record.digest)).toEqual([kernel.record.digest]);
  }
  for (const before of images) {
    const { digest } = before.record;
    await there.library.verify(op, digest);
    const after = await there.library.open(op, digest);
    expect(after).toMatchObject({
      rootDigest: before.rootDigest,
      own: before.own === null ? null : { kernelDigest: kernel.record.digest },
    });
    expect(after?.record.config).toEqual(before.record.config);
    // What guests get is what they got; what this machine looks into is packed here.
    expect(await readFile(after?.guestPath ?? '')).toEqual(await readFile(before.guestPath));
    expect(after?.isPackedHere).toBe(true);
    expect((await treeOf({ path: after?.path ?? '' })).get('etc/motd')).toMatchObject({ mode: 0o640, content: Buffer.from('mine\n') });
    if (before.own?.initrd != null) expect(await readFile(after?.own?.initrd?.path ?? '')).toEqual(await readFile(before.own.initrd.path));
  }
  expect((await there.left()).staging).toEqual([]);
  // From there it goes on the same, and the same files are the same image.
  const again = await exported(there, wanted);
  const list = (all: Members) => all.find(({ path }) => path === 'hutch.json')?.content.toString();
  expect(list(again)).toBe(list(members));
  const [first] = images;
  const files = { rootfs: join(here.dir, 'mine/root'), initrd: null, kernel: null };
  expect((await there.library.register(op, files)).record.digest).toBe(first?.record.digest);
});

test('an image without layers that is not what an archive says is refused, and leaves nothing', { timeout: 120_000 }, async () => {
  await using here = await place();
  const { images, kernel } = await withoutLayers(here);
  const [packed, own] = images;
  const made = images.find(({ source }) => source.kind === 'snapshot');
  if (packed === undefined || own === undefined || made === undefined) throw new Error('no images');
  const bundle = async ({ record }: { record: { digest: string } }) => await exported(here, [{ digest: record.digest, names: ['mine:1'] }]);
  const ofOwn = await bundle(own);
  const ofPacked = await bundle(packed);
  const ofMade = await bundle(made);
  const blob = (digest: string) => `blobs/sha256/${digest.slice(7)}`;
  const changed = (all: Members, path: string, change: (content: Buffer) => Buffer): Members =>
    all.map((each) => (each.path === path ? { ...each, content: change(each.content) } : each));
  const listed = (all: Members, change: (one: Record<string, unknown>) => object): Members =>
    changed(all, 'hutch.json', (content) => {
      const { version, images: said } = JSON.parse(content.toString()) as { version: number; images: Record<string, unknown>[] };
      return Buffer.from(JSON.stringify({ version, images: said.map((one) => ({ ...one, ...change(one) })) }));
    });
  const other = Buffer.from(await readFile(packed.guestPath));
  other[500] = (other[500] ?? 0) ^ 1;
  const described = (all: Members, change: (text: string) => string): Members => {
    const digest = (
      JSON.parse(all.find(({ path }) => path === 'hutch.json')?.content.toString() ?? '') as { images: [{ description: string }] }
    ).images[0].description;
    const content = Buffer.from(change(all.find(({ path }) => path === blob(digest))?.content.toString() ?? ''));
    return [...listed(all, () => ({ description: digestOf(content) })), { path: blob(digestOf(content)), content }];
  };
  const cases: [what: string, archive: Members, error: RegExp][] = [
    ['another file system', changed(ofPacked, blob(packed.rootDigest), () => other), /not the one that it names/],
    ['one that is cut off', changed(ofMade, blob(made.rootDigest), (content) => content.subarray(0, -100)), /not the one that it names/],
    ['none', ofPacked.filter(({ path }) => path !== blob(packed.rootDigest)), /is not in it/],
    ['one of another image', listed(ofPacked, () => ({ rootfs: made.rootDigest })), /not made of what lies beside it/],
    [
      'another initrd',
      changed(ofOwn, blob(`sha256:${own.own?.initrd?.sha256}`), () => Buffer.from('070701 another')),
      /initrd .* is not what its name/,
    ],
    ['no initrd', listed(ofOwn, () => ({ initrd: null })), /not made of what lies beside it/],
    [
      'a description that is changed',
      changed(ofOwn, blob(own.record.digest), (content) => Buffer.from(content.toString().replace('linux', 'other'))),
      /not what its name says/,
    ],
    ['one that is none', described(ofPacked, () => '{}'), /description of an image in it is damaged/],
    [
      'one of another kernel',
      described(ofOwn, (text) => text.replace(kernel.record.digest, `sha256:${'0'.repeat(64)}`)),
      /neither in it nor here/,
    ],
    ['a list that is damaged', changed(ofPacked, 'hutch.json', () => Buffer.from('{"version":1,"images":[{}]}')), /hutch\.json is damaged/],
    [
      'a list of later',
      changed(ofPacked, 'hutch.json', () => Buffer.from('{"version":2}')),
      /of version 2; this release of Hutch reads version 1/,
    ],
    [
      'a file system for none',
      described(
        listed(ofPacked, () => ({ rootfs: digestOf(SHARED) })),
        (text) => text.replace(packed.rootDigest.slice(7), digestOf(SHARED).slice(7)),
      ).concat({ path: blob(digestOf(SHARED)), content: SHARED }),
      /no file system that guests read/,
    ],
  ];
  for (const [what, archive, error] of cases) {
    await using there = await place();
    await expect(there.library.import(op, chunks(tar(...archive))), what).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(error),
    });
    expect(await there.left(), what).toMatchObject({ staging: [], images: [] });
  }
  // The same file system that says other things of itself: what is here stays.
  await using there = await place();
  await there.library.import(op, chunks(tar(...ofMade)));
  const lying = listed(ofMade, (one) => ({ config: { ...(one['config'] as object), command: ['evil'] } }));
  await expect(there.library.import(op, chunks(tar(...lying)))).rejects.toMatchObject({
    message: expect.stringMatching(/says other things/),
  });
  // The default image keeps its bare name, where no rule is about who may be called so; no other image gets one.
  const bare = async (of: typeof made) => await exported(here, [{ digest: of.record.digest, names: ['debian', 'mine:1'] }]);
  const namesIn = async (all: Members, options = {}) => {
    await using at = await place(options);
    return (await at.library.import(op, chunks(tar(...all)))).images.map(({ names }) => names);
  };
  expect(await namesIn(await bare(made))).toEqual([['debian', 'mine:1']]);
  expect(await namesIn(await bare(packed))).toEqual([['mine:1']]);
  const signedOnly = { signed: [{ pattern: 'docker.io/library/debian', keyPath: '/nowhere' }] };
  for (const policy of [{ allow: ['docker.io/library/mine'] }, signedOnly])
    expect(await namesIn(await bare(made), { policy })).toEqual([['mine:1']]);
  // One name is one image’s, in whichever form that lies there; and rules are asked about it.
  expect((await there.library.import(op, chunks(tar(...ofPacked)), 'called:1')).images.map(({ names }) => names)).toEqual([['called:1']]);
  await using closed = await place({ policy: { allow: ['docker.io/other/*'] } });
  await expect(closed.library.import(op, chunks(tar(...ofPacked)))).rejects.toMatchObject({ code: 'permission_denied' });
  // Without the list it is what it is for others, as an older release reads it.
  await using older = await place();
  const { images: asOthers } = await older.library.import(op, chunks(tar(...ofPacked.filter(({ path }) => path !== 'hutch.json'))));
  expect(asOthers).toMatchObject([{ names: ['mine:1'], image: { source: { kind: 'oci' } } }]);
});
