// Sandboxes of one instant, kept under a name: what is made from them is as it was then and as no other, nothing of them is lost
// or left behind, and what has been damaged is found.
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import { removeAll, snapshotOf, sumOf } from './saved-files.ts';
import { expectBytesCounted } from './stored-bytes.ts';
import { COUNT, countOf, expectInOrder, isLong, numbers, options, pidOf, seed, shellOf, startDaemon } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 300_000;
const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };
const SAMPLES = 2;
/** Calls to the host that each makes, about. */
const CALLS = [
  ['snapshot.create', 70],
  ['sandbox.create', 45],
] as const;
const MIB = 1024 * 1024;
const run = promisify(execFile);

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());
afterEach(() => removeAll(daemon));

const sh = shellOf(daemon);
const kept = (): string[] =>
  existsSync(join(daemon.home, 'data/snapshots')) ? readdirSync(join(daemon.home, 'data/snapshots')).sort() : [];

async function snapshotLedger(): Promise<(string | number)[][]> {
  const found: (string | number)[][] = [];
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, reason, snapshotId, shape } = line as {
      kind: string;
      reason: string;
      snapshotId: string;
      shape: { storageBytes: number };
    };
    if (kind.startsWith('snap.')) found.push([`${kind} ${reason}`, snapshotId, shape.storageBytes]);
  }
  return found;
}

/** What two machines must not share. */
const UNLIKE =
  'cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address; hostname; od -An -tx1 -N16 /dev/urandom';

