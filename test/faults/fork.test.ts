// Copies of a sandbox that runs: each is like it in memory and on disk, like no other where two machines must differ, and
// nothing that one of them does is seen by another.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import { all, COUNT, expectInOrder, isLong, numbers, seed, shellOf, startDaemon } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 300_000;
const CHILDREN = isLong ? 20 : 2;
const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };
const run = promisify(execFile);

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());

const sh = shellOf(daemon);

const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; echo $i; sleep 1; done';

/** What two machines must not share. */
const UNLIKE = {
  'machine-id': 'cat /etc/machine-id',
  'boot id': 'cat /proc/sys/kernel/random/boot_id',
  'getrandom in a new process': 'od -An -tx1 -N16 /dev/urandom',
  uuid: 'cat /proc/sys/kernel/random/uuid',
  'hardware address': 'cat /sys/class/net/eth0/address',
  hostname: 'hostname',
  'host key': 'cat /etc/ssh/ssh_host_test',
  ...(isLong
    ? { 'TLS and secrets of a new program': 'python3 -c "import ssl, secrets; print(ssl.RAND_bytes(16).hex(), secrets.token_hex(8))"' }
    : {}),
} as const;

function templateDigest(): string {
  const dir = join(daemon.home, 'data/templates');
  const name = readdirSync(dir).find((entry) => /^[0-9a-f]{40}$/.test(entry)) ?? '';
  return createHash('sha256')
    .update(readFileSync(join(dir, name, 'memory')))
    .digest('hex');
}

