// Sandboxes that go back to a snapshot, in place: as they were then and as themselves, whatever happens to the daemon; and what
// is wrong with a snapshot is found before anything of the sandbox is touched. On every backend that makes snapshots.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { basename, join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import type { SandboxView } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { atPoints } from './points.ts';
import { damaged, filesIn, removeAll, snapshotOf } from './saved-files.ts';
import { expectBytesCounted } from './stored-bytes.ts';
import {
  COUNTER,
  countOf,
  expectInOrder,
  expectSoundLedger,
  filesOf,
  isLong,
  numbers,
  options,
  seed,
  shellOf,
  startDaemon,
} from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 180_000;
const OWN = { HUTCH_SANDBOX_BACKEND: 'qemu', HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '0' };
const BACKENDS = ['qemu', 'gvisor'] as const;

const daemon = await startDaemon(OWN);
afterAll(() => daemon[Symbol.asyncDispose]());
afterEach(() => removeAll(daemon));

const sh = shellOf(daemon);

type Entry = { kind: string; reason: string; sandboxId: string; sourceSnapshotId: string | null; atMs: number; shape: object };

async function entriesOf(id: string): Promise<Entry[]> {
  const found: Entry[] = [];
  for await (const line of daemon.lines('ledger.list', {})) if ((line as Entry).sandboxId === id) found.push(line as Entry);
  return found;
}

/** What must not be left of a restore that is over. */
const leftOf = (id: string): string[] => filesOf(daemon, id).filter((name) => name !== 'vm' && name !== 'secrets.json');

