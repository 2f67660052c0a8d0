// Puts the services together: everything between the APIs and the parts that do the work.
import type { Backend } from '../backends/backend.ts';
import { isOpId, newOpId, type OpId, type SnapshotId } from '../domain/ids.ts';
import { type Log, newOperation, type Operation } from '../host/operation.ts';
import { assetVerbs } from './assets.ts';
import { Awaken } from './awaken.ts';
import { backupVerbs } from './backup.ts';
import { beginVerbs } from './begin.ts';
import { newBuilds } from './builds.ts';
import { commitVerb } from './commit.ts';
import { type Core, MainLogs } from './core.ts';
import { createVerb } from './create.ts';
import { daemonVerbs } from './daemon-verbs.ts';
import type { Deps } from './deps.ts';
import { execVerbs } from './exec.ts';
import { fileVerbs } from './files.ts';
import { forkVerbs } from './fork.ts';
import type { Usable } from './from-snapshot.ts';
import type { ApiServices, Handlers } from './handlers.ts';
import { Held } from './held.ts';
import { startHousekeeping } from './housekeeping.ts';
import { watchIdle } from './idle.ts';
import { imageVerbs } from './images.ts';
import { kernelVerbs } from './kernels.ts';
import { Keys } from './keys.ts';
import { lifecycleVerbs } from './lifecycle.ts';
import { logVerbs } from './logs.ts';
import { Operations } from './operations.ts';
import { Presenter } from './present.ts';
import { newPreviews } from './previews.ts';
import { Publisher } from './publisher.ts';
import { QuotaBounds, quotaVerbs } from './quotas.ts';
import { reachVerbs } from './reach-verbs.ts';
import { reconcile } from './reconcile.ts';
import { recordVerbs } from './records.ts';
import { registeredVerbs } from './registered.ts';
import { Restarts } from './restarts.ts';
import { Restorer } from './restore.ts';
import { Runs } from './runs.ts';
import { Sandboxes } from './sandboxes.ts';
import { setVerb } from './set.ts';
import { snapshotDiffVerb } from './snapshot-diff.ts';
import { snapshotTravelVerbs } from './snapshot-travel.ts';
import { snapshotVerbs } from './snapshots.ts';
import { sshVerbs } from './ssh/gateway.ts';
import { newStarter } from './start-again.ts';
import { StartGate } from './start-gate.ts';
import { StatsReader } from './stats.ts';
import { ownCaller, Supervisor } from './supervisor.ts';
import { Suspension } from './suspend.ts';
import { systemVerbs } from './system.ts';
import { templateVerbs, type UserTemplates } from './template/verbs.ts';
import { TemplatesBehind } from './template-behind.ts';
import { newTemplates } from './templates.ts';
import type { Tracer } from './tracing.ts';
import { Turns } from './turns.ts';
import { undoVerb } from './undo.ts';
import { volumeVerbs } from './volumes.ts';
import { WarmSandboxes } from './warm.ts';

export type Services = ApiServices & {
  /** Brings in order what the last daemon left. Call once, before the API listens. */
  reconcile(): Promise<void>;
  ensureOwnerKey(op: Operation, path: string): Promise<void>;
  /** Lets go of everything: sandboxes go on. Calls under way get `graceMs` to end. */
  close(graceMs: number): Promise<void>;
};

/** What stays is taken away by the next daemon that ends with nothing running. */
async function leave(core: Core, backend: Backend, graceMs: number): Promise<void> {
  const id = core.operations.ownId();
  using op = newOperation({ id, actor: 'daemon', log: core.deps.log }).within(graceMs, 'the end of the daemon');
  await backend.end?.(op).catch((cause: unknown) => op.log.warn({ backend: backend.name, cause }, 'a backend left something behind'));
}

export type ServicesOptions = {
  readonly tracer: Tracer;
  /** A log whose lines carry the op id. */
  readonly logOf: (opId: OpId) => Log;
};

