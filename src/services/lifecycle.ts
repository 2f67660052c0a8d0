// Start, stop, restart, pause, resume, rename, delete and wait: each takes its turn on the sandbox,
// looks at the state that it then has, and does what is left to do.
import { wantsRestart } from '../domain/restart.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import { throwIfAborted } from '../host/errors.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { catchUp } from './guest-clock.ts';
import type { Handlers } from './handlers.ts';
import { waitFor } from './operations.ts';
import type { SandboxView } from './present.ts';
import { runOf } from './release.ts';
import type { Starter } from './start-again.ts';
import type { Suspension } from './suspend.ts';
import { removeSandbox, takeDown } from './take-down.ts';

type LifecycleVerbs =
  | 'sandbox.start'
  | 'sandbox.stop'
  | 'sandbox.restart'
  | 'sandbox.pause'
  | 'sandbox.resume'
  | 'sandbox.suspend'
  | 'sandbox.rename'
  | 'sandbox.delete'
  | 'sandbox.wait';

const RELEASE_MS = 60_000;
/** As long as the verb itself may take: its disk, and what was kept to undo, may be large. */
const REMOVE_MS = 120_000;
/** How long a forced call waits for what it interrupts to clean up. */
const INTERRUPTED: ReadonlySet<string> = new Set([
  'sandbox.start',
  'sandbox.restart',
  'sandbox.stop',
  'sandbox.pause',
  'sandbox.resume',
  'sandbox.suspend',
  'sandbox.restore',
  'sandbox.undo',
]);

