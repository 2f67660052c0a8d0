// What ends, and what does not: the daemon killed, a sandbox's process killed, both; and the record of
// it. Several of these are what metald's Docker backend got wrong.
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { refusal, type Subject } from './subject.ts';

type Shape = { readonly cpus: number; readonly memoryBytes: number | null; readonly storageBytes: number | null };
type Entry = {
  kind: string;
  reason: string | null;
  sandboxId: string;
  backend: string | null;
  evidence: string | null;
  atMs: number;
  shape: Shape;
};

const MIB = 2 ** 20;

export function survival(subject: Subject): void {
  const { daemon, can } = subject;

  const entriesOf = async (id: string): Promise<Entry[]> => {
    const entries: Entry[] = [];
    for await (const entry of daemon.lines('ledger.list', {})) if ((entry as Entry).sandboxId === id) entries.push(entry as Entry);
    return entries;
  };
  const kindsOf = async (id: string) => (await entriesOf(id)).map(({ kind, reason }) => `${kind} ${reason}`);

  test('survival: a process that is killed is a crash, with evidence, and can be started again; one that is asked to end was stopped from outside', async () => {
    const { id } = await subject.make();
    await subject.sh(id, 'echo kept > /root/file; sync');
    process.kill(await subject.pidOf(id), 'SIGKILL');
    expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ cause: 'crashed', actor: 'host' });
    const stop = (await entriesOf(id)).find(({ kind }) => kind === 'vm.compute.stop');
    expect(stop).toMatchObject({ reason: 'stop-crash', evidence: expect.stringMatching(/SIGKILL|137|pid-gone/) });
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'cat /root/file')).toBe('kept\n');
    // The reference's is unshare(1), which ignores it.
    if (subject.name !== 'reference') {
      process.kill(await subject.pidOf(id), 'SIGTERM');
      expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ cause: 'host-stopped', actor: 'host' });
    }
    await subject.remove(id);
  });

  test('survival: a disk that is damaged keeps its sandbox from the start, says what helps, and that helps', async (here) => {
    const { id } = await subject.make({ name: 'scarred' });
    await subject.sh(id, 'echo kept > /root/file; sync');
    await daemon.call('sandbox.stop', { ref: id });
    const mend = await subject.damage(id);
    if (mend === null) return here.skip('no disks');
    const verbs = ['sandbox.start', 'sandbox.restart'] as const;
    let hint: string | null = null;
    for (const verb of verbs) {
      const refused = await refusal(daemon.call(verb, { ref: id }));
      expect(refused).toMatchObject({
        code: 'failed_precondition',
        message: expect.stringContaining('the disk of sandbox scarred is damaged: '),
        hint: expect.stringContaining('delete it (hutch rm scarred)'),
      });
      hint = refused.hint;
    }
    expect((await subject.get(id)).state).toBe('stopped');
    await mend(hint);
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'cat /root/file')).toBe('kept\n');
    await subject.remove(id);
  });

  test('metald A.10.10: the daemon killed costs nothing that ran, and what ended meanwhile is known', { timeout: 120_000 }, async () => {
    const [running, paused, stopped, doubted, ending, killed] = (
      await Promise.all([
        subject.make({ labels: { kept: 'yes' } }),
        subject.make(),
        subject.make({ start: false }),
        subject.make(),
        subject.make({ main: { argv: ['sh', '-c', 'until test -e /tmp/go; do sleep 0.05; done; echo last words; exit 4'] } }),
        subject.make(),
      ])
    ).map(({ id }) => id) as [string, string, string, string, string, string];
    const script = 'i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.02; done';
    const walker = await daemon.exec(running, { argv: ['sh', '-c', script] }, { execId: 'walker' });
    await walker.sawOutput('line 5');
    if (can.pause) await daemon.call('sandbox.pause', { ref: paused });
    await subject.doubt(doubted);
    const pid = await subject.pidOf(killed);
    const unborn = await daemon.exec(ending, { argv: ['sh', '-c', 'sleep 1; touch /tmp/go'] });
    await unborn.saw('started');
    await daemon.kill9();
    process.kill(pid, 'SIGKILL');
    await new Promise((resolve) => setTimeout(resolve, 1_500)); // the main process ends while nobody looks
    await daemon.startAgain();

    const again = await daemon.attach(running, 'walker', { stdoutOffset: String(walker.stdout.byteLength) });
    expect((await again.exit()).exitCode).toBe(0);
    const all = Buffer.concat([walker.stdout, again.stdout]).toString();
    expect(all).toBe(Array.from({ length: 100 }, (_, n) => `line ${n}\n`).join(''));
    expect(await subject.get(running)).toMatchObject({ state: 'running', startCount: 1, labels: { kept: 'yes' } });
    expect((await subject.get(paused)).state).toBe(can.pause ? 'paused' : 'running');
    await daemon.call('sandbox.resume', { ref: paused });
    expect(await subject.sh(paused, 'echo went on')).toBe('went on\n');
    expect((await subject.get(stopped)).state).toBe('created');
    expect((await daemon.call('sandbox.start', { ref: stopped })).state).toBe('running');
    // What was in doubt is looked at again, and turns out to be alive.
    expect((await subject.get(doubted)).state).toBe('running');
    expect(await subject.sh(doubted, 'echo alive')).toBe('alive\n');
    expect((await daemon.until(ending, 'stopped')).ended).toMatchObject({ cause: 'exited', exitCode: 4 });
    expect((await daemon.send('GET', `/v1/sandboxes/${ending}/logs`)).body.toString('latin1')).toContain('last words');
    expect((await daemon.until(killed, 'stopped')).ended).toMatchObject({ cause: 'crashed' });
    expect(await subject.sh(await subject.box(), 'echo adopted')).toBe('adopted\n');
    await subject.remove(running, paused, stopped, doubted, ending, killed);
  });

  test('metald A.10.5: no counter goes back, over pauses, starts, snapshots and dead daemons, and what cannot be counted is an error', {
    timeout: 300_000,
  }, async () => {
    const { id } = await subject.make();
    const read = async () => await daemon.call('sandbox.stats', { ref: id });
    const counters = ({ cpu, host, disk, network, oomKills }: Awaited<ReturnType<typeof read>>) => ({
      ...{ cpu: cpu.usedUs, hostCpu: host.cpuUs, read: disk.readBytes ?? 0, written: disk.writtenBytes ?? 0 },
      ...{ received: network.rxBytes, sent: network.txBytes, oomKills },
    });
    const work = 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done';
    await subject.sh(id, `${work}; head -c 1000000 /dev/zero > /root/written; sync`);
    let before = await read();
    // Of this sandbox, and not of the host that is under it.
    expect(before.oomKills).toBe(0);
    expect(before.uptimeMs).toBeLessThan(before.takenAtMs - before.sinceMs + 2_000);
    expect(before.sinceMs).toBe((await subject.get(id)).createdAtMs);
    const holds = async (after: string): Promise<void> => {
      const now = await read();
      expect(now.sinceMs, after).toBe(before.sinceMs);
      for (const [what, count] of Object.entries(counters(before)))
        expect(counters(now)[what as 'cpu'], `${what} after ${after}`).toBeGreaterThanOrEqual(count);
      before = now;
    };
    if (can.pause) {
      await daemon.call('sandbox.pause', { ref: id });
      expect(await refusal(read())).toMatchObject({ code: 'failed_precondition' });
      await daemon.call('sandbox.resume', { ref: id });
      await holds('a pause');
    }
    await daemon.kill9();
    await daemon.startAgain();
    await holds('a dead daemon');
    if (can.suspend) {
      await daemon.call('sandbox.suspend', { ref: id });
      await daemon.call('sandbox.resume', { ref: id });
      await holds('a suspend');
    }
    if (can.snapshot) {
      const snapshot = (await daemon.call('snapshot.create', { ref: id, diskOnly: !can.fork })).id;
      await subject.sh(id, work);
      await holds('work');
      await daemon.call('sandbox.restore', { ref: id, snapshot });
      const { writtenBytes } = before.disk;
      await holds('going back to a snapshot');
      expect((before.disk.writtenBytes ?? 0) - (writtenBytes ?? 0), 'what was counted before is not counted twice').toBeLessThan(1_000_000);
    }
    // What was done since the last look counts too: an end looks once more.
    await subject.sh(id, 'head -c 4000000 /dev/zero > /root/more; sync');
    await daemon.call('sandbox.stop', { ref: id });
    expect(await refusal(read())).toMatchObject({ code: 'failed_precondition' });
    await daemon.kill9();
    await daemon.startAgain();
    await daemon.call('sandbox.start', { ref: id });
    const { writtenBytes } = before.disk;
    await holds('a new start');
    expect((before.disk.writtenBytes ?? 0) - (writtenBytes ?? 0), 'it has written since').toBeGreaterThanOrEqual(4_000_000);
    await daemon.call('sandbox.stop', { ref: id, force: true });
    await daemon.call('sandbox.start', { ref: id });
    await holds('a forced end');
    await subject.remove(id);
  });

  test('metald A.10.1: a sandbox that lives for a moment has its whole interval in the ledger', async () => {
    const { id } = await subject.make();
    await subject.remove(id);
    expect((await kindsOf(id)).filter((kind) => kind.startsWith('vm.compute'))).toEqual([
      'vm.compute.start boot',
      'vm.compute.stop stop-user',
    ]);
  });

  test('metald A.10.8: a pause changes the state and the ledger, and info says so', async (here) => {
    if (!can.pause) return here.skip('this backend does not pause');
    const { id } = await subject.make();
    await daemon.call('sandbox.pause', { ref: id });
    expect((await subject.get(id)).state).toBe('paused');
    await daemon.call('sandbox.resume', { ref: id });
    expect((await subject.get(id)).state).toBe('running');
    expect((await kindsOf(id)).filter((kind) => kind.startsWith('vm.paused'))).toEqual(['vm.paused.start pause', 'vm.paused.stop resume']);
    await subject.remove(id);
  });

  test('metald A.10.9: nothing that runs is called stopped by a daemon that begins, however often', { timeout: 120_000 }, async () => {
    const { id } = await subject.make();
    for (let times = 0; times < (process.env['HUTCH_TEST_LONG'] === '1' ? 5 : 1); times += 1) {
      expect(await daemon.terminate()).toBe(0);
      await daemon.startAgain();
      expect(await subject.get(id)).toMatchObject({ state: 'running', startCount: 1 });
    }
    expect(await subject.sh(id, 'echo still here')).toBe('still here\n');
    expect((await kindsOf(id)).filter((kind) => kind.startsWith('vm.compute'))).toEqual(['vm.compute.start boot']);
    await subject.remove(id);
  });

  test('metald A.10.11: creation, deletion and stop heed what they are told: name, force, grace', async () => {
    const { id, name } = await subject.make({ name: 'as-asked' });
    expect(name).toBe('as-asked');
    await daemon.exec(id, { argv: ['sh', '-c', 'trap "" TERM; while :; do sleep 0.1; done'] });
    expect((await daemon.call('sandbox.stop', { ref: id, force: true })).state).toBe('stopped');
    expect((await daemon.call('sandbox.delete', { ref: id })).state).toBe('deleted');
  });

  test('metald A.10.13: records name the backend that it was, and no log has a secret', async () => {
    const secret = `not-for-logs-${process.pid}`;
    const { id, backend } = await subject.make({ secrets: { TOKEN: secret }, env: { PLAIN: `${secret}-env` } });
    expect(await subject.sh(id, 'echo $TOKEN')).toBe(`${secret}\n`);
    if (subject.name !== 'reference') expect(backend).toBe(subject.name);
    for (const entry of await entriesOf(id)) expect(entry.backend).toBe(backend);
    expect(await daemon.log()).not.toContain(secret);
    for (const source of ['boot', 'vmm'])
      expect((await daemon.send('GET', `/v1/sandboxes/${id}/logs?source=${source}`)).body.toString('latin1')).not.toContain(secret);
    await subject.remove(id);
  });

  test('metald A.10.15: what one sandbox writes over, no other sees, before or after', async () => {
    const first = await subject.make();
    const second = await subject.make();
    await subject.sh(first.id, 'echo mine > /etc/passwd; rm -f /etc/group; sync');
    const third = await subject.make();
    for (const { id } of [second, third])
      expect(await subject.sh(id, 'head -c 4 /etc/passwd; test -s /etc/group && echo " whole"')).toBe('root whole\n');
    await subject.remove(first.id, second.id, third.id);
  });

  test('metald A.12.2: what info, list, stats, the log of events and the ledger say of a sandbox agrees, figure by figure', async () => {
    const { id } = await subject.make({ labels: { only: `this-${process.pid}` } });
    const whenRunning = await subject.get(id);
    const stats = await daemon.call('sandbox.stats', { ref: id });
    await daemon.call('sandbox.stop', { ref: id, force: true });
    const info = await subject.get(id);
    expect((await daemon.call('sandbox.list', { label: `only=this-${process.pid}` })).sandboxes).toEqual([info]);

    const { cpus, memoryMiB, diskMiB } = info.shape;
    expect(whenRunning.shape).toEqual(info.shape);
    expect(stats).toMatchObject({ sandboxId: id, name: info.name, sinceMs: info.createdAtMs, cpu: { count: cpus } });
    if (can.limits.memory !== 'no' && subject.name !== 'reference') {
      expect(stats.memory.totalBytes).toBeLessThanOrEqual(memoryMiB * MIB);
      expect(stats.memory.totalBytes, 'but for what its kernel has').toBeGreaterThan(0.8 * memoryMiB * MIB);
    }
    const { startedAtMs } = whenRunning;
    const endedAtMs = info.ended?.atMs;
    expect(whenRunning.openComputeSinceMs).toBe(startedAtMs);
    expect(stats.takenAtMs).toBeGreaterThanOrEqual(startedAtMs ?? Number.NaN);

    const events: (readonly [string, number])[] = [];
    let last: Record<string, unknown> = {};
    for await (const { type, atMs, detail } of daemon.lines('event.list', { sandbox: id })) {
      events.push([type, atMs]);
      last = detail;
    }
    expect(events).toEqual([
      ['sandbox.created', info.createdAtMs],
      ['sandbox.started', startedAtMs],
      ['sandbox.ended', info.changedAtMs],
    ]);
    expect(last).toMatchObject({ cause: info.ended?.cause, exitCode: info.ended?.exitCode ?? null, endedAtMs, diedAtMs: endedAtMs });

    const entries = await entriesOf(id);
    expect(entries.map(({ kind, atMs }) => [kind, atMs])).toEqual([
      ['vm.storage.start', info.createdAtMs],
      ['vm.compute.start', startedAtMs],
      ['vm.compute.stop', endedAtMs],
    ]);
    for (const { kind, shape } of entries)
      expect([kind, shape]).toEqual([kind, { cpus, memoryBytes: memoryMiB * MIB, storageBytes: diskMiB * MIB }]);
    expect(entries.at(-1)?.evidence).toBe(last['evidence']);

    // What was counted goes on: nobody is told less than before.
    await daemon.call('sandbox.start', { ref: id });
    const later = await daemon.call('sandbox.stats', { ref: id });
    expect(later).toMatchObject({ sandboxId: id, sinceMs: stats.sinceMs, cpu: { count: cpus } });
    expect(later.cpu.usedUs).toBeGreaterThanOrEqual(stats.cpu.usedUs);
    expect(later.host.cpuUs).toBeGreaterThanOrEqual(stats.host.cpuUs);
    await subject.remove(id);
  });

  test('survival: nothing is left of what is gone', async () => {
    await eventually('nothing is under way', async () => (await daemon.call('operation.list', {})).operations.length === 0);
    expect(await daemon.leaks()).toEqual([]);
  });
}
