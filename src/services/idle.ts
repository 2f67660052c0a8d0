// Sandboxes that nobody has touched for too long are stopped, or suspended (`idleAction`). A touch is what docs/sandboxes.md lists: each call of a verb in
// TOUCHES while it lasts, and each connection to a published port while it lasts. Looking at a sandbox is none. What runs inside keeps it awake where it
// takes processor time or has traffic (activity.ts).

import { Activity } from './activity.ts';
import type { Core } from './core.ts';
import type { DeadlineName } from './deadlines.ts';
import type { Run } from './run.ts';
import { ownCaller, type Supervisor } from './supervisor.ts';
import type { Suspension } from './suspend.ts';
import type { VerbName } from './verbs.ts';

/** How often it is looked. */
const SWEEP_MS = 1_000;
/** How often it is asked what runs inside: four times until it is put away, within these bounds. */
const ASK_MS = { min: 1_000, max: 15_000 } as const;

const LOOKS: ReadonlySet<DeadlineName> = new Set<VerbName>([
  ...(['sandbox.get', 'sandbox.list', 'sandbox.stats', 'sandbox.logs', 'sandbox.wait', 'exec.list'] as const),
  ...(['port.list', 'port.watch', 'why.get', 'event.list', 'ledger.list'] as const),
]);

/** What the daemon does by itself is no touch. */
export function isTouch(verb: DeadlineName): boolean {
  return !LOOKS.has(verb) && !verb.startsWith('daemon.');
}

function askMs(idleMs: number): number {
  return Math.min(Math.max(idleMs / 4, ASK_MS.min), ASK_MS.max);
}

export function watchIdle(core: Core, supervisor: Supervisor, suspension: Suspension): Disposable {
  const ending = new Set<Run>();
  const activity = new Activity(() => performance.now());
  const touching = core.operations.onTarget((verb, id, over) => {
    const run = isTouch(verb) ? core.runs.get(id) : null;
    if (run === null) return;
    const using = run.use();
    void over.then(() => using[Symbol.dispose]());
  });
  const timer = setInterval(() => {
    for (const run of core.runs.all()) {
      const sandbox = core.sandboxes.open(run.id);
      const idleMs = sandbox?.spec.idleMs ?? core.deps.settings.idleMs ?? 0;
      if (sandbox === null || sandbox.state === 'error' || idleMs === 0 || ending.has(run)) continue;
      const untouchedMs = run.untouchedMs();
      if (untouchedMs === 0) activity.forget(run);
      // One that is paused does nothing, and cannot be asked.
      const isQuiet = sandbox.state !== 'running' || (untouchedMs > 0 && activity.isQuiet(run, askMs(idleMs)));
      if (untouchedMs < idleMs || !isQuiet) continue;
      ending.add(run);
      void end(run, idleMs).finally(() => ending.delete(run));
    }
  }, SWEEP_MS);
  timer.unref();

  async function end(run: Run, idleMs: number): Promise<void> {
    await core.operations
      .run({ verb: 'daemon.idle', caller: ownCaller(core), reads: false }, async (call) => {
        call.target(run.id);
        await core.turns.take(call.op, run.id, async () => {
          // Somebody may have come while it waited for its turn.
          if (run.isOver || run.untouchedMs() < idleMs) return;
          const sandbox = await core.sandboxes.get(call.op, run.id);
          if (sandbox.spec.idleAction !== 'suspend') return await supervisor.endIdle(call, run);
          // Whoever comes to a port of it is to find it answered.
          using _attended = core.publisher.staying(run.id);
          await suspension.suspend(call, sandbox);
        });
      })
      .catch((err: unknown) => {
        core.deps.log.error({ sandbox: run.id, err }, 'a sandbox that nobody uses could not be put away; it is tried again');
        run.touch();
      });
  }

  return {
    [Symbol.dispose]() {
      clearInterval(timer);
      touching[Symbol.dispose]();
    },
  };
}
