// Kernels out of files, good and bad: what is taken, what is refused with which sentence, and that nothing is left.
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { verifyKernel } from '../../src/images/kernel.ts';
import { KernelLibrary } from '../../src/images/kernels.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { GUEST_MODULES } from '../../src/images/modules.ts';
import { failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { type Member, tar } from './archives.ts';
import { bzImage, tinyKernel, tinyModule } from './payloads.ts';

const op = testOperation();
const host = nodeHost();
const STRIDE = process.env['HUTCH_TEST_LONG'] === undefined ? 7 : 1;
const FIRST = 1 + (Number(process.env['HUTCH_TEST_SEED'] ?? 0) % STRIDE);
const VERSION = '6.9.1-mine';
let dir = '';

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-kernel-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

/** A kernel that says its version where a real one does. */
function kernel(version = VERSION): Buffer {
  const elf = tinyKernel({ padding: 3000 });
  const image = Buffer.from(bzImage(zstdCompressSync(elf), elf.byteLength));
  const start = 0x600;
  const grown = Buffer.concat([image, Buffer.alloc(Math.max(0, start + 200 - image.byteLength))]);
  grown.writeUInt16LE(grown.byteLength - 0x200, 0x20e);
  return Buffer.concat([grown, Buffer.from(`${version} (me@here) #1 SMP\0`)]);
}

const MODULES = GUEST_MODULES.filter((name) => name !== 'ext4');
const order = { path: 'modules/modules.order', content: MODULES.map((name) => `kernel/${name}.ko\n`).join('') };
const builtin = { path: 'modules/modules.builtin', content: 'kernel/fs/ext4/ext4.ko\n' };
const modules: Member[] = MODULES.map((name) => ({ path: `modules/kernel/${name}.ko`, content: Buffer.from(tinyModule(['depends='])) }));
const whole = (): Member[] => [{ path: 'vmlinuz', content: kernel() }, order, builtin, ...modules];

let places = 0;
function place(wrapped: Host = host) {
  places += 1;
  const paths = imagePaths(join(dir, String(places)));
  const library = new KernelLibrary(wrapped, paths, {});
  const give = (bytes: Uint8Array) =>
    library.import(
      op,
      (async function* () {
        yield bytes;
      })(),
    );
  return { paths, library, give };
}
/** Files only: the directory stays for the next one. */
const left = async (path: string) =>
  (await readdir(path, { recursive: true }).catch(() => [])).filter((name) => !name.endsWith('.lock') && name !== 'kernel');

test('a kernel and its modules are taken out of an archive, packed or not, and are one kernel', async () => {
  const { paths, library, give } = place();
  const first = await give(tar(...whole()));
  expect(first.record).toMatchObject({ version: VERSION, detail: { by: 'user', packages: [], config: { EXT4_FS: 'builtin' } } });
  expect(first.moduleFiles).toEqual(MODULES.map((name) => `${name}.ko`));
  await library.verify(op, first.record.digest);
  for (const bytes of [gzipSync(tar(...whole())), zstdCompressSync(tar(...whole()))])
    expect((await give(bytes)).record).toEqual(first.record);
  const config = { path: 'boot/config-6.9.1-mine', content: 'CONFIG_VSOCKETS=y\nCONFIG_VIRTIO_MMIO=m\n' };
  expect((await give(tar(config, ...whole()))).record.digest).toBe(first.record.digest);
  expect((await library.here(op)).map(({ record }) => record.id)).toEqual([first.record.id]);
  expect(await left(paths.staging)).toEqual([]);
});

test('a Debian package is read without being unpacked on this machine', async () => {
  const tree = join(dir, 'package');
  for (const { path, content } of whole()) {
    const to = join(tree, path.replace('modules/', `lib/modules/${VERSION}/`).replace('vmlinuz', `boot/vmlinuz-${VERSION}`));
    await mkdir(join(to, '..'), { recursive: true });
    await writeFile(to, content ?? '');
  }
  await writeFile(join(tree, `boot/config-${VERSION}`), 'CONFIG_PVH=y\nCONFIG_SQUASHFS=m\n');
  await mkdir(join(tree, 'DEBIAN'));
  await writeFile(
    join(tree, 'DEBIAN/control'),
    'Package: linux-image-mine\nVersion: 1\nArchitecture: amd64\nMaintainer: me\nDescription: x\n',
  );
  // A script in it would run at an installation: nothing runs here.
  await writeFile(join(tree, 'DEBIAN/preinst'), `#!/bin/sh\ntouch ${dir}/ran\n`, { mode: 0o755 });
  const built = await host.run(op, ['dpkg-deb', '--root-owner-group', '--build', tree, join(dir, 'mine.deb')]);
  expect(built.exitCode).toBe(0);
  const { give } = place();
  const { record } = await give(await readFile(join(dir, 'mine.deb')));
  expect(record).toMatchObject({ version: VERSION, detail: { config: { PVH: 'builtin', SQUASHFS: 'module', TUN: 'no' } } });
  expect(await readdir(dir)).not.toContain('ran');
});

test('a kernel alone is taken when it says itself that it has all built in', async () => {
  const says = (words: string) => Buffer.concat([kernel(), Buffer.from('IKCFG_ST'), gzipSync(words), Buffer.from('IKCFG_ED')]);
  const needed = ['VIRTIO_MMIO', 'VIRTIO_CONSOLE', 'VIRTIO_BLK', 'VIRTIO_NET', 'SQUASHFS', 'EXT4_FS', 'OVERLAY_FS'];
  const all = needed.map((name) => `CONFIG_${name}=y\n`).join('');
  const { give } = place();
  expect(await give(says(all))).toMatchObject({ moduleFiles: [], record: { detail: { config: { SQUASHFS: 'builtin', TUN: 'no' } } } });
  await expect(give(says(all.replace('CONFIG_EXT4_FS=y\n', '')))).rejects.toThrow('it has no CONFIG_EXT4_FS');
  await expect(give(says(all.replace('SQUASHFS=y', 'SQUASHFS=m')))).rejects.toThrow('it has no module squashfs');
  await expect(give(kernel())).rejects.toThrow('its modules are not with it');
});

test('what is no kernel is refused with one sentence, and leaves nothing', async () => {
  const but = (path: string, with_: Member | null = null) => [
    ...whole().filter((one) => one.path !== path),
    ...(with_ === null ? [] : [with_]),
  ];
  const cases: readonly (readonly [string, Uint8Array, RegExp])[] = [
    ['nothing', Buffer.alloc(0), /nothing in it|ends/],
    ['noise', Buffer.from('noise '.repeat(1000)), /archive|header/],
    ['another archive', tar({ path: 'etc/hostname', content: 'x' }), /no vmlinuz in it/],
    ['two kernels', tar(...whole(), { path: 'boot/vmlinuz-6.1', content: kernel() }), /2 kernels in it/],
    ['no modules.order', tar(...but(order.path)), /0 files modules\.order/],
    ['no modules.builtin', tar(...but(builtin.path)), /no modules\.builtin/],
    ['a module that is missing', tar(...but('modules/kernel/squashfs.ko')), /module squashfs\.ko is missing/],
    ['a module that is none', tar(...but('modules/kernel/squashfs.ko', { path: 'modules/kernel/squashfs.ko', content: 'x' })), /no 64-bit/],
    ['a kernel that is cut', tar(...but('vmlinuz', { path: 'boot/vmlinuz-6.9.1-mine', content: kernel().subarray(0, 0x640) })), /cut off/],
    [
      'a kernel for other modules',
      tar(...whole().map((one) => ({ ...one, path: one.path.replace(/^modules\//, 'lib/modules/5.4.0/') }))),
      /kernel is 6\.9\.1-mine, and its modules are for 5\.4\.0/,
    ],
    [
      'a symlink for a module',
      tar(...but('modules/kernel/squashfs.ko', { path: 'modules/kernel/squashfs.ko', type: 'symlink', link: '/etc/passwd' })),
      /squashfs\.ko is missing/,
    ],
    ['a path that leads out', tar(...whole(), { path: '../../../escaped', content: 'x' }, { path: '/escaped', content: 'x' }), /^$/],
    ['an archive that is cut', tar(...whole()).subarray(0, 5000), /cut|truncated|ends/],
    ['a gzip bomb', gzipSync(Buffer.concat([Buffer.from('x'), Buffer.alloc(2 ** 20)])), /archive|header/],
    ['a package that is none', Buffer.from('!<arch>\nnothing of a package'), /dpkg-deb cannot unpack it/],
    [
      'a module path that leads out',
      tar(...but(order.path, { path: order.path, content: MODULES.map((name) => `../../${name}.ko\n`).join('') })),
      /is missing/,
    ],
  ];
  const { paths, library, give } = place();
  for (const [what, bytes, sentence] of cases) {
    const outcome = await give(bytes).then(
      () => 'taken',
      (error: { code: string; message: string }) => `${error.code}: ${error.message}`,
    );
    if (what === 'a path that leads out') expect(outcome, what).toBe('taken');
    else
      expect(outcome, what).toMatch(new RegExp(`^failed_precondition: this is no kernel that sandboxes can boot: .*(${sentence.source})`));
    expect(await left(paths.staging), what).toEqual([]);
  }
  expect(await library.here(op)).toHaveLength(1);
  expect((await readdir(dir)).filter((name) => name === 'escaped')).toEqual([]);
});

test('whichever host call fails while a kernel is imported, nothing half-made is found and the next try succeeds', async () => {
  for (let nth = FIRST; ; nth += STRIDE) {
    const faulty = failNthCall(host, nth);
    const { paths, give } = place(faulty);
    await give(tar(...whole())).catch((error: unknown) => error);
    const sound = new KernelLibrary(host, paths, {});
    for (const { record } of await sound.here(op)) await verifyKernel(op, host, paths, record.digest);
    if (faulty.hit === undefined) return expect(nth).toBeGreaterThan(25);
    const again = await sound.import(
      op,
      (async function* () {
        yield tar(...whole());
      })(),
    );
    await sound.verify(op, again.record.digest);
    expect(await left(paths.staging), `call ${nth}: ${faulty.hit.method}`).toEqual([]);
    expect(await sound.here(op)).toHaveLength(1);
  }
});