test('what is made from a snapshot is as the sandbox was, and like no other', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', {
    name: 'web',
    labels: { for: 'test' },
    env: { PLAIN: 'p' },
    secrets: { HIDDEN: 'h' },
  });
  await sh(
    'web',
    'echo disk > /root/a; echo memory > /dev/shm/a; (while :; do date +%s%N > /dev/shm/tick; sleep 0.2; done) > /dev/null 2>&1 &',
  );
  const first = await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
  expect(first).toMatchObject({ name: 'ready', sandboxId: id, parentId: null, contents: 'memory and disk', usedBy: [] });
  const [image] = (await daemon.call('image.list', {})).images;
  expect(image?.usedBy).toContain('snapshot ready');
  const rootfs = (await daemon.call('asset.list', { kind: 'rootfs' })).assets.find((asset) => asset.id === image?.id);
  expect(rootfs?.references).toContainEqual({ kind: 'snapshot', what: 'ready' });
  expect(first.stillMs).toBeGreaterThan(0);
  expect(await daemon.call('snapshot.get', { snapshot: 'ready' })).not.toHaveProperty('stillMs'); // it stands still no more
  await expect(daemon.call('snapshot.create', { ref: 'web', name: 'ready' })).rejects.toThrow(/taken by snapshot/);

  // Only what differs is stored, also of the second.
  await sh('web', `head -c ${10 * MIB} /dev/urandom > /dev/shm/more; echo later > /root/a`);
  const second = await daemon.call('snapshot.create', { ref: 'web', name: 'later' });
  expect(second).toMatchObject({ parentId: first.id });
  expect(second.ownBytes).toBeGreaterThan(10 * MIB);
  expect(second.ownBytes).toBeLessThan(20 * MIB);
  expect(second.apparentBytes).toBeGreaterThan(second.ownBytes + first.ownBytes);

  const made = await daemon.call('sandbox.create', { from: 'ready', name: 'copy', env: { MORE: 'm' }, secrets: { OWN: 'o' } });
  expect(made).toMatchObject({
    state: 'running',
    labels: { for: 'test' },
    env: { PLAIN: 'p', MORE: 'm' },
    secretNames: ['OWN'],
    startCount: 1,
  });
  expect(
    await sh(
      'copy',
      'cat /root/a /dev/shm/a; ls /dev/shm/more 2>&1 | head -c 2; echo; echo $PLAIN $MORE $OWN "$HIDDEN"; echo mine > /root/a',
    ),
  ).toBe('disk\nmemory\nls\np m o \n');
  const tick = await sh('copy', 'cat /dev/shm/tick');
  await eventually('what ran goes on', async () => (await sh('copy', 'cat /dev/shm/tick')) !== tick);
  const forked = await daemon.call('sandbox.fork', { ref: first.id.slice(0, 10), namePrefix: 'other' });
  expect(forked).toMatchObject({ parentId: first.id, stillMs: 0, failed: [], children: [{ sandbox: { name: 'other-1' } }] });
  const selves = await Promise.all(['web', 'copy', 'other-1'].map(async (ref) => (await sh(ref, UNLIKE)).trim().split('\n')));
  for (const [nth, value] of (selves[0] ?? []).entries()) {
    const values = selves.map((lines) => lines[nth]);
    expect(new Set(values).size, `${nth}: ${value} ${values.join()}`).toBe(3);
  }
  expect(await sh('web', 'cat /root/a')).toBe('later\n');
  expect(await sh('other-1', 'cat /root/a')).toBe('disk\n');
  const kinds: string[] = [];
  const times = new Set<number>();
  for await (const line of daemon.lines('ledger.list', {})) {
    const entry = line as { kind: string; reason: string; sandboxId: string; sourceSnapshotId: string; atMs: number };
    if (entry.sandboxId !== made.id) continue;
    kinds.push(`${entry.kind} ${entry.reason} ${entry.sourceSnapshotId === first.id}`);
    times.add(entry.atMs);
  }
  expect([kinds, times.size]).toEqual([['vm.storage.start clone true', 'vm.compute.start clone true'], 1]);

  // A disk alone is begun with as a new machine.
  const disk = await daemon.call('snapshot.create', { ref: 'web', diskOnly: true });
  expect(disk).toMatchObject({ contents: 'disk', parentId: second.id, name: null });
  expect(disk.ownBytes).toBeLessThan(5 * MIB);
  await daemon.call('sandbox.create', { from: disk.id, name: 'booted', network: 'none', main: { argv: ['sleep', '1000'] } });
  expect(await sh('booted', 'cat /root/a; ls /dev/shm')).toBe('later\n');

  const { snapshots } = await daemon.call('snapshot.list', {});
  expect(snapshots.map(({ id: own, depth, usedBy }) => [own, depth, usedBy])).toEqual([
    [first.id, 0, ['copy', 'other-1']],
    [second.id, 1, []],
    [disk.id, 2, ['booted']],
  ]);
  expect((await daemon.call('snapshot.get', { snapshot: 'ready' })).machine).toMatchObject({
    cpus: expect.any(Number),
    emulator: expect.stringMatching(/^\d/),
    kernel: expect.stringMatching(/^sha256:|^[0-9a-f]/),
    agent: expect.any(String),
  });
  for (const { id: own } of snapshots) expect(await daemon.call('snapshot.verify', { snapshot: own })).toMatchObject({ id: own });
  await expect(daemon.call('snapshot.remove', { snapshot: 'ready' })).rejects.toThrow(
    /used by snapshot later and by sandboxes copy, other-1/,
  );
  await expect(daemon.call('image.remove', { image: made.imageId })).rejects.toThrow(/used by/);
  const { removed } = await daemon.call('snapshot.remove', { snapshot: 'ready', cascade: true });
  expect(removed.map(({ id: own }) => own)).toEqual([disk.id, second.id, first.id]);
  expect(kept()).toEqual([]);
  // What was made from it needs nothing of it.
  expect(await sh('copy', 'cat /root/a /dev/shm/a')).toBe('mine\nmemory\n');
  const own = [first, second, disk];
  expect(await snapshotLedger()).toEqual([
    ...own.map(({ id: which, ownBytes }) => ['snap.storage.start null', which, ownBytes]),
    ...own.toReversed().map(({ id: which, ownBytes }) => ['snap.storage.stop snap-rm', which, ownBytes]),
  ]);
  await expectInOrder(daemon);
});

