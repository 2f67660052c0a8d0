// Images of files that stay the user's: registered, started from in real machines, changed behind Hutch's back, promoted.
import { spawnSync } from 'node:child_process';
import { appendFile, chmod, mkdir, readdir, readFile, rename, rm, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { treeOf } from '../images/place.ts';
import { MACHINES, World } from './world.ts';

const KERNELS = join(import.meta.dirname, '../../.tools/data/kernels');
const MARK = 'zzz';

type Image = { id: string; digest: string; names: string[]; registered: { role: string; path: string }[]; kernelId: string | null };

let world: World;
const at = (...parts: readonly string[]) => join(world.dir, 'mine', ...parts);

function ran(program: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program}: ${stderr}`);
}

beforeAll(async () => {
  world = await World.make(MACHINES);
  await mkdir(at('root/bin'), { recursive: true });
  await writeFile(at('root/bin/busybox'), await readFile('/bin/busybox'), { mode: 0o755 });
  for (const name of ['sh', 'cat', 'stat']) await symlink('busybox', at('root/bin', name));
  await mkdir(at('root/etc'));
  await writeFile(at('root/etc/motd'), 'from a directory\n', { mode: 0o640 });
  await mkdir(at('root/run/own'), { recursive: true });
  await writeFile(at('root/run/own/file'), 'of /run\n');
  ran('sh', '-c', `tar -C "$0" -c . | tar2sqfs --quiet --compressor=lz4 "$1"`, at('root'), at('root.squashfs'));
  await truncate(await file('root.ext4'), 32 * 1024 * 1024);
  ran('mkfs.ext4', '-q', '-d', at('root'), at('root.ext4'));
  await kernel();
}, 120_000);

afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);

async function file(name: string): Promise<string> {
  await writeFile(at(name), '');
  return at(name);
}

/** This checkout's, with another maker in its banner, as one that somebody built; and an initrd that would not boot by itself. */
async function kernel(): Promise<void> {
  const dir = join(KERNELS, (await readdir(KERNELS)).find((name) => /^[0-9a-f]{64}$/.test(name)) ?? '');
  const { version, modules } = JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8')) as {
    version: string;
    modules: { file: string }[];
  };
  const vmlinux = await readFile(join(dir, 'vmlinux'));
  const banner = vmlinux.indexOf(`Linux version ${version} (`);
  const maker = /\(([^)@]+)@/.exec(vmlinux.toString('latin1', banner, banner + 300))?.[1] ?? '';
  for (let found = vmlinux.indexOf(`${maker}@`); found >= 0; found = vmlinux.indexOf(`${maker}@`, found)) {
    vmlinux.write(`${MARK}${maker}`.slice(0, maker.length), found, 'latin1');
  }
  await writeFile(at('vmlinux'), vmlinux);
  await mkdir(at('modules/kernel'), { recursive: true });
  for (const { file: name } of modules) await writeFile(at('modules/kernel', name), await readFile(join(dir, 'modules', name)));
  await writeFile(at('modules/modules.order'), modules.map(({ file: name }) => `kernel/${name}\n`).join(''));
  await writeFile(at('modules/modules.builtin'), 'kernel/fs/ext4/ext4.ko\n');
  await mkdir(at('initrd.d'));
  await writeFile(at('initrd.d/init'), 'no program', { mode: 0o755 });
  ran('sh', '-c', 'cd "$0" && echo init | cpio --quiet -o -H newc | gzip > "$1"', at('initrd.d'), at('initrd.img'));
}

const register = async (name: string, root: string, ...flags: string[]) =>
  await world.json<Image>('image', 'register', ...flags, name, at(root));
const motd = async (name: string) =>
  await world.run(['run', '--rm', '--image', name, '--', 'cat', '/etc/motd', '/proc/version', '/run/own/file']);
const refusal = async (...args: string[]) => {
  const { code, stderr } = await world.run(args);
  expect(code).not.toBe(0);
  return stderr;
};

test('a directory, a squashfs and an ext4 file system are images where they lie, and a start finds what has changed', {
  timeout: 240_000,
}, async () => {
  const squashfs = await register('squashfs:1', 'root.squashfs');
  expect(squashfs).toMatchObject({ names: ['squashfs:1'], registered: [{ role: 'rootfs', path: at('root.squashfs') }], kernelId: null });
  expect(await readdir(join(world.home, 'data/images', squashfs.digest.slice(7)))).not.toContain('rootfs.squashfs');
  const directory = await register('directory:1', 'root');
  const disk = await register('disk:1', 'root.ext4');
  expect(new Set([squashfs.id, directory.id, disk.id]).size).toBe(3);
  for (const { digest } of [directory, disk]) {
    const tree = await treeOf({ path: join(world.home, 'data/images', digest.slice(7), 'rootfs.squashfs') });
    expect(tree.get('etc/motd')).toMatchObject({ mode: 0o640, content: Buffer.from('from a directory\n') });
    expect(tree.get('bin/sh')).toMatchObject({ type: 'symlink', link: 'busybox' });
  }
  // Touched, it is what it was; written, it is not, wherever in it.
  await utimes(at('root/etc/motd'), 1, 1);
  await utimes(at('root.squashfs'), 1, 1);
  await chmod(at('root.ext4'), 0o600);
  expect(await refusal('create', '--no-start', '--image', 'directory:1')).toContain(
    `${at('root')} has changed since image ${directory.id}`,
  );
  for (const name of ['squashfs:1', 'disk:1']) await world.ok('rm', await world.ok('create', '--no-start', '--image', name));
  const bytes = await readFile(at('root.squashfs'));
  const changed = Buffer.from(bytes);
  changed[200] = (changed[200] ?? 0) ^ 1;
  await writeFile(at('root.squashfs'), changed);
  const stderr = await refusal('create', '--no-start', '--image', 'squashfs:1');
  expect(stderr).toContain(`${at('root.squashfs')} has changed`);
  expect(stderr).toContain('hutch image register');
  for (const verb of ['verify', 'export', 'promote', 'sbom'])
    expect(await refusal('image', verb, 'squashfs:1'), verb).toContain('has changed');
  await writeFile(at('root.squashfs'), bytes);
  expect(await world.ok('image', 'verify', 'squashfs:1')).toContain('1 file');
  // What it is now is registered anew; a name moves to it.
  expect((await register('directory:1', 'root')).id).not.toBe(directory.id);
  await world.ok('image', 'rm', 'squashfs:1', 'directory:1', 'disk:1');
  expect((await readdir(at())).filter((name) => name.startsWith('root'))).toEqual(['root', 'root.ext4', 'root.squashfs']);
  await world.ok('image', 'prune');
});

test('what a kernel starts with is put together again for the next image where its file has been touched', async () => {
  const dir = join(world.home, 'data/initramfs');
  const use = async (name: string, root: string) => {
    await register(name, root);
    await world.ok('rm', await world.ok('create', '--no-start', '--image', name));
    await world.ok('image', 'rm', name);
  };
  await use('before:1', 'root');
  const whole = new Map(await Promise.all((await readdir(dir)).map(async (name) => [name, await readFile(join(dir, name))] as const)));
  for (const [name, content] of whole) {
    await rm(join(dir, name)); // others may have links to it
    await writeFile(join(dir, name), Buffer.from(content).fill(0, 1_000, 2_000));
  }
  await use('after:1', 'root.squashfs');
  const again = await Promise.all([...whole].map(async ([name, content]) => content.equals(await readFile(join(dir, name)))));
  expect(again.filter(Boolean)).toHaveLength(1);
});

test('an image with its own kernel and initrd boots them, keeps them, and is the same once Hutch owns it', {
  timeout: 240_000,
}, async () => {
  const files = ['--kernel', at('vmlinux'), '--modules', at('modules'), '--initrd', at('initrd.img')];
  const image = await register('own:1', 'root.squashfs', ...files);
  expect(image.registered.map(({ role }) => role)).toEqual(['rootfs', 'kernel', 'modules', 'initrd']);
  const { stdout: said } = await motd('own:1');
  expect(said).toMatch(new RegExp(`^from a directory\nLinux version .*\\(${MARK}`));
  expect(said, 'what it has in /run').toMatch(/of \/run\n$/);
  const initrds = join(world.home, 'data/initramfs');
  const given = await readFile(at('initrd.img'));
  const starts = await Promise.all(
    (await readdir(initrds)).map(async (name) => (await readFile(join(initrds, name))).subarray(0, given.length)),
  );
  expect(starts.some((start) => start.equals(given))).toBe(true);
  expect(await refusal('kernel', 'rm', image.kernelId ?? '')).toMatch(/belongs to image own:1.*hutch image rm own:1/s);
  const { assets } = await world.json<{ assets: { id: string; references: unknown[] }[] }>('assets', 'ls');
  expect(assets.find(({ id }) => id === image.kernelId)?.references).toContainEqual({ kind: 'image', what: 'own:1' });
  await world.ok('create', '--no-start', '--name', 'kept', '--image', 'own:1');
  // Each of them counts.
  for (const name of ['vmlinux', 'modules', 'initrd.img']) {
    await rename(at(name), at('away'));
    expect(await refusal('start', 'kept'), name).toContain(`${at(name)} is gone`);
    await rename(at('away'), at(name));
  }
  const owned = await world.json<Image>('image', 'promote', 'own:1');
  expect(owned).toMatchObject({ id: image.id, digest: image.digest, names: ['own:1'], registered: [], kernelId: image.kernelId });
  for (const name of ['vmlinux', 'modules', 'initrd.img', 'root.squashfs']) await rm(at(name), { recursive: true });
  expect((await motd('own:1')).stdout).toContain(`(${MARK}`);
  await world.ok('start', 'kept');
  await world.ok('image', 'export', '-o', at('own.tar'), 'own:1');
  await world.ok('snapshot', 'create', '--name', 'ready', 'kept');
  await world.ok('snapshot', 'export', '-o', at('ready.tar'), 'ready');
  await world.ok('rm', '-f', 'kept');
  await elsewhere(image);
  await world.ok('snapshot', 'rm', 'ready');
  expect(await world.ok('image', 'verify', 'own:1')).toContain('1 file');
  await appendFile(join(world.home, 'data/images', image.digest.slice(7), 'initrd'), 'x');
  expect(await refusal('image', 'verify', 'own:1')).toContain('initrd has changed');
  await world.ok('image', 'rm', 'own:1');
  await world.ok('kernel', 'rm', image.kernelId ?? '');
});

/** A machine that has nothing of it: what it brings is the same image, and boots the same kernel. */
async function elsewhere({ digest, kernelId }: Image): Promise<void> {
  await using there = await World.make(MACHINES);
  const { images, kernels } = await there.json<{ images: Image[]; kernels: { id: string }[] }>('image', 'import', at('own.tar'));
  expect(images).toMatchObject([{ digest, names: ['own:1'], registered: [], kernelId }]);
  expect(kernels.map(({ id }) => id)).toEqual([kernelId]);
  expect((await there.run(['run', '--rm', '--image', 'own:1', '--', 'cat', '/etc/motd', '/proc/version'])).stdout).toMatch(
    new RegExp(`^from a directory\nLinux version .*\\(${MARK}`),
  );
  await there.ok('image', 'rm', 'own:1');
  await there.ok('kernel', 'rm', kernelId ?? '');
  // A snapshot of it brings both too, and its memory knows them.
  await there.ok('snapshot', 'import', at('ready.tar'));
  expect((await there.json<{ images: Image[] }>('image', 'ls')).images).toMatchObject([{ digest, names: [], kernelId }]);
  const { stdout } = await there.run(['run', '--rm', '--from', 'ready', '--', 'cat', '/etc/motd', '/proc/version']);
  expect(stdout).toContain(`(${MARK}`);
}

test('what no sandbox starts from is refused with one sentence', { timeout: 120_000 }, async () => {
  await writeFile(at('noise'), 'not a root file system'.repeat(100));
  const cases: [args: string[], error: RegExp][] = [
    [['x:1', at('noise')], /noise cannot be used: it is no tar archive/],
    [['x:1', at('nowhere')], /nowhere is not there/],
    [['x:1', '/dev/null'], /neither a file nor a directory/],
    [['--modules', at('root'), 'x:1', at('root')], /modules belong to a kernel/],
    [['--initrd', at('noise'), 'x:1', at('root')], /an initrd belongs to a kernel/],
    [['--kernel', at('noise'), '--kernel-ref', '6', 'x:1', at('root')], /two kernels/],
    [['--kernel', at('noise'), 'x:1', at('root')], /no kernel that sandboxes can boot.*--modules|no kernel that sandboxes can boot/s],
    [['--kernel', at('root'), 'x:1', at('root')], /kernel must be a file/],
    [['--kernel-ref', 'nope', 'x:1', at('root')], /there is no kernel 'nope'/],
    [['--kernel-ref', 'krn', '--initrd', at('noise'), 'x:1', at('root')], /there is no kernel|is no initrd/],
    [['NO NAME', at('root')], /is no name of an image/],
  ];
  if (process.getuid?.() === 0) {
    await writeFile(at('hidden.squashfs'), Buffer.concat([Buffer.from('hsqs'), Buffer.alloc(24), Buffer.from([4, 0]), Buffer.alloc(66)]), {
      mode: 0o600,
    });
    cases.push([['x:1', at('hidden.squashfs')], /hidden\.squashfs cannot be read by the users that virtual machines run as.*chmod o\+r/s]);
  }
  for (const [args, error] of cases) expect(await refusal('image', 'register', ...args), args.join(' ')).toMatch(error);
  expect((await world.json<{ images: Image[] }>('image', 'ls')).images.filter(({ registered }) => registered.length > 0)).toEqual([]);
  expect((await readdir(join(world.home, 'data/staging')).catch(() => [])).filter((name) => name.startsWith('make-'))).toEqual([]);
});