export function newServices(deps: Deps, { tracer, logOf }: ServicesOptions): Services {
  const operations = new Operations({ store: deps.store, host: deps.host, log: logOf, tracer });
  const publisher = new Publisher(deps);
  const runs = new Runs(deps, logOf);
  const startGate = new StartGate();
  const snapshotFiles = new Held<SnapshotId>();
  const behind = new TemplatesBehind({ deps, operations, startGate });
  const core: Core = {
    deps,
    operations,
    sandboxes: new Sandboxes(deps.store),
    runs,
    turns: new Turns(),
    presenter: new Presenter(deps.store, operations, publisher),
    publisher,
    logs: new MainLogs(deps),
    stats: new StatsReader(deps),
    templates: newTemplates(deps, behind),
    startGate,
    warm: new WarmSandboxes({ deps, operations, runs, startGate, snapshotFiles }),
    quotaBounds: new QuotaBounds(deps.store),
    snapshotFiles,
  };
  const supervisor = new Supervisor(core);
  const keys = new Keys(core);
  const suspension = new Suspension(core, supervisor);
  const restorer = new Restorer(core, supervisor);
  const starter = newStarter(core, supervisor, suspension);
  const usable: Usable = (...of) => keeper.usable(...of);
  const lifecycle = { ...createVerb(core, supervisor, usable), ...lifecycleVerbs(core, starter, suspension), ...setVerb(core, supervisor) };
  const restarts = new Restarts(core, starter);
  const idle = watchIdle(core, supervisor, suspension);
  const awaken = new Awaken(core, suspension);
  const builds = newBuilds(core, lifecycle);
  const { reconcile: reconcileBuilds, kept: buildCache, begin: _begin, records: _records, ...buildVerbs } = builds;
  const { keeper, ...templates }: UserTemplates = templateVerbs(core, lifecycle, builds);
  const images = imageVerbs(core, buildCache);
  const kernels = kernelVerbs(core);
  const execs = execVerbs(core, awaken);
  const reach = reachVerbs(core, awaken);
  const { domain, listensAt, admit, connect, ...shares } = newPreviews(core, reach);
  const handlers: Handlers = {
    ...lifecycle,
    ...buildVerbs,
    ...commitVerb(core),
    ...registeredVerbs(core),
    ...forkVerbs(core, supervisor),
    ...snapshotVerbs(core, restorer),
    ...snapshotTravelVerbs(core),
    ...snapshotDiffVerb(core),
    ...undoVerb(core, restorer),
    ...templates,
    ...volumeVerbs(core),
    ...beginVerbs(core, supervisor),
    ...execs,
    ...sshVerbs(core, execs, awaken),
    ...fileVerbs(core, awaken),
    ...reach,
    ...shares,
    ...logVerbs(core),
    ...images,
    ...kernels,
    ...assetVerbs(core, { ...images, ...kernels }),
    ...quotaVerbs(core),
    ...recordVerbs(core),
    ...keys.verbs(),
    ...daemonVerbs(core, deps.host.nowMs()),
    ...systemVerbs(core, lifecycle),
    ...backupVerbs(core),
  };
  let housekeeping: Disposable | null = null;
  const closing = new AbortController();
  return {
    handlers,
    operations,
    previews: { domain, listensAt, admit, connect },
    authenticate: (secret) => keys.authenticate(secret),
    newOpId: () => newOpId((count) => deps.host.randomBytes(count)),
    async adoptOpId(told) {
      if (!isOpId(told) || operations.get(told) !== null) return null;
      return (await deps.store.query('operation', { id: told })) === null ? told : null;
    },
    ensureOwnerKey: (op, path) => keys.ensureOwner(op, path),
    async reconcile() {
      await reconcile(core, supervisor, restorer, closing.signal);
      await core.operations.run({ verb: 'daemon.reconcile', caller: ownCaller(core), reads: true }, async (call) => {
        await reconcileBuilds(call.op);
        await restarts.begin(call.op);
        await awaken.attend(call);
        await keeper.sweep(call);
        await core.warm.begin(call.op, (op, id) => keeper.kindOf(op, id));
      });
      housekeeping = startHousekeeping(core, keeper, images);
      void keeper.lookAtAll();
    },
    async close(graceMs) {
      closing.abort();
      housekeeping?.[Symbol.dispose]();
      restarts[Symbol.dispose]();
      idle[Symbol.dispose]();
      core.warm.stop();
      behind.stop();
      await operations.close(graceMs);
      await behind.close();
      const waiting = await core.warm.close();
      const runs = core.runs.all();
      for (const run of runs) core.runs.forget(run);
      if (runs.length + waiting === 0) for (const backend of deps.backends) await leave(core, backend, graceMs);
    },
  };
}