/**
 * Files come, are renamed and go without an end: what the file system has in memory is never all that is on its disk. And a number that
 * is written past that memory, to the disk itself, is always the one that its program has in its own.
 */
const CHURN = `
import mmap, os, time
os.makedirs('/root/churn', exist_ok=True); os.chdir('/root/churn')
def put(path, text):
    with open(path, 'w') as file: file.write(text)
disk = os.open('/root/number', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
i = 0
while True:
    block[:20] = b'%020d' % i; os.pwritev(disk, [block], 0)
    put('new', 'x' * (i * 1237 % 30000)); os.rename('new', str(i % 900))
    if i % 3 == 0 and os.path.exists(str(i * 7 % 900)): os.unlink(str(i * 7 % 900))
    if i % 4 == 0: os.sync()
    put('/dev/shm/count', '%d\\n' % i); time.sleep(0.003)
    os.preadv(disk, [block], 0)
    if int(block[:20]) != i: put('/dev/shm/wrong', '%d is on the disk, %d in memory' % (int(block[:20]), i))
    i += 1
`;

/** What its disk is after its machine has lost its power, with its journal written into it. */
async function fsck(id: string): Promise<readonly [number, string]> {
  const copy = join(daemon.home, `${id}.img`);
  try {
    await run('cp', ['--sparse=always', join(daemon.home, 'data/sandboxes', id, 'vm/disk.img'), copy]);
    await run('e2fsck', ['-y', '-E', 'journal_only', copy]);
    return await run('e2fsck', ['-fn', copy]).then(
      () => [0, ''] as const,
      (error: { code: number; stdout: string }) => [error.code, error.stdout] as const,
    );
  } finally {
    rmSync(copy, { force: true });
  }
}

async function beginAt(ref: string): Promise<{ readonly id: string }> {
  const { id: from } = await daemon.call('snapshot.create', { ref });
  return await daemon.call('sandbox.create', { from, name: 'begun' });
}

test('memory and disk are of one instant: what is on the disk is what its program wrote last, and fsck finds nothing wrong', {
  timeout: TEST_MS,
}, async () => {
  const busy = await daemon.call('sandbox.create', { name: 'busy', network: 'none', main: { argv: ['python3', '-c', CHURN] } });
  await sh('busy', 'until [ -s /dev/shm/count ]; do sleep 0.1; done');
  await eventually('it writes', async () => (await countOf(sh, 'busy')) > 60);
  const { children } = await daemon.call('sandbox.fork', { ref: 'busy', namePrefix: 'kid' });
  // A snapshot is taken as a fork is: in a long run alone.
  const begun = isLong ? [await beginAt('busy')] : [];
  await daemon.call('sandbox.suspend', { ref: 'busy' });
  await daemon.call('sandbox.resume', { ref: 'busy' });
  for (const { id } of [...children.map(({ sandbox }) => sandbox), ...begun, busy]) {
    // What is clean in its memory is read from its disk again.
    const before = Number(await sh(id, `echo 3 > /proc/sys/vm/drop_caches; ${COUNT}`));
    await eventually('it goes on', async () => (await countOf(sh, id)) > before + 20);
    // What it has in memory meets its disk.
    expect(await sh(id, 'sync; cat /dev/shm/wrong 2>/dev/null || true')).toBe('');
    await daemon.call('sandbox.stop', { ref: id, force: true });
    expect(await fsck(id)).toEqual([0, '']);
  }
  await expectInOrder(daemon);
});

