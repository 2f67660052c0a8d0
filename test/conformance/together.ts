// Many at once, and calls that nobody waits for any more: turns are kept, nothing half done is left.
import { expect, test } from 'vitest';
import { ApiError } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';
import { codeOf, type Subject } from './subject.ts';

export function together(subject: Subject): void {
  const { daemon } = subject;

  test('many starts of one sandbox at once are one start', async () => {
    const { id } = await subject.make({ start: false });
    const all = await Promise.all(Array.from({ length: 8 }, () => daemon.call('sandbox.start', { ref: id })));
    expect(new Set(all.map(({ state, startCount }) => `${state} ${startCount}`))).toEqual(new Set(['running 1']));
    await subject.remove(id);
  });

  test('contrary calls at once each get their turn, and the ledger adds up', { timeout: 120_000 }, async () => {
    const { id } = await subject.make();
    const calls = {
      stop: daemon.call('sandbox.stop', { ref: id }),
      start: daemon.call('sandbox.start', { ref: id }),
      ...(subject.can.pause
        ? { pause: daemon.call('sandbox.pause', { ref: id }), resume: daemon.call('sandbox.resume', { ref: id }) }
        : {}),
      exec: daemon.run(id, ['true']),
      stats: daemon.call('sandbox.stats', { ref: id }),
      rename: daemon.call('sandbox.rename', { ref: id, name: `turn-${process.pid}` }),
      restart: daemon.call('sandbox.restart', { ref: id }),
    };
    const answers = await Promise.all(
      Object.entries(calls).map(([what, call]) =>
        call.then(
          () => ({ what, code: 'done', message: '' }),
          (error: unknown) => ({ what, ...(error instanceof ApiError ? error.body : { code: 'none', message: String(error) }) }),
        ),
      ),
    );
    // Nobody has cancelled anything, and no time was up.
    for (const { what, code, message } of answers)
      expect(['done', 'failed_precondition', 'unavailable'], `${what}: ${message}`).toContain(code);
    const { state } = await subject.get(id);
    expect(['running', 'paused', 'stopped']).toContain(state);
    if (state === 'running') expect(await subject.sh(id, 'echo up')).toBe('up\n');
    expect(await daemon.call('ledger.verify', {})).toMatchObject({ ok: true });
    await subject.remove(id);
  });

  test('several are made and removed at once, each a computer of its own', { timeout: 120_000 }, async () => {
    const made = await Promise.all(Array.from({ length: 4 }, () => subject.make()));
    const told = await Promise.all(
      made.map(({ id }) => subject.sh(id, `echo ${id} > /tmp/mine; hostname; cat /tmp/mine; ls /tmp | wc -l`)),
    );
    expect(told).toEqual(made.map(({ id, name }) => `${name}\n${id}\n1\n`));
    await subject.remove(...made.map(({ id }) => id));
  });

  test('a creation whose client goes away leaves nothing', async () => {
    await using _ = await subject.fault('hang', 'start');
    const gone = new AbortController();
    const name = `given-up-${process.pid}`;
    const making = daemon.call('sandbox.create', { name, network: 'none' }, { signal: gone.signal }).catch(() => 'gone');
    await eventually('it is being made', async () =>
      (await daemon.call('operation.list', {})).operations.some(({ verb, step }) => verb === 'sandbox.create' && step !== null),
    );
    gone.abort();
    expect(await making).toBe('gone');
    await eventually('it is undone', async () => (await daemon.call('operation.list', {})).operations.length === 0);
    const { sandboxes } = await daemon.call('sandbox.list', {});
    expect(sandboxes.map((sandbox) => sandbox.name)).not.toContain(name);
    expect(await daemon.leaks()).toEqual([]);
    const known = new Set(sandboxes.map(({ id }) => id));
    expect(
      (await subject.kept()).filter((id) => !known.has(id)),
      'what lies on disk',
    ).toEqual([]);
    await subject.remove((await subject.make({ name, start: false })).id); // its name is free
  });

  test('a start that is cancelled leaves it as it was', async () => {
    const { id } = await subject.make({ start: false });
    const hanging = await subject.fault('hang', 'start', id);
    const starting = codeOf(daemon.call('sandbox.start', { ref: id }));
    let opId: string | undefined;
    await eventually('it is being started', async () => {
      opId = (await daemon.call('operation.list', {})).operations.find(({ targetId }) => targetId === id)?.id;
      return opId !== undefined;
    });
    await daemon.call('operation.cancel', { opId: opId ?? '' });
    expect(await starting).toBe('cancelled');
    await hanging[Symbol.asyncDispose]();
    expect((await subject.get(id)).state).toBe('created');
    expect((await daemon.call('sandbox.start', { ref: id })).state).toBe('running');
    await subject.remove(id);
  });

  test('a start that fails leaves nothing, and can be made again', async () => {
    const { id } = await subject.make({ start: false });
    {
      await using _ = await subject.fault('fail', 'start', id);
      expect(await codeOf(daemon.call('sandbox.start', { ref: id }))).toBe('unavailable');
    }
    expect(await subject.get(id)).toMatchObject({ state: 'created', openComputeSinceMs: null });
    expect(await daemon.leaks()).toEqual([]);
    expect((await daemon.call('sandbox.start', { ref: id })).state).toBe('running');
    await subject.remove(id);
  });

  test('a pause that fails leaves it running', async (here) => {
    if (!subject.can.pause) return here.skip('this backend does not pause');
    const { id } = await subject.make();
    {
      await using _ = await subject.fault('fail', 'pause', id);
      expect(await codeOf(daemon.call('sandbox.pause', { ref: id }))).toBe('unavailable');
    }
    expect((await subject.get(id)).state).toBe('running');
    expect(await subject.sh(id, 'echo up')).toBe('up\n');
    await subject.remove(id);
  });
}