for (const backend of BACKENDS) {
  test(`${backend}: a sandbox goes back to a snapshot, in place and as itself`, { timeout: TEST_MS }, async () => {
    const made = await daemon.call('sandbox.create', {
      ...{ backend, name: 'web', labels: { for: 'test' }, env: { PLAIN: 'p' }, secrets: { HIDDEN: 'h' }, timeoutMs: 3_600_000 },
      ...{ idleMs: 3_600_000, restart: 'on-failure', main: { argv: ['sh', '-c', COUNTER] } },
      publish: [{ guestPort: 80 }],
    });
    const { id } = made;
    const { published } = await daemon.call('port.list', { ref: 'web' });
    expect(published).toHaveLength(1);
    await sh('web', 'mkdir -p /etc/hutch/after-restore.d; echo then > /root/a; echo memory > /dev/shm/a; sync');
    await sh(
      'web',
      'printf "#!/bin/sh\\necho told >> /dev/shm/told\\n" > /etc/hutch/after-restore.d/tell; chmod +x /etc/hutch/after-restore.d/tell',
    );
    const count = await countOf(sh, 'web');
    const { id: snapshotId } = await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
    await sh('web', 'echo later > /root/a; rm /dev/shm/a; head -c 1000000 /dev/zero > /root/more');
    await daemon.call('sandbox.set', { ref: 'web', labels: { more: 'm' }, timeoutMs: 7_200_000 });
    const open = await daemon.exec('web', { argv: ['sh', '-c', 'echo begun; cat > /dev/null'], stdin: 'open' }, { execId: 'open' });
    await open.sawOutput('begun');
    let ended = false;
    void daemon.call('sandbox.wait', { ref: 'web' }).then(() => {
      ended = true;
    });

    const back = await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' });
    expect(back).toMatchObject({
      ...{ id, name: 'web', state: 'running', labels: { for: 'test', more: 'm' }, env: { PLAIN: 'p' }, secretNames: ['HIDDEN'] },
      ...{ timeoutMs: 7_200_000, idleMs: 3_600_000, restart: 'on-failure', startCount: 2 },
    });
    expect((await daemon.call('port.list', { ref: 'web' })).published).toEqual(published);
    await open.closed;
    expect(open.message('error')).toMatchObject({ error: { message: expect.stringContaining('went back to snapshot ready') } });
    expect(await sh('web', 'cat /root/a /dev/shm/a; echo $PLAIN $HIDDEN; ls /root/more 2>/dev/null; hostname')).toBe(
      'then\nmemory\np h\nweb\n',
    );
    await eventually('what listens to it was told', async () => (await sh('web', 'cat /dev/shm/told 2>/dev/null || true')) === 'told\n');
    const first = await countOf(sh, 'web');
    expect(first).toBeGreaterThanOrEqual(count);
    await eventually('what ran then goes on', async () => (await countOf(sh, 'web')) > first);
    expect([leftOf(id), ended]).toEqual([[], false]);

    const entries = await entriesOf(id);
    expect(entries.map(({ kind, reason }) => `${kind} ${reason}`)).toEqual([
      'vm.storage.start boot',
      'vm.compute.start boot',
      'vm.compute.stop restore',
      'vm.storage.stop restore',
      'vm.storage.start restore',
      'vm.compute.start restore',
    ]);
    expect(new Set(entries.slice(3).map(({ atMs }) => atMs)).size).toBe(1);
    expect(entries.slice(2).map(({ sourceSnapshotId }) => sourceSnapshotId)).toEqual([snapshotId, snapshotId, snapshotId, snapshotId]);

    // Random numbers are no other's that went on there, and from every other state it goes there too.
    const randoms = [await sh('web', 'od -An -tx1 -N16 /dev/urandom')];
    await daemon.call('sandbox.suspend', { ref: 'web' });
    await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' });
    randoms.push(await sh('web', 'od -An -tx1 -N16 /dev/urandom'));
    await daemon.call('sandbox.stop', { ref: 'web', force: true });
    await daemon.call('sandbox.restore', { ref: 'web', snapshot: snapshotId });
    randoms.push(await sh('web', 'cat /dev/shm/a > /dev/null; od -An -tx1 -N16 /dev/urandom'));
    expect(new Set(randoms).size).toBe(3);
    expect(leftOf(id)).toEqual([]);
    await eventually('whoever waits hears of the stop', async () => ended);

    // A disk alone is begun with anew.
    const disk = await daemon.call('snapshot.create', { ref: 'web', diskOnly: true });
    await sh('web', 'echo never > /root/a; echo memory > /dev/shm/b');
    await daemon.call('sandbox.pause', { ref: 'web' });
    await daemon.call('sandbox.restore', { ref: 'web', snapshot: disk.id });
    expect(await sh('web', 'cat /root/a; ls /dev/shm/b 2>/dev/null || true')).toBe('then\n');
    await expectInOrder(daemon);
  });

  test(`${backend}: a snapshot that is damaged or does not fit leaves the sandbox running (seed ${seed})`, {
    timeout: TEST_MS,
  }, async () => {
    const random = numbers(seed);
    const { id } = await daemon.call('sandbox.create', { backend, name: 'web', network: 'none' });
    await sh('web', 'echo here > /dev/shm/a; head -c 100000 /dev/urandom > /root/random');
    const { id: snapshotId } = await daemon.call('snapshot.create', { ref: 'web' });
    // The base is the template's too, which others start from.
    const files = filesIn(snapshotOf(daemon, snapshotId)).filter((path) => basename(path) !== 'base');
    let refused = 0;
    for (const how of ['flipped', 'cut', 'flipped', 'cut'] as const) {
      const path = files[Math.floor(random.next().value * files.length)] ?? '';
      using broken = damaged(path, how, random.next().value);
      if (broken === null) continue;
      for (const force of [false, true])
        await expect(daemon.call('sandbox.restore', { ref: 'web', snapshot: snapshotId, force }), `${path} ${how}`).rejects.toThrow(
          /cannot be used/,
        );
      refused += 1;
    }
    expect(refused).toBeGreaterThan(1);
    const other = await daemon.call('sandbox.create', {
      backend,
      name: 'other',
      network: 'none',
      ...(backend === 'gvisor' ? { memoryMiB: 256 } : {}),
    }); // on QEMU another size is another template
    await daemon.call('sandbox.set', { ref: 'other', labels: { a: 'b' } });
    expect(await sh('web', 'cat /dev/shm/a')).toBe('here\n');
    expect((await entriesOf(id)).map(({ kind }) => kind)).toEqual(['vm.storage.start', 'vm.compute.start']);
    expect(leftOf(id)).toEqual([]);
    // Whole again it is as good as ever, also for another sandbox of that image: that stays itself, with the shape of what goes on.
    await expect(daemon.call('sandbox.restore', { ref: 'other', snapshot: snapshotId }), 'not by a mistyped name').rejects.toThrow(
      /was taken of sandbox web: going back to it would replace all that sandbox other has/,
    );
    expect(await sh('other', 'echo as it was')).toBe('as it was\n');
    const forced = daemon.call('sandbox.restore', { ref: 'other', snapshot: snapshotId, force: true });
    await expect(forced, 'force is about the machine').rejects.toThrow(/was taken of sandbox web/);
    const taken = await daemon.call('sandbox.restore', { ref: 'other', snapshot: snapshotId, foreign: true });
    expect(taken).toMatchObject({ id: other.id, name: 'other', labels: { a: 'b' } });
    if (backend === 'gvisor') expect(taken.shape.memoryMiB).toBeGreaterThan(other.shape.memoryMiB);
    const selves = await Promise.all(['web', 'other'].map((ref) => sh(ref, 'cat /dev/shm/a; cat /etc/machine-id; hostname')));
    expect(selves[1]).toMatch(/^here\n[0-9a-f]{32}\nother\n$/);
    expect(selves[0]).not.toBe(selves[1]);
    const [stopped, started] = (await entriesOf(other.id)).filter(
      ({ kind, reason }) => kind.startsWith('vm.storage') && reason === 'restore',
    );
    expect(JSON.stringify(stopped?.shape) !== JSON.stringify(started?.shape)).toBe(backend === 'gvisor');
    await expectInOrder(daemon);
  });

  test(`${backend}: the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of a restore (seed ${seed})`, {
    timeout: TEST_MS,
  }, async () => {
    await daemon.call('sandbox.create', { backend, name: 'web', network: 'none' });
    await sh('web', 'echo then > /dev/shm/a; echo then > /root/a; sync');
    await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
    const of = { verbs: [['sandbox.restore', 150]], samples: 1, random: numbers(seed + 2) } as const;
    await atPoints(daemon, OWN, of, async ({ action, fault, strike }) => {
      await sh('web', 'echo now > /dev/shm/a; echo now > /root/a; sync');
      const { id } = (await daemon.call('sandbox.get', { ref: 'web' })) as SandboxView;
      const done = await strike(() => daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' }));
      const state = async () => (await daemon.call('sandbox.get', { ref: 'web' })).state;
      // A host that failed after the end of its process: it is stopped, with the disk that it had.
      if (action === 'fail' && (await state()) === 'stopped') {
        await daemon.call('sandbox.start', { ref: 'web' });
        expect(await sh('web', 'cat /root/a'), fault).toBe('now\n');
      }
      await eventually(`it runs after ${fault}`, async () => (await state()) === 'running', 60_000); // all of it once more
      const found = await sh('web', 'cat /root/a /dev/shm/a 2>/dev/null || true');
      expect(done ? ['then\nthen\n'] : ['then\nthen\n', 'now\nnow\n', 'now\n'], fault).toContain(found);
      if (action !== 'fail') expect(found, fault).not.toBe('now\n'); // nothing of its memory is lost
      await eventually(`nothing is left of ${fault}`, async () => leftOf(id).length === 0);
      await daemon.call('snapshot.verify', { snapshot: 'ready' });
      await expectBytesCounted(daemon);
      await expectInOrder(daemon);
    });
  });
}

// The same on both, and slow on gVisor, which reads all of its memory each time.
for (const backend of isLong ? BACKENDS : (['qemu'] as const)) {
  test(`${backend}: nobody touches it, so it is suspended; whoever comes finds it where it was`, { timeout: TEST_MS }, async () => {
    const policy = { idleMs: 1_000, idleAction: 'suspend', timeoutMs: 3_600_000 } as const;
    await daemon.call('sandbox.create', { backend, name: 'web', ...policy, publish: [{ guestPort: 7000 }] });
    const state = async () => (await daemon.call('sandbox.get', { ref: 'web' })).state;
    const asleep = async () => await eventually('nobody touches it', async () => (await state()) === 'suspended');
    await sh('web', 'echo memory > /dev/shm/a');
    await asleep();
    // Looking at it wakes nobody.
    expect((await daemon.call('sandbox.list', {})).sandboxes.map((view) => view.state)).toEqual(['suspended']);
    expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
    expect(await daemon.call('sandbox.get', { ref: 'web' })).toMatchObject({ ...policy, state: 'running', startCount: 1 });
    await asleep();
    expect((await daemon.send('GET', '/v1/sandboxes/web/files?path=/dev/shm/a')).body.toString()).toBe('memory\n');
    await asleep();
    // Several at once wake it once, also behind a daemon that never saw it run.
    await daemon.kill9();
    await daemon.startAgain(options(OWN));
    expect(await Promise.all(['1', '2', '3'].map((word) => sh('web', `echo ${word}`)))).toEqual(['1\n', '2\n', '3\n']);
    const published = (await daemon.call('port.list', { ref: 'web' })).published[0];
    await asleep();
    const peer = connect(published?.hostPort ?? 0, '127.0.0.1');
    peer.on('error', () => {}); // nobody listens inside: what matters is that it is asked
    await eventually('a connection wakes it', async () => (await state()) === 'running');
    peer.destroy();
    // A time limit that is over while it is away is none: it begins anew.
    await daemon.call('sandbox.set', { ref: 'web', timeoutMs: 1_000, idleMs: 0 });
    await daemon.call('sandbox.suspend', { ref: 'web' });
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    expect(await state()).toBe('suspended');
    await daemon.call('sandbox.set', { ref: 'web', timeoutMs: null });
    expect(await sh('web', 'cat /dev/shm/a')).toBe('memory\n');
    const reasons = (await entriesOf((await daemon.call('sandbox.get', { ref: 'web' })).id)).map(({ kind, reason }) => `${kind} ${reason}`);
    expect(reasons.slice(2, 4)).toEqual(['vm.compute.stop hibernate', 'vm.compute.start hibernate-wake']);
    await daemon.call('sandbox.stop', { ref: 'web', force: true });
    await expect(daemon.run('web', ['true'])).rejects.toThrow(/stopped/);
    await expectInOrder(daemon);
  });
}

for (const backend of isLong ? BACKENDS : (['qemu'] as const)) {
  test(`${backend}: what works or has traffic is not put away, until it does no more`, { timeout: TEST_MS }, async () => {
    const traffic =
      'import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nwhile True: s.sendto(b"x"*900,("192.0.2.1",9)); time.sleep(0.3)';
    const work = { busy: ['sh', '-c', 'while :; do :; done'], talks: ['python3', '-c', traffic], waits: ['sleep', '100000'] };
    const policy = { idleMs: 3_000, idleAction: 'suspend' } as const;
    for (const [name, argv] of Object.entries(work))
      await daemon.call('sandbox.create', { backend, name, network: name === 'talks' ? 'allow' : 'none', main: { argv }, memoryMiB: 256 });
    await eventually('it talks', async () => ((await daemon.call('sandbox.stats', { ref: 'talks' })).network.txBytes ?? 0) > 2_000);
    // The policy of the one that waits comes last: when it is over, that of the others would be.
    for (const ref of Object.keys(work)) await daemon.call('sandbox.set', { ref, ...policy });
    const states = async () =>
      Object.fromEntries((await daemon.call('sandbox.list', {})).sandboxes.map(({ name, state }) => [name, state]));
    await eventually('the one that waits is put away', async () => (await states())['waits'] === 'suspended');
    expect(await states()).toEqual({ busy: 'running', talks: 'running', waits: 'suspended' });
    for (const ref of ['busy', 'talks']) {
      await daemon.call('exec.signal', { ref, execId: 'main', signal: 'STOP' });
      await eventually(`${ref} is put away when it does no more`, async () => (await states())[ref] === 'suspended');
    }
    await expectSoundLedger(daemon);
  });
}

test('what is of another backend or machine is refused by name, and nothing can go back to what is not its own', {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { name: 'web', network: 'none' });
  await daemon.call('snapshot.create', { ref: 'web', name: 'ready' });
  await daemon.call('sandbox.create', { backend: 'gvisor', name: 'other', network: 'none' });
  await expect(daemon.call('sandbox.restore', { ref: 'other', snapshot: 'ready' })).rejects.toThrow(/another backend than sandbox other/);
  await expect(daemon.call('sandbox.restore', { ref: 'web', snapshot: 'nothing' })).rejects.toThrow(/there is no snapshot 'nothing'/);
  const manifest = join(snapshotOf(daemon, (await daemon.call('snapshot.get', { snapshot: 'ready' })).id), 'manifest.json');
  const written = JSON.parse(readFileSync(manifest, 'utf8'));
  delete written.sum; // as an older version of Hutch wrote it
  writeFileSync(manifest, JSON.stringify({ ...written, fingerprint: { ...written.fingerprint, emulator: '1.2.3' } }));
  await expect(daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready' })).rejects.toThrow(
    /cannot go on here: the version of QEMU \(1\.2\.3 then/,
  );
  expect(await daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready', force: true })).toMatchObject({ state: 'running' });
  writeFileSync(manifest, JSON.stringify({ ...written, fingerprint: { ...written.fingerprint, memoryMiB: 4096 } }));
  await expect(daemon.call('sandbox.restore', { ref: 'web', snapshot: 'ready', force: true })).rejects.toThrow(/the memory \(4096 then/);
  expect(existsSync(manifest)).toBe(true);
  await expectInOrder(daemon);
});

for (const backend of BACKENDS) {
  test(`${backend}: one word undoes an exec, and once more the one before`, { timeout: TEST_MS }, async () => {
    const { id } = await daemon.call('sandbox.create', { backend, name: 'web', network: 'none', undo: 2, labels: { a: 'b' } });
    for (const word of ['one', 'two', 'three']) await sh('web', `echo ${word} >> /root/a; echo ${word} > /dev/shm/a; echo ${word}`);
    const kept = async () => (await daemon.call('snapshot.list', { all: true })).snapshots;
    expect((await kept()).map(({ kind, name, before, sandboxId }) => [kind, name, before, sandboxId])).toEqual(
      ['two', 'three'].map((word) => ['undo', null, `sh -c echo ${word} >> /root/a; echo ${word} > /dev/shm/a; echo ${word}`, id]),
    );
    expect((await daemon.call('snapshot.list', {})).snapshots).toEqual([]); // nobody's own
    // Its image and kernel are the sandbox's: what is kept to undo goes with that, and is not to be removed by hand.
    await expect(daemon.call('image.remove', { image: 'debian' })).rejects.toThrow(/is used by sandbox(es)? .*web/);
    const undone = await daemon.call('sandbox.undo', { ref: 'web' });
    expect(undone).toMatchObject({
      sandbox: { id, state: 'running', labels: { a: 'b' } },
      before: expect.stringContaining('three'),
      left: 1,
    });
    expect(await daemon.call('sandbox.undo', { ref: 'web' })).toMatchObject({ before: expect.stringContaining('two'), left: 0 });
    await expect(daemon.call('sandbox.undo', { ref: 'web' })).rejects.toThrow(/there is nothing to undo/);
    expect(await sh('web', 'cat /root/a /dev/shm/a')).toBe('one\none\n');

    // One that cannot be kept is run all the same, and an event says so.
    writeFileSync(join(daemon.home, 'data/snapshots.away'), '');
    renameSync(join(daemon.home, 'data/snapshots'), join(daemon.home, 'data/snapshots.kept'));
    renameSync(join(daemon.home, 'data/snapshots.away'), join(daemon.home, 'data/snapshots'));
    expect(await sh('web', 'echo runs')).toBe('runs\n');
    rmSync(join(daemon.home, 'data/snapshots'));
    renameSync(join(daemon.home, 'data/snapshots.kept'), join(daemon.home, 'data/snapshots'));
    const missed: unknown[] = [];
    for await (const line of daemon.lines('event.list', {})) {
      const event = line as { type: string; sandboxId: string };
      if (event.type === 'sandbox.undo-missed' && event.sandboxId === id) missed.push(event);
    }
    expect(missed).toMatchObject([{ detail: { why: expect.any(String) } }]);

    expect(await kept()).toHaveLength(1);
    await daemon.call('sandbox.set', { ref: 'web', undo: 0 });
    await sh('web', 'true');
    expect(await kept()).toEqual([]);
    await daemon.call('sandbox.set', { ref: 'web', undo: 1 });
    await sh('web', 'true');
    await daemon.call('sandbox.delete', { ref: 'web', force: true });
    expect([await kept(), readdirSync(join(daemon.home, 'data/snapshots'))]).toEqual([[], []]);
    const open = new Map<string, number>();
    for await (const line of daemon.lines('ledger.list', {})) {
      const { kind, snapshotId } = line as { kind: string; snapshotId: string };
      if (kind.startsWith('snap.')) open.set(snapshotId, (open.get(snapshotId) ?? 0) + (kind === 'snap.storage.start' ? 1 : -1));
    }
    expect([...open.values()].filter((count) => count !== 0)).toEqual([]);
    await expectInOrder(daemon);
  });
}

test('gvisor: a snapshot of an older release, whose disk is one file, is gone back to and travels; what is taken after it stands alone', {
  timeout: TEST_MS,
}, async () => {
  await daemon.call('sandbox.create', { backend: 'gvisor', name: 'web', network: 'none' });
  await sh('web', 'echo then > /root/a; sync');
  const first = await daemon.call('snapshot.create', { ref: 'web' });
  const dir = snapshotOf(daemon, first.id);
  const manifest = JSON.parse(readFileSync(join(dir, 'manifest.json'), 'utf8'));
  const imprint = (...args: string[]) => execFileSync(join(import.meta.dirname, '../../prebuilt/x86_64/hutch-imprint'), args).toString();
  imprint('lay', join(dir, 'disk'), String(manifest.disk.bytes), join(dir, 'disk.img'));
  const disk = { bytes: manifest.disk.bytes, hash: imprint('hash', join(dir, 'disk.img')).trim() };
  writeFileSync(join(dir, 'manifest.json'), JSON.stringify({ ...manifest, disk }));
  rmSync(join(dir, 'disk'), { recursive: true });

  await sh('web', 'echo now > /root/a; sync');
  const second = await daemon.call('snapshot.create', { ref: 'web' });
  expect(second).toMatchObject({ parentId: first.id });
  for (const [{ id: snapshot }, content] of [[first, 'then\n'] as const, [second, 'now\n'] as const]) {
    await daemon.call('snapshot.verify', { snapshot });
    await daemon.call('sandbox.restore', { ref: 'web', snapshot });
    expect(await sh('web', 'cat /root/a')).toBe(content);
  }
  const { body } = await daemon.send('GET', `/v1/snapshots/${first.id}/export`);
  expect(await daemon.send('PUT', '/v1/snapshots?name=again', { body })).toMatchObject({ status: 200 });
  await daemon.call('sandbox.create', { from: 'again', name: 'other' });
  expect(await sh('other', 'cat /root/a')).toBe('then\n');
  await expectInOrder(daemon);
});

// Each of gVisor's has all of its memory, so the oldest holds what no other does; QEMU's stand on those before them.
test.for(BACKENDS)(
  '%s: snapshots count in the quota of their project, and what is kept to undo gives way',
  { timeout: TEST_MS },
  async (backend) => {
    const { id } = await daemon.call('sandbox.create', { backend, name: 'web', network: 'none', undo: 5 });
    const all = async () => (await daemon.call('snapshot.list', { all: true })).snapshots;
    const inUse = async () => (await daemon.call('quota.list', {})).projects[0]?.use['snapshotMiB'];
    const bound = (snapshotMiB: number | 'inherit') => daemon.call('quota.set', { project: 'default', bounds: { snapshotMiB } });
    const expectWhole = async () =>
      expect(readdirSync(join(daemon.home, 'data/snapshots')).sort()).toEqual((await all()).map((one) => one.id).sort());
    for (const word of ['one', 'two', 'three']) await sh('web', `head -c 3000000 /dev/urandom > /dev/shm/much; echo > /root/${word}; sync`);
    const before = await all();
    expect(before).toHaveLength(3);
    const used = Math.ceil(before.reduce((sum, { ownBytes }) => sum + ownBytes, 0) / 2 ** 20);
    expect(await inUse()).toBe(used);

    await using _unbounded = { [Symbol.asyncDispose]: async () => void (await bound('inherit')) };
    await bound(used);
    await expect(daemon.call('snapshot.create', { ref: 'web', name: 'mine' })).rejects.toThrow(
      new RegExp(`the quota snapshotMiB of project default is ${used} MiB: ${used} are in use, and [0-9]+ more are wanted`),
    );
    expect((await daemon.call('sandbox.get', { ref: 'web' })).state).toBe('running');
    await expectWhole();
    // The oldest go, the others can be gone back to.
    expect(await sh('web', 'echo four > /root/four; echo runs')).toBe('runs\n');
    const after = await all();
    const added = after.filter((one) => before.every((old) => old.id !== one.id));
    expect([added.length, after.some((one) => one.id === before[0]?.id)]).toEqual([1, false]);
    expect(await inUse()).toBeLessThanOrEqual(used);
    await expectWhole();
    expect(await daemon.call('sandbox.undo', { ref: 'web' })).toMatchObject({ before: expect.stringContaining('four') });
    expect(await sh('web', 'ls /root')).toBe('one\nthree\ntwo\n');

    // Where it would not help none goes, and the command runs.
    await bound(0);
    const left = await all();
    expect(await sh('web', 'echo runs')).toBe('runs\n');
    expect(await all()).toEqual(left);
    await expectWhole();
    const missed: string[] = [];
    for await (const line of daemon.lines('event.list', {})) {
      const { type, sandboxId, detail } = line;
      if (type === 'sandbox.undo-missed' && sandboxId === id) missed.push(String(detail['why']));
    }
    expect(missed).toEqual([expect.stringContaining('the quota snapshotMiB of project default is 0 MiB')]);
    await expectInOrder(daemon);
  },
);