test(`${CHILDREN} children of a running sandbox are like it, and like no other where they must not be`, { timeout: TEST_MS }, async () => {
  const parent = await daemon.call('sandbox.create', {
    name: 'web',
    labels: { for: 'test' },
    env: { PLAIN: 'p' },
    secrets: { HIDDEN: 'h' },
    main: { argv: ['sh', '-c', COUNTER] },
  });
  await sh(
    'web',
    'echo disk > /root/a; echo memory > /dev/shm/a; head -c 5000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big > /dev/shm/sum',
  );
  // A key as sshd has it, and a program that makes new ones; who is told of a restore.
  await sh(
    'web',
    `mkdir -p /etc/ssh /etc/hutch/after-restore.d && echo old > /etc/ssh/ssh_host_test
     printf '#!/bin/sh\\ncat /proc/sys/kernel/random/uuid > /etc/ssh/ssh_host_test\n' > /usr/bin/ssh-keygen
     printf '#!/bin/sh\nhostname > /root/told\n' > /etc/hutch/after-restore.d/one; chmod +x /usr/bin/ssh-keygen /etc/hutch/after-restore.d/one`,
  );
  const before = templateDigest();
  const stream = await daemon.exec('web', { argv: ['sh', '-c', 'while :; do echo tick; sleep 1; done'] }, { execId: 'ticks' });
  await stream.sawOutput('tick');

  const forked = await daemon.call('sandbox.fork', { ref: 'web', count: CHILDREN, namePrefix: 'kid' });
  expect(forked).toMatchObject({ parentId: parent.id, failed: [] });
  expect(forked.stillMs).toBeGreaterThan(0);
  const names = Array.from({ length: CHILDREN }, (_, index) => `kid-${index + 1}`);
  expect(forked.children.map(({ sandbox }) => sandbox.name)).toEqual(names);
  expect(readdirSync(join(daemon.home, 'data/forks'))).toEqual([]);
  const ticked = stream.stdout.byteLength;
  await eventually('the stream of the parent goes on', () => stream.stdout.byteLength > ticked + 5);
  stream.socket.terminate();

  // Few programs: each costs an emulated machine that has just been made more than all else here.
  const look = `cat /root/a /dev/shm/a /root/told; sha256sum -c /dev/shm/sum; echo $PLAIN $HIDDEN; date +%s%3N; ${Object.values(UNLIKE).join('; ')}
    hostname > /root/a; hostname > /dev/shm/a; ${COUNT}`;
  const askedAt = Date.now();
  const seen = await Promise.all(names.map(async (ref) => (await sh(ref, look)).trim().split('\n')));
  const own = (await sh('web', Object.values(UNLIKE).join('; '))).trim().split('\n');
  for (const [nth, name] of names.entries()) {
    expect(await daemon.call('sandbox.get', { ref: name })).toMatchObject({ state: 'running', labels: { for: 'test' }, startCount: 1 });
    expect(seen[nth]?.slice(0, 5)).toEqual(['disk', 'memory', name, '/dev/shm/big: OK', 'p h']);
    expect(Number(seen[nth]?.[5])).toBeGreaterThan(askedAt - 1_000);
    expect(Number(seen[nth]?.[5])).toBeLessThan(Date.now() + 1_000);
    const count = Number(seen[nth]?.at(-1));
    expect(count).toBeGreaterThan(0);
    await eventually('its main process goes on', async () => Number(await sh(name, COUNT)) > count);
  }
  for (const [nth, what] of Object.keys(UNLIKE).entries()) {
    const values = [own[nth], ...seen.map((lines) => lines[6 + nth])];
    expect([what, new Set(values).size], values.join()).toEqual([what, CHILDREN + 1]);
  }
  // What each wrote stayed its own.
  expect(await sh('web', 'cat /root/a /dev/shm/a')).toBe('disk\nmemory\n');
  for (const ref of names) expect(await sh(ref, 'cat /root/a /dev/shm/a')).toBe(`${ref}\n${ref}\n`);
  expect(templateDigest()).toBe(before);
  // What a child began with is on no disk until something that lasts stands on it: then all of it is, with its checksum.
  const { id: ofChild } = await daemon.call('snapshot.create', { ref: 'kid-2', name: 'of-a-child' });
  expect(await daemon.call('snapshot.verify', { snapshot: ofChild })).toMatchObject({ id: ofChild });
  // A child of a child goes on when its parent is gone.
  await daemon.call('sandbox.fork', { ref: 'kid-1', namePrefix: 'grandchild' });
  await daemon.call('sandbox.delete', { ref: 'kid-1', force: true });
  const [sum, bootId] = (await sh('grandchild-1', 'sha256sum -c /dev/shm/sum; cat /proc/sys/kernel/random/boot_id')).split('\n');
  expect(sum).toBe('/dev/shm/big: OK');
  const bootIds = [own, ...seen.map((lines) => lines.slice(6))].map((lines) => lines[Object.keys(UNLIKE).indexOf('boot id')]);
  expect(bootIds).not.toContain(bootId);

  const kinds: string[] = [];
  for await (const line of daemon.lines('ledger.list', {})) {
    const entry = line as { kind: string; reason: string; sandboxId: string; parentId: string | null; atMs: number };
    if (entry.sandboxId === forked.children[1]?.sandbox.id) kinds.push(`${entry.kind} ${entry.reason} ${entry.parentId === parent.id}`);
  }
  expect(kinds).toEqual(['vm.storage.start clone true', 'vm.compute.start clone true']);
  await daemon.call('snapshot.remove', { snapshot: ofChild });
  await expectInOrder(daemon);
  await daemon.deleteAll();
});

/** Of what a running child has mapped: what each layer of its memory takes on the disk, oldest first. */
function layersOf(id: string): readonly number[] {
  const found = readdirSync(join(daemon.home, 'data/sandboxes', id), { recursive: true, encoding: 'utf8' });
  const layers = found.flatMap((path) => {
    const number = /memory-[0-9a-f]{32}\/(\d+)$/.exec(path)?.[1];
    return number === undefined
      ? []
      : [{ number: Number(number), bytes: statSync(join(daemon.home, 'data/sandboxes', id, path)).blocks * 512 }];
  });
  return layers.sort((a, b) => a.number - b.number).map(({ bytes }) => bytes);
}

