// At the start of the daemon: what the last one left is brought in order. Sandboxes that run are
// adopted, those that do not are recorded as ended with the proof, what was half done is undone or
// finished, and what belongs to nothing is removed.
import type { SandboxPlan } from '../backends/backend.ts';
import type { HutchError } from '../domain/errors.ts';
import { isId, type SandboxId } from '../domain/ids.ts';
import type { Intent } from '../domain/records.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { PAGE_ROWS_MAX } from '../store/contract.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { backendOf, placesOf } from './deps.ts';
import { keepTheRest, keptByRestore } from './kept-by-restore.ts';
import { removeLeftWork } from './left-work.ts';
import { releaseRun, runOf } from './release.ts';
import { finishReshape, grownBy } from './reshape.ts';
import type { Restorer } from './restore.ts';
import { sweepSnapshots } from './snapshots.ts';
import { goOnFromStillness } from './still.ts';
import { causeOf, ownCaller, type Supervisor } from './supervisor.ts';
import { Suspension } from './suspend.ts';
import { clearAway, recordEnd, removeSandbox } from './take-down.ts';
import { sweepVolumes } from './volumes.ts';
import { readyOf } from './warm-member.ts';
import { askItself, enginesAway, isAway, type Task, whenBack } from './when-back.ts';

/** Sandboxes that are looked at side by side. */
const AT_ONCE = 16;
/** One that cannot be inspected in time must not keep the daemon from starting. */
const INSPECT_MS = 10_000;

/** `closing` ends what goes on in the background. */
export async function reconcile(core: Core, supervisor: Supervisor, restorer: Restorer, closing: AbortSignal): Promise<void> {
  await core.operations.run({ verb: 'daemon.reconcile', caller: ownCaller(core), reads: true }, async (call) => {
    const { op } = call;
    const { store, host } = core.deps;
    await store.commit(op, [{ change: 'interruptOperations', endedAtMs: host.nowMs() }], 'relaxed');
    const requests = await store.query('openRequests', {});
    // What they did is known by its own records: the next one with the same key starts anew.
    for (const { apiKeyId, key } of requests) await store.commit(op, [{ change: 'releaseRequest', apiKeyId, key }], 'relaxed');

    const intents = await store.query('intents', {});
    const named = await Promise.all(intents.map((intent) => backendNameOf(core, intent)));
    const used = (await store.query('openSandboxes', {})).map(({ spec }) => spec.backend);
    const away = await enginesAway(core, op, new Set([...used, ...named]));
    await removeLeftWork(core, op, away);
    const kept = await keptByRestore(op, host, core.deps.places.dataDir);
    const images = (await store.query('images', {})).map(({ digest }) => digest);
    await core.deps.images?.sweep(op, new Set([...images, ...[...kept].map((name) => `sha256:${name}`)]));
    const suspension = new Suspension(core, supervisor);
    const finishers = { suspension, restorer, kept };
    const waiting = new Map([...away.keys()].map((name) => [name, [] as Task[]]));
    await each(intents, async (intent) => {
      const later = waiting.get(named[intents.indexOf(intent)] ?? '');
      if (later === undefined) return await settled(op, intent.sandboxId, () => finish(core, finishers, call, intent));
      later.push({ sandboxId: intent.sandboxId, work: (then) => finishLater(core, finishers, then, intent) });
    });
    const open = await store.query('openSandboxes', {});
    await each(open, async (sandbox) => {
      const { backend } = sandbox.spec;
      const why = away.get(backend) ?? (await adoptNow(core, supervisor, call, sandbox));
      if (why === null) return;
      const task = { sandboxId: sandbox.id, work: (then: Call) => adoptLater(core, supervisor, then, sandbox.id) };
      waiting.set(backend, [...(waiting.get(backend) ?? []), task]);
      askItself(core, supervisor, await runOf(core, op, sandbox), sandbox, why);
    });
    for (const intent of intents) await tell(core, suspension, call, intent);
    await sweep(core, op, kept);
    await sweepSnapshots(core, op, kept);
    await sweepVolumes(core, op, kept);
    await keepTheRest(op, host, core.deps.places.dataDir, { kept, known: await onRecord(core) });
    for (const intent of intents) restorer.again(intent);
    for (const backend of core.deps.backends) {
      const tasks = waiting.get(backend.name);
      const last = { sandboxId: null, work: async (then: Call) => await backend.endWork?.(then.op) };
      if (tasks !== undefined) whenBack(core, { backend, signal: closing, tasks: [...tasks, last] });
    }
    if (open.length + intents.length > 0)
      op.log.info({ open: open.length, intents: intents.length, adopted: core.runs.all().length }, 'reconciled');
  });
}