export function lifecycleVerbs(core: Core, starter: Starter, suspension: Suspension): Pick<Handlers, LifecycleVerbs> {
  const { deps, sandboxes, turns, presenter } = core;
  const claims = new Claims();
  const { start } = starter;

  /** Resolves the reference, waits for the turn, and hands in the sandbox as it is then. */
  async function inTurn(call: Call, ref: string, work: (sandbox: Sandbox) => Promise<Sandbox>): Promise<SandboxView> {
    const { id } = await sandboxes.resolve(call.caller.projectId, ref);
    call.target(id);
    const after = await turns.take(call.op, id, async () => work(await sandboxes.get(call.op, id)));
    return await presenter.sandbox(after, call.op.id);
  }

  async function stop(
    call: Call,
    sandbox: Sandbox,
    graceMs: number | null,
    then: 'kept' | 'removed' | 'as-made' = 'kept',
  ): Promise<Sandbox> {
    if (sandbox.state === 'suspended') return await suspension.lost(call.op, call, sandbox, null);
    if (then !== 'removed' && wantsRestart(sandbox)) return await hold(call, sandbox);
    if (sandbox.openComputeSinceMs === null) return sandbox;
    const run = await runOf(core, call.op, sandbox);
    return await takeDown(core, call, run, {
      ...{ cause: 'stopped', actor: call.caller.actor, graceMs },
      ...{ thenRemoved: then === 'removed', removesItself: then === 'as-made' },
    });
  }

  /** It has ended, and would be started again by itself. */
  async function hold(call: Call, { id }: Sandbox): Promise<Sandbox> {
    const event = { type: 'changed', atMs: deps.host.nowMs(), opId: call.op.id, change: { held: true } } as const;
    const [after] = await call.commit([{ change: 'applyEvent', sandboxId: id, event }]);
    sandboxes.changed(after);
    return after;
  }

  async function stopAndMaybeRemove(call: Call, sandbox: Sandbox, graceMs: number | null): Promise<Sandbox> {
    const after = await stop(call, sandbox, graceMs, 'as-made');
    if (sandbox.openComputeSinceMs === null || after.state !== 'stopped' || !after.spec.autoRemove) return after;
    return await removeSandbox(core, call, await runOf(core, call.op, after), after, { intentId: null, ended: null });
  }

  async function remove(call: Call, sandbox: Sandbox, force: boolean): Promise<Sandbox> {
    const { op } = call;
    const { name } = sandbox.spec;
    if (sandbox.state === 'deleted') return sandbox;
    if (sandbox.openComputeSinceMs !== null && !force) {
      throw op.error('failed_precondition', `sandbox ${name} is ${sandbox.state}; a running one is deleted only with force`, {
        hint: `stop it first, or: hutch rm -f ${name}`,
      });
    }
    // What it ran lies in its memory on the disk: that is as much as what runs.
    if (sandbox.state === 'suspended' && !force) {
      throw op.error(
        'failed_precondition',
        `sandbox ${name} is suspended, and its memory would go with it; such a one is deleted only with force`,
        {
          hint: `go on with it: hutch resume ${name}; or: hutch rm -f ${name}`,
        },
      );
    }
    await backendOf(deps, op, sandbox.spec.backend).awake?.(op);
    const [intent] = await call.commit([
      { change: 'addIntent', kind: 'delete', projectId: sandbox.projectId, sandboxId: sandbox.id, atMs: deps.host.nowMs() },
    ]);
    let stopped: Sandbox;
    try {
      stopped = await stop(call, sandbox, null, 'removed');
      throwIfAborted(op, `deleting sandbox ${name}`);
    } catch (error) {
      // It goes on running, or stays: the next start of the daemon must not remove it.
      using late = op.releasing(RELEASE_MS);
      await deps.store.commit(late, [{ change: 'finishIntent', id: intent.id }]);
      throw error;
    }
    // From here on what it has goes: whoever leaves now is not left with half of it, which the next start of the daemon would take.
    using late = op.releasing(REMOVE_MS);
    return await removeSandbox(core, { ...call, op: late }, await runOf(core, late, stopped), stopped, {
      intentId: intent.id,
      ended: null,
    });
  }

  /** What holds the sandbox up is cancelled: whoever forces does not want to wait for it. */
  async function interrupt(call: Call, ref: string): Promise<void> {
    const { id } = await sandboxes.resolve(call.caller.projectId, ref);
    const holder = turns.holder(id);
    const record = holder === null ? null : core.operations.get(holder);
    if (record !== null && INTERRUPTED.has(record.verb))
      await core.operations.cancel(call.op, record.id, `${call.op.id}, which does not wait for it`);
  }

  return {
    'sandbox.start': (call, { ref }) => inTurn(call, ref, (sandbox) => start(call, sandbox, 'restart')),

    'sandbox.stop': async (call, { ref, graceMs, force }) => {
      if (force === true) await interrupt(call, ref);
      return await inTurn(call, ref, (sandbox) =>
        stopAndMaybeRemove(call, sandbox, force === true ? null : (graceMs ?? deps.settings.stopGraceMs)),
      );
    },

    'sandbox.restart': (call, { ref, graceMs }) =>
      inTurn(call, ref, async (sandbox) => {
        await starter.prepare(call, sandbox);
        return await start(call, await stop(call, sandbox, graceMs ?? deps.settings.stopGraceMs), 'restart');
      }),

    'sandbox.pause': (call, { ref }) =>
      inTurn(call, ref, async (sandbox) => {
        if (sandbox.state === 'paused') return sandbox;
        const run = core.runs.of(call.op, sandbox);
        await claims.need(call.op, run.backend, 'pause');
        run.freeze();
        await using undo = new AsyncDisposableStack();
        undo.defer(async () => {
          using late = call.op.releasing(RELEASE_MS);
          await run.backend
            .resume(late, run.plan)
            .catch((cause: unknown) => call.op.log.warn({ sandbox: run.id, cause }, 'a pause that failed was not undone'));
          run.thaw();
        });
        await run.backend.pause(call.op, run.plan);
        const [after] = await call.commit([
          { change: 'applyEvent', sandboxId: run.id, event: { type: 'paused', atMs: deps.host.nowMs(), opId: call.op.id } },
        ]);
        undo.move();
        sandboxes.changed(after);
        return after;
      }),

    'sandbox.resume': (call, { ref }) =>
      inTurn(call, ref, async (sandbox) => {
        if (sandbox.state === 'running') return sandbox;
        if (sandbox.state === 'suspended') return await suspension.wakeUp(call, sandbox);
        const run = sandbox.state === 'paused' ? core.runs.get(sandbox.id) : null;
        if (run === null) {
          const { name } = sandbox.spec;
          throw call.op.error('failed_precondition', `sandbox ${name} is ${sandbox.state}, neither paused nor suspended`, {
            hint: `start it with: hutch start ${name}`,
          });
        }
        await run.backend.resume(call.op, run.plan);
        run.thaw();
        const caughtUp = catchUp(call.op, deps.host, run);
        const [after] = await call.commit([
          { change: 'applyEvent', sandboxId: run.id, event: { type: 'resumed', atMs: deps.host.nowMs(), opId: call.op.id } },
        ]);
        sandboxes.changed(after);
        await caughtUp;
        return after;
      }),

    'sandbox.suspend': (call, { ref }) => inTurn(call, ref, (sandbox) => suspension.suspend(call, sandbox)),

    'sandbox.rename': (call, { ref, name }) =>
      inTurn(call, ref, async (sandbox) => {
        if (sandbox.spec.name === name) return sandbox;
        const event = { type: 'renamed', atMs: deps.host.nowMs(), opId: call.op.id, name } as const;
        const [after] = await call.commit([{ change: 'applyEvent', sandboxId: sandbox.id, event }]);
        sandboxes.changed(after);
        return after;
      }),

    'sandbox.delete': async (call, { ref, force }) => {
      if (force === true) await interrupt(call, ref);
      return await inTurn(call, ref, (sandbox) => remove(call, sandbox, force ?? false));
    },

    'sandbox.wait': async ({ op, caller }, { ref }) => {
      const { id } = await sandboxes.resolve(caller.projectId, ref);
      const over = Promise.withResolvers<Sandbox>();
      using _ = sandboxes.onChange(id, (changed) => {
        if (!isToEnd(changed)) over.resolve(changed);
      });
      const now = await sandboxes.get(op, id);
      const after = isToEnd(now) ? await waitFor(op, over.promise, `the end of sandbox ${now.spec.name}`) : now;
      return { sandbox: await presenter.sandbox(after), exitCode: await exitCodeOf(after) };
    },
  };

  /** A deleted sandbox has no end of its own any more; its events have. */
  async function exitCodeOf(sandbox: Sandbox): Promise<number | null> {
    if (sandbox.state === 'stopped' || sandbox.state === 'error') return sandbox.ended?.exitCode ?? null;
    if (sandbox.state !== 'deleted') return null;
    const events = await deps.store.query('lastEvents', { sandboxId: sandbox.id, limit: 50 });
    const exitCode = events.findLast((event) => event.type === 'sandbox.ended')?.detail['exitCode'];
    return typeof exitCode === 'number' ? exitCode : null;
  }
}

/** It has not ended: what is suspended goes on some day. */
function isToEnd(sandbox: Sandbox): boolean {
  return sandbox.state === 'running' || sandbox.state === 'paused' || sandbox.state === 'suspended';
}
