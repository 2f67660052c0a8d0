// Holds the services to what src/backends/backend.ts promises to every backend: a model of each sandbox,
// in memory, says which call may come next. What breaks the promise is reported, and fails as a bug would.
import type { Backend, ProcessEvidence, SandboxPlan } from '../../src/backends/backend.ts';

/** `unknown`: made before this daemon began, or in the middle of a call that failed. */
type Phase = 'none' | 'unknown' | 'made' | 'running' | 'paused' | 'dead';
type Known = { phase: Phase; busy: string | null };

/** What a call of each method may find, and what the sandbox is once it has succeeded. */
const RULES = {
  create: { from: ['none', 'unknown'], to: 'made' },
  start: { from: ['made', 'dead', 'unknown'], to: 'running' },
  linkUp: { from: ['running'], to: null },
  pause: { from: ['running', 'unknown'], to: 'paused' },
  resume: { from: ['paused', 'unknown'], to: 'running' },
  kill: { from: ['none', 'made', 'running', 'paused', 'dead', 'unknown'], to: 'dead' },
  cleanUp: { from: ['none', 'made', 'dead', 'unknown'], to: null },
  remove: { from: ['none', 'made', 'dead', 'unknown'], to: 'none' },
} as const satisfies Partial<Record<keyof Backend, { from: readonly Phase[]; to: Phase | null }>>;

type Ruled = keyof typeof RULES;

/** `report` hears of each broken promise, which is also thrown, so that the call fails as `internal`. */
export function strictBackend(backend: Backend, report: (violation: string) => void): Backend {
  const sandboxes = new Map<string, Known>();
  const known = (plan: Pick<SandboxPlan, 'id'>): Known => {
    const found = sandboxes.get(plan.id);
    if (found !== undefined) return found;
    const fresh: Known = { phase: 'unknown', busy: null };
    sandboxes.set(plan.id, fresh);
    return fresh;
  };
  const broken = (sentence: string): Error => {
    report(sentence);
    return new Error(`the contract of backends is broken: ${sentence}`);
  };

  async function ruled<T>(method: Ruled, plan: SandboxPlan, call: () => Promise<T>): Promise<T> {
    const sandbox = known(plan);
    const { from, to } = RULES[method];
    if (sandbox.busy !== null) throw broken(`${method} of ${plan.id} while its ${sandbox.busy} is under way`);
    if (!(from as readonly Phase[]).includes(sandbox.phase)) throw broken(`${method} of ${plan.id}, which is ${sandbox.phase}`);
    sandbox.busy = method;
    const before = sandbox.phase;
    try {
      const result = await call();
      if (to !== null && sandbox.phase === before) sandbox.phase = to;
      if (method === 'kill') sandbox.phase = 'dead';
      return result;
    } catch (error) {
      sandbox.phase = 'unknown';
      throw error;
    } finally {
      sandbox.busy = null;
    }
  }

  function seen<E extends ProcessEvidence>(plan: SandboxPlan, evidence: E): E {
    if (!evidence.alive) known(plan).phase = 'dead';
    return evidence;
  }

  return {
    ...backend,
    create: (op, plan) => ruled('create', plan, () => backend.create(op, plan)),
    start: (op, plan) => ruled('start', plan, () => backend.start(op, plan)),
    linkUp: (op, plan) => ruled('linkUp', plan, () => backend.linkUp(op, plan)),
    pause: (op, plan) => ruled('pause', plan, () => backend.pause(op, plan)),
    resume: (op, plan) => ruled('resume', plan, () => backend.resume(op, plan)),
    kill: (op, plan, how) => ruled('kill', plan, () => backend.kill(op, plan, how)),
    cleanUp: (op, plan) => ruled('cleanUp', plan, () => backend.cleanUp(op, plan)),
    remove: (op, plan) => ruled('remove', plan, () => backend.remove(op, plan)),
    inspect: async (op, plan) => seen(plan, await backend.inspect(op, plan)),
    ended: async (op, plan) => seen(plan, await backend.ended(op, plan)),
  };
}