type Finishers = { readonly suspension: Suspension; readonly restorer: Restorer; readonly kept: ReadonlySet<string> };

/** Whose engine an intent needs; null where it does not say. */
async function backendNameOf({ deps }: Core, { sandboxId, detail }: Intent): Promise<string | null> {
  const sandbox = sandboxId === null ? null : await deps.store.query('sandbox', { id: sandboxId });
  const named = sandbox?.spec.backend ?? detail['backend'];
  return typeof named === 'string' ? named : null;
}

/** Unless somebody has seen to it meanwhile. */
async function finishLater(core: Core, finishers: Finishers, call: Call, intent: Intent): Promise<void> {
  const { sandboxId } = intent;
  const open = await core.deps.store.query('intents', sandboxId === null ? {} : { sandboxId });
  if (open.some(({ id }) => id === intent.id)) await finish(core, finishers, call, intent);
}

/** Gives why it could not be, where its engine has gone away just now. */
async function adoptNow(core: Core, supervisor: Supervisor, call: Call, sandbox: Sandbox): Promise<HutchError | null> {
  let away: HutchError | null = null;
  await settled(call.op, sandbox.id, async () => {
    try {
      await adopt(core, supervisor, call, sandbox);
    } catch (error) {
      if (backendOf(core.deps, call.op, sandbox.spec.backend).awake === undefined || !isAway(error)) throw error;
      away = error;
    }
  });
  return away;
}

/** Unless it has been adopted by its own answer, or has ended. */
async function adoptLater(core: Core, supervisor: Supervisor, call: Call, id: SandboxId): Promise<void> {
  const sandbox = await core.sandboxes.get(call.op, id);
  if (sandbox.openComputeSinceMs === null || core.runs.get(id)?.isWatched === true) return;
  await adopt(core, supervisor, call, sandbox);
}

