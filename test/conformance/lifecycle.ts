// What a sandbox's life is: its states and verbs, what happens when the same is asked again, its main
// process, its names and labels, its time limit, and what is left of it.
import { expect, test } from 'vitest';
import { type VerbName, verbs } from '../../src/services/verbs.ts';
import { eventually } from '../support/eventually.ts';
import { codeOf, refusal, type Subject } from './subject.ts';
import { ask, ELSEWHERE, type Outcome, STATELESS, STATES, type State, sandboxIn, TABLE } from './verb-table.ts';

export function lifecycle(subject: Subject): void {
  const { daemon } = subject;

  test('every verb of the API has its place in the table of states', () => {
    const missing = (Object.keys(verbs) as VerbName[]).filter(
      (verb) => !(verb in TABLE) && !STATELESS.includes(verb) && !ELSEWHERE.includes(verb.split('.')[0] as string),
    );
    expect(missing).toEqual([]);
  });

  for (const state of STATES) {
    test(`each verb of a sandbox that is ${state} does what the table says, or refuses by that code`, {
      timeout: 180_000,
    }, async (here) => {
      if (state === 'paused' && !subject.can.pause) return here.skip('this backend does not pause');
      if (state === 'suspended' && !subject.can.suspend) return here.skip('this backend does not suspend');
      const expected: Record<string, Outcome> = {};
      const found: Record<string, Outcome> = {};
      let ref = await sandboxIn(subject, state);
      for (const [nth, [verb, row]] of Object.entries(TABLE).entries()) {
        if (verb === 'sandbox.pause' && !subject.can.pause) continue; // honesty's
        if (verb === 'sandbox.suspend' && !subject.can.suspend) continue;
        if (verb === 'sandbox.fork' && !subject.can.fork) continue;
        expected[verb] = row[state];
        const answer = await codeOf(ask(subject, verb as VerbName, ref, nth));
        const now = (await subject.get(ref)).state as State;
        // `running → running` is a change where the table says so: restart.
        const stays = now === state ? (row[state] === state ? state : 'ok') : now;
        found[verb] = answer === 'done' ? stays : now === state ? answer : `internal`;
        if (now === state) continue;
        await subject.remove(ref);
        ref = await sandboxIn(subject, state);
      }
      expect(found).toEqual(expected);
      await subject.remove(ref);
    });
  }

  test('the same asked again changes nothing more', async () => {
    const { id } = await subject.make();
    const twice = async (verb: 'sandbox.start' | 'sandbox.stop' | 'sandbox.pause' | 'sandbox.resume' | 'sandbox.delete') => {
      const first = await daemon.call(verb, { ref: id });
      const second = await daemon.call(verb, { ref: id });
      expect([verb, second.state, second.generation]).toEqual([verb, first.state, first.generation]);
    };
    await twice('sandbox.start');
    if (subject.can.pause) for (const verb of ['sandbox.pause', 'sandbox.resume'] as const) await twice(verb);
    for (const verb of ['sandbox.stop', 'sandbox.delete'] as const) await twice(verb);
  });

  test('a creation repeated with its Idempotency-Key makes one sandbox', async () => {
    const headers = { 'Idempotency-Key': `conformance-${process.pid}` };
    const [first, second] = await Promise.all([1, 2].map(() => daemon.call('sandbox.create', { network: 'none' }, { headers })));
    expect(second?.id).toBe(first?.id);
    expect((await daemon.call('sandbox.create', { network: 'none' }, { headers })).id).toBe(first?.id);
    expect(await codeOf(daemon.call('sandbox.create', { network: 'none', name: 'another' }, { headers }))).toBe('conflict');
    await subject.remove(first?.id ?? '');
  });

  test('the disk outlives a stop and a start, memory and processes do not', async () => {
    const { id } = await subject.make({ env: { KEPT: 'yes' } });
    await subject.sh(id, 'echo kept > /root/file; sync; sleep 1000 > /dev/null 2>&1 &');
    const stopped = await daemon.call('sandbox.stop', { ref: id });
    expect(stopped).toMatchObject({ state: 'stopped', ended: { cause: 'stopped', oomKilled: false }, openComputeSinceMs: null });
    const started = await daemon.call('sandbox.start', { ref: id });
    expect(started).toMatchObject({ state: 'running', startCount: 2, id });
    expect(await subject.sh(id, 'cat /root/file; echo $KEPT; cat /proc/[0-9]*/comm | grep -c "^sleep$" || true')).toBe('kept\nyes\n0\n');
    await subject.remove(id);
  });

  test('a main process ends its sandbox with its exit code, and its log stays', async () => {
    const { id } = await subject.make({ main: { argv: ['sh', '-c', 'echo said; exit 7'] } });
    expect(await daemon.call('sandbox.wait', { ref: id })).toMatchObject({ exitCode: 7, sandbox: { state: 'stopped' } });
    expect((await subject.get(id)).ended).toMatchObject({ cause: 'exited', exitCode: 7, actor: 'guest' });
    expect((await daemon.send('GET', `/v1/sandboxes/${id}/logs`)).body.toString('latin1')).toContain('said\n');
    await subject.remove(id);
  });

  test('a main process that ends removes what was made to be removed', async () => {
    const { id } = await subject.make({ autoRemove: true, main: { argv: ['true'] } });
    await daemon.until(id, 'deleted');
    expect(await codeOf(daemon.call('sandbox.start', { ref: id }))).toBe('failed_precondition');
  });

  test('a process that ignores SIGTERM is killed when its grace is over', async () => {
    const { id } = await subject.make({ main: { argv: ['sh', '-c', 'trap "" TERM; echo deaf; while :; do sleep 0.1; done'] } });
    await eventually('it does not listen', async () =>
      (await daemon.send('GET', `/v1/sandboxes/${id}/logs`)).body.toString('latin1').includes('deaf'),
    );
    expect((await daemon.call('sandbox.stop', { ref: id, graceMs: 300 })).state).toBe('stopped');
    await subject.remove(id);
  });

  test('a time limit stops it, and says so', async () => {
    const { id } = await subject.make({ timeoutMs: 1_500 });
    expect((await daemon.call('sandbox.wait', { ref: id })).sandbox.ended).toMatchObject({ cause: 'timeout', actor: 'daemon' });
    await subject.remove(id);
  });

  test('names are unique, free again after a deletion, and may be given anew', async () => {
    const { id } = await subject.make({ name: 'only-one', start: false });
    expect((await refusal(subject.make({ name: 'only-one', start: false }))).code).toBe('conflict');
    await daemon.call('sandbox.rename', { ref: 'only-one', name: 'another' });
    const second = await subject.make({ name: 'only-one', start: false });
    expect((await subject.get('another')).id).toBe(id);
    await subject.remove(id);
    await daemon.call('sandbox.rename', { ref: second.id, name: 'another' });
    await subject.remove(second.id);
  });

  test('labels are kept, and select', async () => {
    const made = [
      await subject.make({ start: false, labels: { team: 'red', tier: '1' } }),
      await subject.make({ start: false, labels: { team: 'blue', tier: '1' } }),
    ];
    const having = async (...label: string[]) =>
      (await daemon.call('sandbox.list', { label })).sandboxes.map(({ id }) => made.findIndex((one) => one.id === id)).sort();
    expect(await having('tier=1')).toEqual([0, 1]);
    expect(await having('team=blue')).toEqual([1]);
    expect(await having('team', 'tier=1')).toEqual([0, 1]);
    expect(await having('team=red', 'team=blue')).toEqual([]);
    expect((await subject.get(made[0]?.id ?? '')).labels).toEqual({ team: 'red', tier: '1' });
    await subject.remove(...made.map(({ id }) => id));
  });

  test('delete without force spares what runs, with force it takes it', async () => {
    const { id } = await subject.make();
    expect((await refusal(daemon.call('sandbox.delete', { ref: id }))).code).toBe('failed_precondition');
    expect((await subject.get(id)).state).toBe('running');
    expect((await daemon.call('sandbox.delete', { ref: id, force: true })).state).toBe('deleted');
  });

  test('a stop with force asks nobody, one without asks first', async () => {
    const main = { argv: ['sh', '-c', 'trap "echo asked; exit 5" TERM; echo up; while :; do sleep 0.05; done'] };
    for (const force of [true, false]) {
      const { id } = await subject.make({ main });
      const log = async () => (await daemon.send('GET', `/v1/sandboxes/${id}/logs`)).body.toString('latin1');
      await eventually('it is up', async () => (await log()).includes('up\n'));
      await daemon.call('sandbox.stop', { ref: id, force });
      expect((await log()).includes('asked'), force ? 'with force' : 'without').toBe(!force);
      await subject.remove(id);
    }
  });
}