test('a fork soon after another one writes down what has changed since, and its child has all of it', { timeout: TEST_MS }, async () => {
  const MIB = 1024 * 1024;
  const { id } = await daemon.call('sandbox.create', { name: 'again', network: 'none' });
  const make = (name: string, mebibytes: number) => `head -c ${mebibytes * MIB} /dev/urandom > /dev/shm/${name}`;
  await sh('again', `${make('stays', 24)}; ${make('partly', 24)}; ${make('goes', 8)}; sha256sum /dev/shm/* > /root/sums`);
  const childOf = async (nth: number) => {
    const { children } = await daemon.call('sandbox.fork', { ref: 'again', namePrefix: `nth-${nth}` });
    const [child] = children;
    if (child === undefined) throw new Error('no child was made');
    expect(await sh(child.sandbox.name, 'sha256sum -c --quiet /root/sums && echo well')).toBe('well\n');
    const layers = layersOf(child.sandbox.id);
    await daemon.call('sandbox.delete', { ref: child.sandbox.id, force: true });
    return layers;
  };
  const first = await childOf(1);
  expect(first.reduce((sum, bytes) => sum + bytes, 0)).toBeGreaterThan(50 * MIB);
  const change = `rm -f /dev/shm/goes; ${make('new', 1)}; ${make('few', 1)}; dd if=/dev/shm/few of=/dev/shm/partly bs=4096 seek=77 conv=notrunc status=none`;
  await sh('again', `${change}; sha256sum /dev/shm/* > /root/sums`);
  const second = await childOf(2);
  // A file system may count some blocks of its own for a file a moment later; a layer written again would be another one.
  for (const [nth, bytes] of first.entries()) expect(Math.abs((second[nth] ?? 0) - bytes)).toBeLessThan(MIB);
  expect(second).toHaveLength(first.length + 1);
  expect(second.at(-1)).toBeLessThan(30 * MIB);
  // Whoever else has memory written down breaks the chain: the next fork counts on nothing.
  await daemon.call('snapshot.create', { ref: 'again', name: 'between' });
  await sh('again', `${change}; sha256sum /dev/shm/* > /root/sums`);
  expect(await childOf(3)).toHaveLength(first.length);
  // With the sandbox all of it goes.
  await daemon.call('sandbox.delete', { ref: id, force: true });
  expect(readdirSync(join(daemon.home, 'data/sandboxes'))).not.toContain(id);
});

test('the disk of an only child is as it was, and its own', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'first', network: 'none' });
  await sh('first', 'head -c 3000000 /dev/urandom > /root/a; head -c 3000000 /dev/urandom > /root/b; sha256sum /root/? > /root/sums');
  const whole = 'sha256sum -c --quiet /root/sums && echo well';
  const lines = [{ name: 'first', id }];
  for (const name of ['second', 'third']) {
    const before = lines.at(-1)?.name ?? '';
    const { children } = await daemon.call('sandbox.fork', { ref: before, namePrefix: name });
    const [child] = children;
    if (child === undefined) throw new Error('no child was made');
    lines.push({ name: child.sandbox.name, id: child.sandbox.id });
    const dir = join(daemon.home, 'data/sandboxes', child.sandbox.id);
    const disk = readdirSync(dir, { recursive: true, encoding: 'utf8' }).find((path) => path.endsWith('disk.img')) ?? '';
    expect(statSync(join(dir, disk))).toMatchObject({ nlink: 1, mode: 0o100600 });
    expect(await sh(child.sandbox.name, `${whole}; sync; echo 3 > /proc/sys/vm/drop_caches; ${whole}`)).toBe('well\nwell\n');
    await sh(child.sandbox.name, 'head -c 3000000 /dev/urandom > /root/b; sha256sum /root/? > /root/sums; sync');
  }
  const sums = new Set<string>();
  for (const { name } of lines) {
    expect(await sh(name, `echo 3 > /proc/sys/vm/drop_caches; ${whole}`), name).toBe('well\n');
    sums.add(await sh(name, 'cat /root/sums'));
  }
  expect(sums.size).toBe(lines.length);
  await daemon.deleteAll();
});

