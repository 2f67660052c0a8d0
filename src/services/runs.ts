// The runs of all sandboxes that may be alive, and the way to their agents for every call that needs one.
import type { BootFiles, SandboxPlan } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import type { SandboxId } from '../domain/ids.ts';
import { newOpId, type OpId } from '../domain/ids.ts';
import type { Mount } from '../domain/mount.ts';
import type { Sandbox, SandboxSpec, SandboxState } from '../domain/sandbox.ts';
import type { Agent } from '../guest/agent.ts';
import { type Log, newOperation, type Operation } from '../host/operation.ts';
import { backendOf, type Deps, placesOf, volumePath } from './deps.ts';
import { Run } from './run.ts';

/** A guest that does not answer within this is `unavailable`, whatever it was asked. */
const REACH_MS = 15_000;

type Owner = Pick<Sandbox, 'id'> & {
  readonly projectId: SandboxPlan['projectId'];
  readonly spec: Pick<SandboxSpec, 'name' | 'backend' | 'shape' | 'network' | 'mounts' | 'devices'>;
};

export class Runs {
  readonly #deps: Deps;
  readonly #logOf: (opId: OpId) => Log;
  readonly #runs = new Map<SandboxId, Run>();

  constructor(deps: Deps, logOf: (opId: OpId) => Log) {
    this.#deps = deps;
    this.#logOf = logOf;
  }

  get(id: string): Run | null {
    return this.#runs.get(id as SandboxId) ?? null;
  }

  all(): readonly Run[] {
    return [...this.#runs.values()];
  }

  /** @throws HutchError `resource_exhausted` when no more sandboxes may run. */
  checkRoom(op: Operation): void {
    const max = this.#deps.settings.limits.sandboxes;
    if (this.#runs.size < max) return;
    throw op.error('resource_exhausted', `as many sandboxes run as may at one time: ${max}`, {
      hint: 'stop some of them, or raise limits.sandboxes in the configuration',
    });
  }

  /** Makes the run of a sandbox; it is known from here on, until it is forgotten. */
  open(op: Operation, sandbox: Owner, boot: BootFiles, uid: number | null): Run {
    this.#runs.get(sandbox.id)?.[Symbol.dispose]();
    const run = this.make(op, sandbox, boot, uid);
    this.know(run);
    return run;
  }

  /** As `open`, of what is nobody's sandbox yet: not known, and not counted. */
  make(op: Operation, sandbox: Owner, boot: BootFiles, uid: number | null): Run {
    const { host, places } = this.#deps;
    const { spec, id } = sandbox;
    const { vmDir, runDir, logDir } = placesOf(places, id);
    const plan = {
      id,
      name: spec.name,
      projectId: sandbox.projectId,
      shape: spec.shape,
      network: spec.network,
      ...mountsOf(places, spec.mounts ?? []),
      ...(spec.devices === undefined ? {} : { devices: spec.devices }),
      boot,
      dataDir: vmDir,
      runDir,
      logDir,
      runAs: uid === null ? null : { uid, gid: uid },
    };
    const over = new AbortController();
    const opId = newOpId((count) => host.randomBytes(count));
    const own = newOperation({ id: opId, actor: 'daemon', log: this.#logOf(opId), signal: over.signal });
    return new Run(plan, backendOf(this.#deps, op, spec.backend), own, over);
  }

  know(run: Run): void {
    this.#runs.set(run.id, run);
  }

  forget(run: Run): void {
    run[Symbol.dispose]();
    if (this.#runs.get(run.id) === run) this.#runs.delete(run.id);
  }

  /** The run of a sandbox that can be talked to. @throws HutchError `failed_precondition` when it does not run. */
  of(op: Operation, sandbox: Sandbox): Run {
    const { name } = sandbox.spec;
    if (sandbox.state === 'paused') {
      throw op.error('failed_precondition', `sandbox ${name} is paused`, { hint: `let it go on with: hutch resume ${name}` });
    }
    const run = this.#runs.get(sandbox.id);
    if (sandbox.state !== 'running' || run === undefined) {
      const hints: Partial<Record<SandboxState, string>> = {
        deleted: 'it cannot be brought back',
        suspended: `let it go on with: hutch resume ${name}`,
        error: `see what helps: hutch why ${name}`,
      };
      const hint = hints[sandbox.state] ?? `start it with: hutch start ${name}`;
      const state = sandbox.state === 'error' ? `in error: ${sandbox.cause}` : sandbox.state;
      throw op.error('failed_precondition', `sandbox ${name} does not run: it is ${state}`, { hint });
    }
    return run;
  }

  /** Its agent, connected. @throws HutchError `unavailable` when it does not answer. */
  async agent(op: Operation, sandbox: Sandbox): Promise<Agent> {
    return await reach(op, sandbox.spec.name, this.of(op, sandbox));
  }
}

function mountsOf(places: Deps['places'], mounts: readonly Mount[]): Pick<SandboxPlan, 'mounts' | 'volumes'> {
  const directories = mounts.filter(({ volumeId }) => volumeId === undefined);
  const volumes = mounts.flatMap(({ volumeId, target, readOnly }) =>
    volumeId === undefined ? [] : [{ path: volumePath(places, volumeId), target, readOnly }],
  );
  return { ...(directories.length === 0 ? {} : { mounts: directories }), ...(volumes.length === 0 ? {} : { volumes }) };
}

/** Dials at the agent of one that has just been started: on a busy machine that has much to do before it answers. */
const STARTED_DIALS = 4;

/** As `reach`, of one that has just been started; one that is dead is not waited for. */
export async function reachStarted(op: Operation, name: string, run: Run): Promise<Agent> {
  for (let dial = 1; ; dial += 1) {
    try {
      return await reach(op, name, run);
    } catch (error) {
      if (op.signal.aborted || dial === STARTED_DIALS) throw error;
      if (!(error instanceof HutchError) || (error.code !== 'unavailable' && error.code !== 'deadline_exceeded')) throw error;
      if (!(await run.backend.inspect(op, run.plan)).alive) throw error;
    }
  }
}

/** The agent of a run: at once when it is connected. */
export async function reach(op: Operation, name: string, run: Run): Promise<Agent> {
  using limited = op.within(REACH_MS, `reaching the agent of sandbox ${name}`);
  try {
    return await run.link.agent(limited);
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    await run.backend.carries?.(op, run.plan);
    throw op.error('unavailable', `the agent of sandbox ${name} does not answer`, {
      hint: `look at it with: hutch why ${name}; restart it with: hutch restart ${name}`,
      cause,
    });
  }
}