test('a snapshot of a paused, a suspended and a stopped sandbox, and children of a suspended one', { timeout: TEST_MS }, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'still', network: 'none' });
  await sh('still', 'echo memory > /dev/shm/a; echo disk > /root/a; sync');
  await daemon.call('sandbox.pause', { ref: 'still' });
  await daemon.call('snapshot.create', { ref: 'still', name: 'paused' });
  expect((await daemon.call('sandbox.get', { ref: 'still' })).state).toBe('paused');
  await daemon.call('sandbox.suspend', { ref: 'still' });
  await daemon.call('snapshot.create', { ref: 'still', name: 'suspended' });
  expect((await daemon.call('sandbox.get', { ref: 'still' })).state).toBe('suspended');
  const { stillMs, children } = await daemon.call('sandbox.fork', { ref: 'still', count: 2, namePrefix: 'kid' });
  expect([stillMs, children.length, (await daemon.call('sandbox.get', { ref: 'still' })).state]).toEqual([0, 2, 'suspended']);
  // Whatever they write, no byte of it is in what they stand on: their parent's disk and memory, snapshots of it, the template.
  const ground = (): readonly string[] => [
    sumOf(join(daemon.home, 'data/sandboxes', id), ['counters']),
    sumOf(join(daemon.home, 'data/snapshots')),
    sumOf(join(daemon.home, 'data/templates')),
  ];
  const before = ground();
  await daemon.call('sandbox.create', { from: 'paused', name: 'kid-3' });
  for (const ref of ['kid-1', 'kid-3'])
    await sh(ref, 'echo other > /root/a; echo other > /dev/shm/a; head -c 9000000 /dev/urandom | tee /root/more > /dev/shm/more; sync');
  expect(ground()).toEqual(before);
  expect(await sh('kid-2', 'cat /dev/shm/a /root/a; hostname')).toBe('memory\ndisk\nkid-2\n');
  await daemon.call('sandbox.resume', { ref: 'still' });
  expect(await sh('still', 'cat /dev/shm/a /root/a; hostname')).toBe('memory\ndisk\nstill\n');
  await daemon.call('sandbox.stop', { ref: 'still' });
  const stopped = await daemon.call('snapshot.create', { ref: 'still', name: 'stopped' });
  expect(stopped.contents).toBe('disk');
  await daemon.kill9();
  await daemon.startAgain(options(OWN));
  for (const from of ['paused', 'suspended']) {
    await daemon.call('sandbox.create', { from, name: `from-${from}` });
    expect(await sh(`from-${from}`, 'cat /dev/shm/a /root/a')).toBe('memory\ndisk\n');
    await daemon.call('snapshot.verify', { snapshot: from });
  }
  await daemon.call('sandbox.create', { from: 'stopped', name: 'from-stopped' });
  expect(await sh('from-stopped', 'cat /root/a; ls /dev/shm')).toBe('disk\n');
  await daemon.call('sandbox.delete', { ref: 'still' });
  await expect(daemon.call('sandbox.create', { from: 'paused', cpus: 2 })).rejects.toThrow(/cpus is that of snapshot paused/);
  for (const name of ['stopped', 'suspended', 'paused'])
    await daemon.call('snapshot.remove', { snapshot: name, cascade: true }).catch(() => {});
  expect(kept()).toEqual([]);
});

/** Of one sandbox, in order, those of one instant together. */
async function changesOf(id: string): Promise<readonly string[]> {
  const changes: { readonly atMs: number; readonly said: string[] }[] = [];
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, reason, sandboxId, atMs } = line as LedgerEntry;
    if (!kind.startsWith('vm.') || sandboxId !== id) continue;
    const last = changes.at(-1);
    if (last?.atMs === atMs) last.said.push(`${kind} ${reason}`);
    else changes.push({ atMs, said: [`${kind} ${reason}`] });
  }
  return changes.map(({ said }) => said.join(', '));
}

type LedgerEntry = Record<'kind' | 'reason' | 'sandboxId', string> & { readonly atMs: number };

