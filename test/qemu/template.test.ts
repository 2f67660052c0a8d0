// Templates: built once, refused when they are not what was built, and told about when they cannot be.
import { appendFile, chmod, cp, open, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import type { QemuConfig } from '../../src/backends/qemu/config.ts';
import type { Host } from '../../src/host/host.ts';
import { testOperation } from '../support/operation.ts';
import { configuredAgent, qemuUnderTest, type UnderTest } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
const long = process.env['HUTCH_TEST_LONG'] !== undefined;

type Warning = { readonly why?: string };
const warnings: Warning[] = [];
const op = testOperation({ log: { debug() {}, info() {}, warn: (facts) => void warnings.push(facts), error() {} } });
let it: UnderTest;
let warmings = 0;

beforeAll(async () => {
  const plain = await qemuUnderTest();
  it = await counting(plain);
  await it.backend.prepare(op, it.plan());
});
afterAll(() => it[Symbol.asyncDispose]());

/** The same with a count of the boots. */
async function counting(under: UnderTest, over: Partial<QemuConfig> = {}): Promise<UnderTest> {
  const config: QemuConfig = {
    ...under.config,
    warmAgent: (warmOp, dial, disk) => {
      warmings += 1;
      return under.config.warmAgent(warmOp, dial, disk);
    },
    ...over,
  };
  return { ...under, config, backend: newQemuBackend(config) };
}

async function templateDirs(under: UnderTest): Promise<string[]> {
  return (await readdir(under.config.templatesDir))
    .filter((name) => /^[0-9a-f]{40}$/.test(name))
    .map((name) => join(under.config.templatesDir, name));
}

async function onlyTemplate(): Promise<string> {
  const [dir = '', ...others] = await templateDirs(it);
  expect(others).toEqual([]);
  return dir;
}

async function runsTrue(under: UnderTest): Promise<void> {
  const plan = under.plan();
  await under.backend.create(op, plan);
  try {
    using agent = await configuredAgent(op, under, plan, await under.backend.start(op, plan));
    expect((await outputOf(op, agent, ['true'])).exit.code).toBe(0);
  } finally {
    await under.backend.kill(op, plan, 'now');
    await under.backend.remove(op, plan);
  }
}

async function flip(path: string, at: number): Promise<void> {
  await chmod(path, 0o600);
  await using file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  byte.writeUInt8(byte.readUInt8() ^ 0xff);
  await file.write(byte, 0, 1, at);
}

async function cut(path: string, bytes: number): Promise<void> {
  await chmod(path, 0o600);
  await truncate(path, bytes);
}

test('a template that was changed in any way is refused and built again', { timeout: 300_000 }, async () => {
  const damages: readonly [string, (dir: string) => Promise<void>][] = [
    ['memory', (dir) => flip(join(dir, 'memory'), 20 * 1024 * 1024)],
    ['memory', (dir) => cut(join(dir, 'memory'), 100 * 1024 * 1024)],
    ['state', (dir) => flip(join(dir, 'state'), 1000)],
    ['state', (dir) => cut(join(dir, 'state'), 10)],
    ['disk', (dir) => flip(join(dir, 'disk'), 5000)],
    ['manifest', (dir) => cut(join(dir, 'manifest.json'), 40)],
  ];
  // Each costs a boot: a short run takes every other one, by the seed.
  for (const [what, damage] of damages.filter((_, index) => long || index % 2 === seed % 2)) {
    await damage(await onlyTemplate());
    const before = { warmings, warnings: warnings.length };
    await runsTrue(it);
    expect(warmings, what).toBe(before.warmings + 1);
    expect(warnings.at(before.warnings)?.why, what).toContain(what);
    await runsTrue(it);
    expect(warmings, `after ${what}`).toBe(before.warmings + 1);
  }
});

test('a disk that was made from a template which was built again since is made again too', { timeout: 120_000 }, async () => {
  const plan = it.plan();
  await it.backend.create(op, plan);
  await flip(join(await onlyTemplate(), 'state'), 2000);
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  const { stdout, exit } = await outputOf(op, agent, [
    'sh',
    '-c',
    'echo kept > /root/note && sync && cat /root/note && dmesg | grep -ci "ext4.*error"',
  ]);
  expect([stdout, exit.code]).toEqual(['kept\n0\n', 1]); // grep found nothing
  await it.backend.kill(op, plan, 'now');
  await it.backend.remove(op, plan);
});

test('a template that was only touched is checked whole and kept', async () => {
  const dir = await onlyTemplate();
  await chmod(join(dir, 'memory'), 0o600); // another ctime and mode, the same content
  const before = warmings;
  await runsTrue(it);
  expect(warmings).toBe(before);
});

test('running sandboxes do not change the template, nor each other', async () => {
  const dir = await onlyTemplate();
  const memory = await readFile(join(dir, 'memory'));
  const plans = [it.plan(), it.plan()];
  await Promise.all(
    plans.map(async (plan, index) => {
      await it.backend.create(op, plan);
      using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
      await outputOf(op, agent, ['sh', '-c', `head -c 20000000 /dev/urandom > /dev/shm/own; echo ${index} > /root/own`]);
      expect((await outputOf(op, agent, ['cat', '/root/own'])).stdout).toBe(`${index}\n`);
      await it.backend.kill(op, plan, 'now');
      await it.backend.remove(op, plan);
    }),
  );
  expect(Buffer.compare(await readFile(join(dir, 'memory')), memory)).toBe(0);
});

test('two that want the same template at once build it once, also in two daemons', async () => {
  await using fresh = await qemuUnderTest();
  const [one, other] = [await counting(fresh), await counting(fresh)];
  const before = warmings;
  await Promise.all([one.backend.prepare(op, one.plan()), one.backend.prepare(op, one.plan()), other.backend.prepare(op, other.plan())]);
  expect(warmings).toBe(before + 1);
});

test('when the first of two gives up, the second still gets its template', async () => {
  await using fresh = await qemuUnderTest();
  const given = new AbortController();
  const first = fresh.backend.prepare(testOperation({ signal: given.signal }), fresh.plan());
  const second = fresh.backend.prepare(op, fresh.plan());
  setTimeout(() => given.abort(), 300);
  await expect(first).rejects.toMatchObject({ code: 'cancelled' });
  await second;
  expect(await templateDirs(fresh)).toHaveLength(1);
});

test('a boot that never gets ready is an error with the end of its console', async () => {
  await using fresh = await qemuUnderTest();
  const never = await counting(fresh, { bootMs: 4_000, warmAgent: () => new Promise(() => {}) });
  const failure = never.backend.prepare(op, never.plan());
  await expect(failure).rejects.toMatchObject({
    code: 'deadline_exceeded',
    message: expect.stringMatching(/did not get ready in 4000 ms; its console ends: /),
  });
  await nothingLeft(fresh);
});

test('KVM is given up where a guest boots without it, and not where nothing boots in time', { timeout: 240_000 }, async () => {
  await using fresh = await qemuUnderTest();
  await fresh.backend.probe(op);
  const path = join(fresh.config.workDir, 'acceleration.json');
  const answer = JSON.parse(await readFile(path, 'utf8')) as { acceleration: string };
  const kept = async (): Promise<unknown> => (JSON.parse(await readFile(path, 'utf8')) as { acceleration: string }).acceleration;
  await writeFile(path, JSON.stringify({ ...answer, acceleration: 'kvm', why: null }));
  const slow = newQemuBackend({ ...fresh.config, bootMs: 50 });
  await expect(slow.prepare(op, fresh.plan())).rejects.toMatchObject({ code: 'deadline_exceeded' });
  expect(await kept()).toBe('kvm');
  if (answer.acceleration === 'kvm') return; // a guest does boot under it here
  // A guest that stands still under it is waited for to the end; without it one boots in a few seconds.
  await newQemuBackend({ ...fresh.config, bootMs: 20_000 }).prepare(op, fresh.plan());
  expect(await kept()).toBe('tcg');
});

test('whether KVM can be used is asked again when other people may open the device', async () => {
  await using fresh = await qemuUnderTest();
  const note = async (device: Awaited<ReturnType<Host['stat']>>) => {
    const stat: Host['stat'] = async (asking, path) => (path === '/dev/kvm' ? device : await fresh.config.host.stat(asking, path));
    const probe = await newQemuBackend({ ...fresh.config, host: { ...fresh.config.host, stat } }).probe(op);
    return probe.ok ? probe.can.notes.find((said) => said.startsWith('no KVM')) : probe.why;
  };
  const info = await fresh.config.host.stat(op, '/dev/null');
  if (info === null) throw new Error('/dev/null is missing');
  expect(await note(null)).toBe('no KVM: there is no /dev/kvm');
  expect(await note({ ...info, mode: 0o600, uid: 0, gid: 0 })).not.toBe('no KVM: there is no /dev/kvm');
  expect(await note(null)).toBe('no KVM: there is no /dev/kvm');
});

test('a kernel that cannot boot is an error with its last words', async () => {
  await using fresh = await qemuUnderTest();
  const initramfsPath = join(fresh.home, 'broken.cpio');
  await cp(fresh.boot.initramfsPath, initramfsPath);
  await chmod(initramfsPath, 0o644);
  await truncate(initramfsPath, 4096);
  await appendFile(initramfsPath, Buffer.alloc(4096));
  const plan = { ...fresh.plan(), boot: { ...fresh.boot, initramfsPath, initramfsDigest: 'broken' } };
  await expect(fresh.backend.prepare(op, plan)).rejects.toMatchObject({ code: 'unavailable', message: expect.stringMatching(/panic/i) });
  await nothingLeft(fresh);
});

async function nothingLeft(under: UnderTest): Promise<void> {
  expect(await templateDirs(under)).toEqual([]);
  expect((await readdir(under.config.templatesDir)).filter((name) => name.startsWith('.building'))).toEqual([]);
  expect((await readdir(under.config.workDir)).filter((name) => name.startsWith('template'))).toEqual([]);
}
