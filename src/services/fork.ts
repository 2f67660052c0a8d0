// Children of a sandbox: it stands still for a moment while what they begin with is written down, and goes on, or stays paused or suspended; each child
// then maps that, copy-on-write. What was written down goes as soon as they have it: it is not a snapshot of anybody's.
import { HutchError } from '../domain/errors.ts';
import { newId } from '../domain/ids.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import { type CloneOf, makeClone } from './clone.ts';
import type { Core } from './core.ts';
import { backendOf, placesOf, savedDir } from './deps.ts';
import { beginningOf } from './from-snapshot.ts';
import type { Handlers } from './handlers.ts';
import { refuseMounted } from './mounts.ts';
import { runOf } from './release.ts';
import type { Run } from './run.ts';
import { readSecrets } from './secrets.ts';
import { settleHoldings } from './settle-holdings.ts';
import { findSnapshot, inMicroseconds, readSnapshotFiles } from './snapshots.ts';
import { inStillness } from './still.ts';
import type { Supervisor } from './supervisor.ts';
import type { Output } from './verbs.ts';

type Forked = Output<'sandbox.fork'>;

const RELEASE_MS = 60_000;

export function forkVerbs(core: Core, supervisor: Supervisor): Pick<Handlers, 'sandbox.fork'> {
  const { deps, sandboxes, turns, presenter } = core;
  const claims = new Claims();
  return {
    'sandbox.fork': async (call, { ref, count, namePrefix }) => {
      const { op } = call;
      const snapshot = await snapshotMeant(call, ref);
      if (snapshot !== null) return await fromSnapshot(call, snapshot, count, namePrefix);
      const { id } = await sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      const snapshotId = newId('snp', (bytes) => deps.host.randomBytes(bytes));
      const dir = `${forksDir(core)}/${snapshotId}`;
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        using late = op.releasing(RELEASE_MS);
        await deps.host
          .remove(late, dir)
          .catch((cause: unknown) =>
            op.log.warn({ dir, cause }, 'what a fork was made from stays; the next start of the daemon removes it'),
          );
      });
      const { parent, stillMs } = await turns.take(op, id, async () => {
        const sandbox = await sandboxes.get(op, id);
        const isSuspended = sandbox.state === 'suspended';
        const run = isSuspended ? core.runs.make(op, sandbox, { kind: 'gone' }, null) : await awakeRunOf(core, op, sandbox);
        using _notKnown = isSuspended ? run : null;
        await claims.need(op, run.backend, 'fork');
        refuseMounted(op, sandbox, 'a child cannot have it as it was');
        const { snapshots } = run.backend;
        if (snapshots === undefined) throw new Error(`the backend ${run.backend.name} claims fork, and makes no snapshots`);
        op.progress({ step: 'writing down its memory' });
        await deps.host.makeDir(op, forksDir(core), 0o700);
        const how = { what: 'memory and disk', since: null, lasts: false } as const;
        const taken = isSuspended
          ? await snapshots.take(op, run.plan, dir, { ...how, saved: savedDir(deps.places, id) })
          : await inStillness(core, call, sandbox, 'memory and disk', () => snapshots.take(op, run.plan, dir, how));
        return { parent: sandbox, stillMs: inMicroseconds(taken.stillMs) };
      });
      const { spec } = parent;
      const boot = await deps.boots.of(op, spec, backendOf(deps, op, spec.backend).needs);
      const secrets = await readSecrets(op, deps.host, placesOf(deps.places, id).secretsPath, spec.secretNames);
      const source = { snapshotId, parentId: id };
      const prefix = namePrefix ?? `${spec.name}-fork`;
      const use = count === 1 ? 'spent' : 'kept';
      const made = await makeChildren(call, count, prefix, { spec, boot, secrets, source, dir, use, hasMemory: true });
      return { parentId: id, stillMs, ...made };
    },
  };

  /** What no sandbox is called may be a snapshot; null: it means a sandbox, or nothing. */
  async function snapshotMeant({ op, caller }: Call, ref: string): Promise<Snapshot | null> {
    const isNone = (error: unknown): null => {
      if (error instanceof HutchError && error.code === 'not_found') return null;
      throw error;
    };
    if ((await sandboxes.resolve(caller.projectId, ref).catch(isNone)) !== null) return null;
    return await findSnapshot(core, op, caller.projectId, ref).catch(isNone);
  }

  /** Nothing stands still for it; values of secrets are not in it. */
  async function fromSnapshot(call: Call, snapshot: Snapshot, count: number, namePrefix: string | undefined): Promise<Forked> {
    const { op } = call;
    call.target(snapshot.id);
    using _reading = readSnapshotFiles(core, op, snapshot);
    const { spec } = snapshot;
    const own = snapshot.contents === 'disk' ? { ...spec, main: null } : spec;
    const of = { ...(await beginningOf(core, op, snapshot, own, false)), secrets: {} };
    const prefix = namePrefix ?? `${snapshot.name ?? spec.name}-fork`;
    const made = await makeChildren(call, count, prefix, of);
    await settleHoldings(core, op, snapshot);
    return { parentId: snapshot.id, stillMs: 0, ...made };
  }

  /** @throws HutchError when none could be made for one and the same reason. */
  async function makeChildren(call: Call, count: number, prefix: string, of: CloneOf): Promise<Pick<Forked, 'children' | 'failed'>> {
    const { op } = call;
    op.progress({ step: 'starting its children' });
    const children = await Promise.allSettled(
      Array.from({ length: count }, (_, index) =>
        makeClone(core, supervisor, call, { ...of, spec: { ...of.spec, name: `${prefix}-${index + 1}` } }),
      ),
    );
    if (op.signal.aborted) await refuseCancelled(call, children);
    const made: { index: number; sandbox: Awaited<ReturnType<typeof presenter.sandbox>> }[] = [];
    const failed: { index: number; error: ReturnType<HutchError['toBody']> }[] = [];
    for (const [index, child] of children.entries()) {
      if (child.status === 'fulfilled') made.push({ index: index + 1, sandbox: await presenter.sandbox(child.value, op.id) });
      else failed.push({ index: index + 1, error: asHutchError(call, child.reason).toBody() });
    }
    // All for the same reason: then that is the answer.
    const [first] = children;
    if (made.length === 0 && first?.status === 'rejected') throw asHutchError(call, first.reason);
    return { children: made, failed };
  }

  /** Whoever asked does not want them any more; those that are there already are sandboxes like any other. */
  async function refuseCancelled(call: Call, children: readonly PromiseSettledResult<Sandbox>[]): Promise<never> {
    for (const child of children) {
      if (child.status === 'fulfilled') call.op.log.warn({ sandbox: child.value.id }, 'a fork was cancelled; this child of it stays');
    }
    throw call.op.signal.reason;
  }
}

async function awakeRunOf(core: Core, op: Operation, sandbox: Sandbox): Promise<Run> {
  return sandbox.state === 'paused' ? await runOf(core, op, sandbox) : core.runs.of(op, sandbox);
}

function forksDir(core: Pick<Core, 'deps'>): string {
  return `${core.deps.places.dataDir}/forks`;
}

function asHutchError({ op }: Call, reason: unknown): HutchError {
  return reason instanceof HutchError
    ? reason
    : op.error('internal', reason instanceof Error ? reason.message : String(reason), { cause: reason });
}