test('hutch fork --exec runs in each child, and says what failed where', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await daemon.call('sandbox.create', { name: 'part-2', network: 'none', start: false });
  const env = { ...process.env, HUTCH_HOME: daemon.home, HUTCH_DAEMON_LISTEN: 'off' };
  const cli = join(import.meta.dirname, '../../src/cli/main.ts');
  const argv = [cli, 'fork', '-n', '2', '--name-prefix', 'part', 'web', '--exec', 'echo child $HUTCH_FORK_INDEX', '--json'];
  const failed = (await run(process.execPath, argv, { env }).catch((error: unknown) => error)) as { code: number; stdout: string };
  expect(failed.code).toBe(1);
  const { children, failed: errors, execs } = JSON.parse(failed.stdout) as Record<string, readonly Record<string, unknown>[]>;
  expect(children).toMatchObject([{ index: 1 }]);
  expect(errors).toMatchObject([{ index: 2, error: { code: 'conflict' } }]);
  expect(execs).toMatchObject([
    { index: 1, exec: { exitCode: 0, stdout: 'child 1\n' } },
    { index: 2, exec: null },
  ]);
  // Of one that stands still, which goes on standing.
  await sh('web', 'echo here > /dev/shm/a');
  await daemon.call('sandbox.pause', { ref: 'web' });
  expect(await daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'still' })).toMatchObject({ failed: [], children: [{ index: 1 }] });
  expect((await daemon.call('sandbox.get', { ref: 'web' })).state).toBe('paused');
  expect(await sh('still-1', 'cat /dev/shm/a; hostname')).toBe('here\nstill-1\n');
  await daemon.deleteAll();
});

test(`a daemon that is killed in a fork leaves the parent running, and nothing else (seed ${seed})`, { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', 'echo here > /dev/shm/a');
  const of = { verbs: [['sandbox.fork', 80]], samples: 1, random: numbers(seed) } as const;
  await atPoints(daemon, OWN, of, async ({ fault, strike }) => {
    await strike(() => daemon.call('sandbox.fork', { ref: 'web' }));
    expect(await sh('web', 'cat /dev/shm/a'), fault).toBe('here\n');
    for (const { name } of await all(daemon)) if (name !== 'web') await daemon.call('sandbox.delete', { ref: name, force: true });
    await expectInOrder(daemon);
  });
  await daemon.deleteAll();
});

test('memory that a guest has freed goes back to the host, is in no snapshot, and takes nothing else along', {
  timeout: TEST_MS,
}, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'large' });
  const hostBytes = async (): Promise<number> => (await daemon.call('sandbox.stats', { ref: id })).host.pssBytes;
  const bytes = 300 * 2 ** 20;
  // Something to keep, in memory alone, and a digest of it.
  await sh('large', 'head -c 20000000 /dev/urandom > /dev/shm/kept; sha256sum /dev/shm/kept > /dev/shm/sum');
  const beforeBytes = await hostBytes();
  const hog = await daemon.exec(
    id,
    {
      argv: ['python3', '-c', `import os; x = os.urandom(1 << 20) * ${bytes / 2 ** 20}; print('has it', flush=True); input()`],
      stdin: 'open',
    },
    { execId: 'hog' },
  );
  await eventually('the program to have its memory', () => hog.stdout.includes('has it'), 60_000);
  const fullBytes = await hostBytes();
  expect(fullBytes - beforeBytes).toBeGreaterThan(0.9 * bytes);
  await daemon.call('exec.signal', { ref: id, execId: 'hog', signal: 'SIGKILL' });
  await hog.exit();
  let nowBytes = fullBytes;
  await eventually(
    'four fifths of it to be the host’s again',
    async () => {
      nowBytes = await hostBytes();
      return fullBytes - nowBytes > 0.8 * bytes;
    },
    60_000,
  );
  const kept = await daemon.call('snapshot.create', { ref: id, name: 'small' });
  process.stdout.write(
    `host memory before ${beforeBytes >> 20}, with 300 MiB in use ${fullBytes >> 20}, freed ${nowBytes >> 20}, stored ${kept.ownBytes >> 20} MiB\n`,
  );
  expect(kept.ownBytes).toBeLessThan(0.4 * bytes);
  const { children } = await daemon.call('sandbox.fork', { ref: id, count: 1 });
  for (const ref of [id, children[0]?.sandbox.id ?? '']) {
    expect(await sh(ref, 'sha256sum -c /dev/shm/sum')).toBe('/dev/shm/kept: OK\n');
    // What was given back is zeros to a program that gets it again.
    expect(await sh(ref, `python3 -c 'x = bytearray(${bytes / 2}); print(x.count(0) == len(x))'`)).toBe('True\n');
    await daemon.call('sandbox.delete', { ref, force: true });
  }
  await daemon.call('snapshot.remove', { snapshot: kept.id });
});