test('the ledger has each change once and at one instant, through forks, suspends, restores and snapshots, whoever dies', {
  timeout: TEST_MS,
}, async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  const kept = await daemon.call('snapshot.create', { ref: 'web', name: 'kept' });
  await sh('web', 'head -c 3000000 /dev/urandom > /root/a; sync');
  const twice = await daemon.call('snapshot.create', { ref: 'web', name: 'twice' });
  const { children } = await daemon.call('sandbox.fork', { ref: 'web', namePrefix: 'kid' });
  const kid = children[0]?.sandbox.id ?? '';
  await daemon.call('sandbox.suspend', { ref: 'web' });
  await daemon.kill9();
  await daemon.startAgain(options(OWN));
  await daemon.call('sandbox.suspend', { ref: 'web' }); // it is, and that is all
  await daemon.call('sandbox.resume', { ref: 'web' });
  process.kill(pidOf(daemon, id, 'vmm'), 'SIGKILL');
  await daemon.until(id, 'stopped');
  await daemon.call('sandbox.stop', { ref: 'web' });
  await daemon.call('sandbox.start', { ref: 'web' });
  await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'kept' });
  // Of two who remove it one does.
  await Promise.allSettled([1, 2].map(() => daemon.call('snapshot.remove', { snapshot: twice.id })));
  // A daemon that dies in the commit of a change, before and after it.
  for (const when of ['before', 'after']) {
    await daemon.terminate();
    await daemon.startAgain(options({ ...OWN, HUTCH_TEST_STORE_FAULT: `die-${when}:1:applyEvent` }));
    await daemon.call('sandbox.stop', { ref: 'kid-1', force: true }).catch(() => {});
    await daemon.kill9();
    await daemon.startAgain(options(OWN));
    await daemon.call('sandbox.stop', { ref: 'kid-1', force: true });
    await daemon.call('sandbox.start', { ref: 'kid-1' });
  }
  for (const ref of ['web', 'kid-1']) await daemon.call('sandbox.delete', { ref, force: true });
  expect(await changesOf(id)).toEqual([
    'vm.storage.start boot, vm.compute.start boot',
    'vm.compute.stop hibernate',
    'vm.compute.start hibernate-wake',
    'vm.compute.stop stop-crash',
    'vm.compute.start restart',
    'vm.compute.stop restore',
    'vm.storage.stop restore, vm.storage.start restore, vm.compute.start restore',
    'vm.compute.stop stop-user, vm.storage.stop vm-rm',
  ]);
  // One daemon died before it had recorded what it did: the next one found it dead. The other had, and nothing was done again.
  expect(await changesOf(kid)).toEqual([
    'vm.storage.start clone, vm.compute.start clone',
    'vm.compute.stop stop-crash',
    'vm.compute.start restart',
    'vm.compute.stop stop-user',
    'vm.compute.start restart',
    'vm.compute.stop stop-user, vm.storage.stop vm-rm',
  ]);
  expect((await snapshotLedger()).filter(([, snapshotId]) => [kept.id, twice.id].some((each) => each === snapshotId))).toEqual([
    ['snap.storage.start null', kept.id, kept.ownBytes],
    ['snap.storage.start null', twice.id, twice.ownBytes],
    ['snap.storage.stop snap-rm', twice.id, twice.ownBytes],
  ]);
  await expectInOrder(daemon);
});

