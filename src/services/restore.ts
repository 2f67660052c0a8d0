// A sandbox goes back to a snapshot, in place: memory, processes and disk are those of the snapshot, all else stays its own. What
// it goes back to is compared with what was written, and its disk laid out beside, before anything of the sandbox is touched. Then
// its process ends, the disks change places, and it goes on; a disk that was replaced stays until that is on record.
//
// From the end of its process on there is no way back to its memory: a daemon that dies then is followed by one that tries it
// again. Until then, and of one that did not run, everything is as it was.
import type { Backend } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';
import type { Intent } from '../domain/records.ts';
import type { Ended, Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type BringUp, putDown } from './bring-up.ts';
import type { Call } from './call.ts';
import { goOn } from './clone.ts';
import type { Core } from './core.ts';
import { type Boot, backendOf, placesOf, savedDir } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import { beginningOf } from './from-snapshot.ts';
import { refuseMounted, requireMounts } from './mounts.ts';
import { requireOwn } from './own-snapshot.ts';
import { releaseRun, runOf } from './release.ts';
import { readSecrets } from './secrets.ts';
import { settleHoldings } from './settle-holdings.ts';
import { readSnapshotFiles, snapshotDir, snapshotsOf } from './snapshots.ts';
import { inPlace, startUp } from './start-up.ts';
import { ownCaller, type Supervisor } from './supervisor.ts';
import { type Dead, describeDeath } from './take-down.ts';
import { withVolumes } from './volumes.ts';

const RELEASE_MS = 60_000;
/** From the end of its process on nobody calls it off. */
const RESTORE_MS = 10 * 60_000;

type Snapshots = NonNullable<Backend['snapshots']>;

/** What was said to be meant: `forced`, though it was made on another kind of machine; `foreign`, though it is another sandbox's. */
type Though = { readonly forced: boolean; readonly foreign: boolean };

/** All that was looked at before anything is done. */
type Prepared = {
  readonly snapshot: Snapshot;
  readonly spec: SandboxSpec;
  readonly boot: Boot;
  readonly snapshots: Snapshots;
  readonly forced: boolean;
  readonly uid: number | null;
};

export class Restorer {
  readonly #core: Core;
  readonly #supervisor: Supervisor;

  constructor(core: Core, supervisor: Supervisor) {
    this.#core = core;
    this.#supervisor = supervisor;
  }

