// Kernels on the command line, booted in real machines. The second one is the machine's own with another
// address of its maker written into it, so that nothing has to be downloaded and the two can be told apart inside.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { tar } from '../images/archives.ts';
import { eventually } from '../support/eventually.ts';
import { MACHINES, World } from './world.ts';

const MARK = 'zzz';
const KERNELS = join(import.meta.dirname, '../../.tools/data/kernels');

type Kernel = { id: string; version: string; isDefault: boolean; by: string; usedBy: string[]; config: Record<string, string> };

let world: World;
let own: Kernel;
let atFirst: readonly Kernel[];
let other: Kernel;

beforeAll(async () => {
  world = await World.make(MACHINES);
}, 120_000);

afterAll(async () => {
  await world[Symbol.asyncDispose]();
}, 120_000);

const kernels = async () => (await world.json<{ kernels: Kernel[] }>('kernel', 'ls')).kernels;
const byId = async (id: string) => (await kernels()).find((kernel) => kernel.id === id);

async function anotherKernel(version: string): Promise<Buffer> {
  const dir = join(KERNELS, (await readdir(KERNELS)).find((name) => /^[0-9a-f]{64}$/.test(name)) ?? '');
  const order = (JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8')) as { modules: { file: string }[] }).modules;
  const vmlinux = await readFile(join(dir, 'vmlinux'));
  // As in `Linux version 6.1.0 (somebody@example.org) (gcc …`; /proc/version shows it.
  const banner = vmlinux.indexOf(`Linux version ${version} (`);
  const maker = /\(([^)@]+)@/.exec(vmlinux.toString('latin1', banner, banner + 300))?.[1] ?? '';
  const changed = `${MARK}${maker}`.slice(0, maker.length);
  for (let at = vmlinux.indexOf(`${maker}@`); at >= 0; at = vmlinux.indexOf(`${maker}@`, at)) vmlinux.write(changed, at, 'latin1');
  return tar(
    { path: 'vmlinux', content: vmlinux },
    { path: 'modules/modules.order', content: order.map(({ file }) => `kernel/${file}\n`).join('') },
    { path: 'modules/modules.builtin', content: 'kernel/fs/ext4/ext4.ko\n' },
    ...(await Promise.all(
      order.map(async ({ file }) => ({ path: `modules/kernel/${file}`, content: await readFile(join(dir, 'modules', file)) })),
    )),
  );
}

test('a kernel is imported beside the one that is here, and says what is built in', { timeout: 120_000 }, async () => {
  atFirst = await kernels(); // a checkout that was updated has older ones as well
  const [first] = atFirst;
  if (first === undefined) throw new Error('the checkout has no kernel');
  expect(first).toMatchObject({ isDefault: true, by: 'hutch', usedBy: [] });
  own = first;
  const given = await world.run(['kernel', 'import', '-', '--json'], { input: await anotherKernel(own.version) });
  expect(given.stderr).toBe('');
  other = JSON.parse(given.stdout) as Kernel;
  expect(other).toMatchObject({
    version: own.version,
    isDefault: false,
    by: 'user',
    config: { SQUASHFS: 'module', EXT4_FS: 'builtin' },
  });
  expect(await kernels()).toHaveLength(atFirst.length + 1);
  expect(await world.ok('admin', 'kernel', 'ls')).toMatch(new RegExp(`^\\*\\s+${own.version}\\s+${own.id}\\s+module`, 'm'));
  expect(await world.ok('kernel', 'verify', other.id)).toContain('is what it was');
  const which = await world.run(['kernel', 'inspect', own.version]);
  expect([which.code === 0, which.stderr]).toEqual([false, expect.stringMatching(/\d kernels are .*give the id of one/s)]);
});

test('a sandbox boots the kernel that is asked for, else the default, and keeps its own whatever the default becomes', {
  timeout: 240_000,
}, async () => {
  const BOOTED = ['--', 'grep', '-c', MARK, '/proc/version'];
  const isOther = async (...flags: string[]) => (await world.run(['run', '--rm', ...flags, ...BOOTED])).stdout === '1\n';
  const oldIsOther = async () => (await world.run(['exec', 'old', ...BOOTED])).stdout === '1\n';
  await world.ok('create', '--name', 'old');
  expect(await oldIsOther()).toBe(false);
  expect(await isOther('--kernel', other.id)).toBe(true);
  await world.ok('kernel', 'default', other.id);
  expect(await isOther()).toBe(true);
  expect(await isOther('--kernel', own.id)).toBe(false);
  const templates = async () => (await readdir(join(world.home, 'data/templates'))).filter((name) => /^[0-9a-f]{40}/.test(name)).toSorted();
  // The first sandbox of each boots by itself: its template comes behind it.
  await eventually('both have a template', async () => (await templates()).length >= 2);
  const before = await templates();
  await world.ok('restart', 'old');
  expect(await oldIsOther()).toBe(false);
  // The template of the old kernel went on serving: nothing was built anew.
  expect(await templates()).toEqual(before);
  expect(await byId(own.id)).toMatchObject({ isDefault: false, usedBy: ['old'] });
});

test('a kernel that a sandbox has, or that is the default, is not removed; the refusal says what to do', { timeout: 120_000 }, async () => {
  const used = await world.run(['kernel', 'rm', own.id]);
  expect([used.code === 0, used.stderr]).toEqual([false, expect.stringMatching(/is used by sandbox old.*hutch rm -f old/s)]);
  const isDefault = await world.run(['kernel', 'rm', other.id]);
  expect([isDefault.code === 0, isDefault.stderr]).toEqual([false, expect.stringContaining('hutch kernel default REF')]);
  await world.ok('kernel', 'default', '--reset');
  expect(await byId(own.id)).toMatchObject({ isDefault: true });
  const gvisor = await world.run(['run', '--backend', 'docker', '--kernel', other.id, '--', 'true']);
  expect([gvisor.code, gvisor.stderr]).toEqual([125, expect.stringContaining('boots no kernel of its own')]);
  const none = await world.run(['run', '--kernel', '9.9.9', '--', 'true']);
  expect([none.code, none.stderr]).toEqual([125, expect.stringMatching(/there is no kernel '9.9.9'.*hutch kernel ls/s)]);
});

test('of a removal and creations at once either the kernel stays or the creations are refused', { timeout: 240_000 }, async () => {
  const outcomes = await Promise.all([
    ...[1, 2, 3].map((at) => world.run(['create', '--no-start', '--name', `race-${at}`, '--kernel', other.id])),
    world.run(['kernel', 'rm', other.id]),
  ]);
  const removed = outcomes.at(-1);
  const made = outcomes.slice(0, -1).filter(({ code }) => code === 0);
  for (const { code, stderr } of outcomes.slice(0, -1))
    if (code !== 0) expect(stderr).toMatch(/there is no kernel|was removed a moment ago|not there any more/);
  expect(removed?.code === 0, removed?.stderr).toBe(made.length === 0);
  const there = await byId(other.id);
  expect(there === undefined).toBe(made.length === 0);
  const users = there?.usedBy ?? [];
  expect(users).toHaveLength(made.length);
  if (users.length > 0) await world.ok('rm', '-f', ...users);
  if (there !== undefined) await world.ok('kernel', 'rm', other.id);
  expect((await kernels()).map(({ id }) => id)).toEqual(atFirst.map(({ id }) => id));
});

test('what is no kernel is one sentence', { timeout: 60_000 }, async () => {
  const noise = await world.run(['kernel', 'import', '-'], { input: 'noise '.repeat(500) });
  expect([noise.code === 0, noise.stderr]).toEqual([false, expect.stringContaining('this is no kernel that sandboxes can boot')]);
  const nowhere = await world.run(['kernel', 'import', 'nowhere.deb']);
  expect([nowhere.code, nowhere.stderr]).toEqual([2, expect.stringContaining('nowhere.deb cannot be read')]);
  const odd = await world.run(['kernel', 'pull', '--', '--simulate']);
  expect([odd.code, odd.stderr]).toEqual([2, expect.stringContaining('must be letters')]);
});

test('a quota is set and shown in units that people write, and what passes it ends with 5', { timeout: 60_000 }, async () => {
  const ids = (await world.ok('ls', '-q')).split('\n').filter((id) => id !== '');
  if (ids.length > 0) await world.ok('rm', '-f', ...ids);
  expect(await world.ok('quotas', 'set', 'default', '--tier', 'FREE', '--disk', 'none', '--sandboxes', '0')).toMatch(
    /default +FREE +0 of 0 +0 of 1 +0 B of 512 MiB +0 B +/,
  );
  const refused = await world.run(['create', '--no-start']);
  expect([refused.code, refused.stderr]).toEqual([
    5,
    expect.stringMatching(/quota sandboxes of project default \(tier FREE\) is 0.*hutch quotas ls/s),
  ]);
  expect(await world.ok('admin', 'quotas', 'tiers')).toMatch(/DEDICATED +50 +800 +1\.6 TiB/);
  expect(await world.ok('quotas', 'set', 'default', '--tier', 'none', '--disk', 'tier', '--sandboxes', 'tier')).toMatch(
    /default +- +0 +0 /,
  );
  await world.ok('rm', await world.ok('create', '--no-start'));
  // A name alone makes no tier, which would have no bound at all, and one that cannot be is told what there is.
  expect(await world.ok('quotas', 'tier', 'PRO')).toMatch(/PRO +3 +6 /);
  const none = await world.run(['quotas', 'tier', 'NEW']);
  expect([none.code, none.stderr]).toEqual([3, expect.stringMatching(/no tier NEW.*hutch quotas tiers.*tier NEW --sandboxes 5/s)]);
  for (const args of [
    ['tier', 'ls'],
    ['set', 'default', '--tier', 'pro'],
  ]) {
    const refused = await world.run(['quotas', ...args]);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/capital letters.*\nhint: .*hutch quotas tiers/s)]);
  }
  const negative = await world.run(['quotas', 'set', 'default', '--sandboxes', '-1']);
  expect(negative.stderr).toContain('--sandboxes must be from 0 to 1000000, not -1');
  const nothing = await world.run(['quotas', 'set', 'default']);
  expect([nothing.code, nothing.stderr]).toEqual([2, expect.stringContaining('say what to set')]);
});
