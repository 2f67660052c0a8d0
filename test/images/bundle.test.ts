// Images and kernels in one archive, for a machine that has no network: what comes out is what went in, by digest; what
// lies is refused.
import { createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type PreparedKernel, verifyKernel } from '../../src/images/kernel.ts';
import { KernelLibrary } from '../../src/images/kernels.ts';
import { GUEST_MODULES } from '../../src/images/modules.ts';
import { testOperation } from '../support/operation.ts';
import { digestOf, image, tar } from './archives.ts';
import { tinyKernel, tinyModule } from './payloads.ts';
import { type Place, place, readTree } from './place.ts';
import { fakeRegistry } from './registry.ts';

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
    [saying((text) => text.replace('"recipe": 1', '"recipe": 99')), /description of a kernel in it is damaged/],
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