test('a policy removes snapshots, says why, and leaves what something stands on', { timeout: TEST_MS }, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none', start: false });
  const made: string[] = [];
  for (const name of ['one', 'two', 'three']) made.push((await daemon.call('snapshot.create', { ref: 'web', name })).id);
  await expect(daemon.call('snapshot.prune', {})).rejects.toThrow(/one of keep, olderThanMs, bytesMax must be given/);
  const dry = await daemon.call('snapshot.prune', { keep: 1, dryRun: true });
  // Each stands on the one before.
  expect(dry).toMatchObject({
    removed: [],
    stayed: [{ name: 'two', why: '1 of web is newer, but snapshot three stands on it' }, { name: 'one' }],
  });
  await daemon.call('sandbox.create', { from: 'two', name: 'user', network: 'none' });
  const { removed, stayed, bytes } = await daemon.call('snapshot.prune', { keep: 0, sandbox: 'web' });
  expect(removed).toMatchObject([{ name: 'three', id: made[2], sandboxName: 'web', why: '0 of web are newer' }]);
  expect(stayed).toMatchObject([{ name: 'two', why: expect.stringContaining('sandbox user stands on it') }, { name: 'one' }]);
  expect([bytes, kept()]).toEqual([removed[0]?.ownBytes, made.slice(0, 2).sort()]);
  await daemon.call('sandbox.delete', { ref: 'user', force: true });
  expect((await daemon.call('snapshot.prune', { bytesMax: 0 })).removed.map(({ name }) => name)).toEqual(['two', 'one']);
  expect(kept()).toEqual([]);
});

test(`a bit that is flipped, or a file that is cut, is found (seed ${seed})`, { timeout: TEST_MS }, async () => {
  const random = numbers(seed);
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random.next().value * from.length)] as T;
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  for (let nth = 0; nth < (isLong ? 50 : 2); nth += 1) {
    const { id } = await daemon.call('snapshot.create', { ref: 'web' });
    const files = readdirSync(snapshotOf(daemon, id), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name !== 'base')
      .map((entry) => join(entry.parentPath, entry.name))
      // A sparse disk of gigabytes is no file for a buffer: what is damaged in one is looked at in restore.test.ts.
      .filter((path) => statSync(path).size < 2 ** 30);
    const path = pick(files);
    const bytes = readFileSync(path);
    const at = bytes.findIndex((byte, from) => byte !== 0 && from >= random.next().value * bytes.byteLength);
    if (nth % 2 === 0 && at >= 0) {
      bytes[at] = (bytes[at] ?? 0) ^ 4;
      writeFileSync(path, bytes);
    } else truncateSync(path, Math.max(0, bytes.byteLength - 4096));
    const what = `${path.slice(snapshotOf(daemon, id).length)} ${nth % 2 === 0 ? 'flipped' : 'cut'}`;
    await expect(daemon.call('snapshot.verify', { snapshot: id }), what).rejects.toThrow(/cannot be used/);
    await expect(daemon.call('sandbox.create', { from: id, name: 'never' }), what).rejects.toThrow(/cannot be used/);
    await daemon.call('snapshot.remove', { snapshot: id });
  }
  expect((await daemon.call('sandbox.list', {})).sandboxes.map(({ name }) => name)).toEqual(['web']);
  await expectInOrder(daemon);
});

test(`the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of a snapshot and of what begins with it (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await sh('web', 'echo here > /dev/shm/a');
  await daemon.call('snapshot.create', { ref: 'web', name: 'good' });
  const of = { verbs: CALLS, samples: SAMPLES, random: numbers(seed + 1) };
  await atPoints(daemon, OWN, of, async ({ verb, fault, strike }) => {
    await strike(() =>
      verb === 'snapshot.create'
        ? daemon.call(verb, { ref: 'web', name: 'maybe' })
        : daemon.call('sandbox.create', { from: 'good', name: 'maybe' }),
    );
    expect(await sh('web', 'cat /dev/shm/a'), fault).toBe('here\n');
    const { snapshots } = await daemon.call('snapshot.list', {});
    expect(kept(), fault).toEqual(snapshots.map(({ id }) => id).sort());
    for (const { id } of snapshots) await daemon.call('snapshot.verify', { snapshot: id });
    await expectBytesCounted(daemon);
    if (snapshots.length > 1) await daemon.call('snapshot.remove', { snapshot: 'maybe' });
    await daemon.call('sandbox.delete', { ref: 'maybe', force: true }).catch(() => {});
    await expectInOrder(daemon);
  });
});
