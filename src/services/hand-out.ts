// A warm sandbox becomes somebody's: claimed in one commit before its guest is told anything, told who it is, and put on record.
import { allOf } from '../backends/wait.ts';
import { HutchError } from '../domain/errors.ts';
import { newSandbox, type Sandbox, type SandboxSpec, type SnapshotSource } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { type BringUp, wake } from './bring-up.ts';
import { type Call, Repeated } from './call.ts';
import type { Core } from './core.ts';
import { creating } from './creating.ts';
import { type Boot, placesOf } from './deps.ts';
import { rollBack, started } from './put-on-record.ts';
import { keepSecrets, type Secrets } from './secrets.ts';
import type { Supervisor } from './supervisor.ts';
import type { Taken } from './warm.ts';
import type { Member } from './warm-member.ts';

export type HandedOut = {
  readonly boot: Boot;
  readonly spec: SandboxSpec;
  readonly secrets: Secrets;
  readonly terminal: BringUp['terminal'];
  readonly attach: boolean;
  /** What it begins with, where that is a snapshot. */
  readonly source?: SnapshotSource;
};

/**
 * Makes a warm sandbox this one. Until it has a record of its own it is on record as what it was, or as being made: a
 * daemon that is killed leaves nothing. Null: it is not what a start would make now, or its guest did
 * not answer, so one must be started.
 */
export async function handOut(
  core: Core,
  supervisor: Supervisor,
  call: Call,
  { member, isCurrent }: Taken,
  to: HandedOut,
): Promise<Sandbox | null> {
  const { op } = call;
  const { deps } = core;
  const { host } = deps;
  const { boot, spec, secrets } = to;
  const { run } = member;
  const { id } = run;
  const { projectId } = call.caller;
  call.target(id);
  return await core.turns.take(op, id, async () => {
    const [intentId, current] = await allOf([claim(core, call, member, spec), isCurrent]);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rollBack(core, call, run, intentId));
    if (!current) return null;
    run.become({ name: spec.name, projectId });
    core.runs.know(run);
    await keepSecrets(op, host, placesOf(deps.places, id).secretsPath, secrets);
    const bare = newSandbox({ id, projectId, spec, atMs: host.nowMs(), opId: op.id });
    const what: BringUp = { sandbox: bare, boot, secrets, terminal: to.terminal };
    const waking = wake(op, host, run, what, member.started).catch((cause: unknown) => {
      if (op.signal.aborted) throw cause;
      op.log.warn({ sandbox: id, cause }, 'a warm sandbox did not wake up; another one is started');
      return null;
    });
    const [up] = await allOf([waking, checkImage(core, op, spec)]);
    if (up === null) return null;
    const { attach, source } = to;
    return await started(core, supervisor, call, {
      run,
      what,
      bare,
      intentId,
      attach,
      undo,
      up,
      ...(source === undefined ? {} : { source }),
    });
  });
}

/** From a warm sandbox on record to one that is being made. What was refused has told it nothing. */
async function claim(core: Core, call: Call, member: Member, spec: SandboxSpec): Promise<number> {
  const intent = creating(call.caller.projectId, member.run.id, spec, core.deps.host.nowMs());
  try {
    const [, { id }] = await call.commit([{ change: 'finishIntent', id: member.intentId }, intent], 'relaxed');
    core.warm.handOver(member);
    return id;
  } catch (error) {
    if (error instanceof Repeated || (error instanceof HutchError && (error.code === 'conflict' || error.code === 'resource_exhausted')))
      core.warm.giveBack(member);
    else void core.warm.drop(member);
    throw error;
  }
}

/** From now on it cannot be removed: what is being made uses it. */
export async function checkImage({ deps }: Pick<Core, 'deps'>, op: Operation, { imageId, kernelId }: SandboxSpec): Promise<void> {
  const hint = 'run the same command again';
  const isImage = (await deps.store.query('image', { id: imageId })) !== null;
  if (!isImage) throw op.error('failed_precondition', `image ${imageId} was removed a moment ago`, { hint });
  if (kernelId === null || (await deps.store.query('kernel', { id: kernelId })) !== null) return;
  throw op.error('failed_precondition', `kernel ${kernelId} was removed a moment ago`, { hint });
}