  /**
   * In the sandbox's turn. What is refused, or fails before its process is ended, leaves it as it was.
   * @throws HutchError `failed_precondition` with what is wrong with the snapshot, or does not fit.
   */
  async restore(call: Call, sandbox: Sandbox, snapshot: Snapshot, though: Though): Promise<Sandbox> {
    return await withVolumes(this.#core, call.op, sandbox.spec, () => this.#restore(call, sandbox, snapshot, though));
  }

  async #restore(call: Call, sandbox: Sandbox, snapshot: Snapshot, though: Though): Promise<Sandbox> {
    const { op } = call;
    const { host } = this.#core.deps;
    using _reading = readSnapshotFiles(this.#core, op, snapshot);
    const ready = await this.#prepare(op, sandbox, snapshot, though);
    const wasAlive = sandbox.openComputeSinceMs !== null;
    const { projectId, id: sandboxId } = sandbox;
    const detail = { snapshotId: snapshot.id, ...though, wasAlive };
    const [intent] = await call.commit([{ change: 'addIntent', kind: 'restore', projectId, sandboxId, atMs: host.nowMs(), detail }]);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await this.#finished(late, sandbox, intent.id);
    });
    await this.#stage(op, sandbox, ready);
    // From here on it is done, whoever asked may have gone.
    using sure = op.releasing(RESTORE_MS);
    const surely = { ...call, op: sure };
    const stopped = wasAlive ? await this.#end(surely, sandbox, snapshot) : sandbox;
    if (wasAlive) undo.defer(() => this.#core.sandboxes.changed(stopped));
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await this.#putBack(late, sandbox).catch((cause: unknown) =>
        op.log.error({ sandbox: sandbox.id, cause }, 'the disk of a sandbox could not be put back; the next start of the daemon does it'),
      );
    });
    await this.#swap(sure, sandbox);
    try {
      const after = await this.#start(surely, stopped, ready, undo);
      using late = op.releasing(RELEASE_MS);
      await this.#finished(late, after, intent.id);
      return after;
    } catch (cause) {
      if (!wasAlive || !(cause instanceof HutchError)) throw cause;
      const { name } = sandbox.spec;
      throw op.error(cause.code, `sandbox ${name} could not go on there: ${cause.message}`, {
        hint: `it is stopped, with its disk as it was: hutch start ${name}; the snapshot is as it was too`,
        cause,
      });
    }
  }

  async #prepare(op: Operation, sandbox: Sandbox, snapshot: Snapshot, { forced, foreign }: Though): Promise<Prepared> {
    const { deps, runs } = this.#core;
    const spec = specAfter(op, sandbox, snapshot);
    if (!foreign) await requireOwn(this.#core, op, sandbox, snapshot);
    if (snapshot.contents === 'disk') await requireMounts(deps, op, spec);
    else refuseMounted(op, sandbox, 'what goes on in memory cannot have it');
    if (runs.get(sandbox.id) === null) runs.checkRoom(op);
    await requireFreeSpace(op, deps);
    op.progress({ step: 'comparing the snapshot with what was written' });
    const snapshots = snapshotsOf(this.#core, op, snapshot);
    await snapshots.check(op, snapshotDir(this.#core, snapshot.id), 'what is needed');
    const { boot } = await beginningOf(this.#core, op, snapshot, spec, forced);
    const uid = deps.settings.uids === null ? null : await deps.store.query('uid', { sandboxId: sandbox.id });
    return { snapshot, spec, boot, snapshots, forced, uid };
  }

  /** Its disk as it was then, durable, beside the one that it has. */
  async #stage(op: Operation, sandbox: Sandbox, { snapshot, spec, boot, snapshots, uid }: Prepared): Promise<void> {
    const { host } = this.#core.deps;
    const { staged } = this.#placesOf(sandbox);
    op.progress({ step: 'laying out its disk' });
    using run = this.#core.runs.make(op, { ...sandbox, spec }, boot.files, uid);
    await host.remove(op, staged); // of a try that a crash cut short
    await snapshots.create(op, { ...run.plan, dataDir: staged }, snapshotDir(this.#core, snapshot.id));
    await settleHoldings(this.#core, op, snapshot);
    await syncTree(op, host, staged);
  }

  async #end(call: Call, sandbox: Sandbox, snapshot: Snapshot): Promise<Sandbox> {
    const { op } = call;
    op.progress({ step: 'ending what runs' });
    const run = await runOf(this.#core, op, sandbox);
    await this.#core.stats.last(op, run, sandbox);
    run.restoredTo = snapshot.name ?? snapshot.id;
    const dead = await run.backend.kill(op, run.plan, 'now');
    const stopped = await this.#recordEnd(call, sandbox, snapshot, dead);
    await releaseRun(this.#core, op, run);
    return stopped;
  }

  async #recordEnd(call: Call, sandbox: Sandbox, snapshot: Pick<Snapshot, 'id' | 'sandboxId'>, dead: Dead): Promise<Sandbox> {
    const atMs = this.#core.deps.host.nowMs();
    const { actor } = call.caller;
    const ended: Ended = { cause: 'stopped', exitCode: null, oomKilled: false, actor, atMs };
    const [stopped] = await call.commit([
      {
        change: 'applyEvent',
        sandboxId: sandbox.id,
        event: {
          ...{ type: 'ended', atMs, opId: call.op.id, reason: 'restore', ended, diedAtMs: dead.diedAtMs ?? atMs },
          evidence: describeDeath(dead, sandbox.spec.backend),
          source: { snapshotId: snapshot.id, parentId: snapshot.sandboxId },
        },
      },
    ]);
    return stopped;
  }

  async #swap(op: Operation, sandbox: Sandbox): Promise<void> {
    const { host } = this.#core.deps;
    const { dir, vmDir, staged, replaced } = this.#placesOf(sandbox);
    await host.remove(op, replaced);
    await host.rename(op, vmDir, replaced);
    await host.rename(op, staged, vmDir);
    await host.sync(op, dir);
  }

  /** What it had before, if that was replaced. */
  async #putBack(op: Operation, sandbox: Sandbox): Promise<void> {
    const { host } = this.#core.deps;
    const { dir, vmDir, replaced } = this.#placesOf(sandbox);
    if ((await host.stat(op, replaced)) === null) return;
    await host.remove(op, vmDir);
    await host.rename(op, replaced, vmDir);
    await host.sync(op, dir);
  }

  async #start(call: Call, stopped: Sandbox, ready: Prepared, undo: AsyncDisposableStack): Promise<Sandbox> {
    const { op } = call;
    const { deps, runs, publisher } = this.#core;
    const { snapshot, spec, boot, snapshots, forced, uid } = ready;
    op.progress({ step: 'taking up where it was' });
    const secrets = await readSecrets(op, deps.host, placesOf(deps.places, stopped.id).secretsPath, spec.secretNames);
    const run = runs.open(op, { ...stopped, spec }, boot.files, uid);
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      runs.forget(run);
      await putDown(late, run);
    });
    await publisher.open(op, run);
    const what: BringUp = { sandbox: { ...stopped, spec }, boot, secrets, terminal: undefined };
    const as = snapshot.sandboxId === stopped.id ? 'itself' : 'another';
    const dir = snapshotDir(this.#core, snapshot.id);
    const up =
      snapshot.contents === 'disk'
        ? null
        : await inPlace(this.#core, op, () =>
            goOn(this.#core, op, run, what, as, (late) => snapshots.start(late, run.plan, dir, { forced })),
          );
    const source = { snapshotId: snapshot.id, parentId: snapshot.sandboxId };
    const after = await startUp(this.#core, this.#supervisor, call, run, what, {
      ...{ reason: 'restore', attach: false, undo },
      ...(up === null ? {} : { up }),
      async record(event) {
        const [after] = await call.commit([
          { change: 'applyEvent', sandboxId: stopped.id, event: { ...event, source, shape: spec.shape } },
        ]);
        return after;
      },
    });
    if (up !== null) await this.#core.stats.goesOn(op, run, after);
    return after;
  }

  /** What only this needed, and at last what says that it is under way. What stays is removed by the next start of the daemon. */
  async #finished(op: Operation, sandbox: Sandbox, intentId: number): Promise<void> {
    const { host, store } = this.#core.deps;
    const { staged, replaced, saved } = this.#placesOf(sandbox);
    try {
      await host.remove(op, staged);
      if (sandbox.state === 'running') await Promise.all([host.remove(op, replaced), host.remove(op, saved)]);
      await this.#settled(op, sandbox);
      await store.commit(op, [{ change: 'finishIntent', id: intentId }], 'relaxed');
    } catch (cause) {
      op.log.warn({ sandbox: sandbox.id, cause }, 'a restore left something behind');
    }
  }

  /** At the start of the daemon: the last one died meanwhile. What was to go back and does not run any more is tried next (`again`). */
  async finish(call: Call, sandbox: Sandbox, intent: Intent): Promise<void> {
    const { op } = call;
    const { host } = this.#core.deps;
    const isOpen = sandbox.openComputeSinceMs !== null;
    const isSwapped = (await host.stat(op, this.#placesOf(sandbox).replaced)) !== null;
    // What was replaced stays until the start is on record: then what runs is what it was to be.
    if (sandbox.state === 'deleted' || (isOpen && isSwapped)) return await this.#finished(op, sandbox, intent.id);
    const run = await runOf(this.#core, op, sandbox);
    let now: Sandbox = sandbox;
    if (isOpen) {
      const evidence = await run.backend.inspect(op, run.plan);
      if (evidence.alive) return await this.#untouched(op, sandbox, intent.id);
      now = await this.#recordEnd(call, sandbox, await this.#meant(intent), evidence);
      this.#core.sandboxes.changed(now);
    }
    // Whatever was started is on no record.
    await run.backend.kill(op, run.plan, 'now');
    await releaseRun(this.#core, op, run);
    await this.#putBack(op, now);
    if (!isToGoOn(intent) || now.state !== 'stopped') await this.#untouched(op, now, intent.id);
  }

  async #untouched(op: Operation, sandbox: Sandbox, intentId: number): Promise<void> {
    await this.#core.deps.host.remove(op, this.#placesOf(sandbox).staged);
    await this.#settled(op, sandbox);
    await this.#core.deps.store.commit(op, [{ change: 'finishIntent', id: intentId }], 'relaxed');
  }

  /** What its backend made for it beside files, and is not its own now. */
  async #settled(op: Operation, sandbox: Sandbox): Promise<void> {
    const settle = backendOf(this.#core.deps, op, sandbox.spec.backend).snapshots?.settle;
    if (settle === undefined || sandbox.state === 'deleted') return;
    using run = this.#core.runs.make(op, sandbox, { kind: 'gone' }, null);
    await settle(op, run.plan);
  }

  async #meant({ detail }: Intent): Promise<Pick<Snapshot, 'id' | 'sandboxId'>> {
    const { snapshotId: id } = detail;
    if (typeof id !== 'string' || !isId('snp', id)) throw new Error('an intent to restore names no snapshot');
    return { id, sandboxId: (await this.#core.deps.store.query('snapshot', { id }))?.sandboxId ?? null };
  }

  /** After all is in order, in the background: its process was ended for it, so it goes on where it was to. */
  again(intent: Intent): void {
    const { operations, turns, sandboxes, deps } = this.#core;
    const { sandboxId, projectId, detail } = intent;
    if (sandboxId === null || !isToGoOn(intent)) return;
    const ask = { verb: 'daemon.restore', caller: { ...ownCaller(this.#core), projectId }, reads: false } as const;
    const restoring = operations.run(ask, async (call) => {
      call.target(sandboxId);
      await turns.take(call.op, sandboxId, async () => {
        const isPending = (await deps.store.query('intents', { sandboxId })).some(({ id }) => id === intent.id);
        const sandbox = await sandboxes.get(call.op, sandboxId);
        const { id } = await this.#meant(intent);
        const snapshot = await deps.store.query('snapshot', { id });
        try {
          if (isPending && sandbox.state === 'stopped' && snapshot !== null)
            await this.restore(call, sandbox, snapshot, { forced: detail['forced'] === true, foreign: true }); // it was asked
        } finally {
          using late = call.op.releasing(RELEASE_MS);
          await deps.store.commit(late, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
        }
      });
    });
    restoring.catch((err: unknown) =>
      deps.log.error(
        { sandbox: sandboxId, err },
        'a sandbox that was being restored could not go on; it is stopped, with its disk as it was',
      ),
    );
  }

  #placesOf({ id }: Pick<Sandbox, 'id'>) {
    const { dir, vmDir } = placesOf(this.#core.deps.places, id);
    return { dir, vmDir, staged: `${dir}/restoring`, replaced: `${dir}/replaced`, saved: savedDir(this.#core.deps.places, id) };
  }
}

/** One that ran, and was ended for it. */
function isToGoOn({ kind, detail }: Intent): boolean {
  return kind === 'restore' && detail['wasAlive'] === true;
}

/** Its own, with the shape of what goes on in it. @throws HutchError where that cannot be this sandbox. */
function specAfter(op: Operation, sandbox: Sandbox, snapshot: Snapshot): SandboxSpec {
  const { spec, state } = sandbox;
  const { name } = spec;
  const what = snapshot.name ?? snapshot.id;
  const other = { hint: `make another one of it: hutch run --from ${what}` };
  if (state === 'deleted')
    throw op.error('failed_precondition', `sandbox ${name} is deleted`, { hint: `make another one: hutch run --from ${what}` });
  for (const [key, label] of [
    ['backend', 'backend'],
    ['imageId', 'image'],
    ['kernelId', 'kernel'],
  ] as const) {
    if (snapshot.spec[key] === spec[key]) continue;
    throw op.error('failed_precondition', `snapshot ${what} has another ${label} than sandbox ${name}, which stays what it is`, other);
  }
  if (snapshot.contents === 'disk') return { ...spec, shape: { ...spec.shape, diskMiB: snapshot.spec.shape.diskMiB } };
  const commands = [snapshot.spec.main, spec.main].map((main) => JSON.stringify(main?.argv ?? null));
  if (commands[0] !== commands[1])
    throw op.error('failed_precondition', `in snapshot ${what} another main process runs than that of sandbox ${name}`, other);
  return { ...spec, shape: snapshot.spec.shape };
}

/** Every file and directory: what a power failure takes of a disk that was replaced is not there any more. */
async function syncTree(op: Operation, host: Host, path: string): Promise<void> {
  const info = await host.stat(op, path);
  if (info?.type === 'directory') for (const name of await host.list(op, path)) await syncTree(op, host, `${path}/${name}`);
  if (info !== null && info.type !== 'symlink') await host.sync(op, path);
}