/** What was begun and not finished. The name that a creation reserved is freed with it. */
async function finish(core: Core, finishers: Finishers, call: Call, intent: Intent): Promise<void> {
  const { suspension, restorer, kept } = finishers;
  const { op } = call;
  const { store } = core.deps;
  const { sandboxId } = intent;
  const sandbox = sandboxId === null ? null : await store.query('sandbox', { id: sandboxId });
  // Since the backup was made, it may have been finished, or given to somebody.
  const isKept = sandbox === null && sandboxId !== null && kept.has(sandboxId);
  if (readyOf(intent) !== null && !isKept) return; // it waits, and is looked at when all else is in order
  op.log.info({ intent: intent.kind, sandbox: sandboxId, of: intent.opId }, 'an operation was cut short');
  if (sandbox === null || sandboxId === null) {
    if (sandboxId !== null) await (isKept ? endStray(core, op, sandboxId) : removeStray(core, op, sandboxId, intent));
    await store.commit(
      op,
      [
        { change: 'finishIntent', id: intent.id },
        ...(sandboxId === null
          ? []
          : ([
              { change: 'releaseUid', sandboxId },
              { change: 'releasePorts', sandboxId },
            ] as const)),
      ],
      'relaxed',
    );
    return;
  }
  if (intent.kind === 'suspend') return await suspension.finishSuspend(call, sandbox, intent);
  if (intent.kind === 'restore') return await restorer.finish(call, sandbox, intent);
  if (intent.kind === 'still') return await goOnFromStillness(core, call, sandbox, intent);
  if (intent.kind === 'wake') return await suspension.finishWakeUp(call, sandbox, intent);
  if (intent.kind === 'reshape') return await finishReshape(core, call, sandbox, intent);
  if (intent.kind === 'delete' && sandbox.state === 'deleted') {
    // Deleted at its end: what it has on the host may still be there.
    const run = await runOf(core, op, sandbox);
    core.runs.forget(run);
    await run.backend.kill(op, run.plan, 'now');
    await clearAway(core, op, run, sandbox);
    return;
  }
  if (intent.kind === 'delete' && sandbox.state !== 'deleted') {
    const run = await runOf(core, op, sandbox);
    const dead = await run.backend.kill(op, run.plan, 'now');
    const stopped =
      sandbox.openComputeSinceMs === null
        ? sandbox
        : await recordEnd(core, call, run, sandbox, dead, { cause: 'stopped', actor: actorOf(intent) });
    await removeSandbox(core, call, run, stopped, { intentId: intent.id, ended: null });
    return;
  }
  if (intent.kind === 'start' && sandbox.openComputeSinceMs === null && sandbox.state !== 'deleted') {
    // It was started, but not recorded: whatever came of it is ended.
    const run = await runOf(core, op, sandbox);
    await run.backend.kill(op, run.plan, 'now');
    await releaseRun(core, op, run);
    await store.commit(op, [...grownBy(core, op, sandbox), { change: 'finishIntent', id: intent.id }]);
    return;
  }
  await store.commit(op, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
}

/** One that was woken up may not have heard of it: in the background, as it may not answer. */
async function tell(core: Core, suspension: Suspension, call: Call, { kind, sandboxId, id }: Intent): Promise<void> {
  const run = kind === 'wake' && sandboxId !== null ? core.runs.get(sandboxId) : null;
  if (run === null) return;
  const sandbox = await core.sandboxes.get(call.op, run.id);
  if (sandbox.state !== 'running') return;
  suspension
    .finishTelling({ ...call, op: run.op }, sandbox, run, id)
    .catch((cause: unknown) => run.op.log.warn({ sandbox: run.id, cause }, 'a sandbox that was woken up has not heard of it'));
}

function actorOf(intent: Intent): string {
  const actor = intent.detail['actor'];
  return typeof actor === 'string' ? actor : 'daemon';
}

/** A sandbox whose process may be alive. */
async function adopt(core: Core, supervisor: Supervisor, call: Call, sandbox: Sandbox): Promise<void> {
  const { op } = call;
  // What it was booted from does not matter to one that runs; the next start looks for that.
  const run = await runOf(core, op, sandbox);
  using limited = op.within(INSPECT_MS, `looking at sandbox ${sandbox.spec.name}`);
  const evidence = await run.backend.inspect(limited, run.plan);
  if (evidence.alive) {
    core.sandboxes.changed(sandbox);
    const running = sandbox.state === 'error' ? await recover(core, call, sandbox) : sandbox;
    supervisor.adopt(run, running);
    return;
  }
  const bootId = await bootIdOf(core, sandbox);
  const isReboot = bootId !== null && bootId !== core.deps.host.bootId();
  const dead = isReboot ? ({ ...evidence, proof: 'boot-id' } as const) : evidence;
  const how = { ...causeOf(run, dead), removesItself: !isReboot, ...(bootId === null ? {} : { bootId }) };
  const after = await recordEnd(core, call, run, sandbox, dead, how);
  await releaseRun(core, op, run);
  if (after.spec.autoRemove && !isReboot)
    await removeSandbox(core, call, await runOf(core, op, after), after, { intentId: null, ended: null });
}

/** The boot in which it was started, as the ledger has it; what the shim wrote is gone with its boot. */
async function bootIdOf(core: Core, sandbox: Sandbox): Promise<string | null> {
  const { store } = core.deps;
  let bootId: string | null = null;
  for (let after = 0; ; ) {
    const page = await store.query('ledger', { after, sandboxId: sandbox.id });
    bootId = page.findLast((entry) => entry.kind === 'vm.compute.start')?.bootId ?? bootId;
    const last = page.at(-1);
    if (last === undefined || page.length < PAGE_ROWS_MAX) return bootId;
    after = last.sequence;
  }
}

/** Its process is alive after all. */
async function recover(core: Core, call: Call, sandbox: Sandbox): Promise<Sandbox> {
  const { timeoutMs } = sandbox.spec;
  const deadlineAtMs = timeoutMs === null || sandbox.openComputeSinceMs === null ? null : sandbox.openComputeSinceMs + timeoutMs;
  const event = { type: 'recovered', atMs: core.deps.host.nowMs(), opId: call.op.id, deadlineAtMs } as const;
  const [after] = await call.commit([{ change: 'applyEvent', sandboxId: sandbox.id, event }]);
  core.sandboxes.changed(after);
  return after;
}

/** One that fails must not keep the others, or the daemon, from starting. */
async function settled(op: Operation, id: SandboxId | null, work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (err) {
    if (op.signal.aborted) throw err;
    op.log.error({ sandbox: id, err }, 'a sandbox could not be brought in order');
  }
}

/** Directories, and the processes that their files tell of, that belong to no sandbox. */
async function sweep(core: Core, op: Operation, kept: ReadonlySet<string>): Promise<void> {
  const { store, host, places } = core.deps;
  const live = new Set<string>(await store.query('liveSandboxIds', {}));
  const pending = new Set<string | null>((await store.query('intents', {})).map((intent) => intent.sandboxId));
  const strays = new Set<SandboxId>();
  for (const parent of [places.dataDir, places.runDir, places.logDir].map((dir) => `${dir}/sandboxes`)) {
    if ((await host.stat(op, parent)) === null) continue;
    for (const name of await host.list(op, parent)) if (isId('sbx', name) && !live.has(name) && !pending.has(name)) strays.add(name);
  }
  await each([...strays], (id) => settled(op, id, () => (kept.has(id) ? endStray(core, op, id) : removeStray(core, op, id, null))));
}

/** What is left of a sandbox that was never made, or is deleted: processes first. */
async function removeStray(core: Core, op: Operation, id: SandboxId, intent: Intent | null): Promise<void> {
  const { host, backends, places } = core.deps;
  const mine = placesOf(places, id);
  op.log.info({ sandbox: id }, 'what is left of an unfinished sandbox is removed');
  const named = intent?.detail['backend'];
  const plan = strayPlan(core, id);
  for (const backend of backends.filter((candidate) => named === undefined || candidate.name === named)) {
    await backend.kill(op, plan, 'now');
    await backend.remove(op, plan);
  }
  await Promise.all([host.remove(op, mine.dir), host.remove(op, mine.runDir), host.remove(op, mine.logDir)]);
}

/** One that was made after the backup that was restored: it does not run unseen, and its disk stays. */
async function endStray(core: Core, op: Operation, id: SandboxId): Promise<void> {
  op.log.info({ sandbox: id }, 'a sandbox that the restored store does not know is ended; its disk stays');
  const plan = strayPlan(core, id);
  for (const backend of core.deps.backends) {
    await backend.kill(op, plan, 'now');
    await backend.cleanUp(op, plan);
  }
}

function strayPlan({ deps }: Core, id: SandboxId): SandboxPlan {
  const { vmDir: dataDir, runDir, logDir } = placesOf(deps.places, id);
  const shape = { cpus: 1, memoryMiB: 0, diskMiB: 0 };
  return { id, name: id, projectId: null, shape, network: 'none', boot: { kind: 'gone' }, dataDir, runDir, logDir, runAs: null };
}

/** The names of all that has a directory of its own. */
async function onRecord({ deps: { store } }: Core): Promise<ReadonlySet<string>> {
  const [snapshots, volumes, images] = await Promise.all([
    store.query('snapshots', {}),
    store.query('volumes', {}),
    store.query('images', {}),
  ]);
  return new Set<string>([
    ...(await store.query('liveSandboxIds', {})),
    ...[...snapshots, ...volumes].map(({ id }) => id),
    ...images.map(({ digest }) => digest.replace(/^sha256:/, '')),
  ]);
}

async function each<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values();
  await Promise.all(
    Array.from({ length: Math.min(AT_ONCE, items.length) }, async () => {
      for (const item of queue) await work(item);
    }),
  );
}
