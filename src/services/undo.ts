// Undo: of a sandbox that is to have it, a snapshot is kept before each exec, a bounded number, the oldest dropped first; and one word
// brings the last one back. Nothing of it ever keeps a command from running: what could not be kept is said in an event.
import { HutchError } from '../domain/errors.ts';
import type { SandboxId, SnapshotId } from '../domain/ids.ts';
import type { BackendName, Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import { beforeOf, type Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf, type Deps } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { refuseMounted } from './mounts.ts';
import type { Restorer } from './restore.ts';
import { removeSnapshots, snapshotDir, sweepBackends, takeSnapshot } from './snapshots.ts';

/** A command is not held up for longer. */
const KEEP_MS = 60_000;
const REMOVE_MS = 60_000;
/** Of the command, for people. */
const BEFORE_CHARS_MAX = 120;

export function undoVerb(core: Core, restorer: Restorer): Pick<Handlers, 'sandbox.undo'> {
  const { sandboxes, turns, presenter } = core;
  return {
    'sandbox.undo': async (call, { ref }) => {
      const { op, caller } = call;
      const { id } = await sandboxes.resolve(caller.projectId, ref);
      call.target(id);
      return await turns.take(op, id, async () => {
        const sandbox = await sandboxes.get(op, id);
        if (sandbox.state !== 'deleted')
          requireSnapshots(
            core.deps,
            op,
            sandbox.spec,
            `keep its disk before what may go wrong: hutch image commit ${sandbox.spec.name} NAME`,
          );
        const [last, ...older] = await keptOf(core, id);
        if (last === undefined) throw nothingToUndo(op, sandbox);
        const after = await restorer.restore(call, sandbox, last, { forced: false, foreign: false });
        // The next time it is the one before. If this is not done, what was undone is undone once more, which changes nothing.
        await removeSnapshots(core, call, last, false).catch((cause: unknown) =>
          op.log.warn({ snapshot: last.id, cause }, 'a snapshot that was undone with stays'),
        );
        const { createdAtMs: takenAtMs, id: snapshotId } = last;
        return { sandbox: await presenter.sandbox(after, op.id), snapshotId, before: beforeOf(last), takenAtMs, left: older.length };
      });
    },
  };
}

function nothingToUndo(op: Operation, { spec, state }: Sandbox): Error {
  const { name } = spec;
  if (state === 'deleted') return op.error('failed_precondition', `sandbox ${name} is deleted; it cannot be brought back`);
  return op.error('failed_precondition', `of sandbox ${name} there is nothing to undo`, {
    hint:
      (spec.undo ?? 0) === 0
        ? `from its next exec on there is with: hutch set --undo ${name}; what was kept by hand: hutch snapshot ls --sandbox ${name}`
        : 'what an exec does is kept from the next one on, and of the last ones only',
  });
}

/** @throws HutchError `failed_precondition` where that could never be done. */
export function requireUndo(deps: Deps, op: Operation, spec: Pick<SandboxSpec, 'name' | 'backend' | 'mounts'>): void {
  requireSnapshots(deps, op, spec, 'leave out undo (--undo), or take a backend that makes snapshots: hutch backends');
  refuseMounted(op, { spec }, 'what is done there cannot be undone');
}

function requireSnapshots(deps: Deps, op: Operation, spec: Pick<SandboxSpec, 'backend'>, hint: string): void {
  const { snapshots, name } = backendOf(deps, op, spec.backend);
  if (snapshots === undefined)
    throw op.error('failed_precondition', `the backend ${name} makes no snapshots, so nothing can be undone there`, { hint });
}

/** Before a command of a sandbox that runs. Never throws, unless the call itself is over. */
export async function keepForUndo(core: Core, call: Call, sandbox: Sandbox, argv: readonly string[], claims: Claims): Promise<void> {
  const { op } = call;
  const most = sandbox.spec.undo ?? 0;
  if (most === 0) return;
  op.progress({ step: 'keeping it for hutch undo' });
  // An operation of its own: what it writes down is no part of what was asked.
  const ask = { verb: 'daemon.undo', caller: { ...call.caller, actor: 'daemon', keyId: null }, reads: false } as const;
  const keeping = core.operations.run(ask, async (own) => {
    own.target(sandbox.id);
    using limited = own.op.within(KEEP_MS, 'keeping a sandbox for its undo');
    const keep = { ...own, op: limited };
    await core.turns.take(limited, sandbox.id, async () => {
      const now = await core.sandboxes.get(limited, sandbox.id);
      if (now.state !== 'running') return;
      const before = argv.join(' ').slice(0, BEFORE_CHARS_MAX);
      const diskOnly = !(await claims.has(limited, backendOf(core.deps, limited, now.spec.backend), 'fork'));
      const mayGo = () => olderOf(core, limited, sandbox.id);
      const take = (alone: boolean) => takeSnapshot(core, claims, keep, now, { name: null, kind: 'undo', diskOnly, before, mayGo, alone });
      try {
        await take(false);
      } catch (cause) {
        if (!(cause instanceof HutchError) || cause.code !== 'resource_exhausted' || (await keptOf(core, sandbox.id)).length === 0)
          throw cause;
        // Those before it free little: what they hold it would hold too. One that stands alone lets go of them.
        await take(true);
      }
      await dropUndo(core, limited, sandbox.id, most);
    });
  });
  try {
    await keeping;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    op.log.warn({ sandbox: sandbox.id, cause }, 'a sandbox could not be kept before a command: that cannot be undone');
    const { store, host } = core.deps;
    const event = { change: 'addEvent', type: 'sandbox.undo-missed', atMs: host.nowMs(), sandboxId: sandbox.id, detail: { why } } as const;
    await store
      .commit(op, [event], 'relaxed')
      .catch((failure: unknown) => op.log.warn({ cause: failure }, 'that something cannot be undone was not recorded'));
  }
  op.signal.throwIfAborted();
}

/** The newest first. */
async function keptOf(core: Core, sandboxId: SandboxId): Promise<readonly Snapshot[]> {
  return await core.deps.store.query('snapshots', { sandboxId, kind: 'undo' });
}

/** All of them, the oldest first, but those that somebody reads. Disposed of, the files of those that have gone from the record are gone. */
async function olderOf(
  core: Core,
  op: Operation,
  sandboxId: SandboxId,
): Promise<{ readonly ids: readonly SnapshotId[] } & AsyncDisposable> {
  const { store, host } = core.deps;
  const taken = (await keptOf(core, sandboxId)).toReversed().flatMap((snapshot) => {
    const held = core.snapshotFiles.take(snapshot.id);
    return held === null ? [] : [{ snapshot, held }];
  });
  return {
    ids: taken.map(({ snapshot: { id } }) => id),
    async [Symbol.asyncDispose]() {
      using late = op.releasing(REMOVE_MS);
      const swept = new Set<BackendName>();
      for (const { snapshot, held } of taken) {
        using _given = held;
        try {
          if ((await store.query('snapshot', { id: snapshot.id })) !== null) continue;
          await host.remove(late, snapshotDir(core, snapshot.id));
          swept.add(snapshot.spec.backend);
        } catch (cause) {
          op.log.warn({ snapshot: snapshot.id, cause }, 'what a quota has dropped stays; the next start of the daemon removes it');
        }
      }
      if (swept.size > 0) await sweepBackends(core, late, swept);
    },
  };
}

/** All but the newest `keep`. One that is in use goes with the next. */
export async function dropUndo(core: Core, op: Operation, sandboxId: SandboxId, keep: number): Promise<void> {
  const { store, host } = core.deps;
  for (const { id, spec } of (await keptOf(core, sandboxId)).slice(keep)) {
    using taken = core.snapshotFiles.take(id);
    if (taken === null) continue;
    await store.commit(op, [{ change: 'removeSnapshot', id, cascade: false, atMs: host.nowMs() }], 'relaxed');
    using late = op.releasing(REMOVE_MS);
    await host.remove(late, snapshotDir(core, id));
    await sweepBackends(core, late, new Set([spec.backend]));
  }
}
