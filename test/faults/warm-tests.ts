// Warm sandboxes, of each backend that keeps any: machines that were started before anybody asked become somebody's sandbox, once and completely, and
// whatever goes wrong with them, who asks gets a sandbox.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { BLOCKS, blockOf, isWithin } from '../../src/domain/users.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { all, expectInOrder, expectNoLeaks, isAlive, isLong, mainOutput, numbers, options, pidOf, seed, works } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 120_000;
/** Fault points of each kind, unless all of them are tried. */
const POINTS = 1;

export async function warmSandboxes(backend: 'qemu' | 'gvisor'): Promise<void> {
  const env = (more: Readonly<Record<string, string>> = {}) =>
    options({ HUTCH_SANDBOX_BACKEND: backend, HUTCH_SANDBOX_STOP_GRACE: '2s', HUTCH_SANDBOX_WARM: '1', ...more });

  const daemon = await DaemonUnderTest.start(env());
  afterAll(() => daemon[Symbol.asyncDispose]());
  /** The first sandbox of the default kind brings the first warm one. */
  await daemon.call('sandbox.create', { name: 'first' });
  await daemon.call('sandbox.delete', { ref: 'first', force: true });

  async function said(): Promise<string> {
    const { checks } = await daemon.call('doctor.check', {});
    return checks.find(({ name }) => name === 'warm sandboxes')?.detail ?? '';
  }

  async function warmId(): Promise<string> {
    let id: string | undefined;
    await eventually('a warm sandbox is ready', async () => {
      id = /\((sbx\w+)\)/.exec(await said())?.[1];
      return id !== undefined;
    });
    return id as string;
  }

  /** The process in which all of it runs. */
  async function kernelOf(id: string): Promise<number> {
    if (backend === 'qemu') return pidOf(daemon, id, 'vmm');
    const found = (await daemon.processes()).find((line) => line.includes(': runsc-sandbox ') && line.includes(id));
    return Number(/^process (\d+)/.exec(found ?? '')?.[1]);
  }

  async function restart(more: Readonly<Record<string, string>> = {}): Promise<void> {
    await daemon.terminate();
    await daemon.startAgain(env(more));
  }

  /** One of the default kind and its end: a new daemon keeps none before. */
  async function ask(): Promise<void> {
    const { id } = await daemon.call('sandbox.create', {});
    await daemon.call('sandbox.delete', { ref: id, force: true });
  }

  type Event = { readonly sandboxId: string; readonly kind: string };

  async function ledgerOf(id: string): Promise<readonly string[]> {
    const kinds: string[] = [];
    for await (const line of daemon.lines('ledger.list', {})) {
      const { sandboxId, kind } = line as Event;
      if (sandboxId === id) kinds.push(kind);
    }
    return kinds;
  }

  /** What does not depend on the backend is tried on one. */
  const isInFull = backend === 'qemu' || isLong;

  test('a warm sandbox is nobody’s until it is handed out, and then in all things the one that was asked for', {
    timeout: TEST_MS,
  }, async () => {
    const id = await warmId();
    expect(await all(daemon)).toEqual([]);
    expect(await ledgerOf(id)).toEqual([]);
    await expect(daemon.call('sandbox.get', { ref: id })).rejects.toThrow('not_found');
    await expectNoLeaks(daemon);

    const before = Date.now();
    const made = await daemon.call('sandbox.create', {
      name: 'mine',
      env: { PLAIN: 'p' },
      secrets: { HIDDEN: 'h' },
      labels: { for: 'test' },
      user: 'nobody',
      workdir: '/srv/deep',
      timeoutMs: 3_600_000,
      main: { argv: ['sh', '-c', 'echo $PLAIN $HIDDEN $(pwd) $(id -un) $(hostname); exec sleep 1000'] },
    });
    expect(made).toMatchObject({ id, name: 'mine', state: 'running', labels: { for: 'test' } });
    expect(await ledgerOf(id)).toEqual(['vm.storage.start', 'vm.compute.start']);
    expect(made.createdAtMs).toBeGreaterThanOrEqual(before);
    await eventually('its main process has spoken', async () => (await mainOutput(daemon, 'mine')).includes('\n'));
    expect(await mainOutput(daemon, 'mine')).toContain('p h /srv/deep nobody mine\n');
    const { execs } = await daemon.call('exec.list', { ref: 'mine' });
    expect(execs.map(({ execId }) => execId)).toEqual(['main']);
    const { stdout } = await daemon.run('mine', ['sh', '-c', 'date +%s%3N']);
    expect(Math.abs(Number(stdout) - Date.now())).toBeLessThan(5_000);
    const { uptimeMs } = await daemon.call('sandbox.stats', { ref: 'mine' });
    expect(uptimeMs, 'since it is somebody’s: its kernel has run for longer').toBeLessThanOrEqual(Date.now() - made.createdAtMs);

    const next = await warmId();
    expect(next).not.toBe(id);
    // A disk, stopped and started as any other's.
    await daemon.run('mine', ['sh', '-c', 'echo kept > /srv/deep/file'], { user: 'root' });
    await daemon.call('sandbox.restart', { ref: 'mine' });
    expect((await daemon.run('mine', ['cat', '/srv/deep/file'])).stdout).toBe('kept\n');
    await expectInOrder(daemon);
    await daemon.deleteAll();
    expect(await warmId()).toBe(next);
  });

  /** What a program in a sandbox can tell, but for what must differ. */
  const LOOK = `env | sort | grep -v HOSTNAME; id; pwd; umask; ulimit -a; sed s/$(hostname)/NAME/ /etc/hosts /etc/hostname; cat /etc/resolv.conf
  ip -o addr show | sed 's/valid_lft.*//; s/^[0-9]*: //' | sort; ip route; cat /proc/mounts; df --output=size / | tail -1; ls -la / | sed 's/ [A-Z][a-z][a-z] .* / /'; ls /dev`;
  /** What must differ. */
  const UNLIKE = {
    'machine-id': 'cat /etc/machine-id',
    'boot-id': 'cat /proc/sys/kernel/random/boot_id',
    getrandom: 'head -c 16 /dev/urandom | od -An -tx1',
    uuid: 'cat /proc/sys/kernel/random/uuid',
    address: 'cat /sys/class/net/*/address | grep -v 00:00:00',
    hostname: 'hostname',
  } as const;

  /** Its kernel shows none of these. */
  const NOT_ON_GVISOR: ReadonlySet<string> = new Set(['boot-id', 'uuid', 'address']);

  test('handed-out sandboxes are like one that was started for its owner, and like no other where they must not be', {
    timeout: TEST_MS,
  }, async () => {
    const names = ['warm-one', 'warm-two'];
    for (const name of names) {
      const id = await warmId();
      expect((await daemon.call('sandbox.create', { name })).id).toBe(id);
    }
    const waiting = await warmId();
    // A port of its own: started the other way.
    const cold = await daemon.call('sandbox.create', { name: 'cold', publish: [{ hostAddress: '127.0.0.1', hostPort: 0, guestPort: 80 }] });
    expect(cold.id).not.toBe(waiting);
    const sees = async (ref: string, script: string) => (await daemon.run(ref, ['sh', '-c', script])).stdout;
    const expected = await sees('cold', LOOK);
    for (const name of names) expect(await sees(name, LOOK)).toBe(expected);
    for (const [what, script] of Object.entries(UNLIKE)) {
      if (backend === 'gvisor' && NOT_ON_GVISOR.has(what)) continue;
      const seen = await Promise.all([...names, 'cold'].map((ref) => sees(ref, script)));
      expect([what, new Set(seen).size], seen.join()).toEqual([what, 3]);
    }
    const page = await daemon.run('warm-one', ['sh', '-c', 'ip -o link show up | grep -c LOWER_UP']);
    expect(page.stdout).toBe((await daemon.run('cold', ['sh', '-c', 'ip -o link show up | grep -c LOWER_UP'])).stdout);
    await daemon.deleteAll();
  });

  test.runIf(isInFull)(
    'a warm sandbox has the files of its owner’s home before its main process begins',
    { timeout: TEST_MS },
    async () => {
      writeFileSync(join(daemon.home, 'netrc'), 'machine example\n');
      const id = await warmId();
      const made = await daemon.call('sandbox.create', {
        name: 'synced',
        fileSync: [{ host: '~/netrc', guest: '~/.netrc' }],
        main: { argv: ['sh', '-c', 'cat ~/.netrc; exec sleep 1000'] },
      });
      expect(made.id).toBe(id);
      await eventually('its main process has spoken', async () => (await mainOutput(daemon, 'synced')).includes('machine example\n'));
      await daemon.deleteAll();
    },
  );

  test.runIf(isInFull)(
    'who wants another kind, or a name that is taken, leaves the warm one where it is',
    { timeout: TEST_MS },
    async () => {
      const id = await warmId();
      const others = [{ network: 'none' }, { diskMiB: 4096 }, { start: false }] as const;
      for (const other of others) expect((await daemon.call('sandbox.create', other)).id).not.toBe(id);
      const [taken] = await all(daemon);
      await expect(daemon.call('sandbox.create', { name: taken?.name ?? '' })).rejects.toThrow('conflict');
      expect(await warmId()).toBe(id);
      await daemon.deleteAll();
    },
  );

  test.runIf(isInFull)(
    'a request that is repeated with its idempotency key gets the same sandbox, and the main process runs once',
    {
      timeout: TEST_MS,
    },
    async () => {
      await warmId();
      const input = { name: 'once', main: { argv: ['sh', '-c', 'echo ran; exec sleep 1000'] } };
      const headers = { 'Idempotency-Key': 'warm-once' };
      const [first, second] = await Promise.all([1, 2].map(() => daemon.call('sandbox.create', input, { headers })));
      expect(first?.id).toBe(second?.id);
      expect(await all(daemon)).toHaveLength(1);
      await expectInOrder(daemon);
      await daemon.deleteAll();
    },
  );

  test.runIf(isInFull)('many who ask at once get one sandbox each', { timeout: TEST_MS }, async () => {
    const id = await warmId();
    const made = await Promise.all(Array.from({ length: 4 }, () => daemon.call('sandbox.create', {})));
    expect(new Set(made.map((sandbox) => sandbox.id)).size).toBe(4);
    expect(made.map((sandbox) => sandbox.id)).toContain(id);
    await expectInOrder(daemon);
    await daemon.deleteAll();
  });

  test('a warm sandbox that has died is replaced, and one that hangs keeps nobody from a sandbox', { timeout: TEST_MS }, async () => {
    const dead = await warmId();
    process.kill(pidOf(daemon, dead, 'vmm'), 'SIGKILL');
    let hung = dead;
    await eventually('another one is ready', async () => {
      hung = await warmId();
      return hung !== dead;
    });
    const vmm = await kernelOf(hung);
    process.kill(vmm, 'SIGSTOP');
    const made = await daemon.call('sandbox.create', { name: 'it' });
    expect(made.id).not.toBe(hung);
    await works(daemon, 'it');
    expect(isAlive(vmm)).toBe(false);
    await expectInOrder(daemon);
    await daemon.deleteAll();
  });

  /** Of the one that is being made now, as soon as it has a process. */
  async function makingId(others: readonly string[]): Promise<string> {
    const runs = join(daemon.home, 'run/sandboxes');
    const named = (): string | undefined => readdirSync(runs).find((id) => !others.includes(id) && existsSync(join(runs, id, 'shim.json')));
    await eventually('one is being made', () => named() !== undefined);
    return named() ?? '';
  }

  function endKernel(pid: number): boolean {
    if (!isAlive(pid)) return false;
    process.kill(pid, 'SIGKILL');
    return true;
  }

  test.runIf(backend === 'qemu')(
    `the machine of a warm sandbox dies while it is made, and while it is handed out: nobody has a dead one (seed ${seed})`,
    { timeout: TEST_MS },
    async () => {
      const random = numbers(seed + 7);
      for (let nth = 0; nth < (isLong ? 45 : 3); nth += 1) {
        const when = nth % 3 === 0 ? 'made' : 'handed out';
        const waiting = await warmId();
        const afterMs = Math.floor(random.next().value * (when === 'made' ? 250 : 50));
        const where = `${when}, after ${afterMs} ms`;
        let id = waiting;
        if (when === 'made') {
          await ask(); // who waited is somebody's, and another one is made
          id = await makingId([waiting]);
        }
        const vmm = await kernelOf(id);
        const create = () => daemon.call('sandbox.create', { name: 'it' });
        const asked = when === 'made' ? null : create().catch((error: unknown) => String(error));
        await new Promise((resolve) => setTimeout(resolve, afterMs));
        const killed = endKernel(vmm);
        const made = await (asked ?? create());
        if (typeof made === 'string') throw new Error(`${where}: ${made}`);
        // It was handed out alive, and died as its owner's, who is told.
        if (killed && made.id === id) expect((await daemon.until(id, 'stopped')).ended, where).toMatchObject({ cause: 'crashed' });
        else await works(daemon, 'it');
        expect(await warmId(), where).not.toBe(id);
        await expectInOrder(daemon);
        await daemon.deleteAll();
      }
    },
  );

  test.runIf(backend === 'qemu')(
    'a warm sandbox whose template is gone is handed to nobody: who asks gets one of a new template',
    { timeout: TEST_MS },
    async () => {
      const id = await warmId();
      const vmm = pidOf(daemon, id, 'vmm');
      rmSync(join(daemon.home, 'data', 'templates'), { recursive: true });
      const made = await daemon.call('sandbox.create', { name: 'fresh' });
      expect(made.id).not.toBe(id);
      await works(daemon, 'fresh');
      expect(isAlive(vmm)).toBe(false);
      expect(await ledgerOf(id)).toEqual([]);
      await expectInOrder(daemon);
      await daemon.deleteAll();
    },
  );

  const rules = (): string[] => spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout.split('\n');
  const isRoot = process.getuid?.() === 0;

  test.runIf(isRoot)(
    'rules that somebody has flushed stand again before a warm sandbox gets its network',
    { timeout: TEST_MS },
    async () => {
      const id = await warmId();
      const uid = Number(/^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pidOf(daemon, id, 'passt')}/status`, 'utf8'))?.[1]);
      // Its own: another daemon may have the block beside it.
      const first = BLOCKS.find((candidate) => isWithin(blockOf(candidate), uid));
      const table = `table inet hutch_uids_${first}`;
      expect(rules()).toContain(table);
      spawnSync('nft', ['delete', ...table.split(' ')]);
      expect(rules()).not.toContain(table);
      expect((await daemon.call('sandbox.create', {})).id).toBe(id);
      expect(rules()).toContain(table);
      await daemon.deleteAll();
    },
  );

  test('a daemon that is told to end leaves no warm sandbox, and one that is killed leaves it to the next, which hands it to nobody', {
    timeout: TEST_MS,
  }, async () => {
    const vmm = pidOf(daemon, await warmId(), 'vmm');
    await daemon.terminate();
    expect(isAlive(vmm)).toBe(false);
    expect(await daemon.processes()).toEqual([]);

    await daemon.startAgain();
    expect(await said()).toContain('0 of 1 ready');
    await ask();
    const old = await warmId();
    await daemon.kill9();
    expect(isAlive(pidOf(daemon, old, 'vmm'))).toBe(true);
    await daemon.startAgain();
    expect(await daemon.processes()).toEqual([]);
    await expectInOrder(daemon);
    await ask();
    expect(await warmId()).not.toBe(old);
  });

  type Point = { readonly when: 'refill' | 'hand-out'; readonly env: Readonly<Record<string, string>> };

  const DIE = ['die-before', 'die-after'] as const;
  const callPoints = (when: Point['when'], verb: string, calls: number): Point[] =>
    Array.from({ length: calls }, (_, index) => index + 1).flatMap((n) =>
      DIE.map((die) => ({ when, env: { HUTCH_TEST_FAULT: `${die}:${n}:${verb}` } })),
    );

  /** The calls that each makes, at least, and its commits. */
  const REFILL: readonly Point[] = [
    ...callPoints('refill', 'daemon.warm', 40),
    ...DIE.map((die) => ({ when: 'refill', env: { HUTCH_TEST_STORE_FAULT: `${die}:2:addIntent` } }) as const),
  ];
  const HAND_OUT: readonly Point[] = ['finishIntent', 'createSandbox'].flatMap((change) =>
    [1, 2].flatMap((n) => DIE.map((die) => ({ when: 'hand-out', env: { HUTCH_TEST_STORE_FAULT: `${die}:${n + 2}:${change}` } }) as const)),
  );

  test.runIf(isInFull)(
    `the daemon is killed at ${isLong ? 'every' : 'some'} point of a refill and of a hand-out (seed ${seed})`,
    {
      timeout: TEST_MS,
    },
    async () => {
      const random = numbers(seed);
      const some = (points: readonly Point[]) =>
        isLong ? points : Array.from({ length: POINTS }, () => points[Math.floor(random.next().value * points.length)]);
      for (const point of [...some(REFILL), ...some(HAND_OUT)]) {
        if (point === undefined) throw new Error('there are no points');
        const report = join(daemon.home, 'fault.json');
        await restart({ ...point.env, HUTCH_TEST_FAULT_REPORT: report });
        const { child } = daemon;
        const answered: string[] = [];
        /** Until the daemon has died of it, or has done all that it could die of. */
        for (let turns = 0; turns < 3 && child.exitCode === null && child.signalCode === null; turns += 1) {
          await daemon.call('sandbox.create', { name: `n${turns}` }).then(
            ({ id }) => answered.push(id),
            () => {},
          );
          await Promise.race([warmId().catch(() => {}), new Promise((resolve) => child.once('exit', resolve))]);
        }
        await daemon.kill9();
        await daemon.startAgain(env());
        try {
          await expectInOrder(daemon);
          const there = await all(daemon);
          for (const id of answered) expect(there.find((sandbox) => sandbox.id === id)?.state).toBe('running');
          expect(await said()).toContain('0 of 1 ready');
          for (const name of ['n0', 'n1', 'n2'])
            if (!there.some((sandbox) => sandbox.name === name)) await daemon.call('sandbox.create', { name });
          await expectInOrder(daemon);
          await daemon.deleteAll();
        } catch (cause) {
          throw new Error(`after ${JSON.stringify(point)}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
        }
      }
      await restart();
    },
  );
}
