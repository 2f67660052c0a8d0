// Starts what has a disk and does not run: with all that was asked for while it could not take effect.
import { type Sandbox, withPending } from '../domain/sandbox.ts';
import { isWithin } from '../domain/users.ts';
import { type BringUp, putDown } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { backendOf, placesOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import { mountedOf, requireMounts } from './mounts.ts';
import { releaseRun, runOf } from './release.ts';
import { grownBy } from './reshape.ts';
import { readSecrets } from './secrets.ts';
import { startUp } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import type { Suspension } from './suspend.ts';
import { recordEnd, removalsOf } from './take-down.ts';
import { withVolumes } from './volumes.ts';

const RELEASE_MS = 60_000;

export type Starter = {
  /** In the sandbox's turn; one that runs stays as it is, one that is suspended goes on. */
  start(call: Call, sandbox: Sandbox, reason: 'boot' | 'restart'): Promise<Sandbox>;
  /** What the next start takes that may fail, as room, its image, or the template of a new size: before one that runs is stopped for it. */
  prepare(call: Call, sandbox: Sandbox): Promise<void>;
};

export function newStarter(core: Core, supervisor: Supervisor, suspension: Suspension): Starter {
  const { deps } = core;

  async function start(call: Call, sandbox: Sandbox, reason: 'boot' | 'restart'): Promise<Sandbox> {
    const { op } = call;
    if (sandbox.state === 'running') return sandbox;
    if (sandbox.state === 'suspended') return await suspension.wakeUp(call, sandbox);
    if (sandbox.state === 'paused')
      throw op.error('failed_precondition', `sandbox ${sandbox.spec.name} is paused`, {
        hint: `let it go on with: hutch resume ${sandbox.spec.name}`,
      });
    if (sandbox.state === 'deleted') throw op.error('failed_precondition', `sandbox ${sandbox.id} is deleted; it cannot be brought back`);
    const current = sandbox.openComputeSinceMs === null ? sandbox : await proveDead(call, sandbox);
    return await withVolumes(core, op, current.spec, () => startStopped(call, current, reason));
  }

  async function startStopped(call: Call, current: Sandbox, reason: 'boot' | 'restart'): Promise<Sandbox> {
    const { op } = call;
    const { host } = deps;
    core.runs.checkRoom(op);
    await requireFreeSpace(op, deps);
    const wanted = { ...current, spec: withPending(current.spec) };
    await requireMounts(deps, op, wanted.spec);
    const backend = backendOf(deps, op, current.spec.backend);
    const boot = await deps.boots.of(op, current.spec, backend.needs);
    const secrets = await readSecrets(op, host, placesOf(deps.places, current.id).secretsPath, current.spec.secretNames);
    // Of a removal that failed: who starts it wants to keep it.
    const removals = (await removalsOf(core, current)).map((id) => ({ change: 'finishIntent', id }) as const);
    const [intent] = await call.commit(
      [{ change: 'addIntent', kind: 'start', projectId: current.projectId, sandboxId: current.id, atMs: host.nowMs() }, ...removals],
      removals.length > 0 ? 'durable' : 'relaxed',
    );
    const run = core.runs.open(op, wanted, boot.files, await uidOf(call, current));
    let isReshaped = false;
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      core.runs.forget(run);
      await putDown(late, run);
      await deps.store
        .commit(late, [...(isReshaped ? grownBy(core, late, current) : []), { change: 'finishIntent', id: intent.id }])
        .catch((cause: unknown) => op.log.warn({ cause }, 'an intent was left behind'));
    });
    // Also what a start has not come to that a daemon died in.
    await backend.reshape?.(op, run.plan, 'it is stopped');
    isReshaped = true;
    await core.publisher.open(op, run);
    const what: BringUp = { sandbox: wanted, boot, secrets, terminal: undefined };
    return await startUp(core, supervisor, call, run, what, {
      reason,
      attach: false,
      undo,
      ...(current.startCount === 0 ? { files: current.spec.fileSync ?? [] } : {}),
      async record(event) {
        const started = { change: 'applyEvent', sandboxId: current.id, event } as const;
        const finished = { change: 'finishIntent', id: intent.id } as const;
        if (current.spec.pending === undefined) return (await call.commit([started, finished]))[0];
        const { shape, network } = wanted.spec;
        const changed = { type: 'changed', atMs: event.atMs, opId: op.id, change: { shape, network, pending: null } } as const;
        return (await call.commit([{ change: 'applyEvent', sandboxId: current.id, event: changed }, started, finished]))[1];
      },
    });
  }

  /** Of a sandbox in error: only what is dead is started anew. */
  async function proveDead(call: Call, sandbox: Sandbox): Promise<Sandbox> {
    const { op } = call;
    const run = await runOf(core, op, sandbox);
    const evidence = await run.backend.inspect(op, run.plan);
    if (evidence.alive) {
      throw op.error('failed_precondition', `sandbox ${sandbox.spec.name} is in error and its process is alive`, {
        hint: `end it with: hutch stop --force ${sandbox.spec.name}`,
      });
    }
    const after = await recordEnd(core, call, null, sandbox, evidence, { cause: 'crashed', actor: 'host' });
    await releaseRun(core, op, run);
    return after;
  }

  /** The one that it had, unless another data directory may have it by now: then one of ours. */
  async function uidOf(call: Call, { id }: Sandbox): Promise<number | null> {
    const { uids } = deps.settings;
    if (uids === null) return null;
    const uid = await deps.store.query('uid', { sandboxId: id });
    if (uid !== null && isWithin(uids, uid)) return uid;
    return (await call.commit([{ change: 'allocateUid', sandboxId: id, uids }], 'relaxed'))[0];
  }

  async function prepare({ op }: Call, sandbox: Sandbox): Promise<void> {
    const { id, spec } = sandbox;
    await requireFreeSpace(op, deps);
    await requireMounts(deps, op, spec);
    const backend = backendOf(deps, op, spec.backend);
    const boot = await deps.boots.of(op, spec, backend.needs);
    await readSecrets(op, deps.host, placesOf(deps.places, id).secretsPath, spec.secretNames);
    if (spec.pending !== undefined) await core.templates.ready(op, backend, withPending(spec).shape, boot, mountedOf(spec.mounts ?? []));
  }

  return { start, prepare };
}
