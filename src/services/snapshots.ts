// Named snapshots: a sandbox of one instant, kept. Its files lie in a directory of its own before it is on record, and it is out
// of the record before they go: what is on record is there, and what a crash leaves is nobody's and removed by the next start.
import type { Backend } from '../backends/backend.ts';
import type { SnapshotTaken } from '../backends/snapshots.ts';
import { HutchError } from '../domain/errors.ts';
import { HeldTogether, type Holding } from '../domain/holding.ts';
import { isId, newId, type ProjectId, type SnapshotId } from '../domain/ids.ts';
import { requireReference } from '../domain/reference.ts';
import type { Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import {
  beforeOf,
  byLineage,
  type NewSnapshot,
  NOT_MACHINE,
  type Snapshot,
  type SnapshotContents,
  type SnapshotKind,
  secretsOf,
} from '../domain/snapshot.ts';
import { judgeSnapshots, type Verdict } from '../domain/snapshot-policy.ts';
import type { Operation } from '../host/operation.ts';
import type { Change } from '../store/contract.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf, savedDir } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import type { Handlers } from './handlers.ts';
import { foundHoldings } from './holdings.ts';
import { inGuest } from './in-guest.ts';
import { refuseMounted } from './mounts.ts';
import type { Restorer } from './restore.ts';
import type { Run } from './run.ts';
import { scrubSandbox } from './scrub.ts';
import { inStillness } from './still.ts';
import { removeUnknown } from './unknown.ts';
import type { Output, Parsed } from './verbs.ts';

const RELEASE_MS = 60_000;
/** What the guest has written and not yet on its disk. */
const SYNC_MS = 60_000;
const REMOVE_MS = 10 * 60_000;

export type SnapshotVerbs =
  | 'sandbox.restore'
  | 'snapshot.create'
  | 'snapshot.list'
  | 'snapshot.get'
  | 'snapshot.remove'
  | 'snapshot.verify'
  | 'snapshot.prune';

/** Of what a snapshot is taken. */
type Wanted = {
  readonly name: string | null;
  readonly kind: SnapshotKind;
  /** Default: with memory, where there is one. */
  readonly diskOnly: boolean;
  /** After its scrub hooks have run in it. */
  readonly scrub?: boolean;
  /** Of one that is kept to undo: the command that comes next. */
  readonly before?: string;
  /** What who makes another one of it begins as; default: as that is. */
  readonly spec?: (spec: SandboxSpec) => SandboxSpec;
  /** Those that may go where a quota has no room for it: taken when it is written down, given back when it is on record or refused. */
  readonly mayGo?: () => Promise<{ readonly ids: readonly SnapshotId[] } & AsyncDisposable>;
  /** It stands on no other: it takes more, and holds nothing of those that may go. */
  readonly alone?: boolean;
  /** Committed with it. */
  readonly also?: (snapshot: NewSnapshot, dir: string) => Promise<readonly Change[]>;
};

export function snapshotVerbs(core: Core, restorer: Restorer): Pick<Handlers, SnapshotVerbs> {
  const { sandboxes, turns, presenter } = core;
  const { store } = core.deps;
  const claims = new Claims();
  return {
    'snapshot.create': async (call, { ref, name, diskOnly = false, scrub = false }) => {
      const { op, caller } = call;
      const { id } = await sandboxes.resolve(caller.projectId, ref);
      if (name !== undefined) await refuseTaken(core, call, name);
      call.target(id);
      return await turns.take(op, id, async () => {
        const wanted = { name: name ?? null, kind: 'kept', diskOnly, scrub } as const;
        const { snapshot, stillMs } = await takeSnapshot(core, claims, call, await sandboxes.get(op, id), wanted);
        return { ...(await shown(core, snapshot)), stillMs };
      });
    },
    'sandbox.restore': async (call, { ref, snapshot: text, force, foreign }) => {
      const { op, caller } = call;
      const { id } = await sandboxes.resolve(caller.projectId, ref);
      call.target(id);
      const snapshot = await findSnapshot(core, op, caller.projectId, text);
      const after = await turns.take(op, id, async () =>
        restorer.restore(call, await sandboxes.get(op, id), snapshot, { forced: force ?? false, foreign: foreign ?? false }),
      );
      return await presenter.sandbox(after, op.id);
    },
    'snapshot.list': async ({ caller }, { sandbox, all }) => {
      const { projectId } = caller;
      const whose = sandbox === undefined ? {} : { sandboxId: (await sandboxes.resolve(projectId, sandbox)).id };
      const found = await store.query('snapshots', { projectId, ...whose, ...(all === true ? {} : { kind: 'kept' }) });
      const users = await usersOf(core);
      return { snapshots: byLineage(found).map(({ snapshot, depth }) => ({ ...viewOf(snapshot, users), depth })) };
    },
    'snapshot.get': async ({ op, caller }, { snapshot: text }) => {
      const snapshot = await findSnapshot(core, op, caller.projectId, text);
      const children = (await store.query('snapshots', { projectId: caller.projectId })).filter(({ parentId }) => parentId === snapshot.id);
      const { env, labels, user, workdir, main, network, timeoutMs } = snapshot.spec;
      return {
        ...(await shown(core, snapshot)),
        children: children.map(({ id }) => id),
        made: { env: { ...env }, labels: { ...labels }, user, workdir, main: main === null ? null : [...main.argv], network, timeoutMs },
        machine: Object.fromEntries(Object.entries(snapshot.detail).filter(([key]) => !NOT_MACHINE.includes(key))),
        secretNames: [...secretsOf(snapshot)],
        imageTravels: await imageTravels(core, op, snapshot),
      };
    },
    'snapshot.remove': async (call, { snapshot: text, cascade }) => {
      const snapshot = await findSnapshot(core, call.op, call.caller.projectId, text);
      call.target(snapshot.id);
      const removed = await removeSnapshots(core, call, snapshot, cascade ?? false);
      return { removed: removed.map(({ id, name, ownBytes }) => ({ id, name, ownBytes })) };
    },
    'snapshot.prune': (call, input) => pruneSnapshots(core, call, input),
    'snapshot.verify': async ({ op, caller }, { snapshot: text }) => {
      const snapshot = await findSnapshot(core, op, caller.projectId, text);
      using _reading = readSnapshotFiles(core, op, snapshot);
      op.progress({ step: 'comparing with what was written' });
      await snapshotsOf(core, op, snapshot).check(op, snapshotDir(core, snapshot.id));
      return { id: snapshot.id, apparentBytes: snapshot.apparentBytes };
    },
  };
}

/** In the sandbox's turn. It goes on as it was; on failure nothing is left. */
export async function takeSnapshot(
  core: Core,
  claims: Claims,
  call: Call,
  sandbox: Sandbox,
  { name, kind, diskOnly, scrub = false, before, spec = (own) => own, mayGo, alone = false, also = async () => [] }: Wanted,
): Promise<{ readonly snapshot: Snapshot; readonly stillMs: number }> {
  const { op } = call;
  const { host } = core.deps;
  const known = core.runs.get(sandbox.id);
  const run = known ?? core.runs.make(op, sandbox, { kind: 'gone' }, null);
  using _notKnown = known === null ? run : null;
  const { backend } = run;
  const contents = await contentsOf(claims, op, sandbox, backend, diskOnly);
  await requireFreeSpace(op, core.deps);
  // How much it will be is not known yet: where there is no room at all, nothing is written first.
  if (mayGo === undefined) await requireSnapshotRoom(core, sandbox.projectId, 1);
  if (scrub) await scrubSandbox(op, sandbox, run);
  const id = newId('snp', (count) => host.randomBytes(count));
  const dir = snapshotDir(core, id);
  await host.makeDir(op, snapshotsDir(core), 0o711);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host
      .remove(late, dir)
      .catch((cause: unknown) =>
        op.log.warn({ dir, cause }, 'what a failed snapshot wrote stays; the next start of the daemon removes it'),
      );
  });
  op.progress({ step: contents === 'disk' ? 'writing down its disk' : 'writing down its memory' });
  // What is kept is compared with others, file by file; one that is taken before each command is to cost as little as can be.
  if (kind === 'kept' && contents !== 'disk') await putOnDisk(op, sandbox, run);
  const { taken, standsOn } = await writeDown(core, call, sandbox, { run, dir, contents, alone });
  await host.sync(op, dir);
  await host.sync(op, snapshotsDir(core));
  const secretNames = contents === 'disk' ? [] : sandbox.spec.secretNames;
  const detail = {
    ...((await backend.snapshots?.describe?.(op, dir)) ?? {}),
    ...(before === undefined ? {} : { before }),
    ...(secretNames.length === 0 ? {} : { secretNames }),
  };
  const { holdings, wholeBytes } = await foundHoldings(core, op, backend.name, dir);
  const whole: NewSnapshot = {
    ...{ id, projectId: sandbox.projectId, name, kind, contents, sandboxId: sandbox.id },
    spec: spec(keptSpec(sandbox.spec)),
    parentId: await keptAncestor(core, standsOn),
    ...{ apparentBytes: Math.max(taken.apparentBytes, wholeBytes), createdAtMs: host.nowMs(), detail },
  };
  await using going = mayGo === undefined ? null : await mayGo();
  const [snapshot] = await call.commit([
    { change: 'createSnapshot', snapshot: whole, holdings, mayGo: going?.ids ?? [] },
    ...(await also(whole, dir)),
  ]);
  undo.move();
  return { snapshot, stillMs: inMicroseconds(taken.stillMs) };
}

/** @throws HutchError `resource_exhausted` where so much more would pass the quota of the project. */
export async function requireSnapshotRoom({ deps: { store, host } }: Core, projectId: ProjectId, bytes: number): Promise<void> {
  await store.query('snapshotRoom', { projectId, bytes, atMs: host.nowMs() });
}

type WrittenDown = { readonly taken: SnapshotTaken; readonly standsOn: Snapshot | null };

/** In the sandbox's turn, into a directory that is not there yet. It goes on as it was. `standsOn`: of which it has what is not written again. */
export async function writeDown(
  core: Core,
  call: Call,
  sandbox: Sandbox,
  {
    run,
    dir,
    contents,
    alone = false,
  }: Pick<Wanted, 'alone'> & { readonly run: Run; readonly dir: string; readonly contents: SnapshotContents },
): Promise<WrittenDown> {
  const { op } = call;
  const { snapshots, name } = run.backend;
  if (snapshots === undefined) throw new Error(`the backend ${name} claims snapshots, and makes none`);
  const head = await core.deps.store.query('snapshotHead', { sandboxId: sandbox.id });
  using held = head === null ? null : core.snapshotFiles.read(head.id);
  const standsOn = head === null || held === null || !(await isThere(core, op, head)) ? null : head;
  // What was written in it and not to its disk yet is in its memory; a disk alone must have it.
  if (contents === 'disk' && snapshots.takesUnwritten !== true) await putOnDisk(op, sandbox, run, 'needed');
  const since = standsOn === null || alone ? null : snapshotDir(core, standsOn.id);
  const saved = sandbox.state === 'suspended' && contents !== 'disk' ? { saved: savedDir(core.deps.places, sandbox.id) } : {};
  const take = () => snapshots.take(op, run.plan, dir, { what: contents, since, ...saved });
  const isAlive = sandbox.state === 'running' || sandbox.state === 'paused';
  return { taken: isAlive ? await inStillness(core, call, sandbox, contents, take) : await take(), standsOn };
}

/** What a running guest has written and its kernel not yet put on its disk. A memory has that too, so it is written down all the same where it takes too long. */
async function putOnDisk(op: Operation, { state }: Sandbox, run: Run, how: 'needed' | 'tried' = 'tried'): Promise<void> {
  if (state !== 'running') return;
  using limited = op.within(SYNC_MS, 'writing what the guest has not yet written');
  try {
    await inGuest(limited, run, `sync-${op.id}`, ['sync']);
  } catch (cause) {
    if (how === 'needed' || op.signal.aborted) throw cause;
    op.log.warn({ sandbox: run.id, cause }, 'a guest did not put on its disk what it had written; its snapshot has it in memory alone');
  }
}

/** Who makes another one of it is not given its secrets, and nothing of what is to become of this one. */
function keptSpec({ pending: _pending, held: _held, ...spec }: SandboxSpec): SandboxSpec {
  return { ...spec, secretNames: [], autoRemove: false };
}

/** What is only there to be undone with goes by itself: nothing stands on it. */
async function keptAncestor(core: Core, head: Snapshot | null): Promise<SnapshotId | null> {
  let at = head;
  while (at !== null && at.kind === 'undo' && at.parentId !== null) at = await core.deps.store.query('snapshot', { id: at.parentId });
  return at === null || at.kind === 'undo' ? null : at.id;
}

/** @throws HutchError `failed_precondition` with what would work. */
async function contentsOf(claims: Claims, op: Operation, sandbox: Sandbox, backend: Backend, diskOnly: boolean): Promise<SnapshotContents> {
  const { name } = sandbox.spec;
  const { state } = sandbox;
  if (state === 'deleted') throw op.error('failed_precondition', `sandbox ${name} is deleted: nothing of it is left`);
  if (state === 'error') {
    throw op.error('failed_precondition', `sandbox ${name} is in error: what it is at is not known`, {
      hint: `end it first: hutch stop --force ${name}; its disk can be kept then`,
    });
  }
  const hasMemory = state === 'running' || state === 'paused' || state === 'suspended';
  const contents = hasMemory && !diskOnly ? 'memory and disk' : 'disk';
  refuseMounted(op, sandbox, 'no snapshot would have it');
  await claims.need(op, backend, 'snapshot');
  if (backend.snapshots === undefined) throw new Error(`the backend ${backend.name} claims snapshot, and makes none`);
  if (contents !== 'disk')
    await claims.need(op, backend, 'fork', `without its memory it can be kept: hutch snapshot create --disk-only ${name}`);
  return contents;
}

export function snapshotsDir({ deps }: Pick<Core, 'deps'>): string {
  return `${deps.places.dataDir}/snapshots`;
}

export function snapshotDir(core: Pick<Core, 'deps'>, id: SnapshotId): string {
  return `${snapshotsDir(core)}/${id}`;
}

async function isThere(core: Core, op: Operation, { id }: Snapshot): Promise<boolean> {
  return (await core.deps.host.stat(op, snapshotDir(core, id))) !== null;
}

/** Nothing of it is removed until it is disposed. @throws HutchError `not_found` while it is being removed. */
export function readSnapshotFiles(core: Core, op: Operation, { id, name }: Snapshot): Disposable {
  const held = core.snapshotFiles.read(id);
  if (held === null) throw op.error('not_found', `snapshot ${name ?? id} is being removed`);
  return held;
}

export function snapshotsOf(core: Core, op: Operation, { spec }: Pick<Snapshot, 'spec'>): NonNullable<Backend['snapshots']> {
  const { snapshots, name } = backendOf(core.deps, op, spec.backend);
  if (snapshots === undefined) throw op.error('failed_precondition', `the backend ${name} makes no snapshots here`);
  return snapshots;
}

/** By id, name, or a unique prefix of either. */
export async function findSnapshot(core: Core, op: Operation, projectId: ProjectId, text: string): Promise<Snapshot> {
  if (isId('snp', text)) {
    const exact = await core.deps.store.query('snapshot', { id: text });
    if (exact?.projectId === projectId) return exact;
    throw op.error('not_found', `there is no snapshot ${text}`, { hint: 'see: hutch snapshot ls' });
  }
  const all = await core.deps.store.query('snapshots', { projectId });
  return requireReference(
    'snapshot',
    text,
    all.map((snapshot) => ({ id: snapshot.id, name: snapshot.name, snapshot })),
  ).snapshot;
}

/** Before anything is written: a name that is taken is found out at once. */
export async function refuseTaken(core: Core, { op, caller }: Call, name: string): Promise<void> {
  const taken = (await core.deps.store.query('snapshots', { projectId: caller.projectId })).find((snapshot) => snapshot.name === name);
  if (taken === undefined) return;
  throw op.error('conflict', `the name ${name} is taken by snapshot ${taken.id}`, {
    hint: `choose another, or remove it: hutch snapshot rm ${name}`,
  });
}

/** What this call removed: of two at once, one. */
export async function removeSnapshots(core: Core, call: Call, snapshot: Snapshot, cascade: boolean): Promise<readonly Snapshot[]> {
  const { op } = call;
  const { host } = core.deps;
  await using undo = new AsyncDisposableStack();
  const below = cascade ? await standingOn(core, snapshot) : [];
  for (const { id, name } of [snapshot, ...below]) {
    const taken = core.snapshotFiles.take(id);
    if (taken === null) throw op.error('failed_precondition', `snapshot ${name ?? id} is being used at this moment`, { hint: 'try again' });
    undo.use(taken);
  }
  const [removed] = await call.commit([{ change: 'removeSnapshot', id: snapshot.id, cascade, atMs: host.nowMs() }]);
  // Out of the record: whatever comes, nobody finds it any more.
  using late = op.releasing(REMOVE_MS);
  for (const { id } of removed) await host.remove(late, snapshotDir(core, id));
  await sweepBackends(core, late, new Set(removed.map(({ spec }) => spec.backend)));
  return removed;
}

async function standingOn(core: Core, { id, projectId }: Snapshot): Promise<readonly Snapshot[]> {
  const all = await core.deps.store.query('snapshots', { projectId });
  const found: Snapshot[] = [];
  for (let level: readonly SnapshotId[] = [id]; level.length > 0; ) {
    const next = all.filter(({ parentId }) => parentId !== null && level.includes(parentId));
    found.push(...next);
    level = next.map((snapshot) => snapshot.id);
  }
  return found;
}

/** One that is used meanwhile stays, and says so. */
async function pruneSnapshots(
  core: Core,
  call: Call,
  { sandbox, dryRun, ...policy }: Parsed<'snapshot.prune'>,
): Promise<Output<'snapshot.prune'>> {
  const { projectId } = call.caller;
  const whose = sandbox === undefined ? {} : { sandboxId: (await core.sandboxes.resolve(projectId, sandbox)).id };
  const { store, host } = core.deps;
  const users = await usersOf(core);
  const everyOne: (Snapshot & { readonly holdings: readonly Holding[] })[] = [];
  for (const snapshot of await store.query('snapshots', { projectId }))
    everyOne.push({ ...snapshot, holdings: await store.query('snapshotHoldings', { id: snapshot.id }) });
  const all = everyOne.filter(({ kind }) => kind === 'kept');
  const judgedOf = ({ snapshot: { id, name, spec, ownBytes, createdAtMs }, why }: Verdict<Snapshot>) => ({
    ...{ id, name, sandboxName: spec.name, ownBytes, createdAtMs, why },
  });
  // What stands on one of this sandbox may be another's.
  const isMeant = ({ sandboxId }: Snapshot): boolean => sandbox === undefined || sandboxId === whose.sandboxId;
  const others = all.filter((snapshot) => !isMeant(snapshot));
  const below = (id: SnapshotId) => others.filter(({ parentId }) => parentId === id).map(({ name, id: own }) => `snapshot ${name ?? own}`);
  const holdersOf = (id: SnapshotId) => [...(users.get(id) ?? []).map((name) => `sandbox ${name}`), ...below(id)];
  const { going, staying } = judgeSnapshots(all.filter(isMeant), holdersOf, policy, host.nowMs());
  const removed: (typeof going)[number][] = [];
  const stayed = [...staying];
  for (const verdict of going) {
    try {
      if (dryRun !== true) await removeSnapshots(core, call, verdict.snapshot, false);
      removed.push(verdict);
    } catch (error) {
      if (!(error instanceof HutchError) || error.code !== 'failed_precondition') throw error;
      stayed.push({ ...verdict, why: `${verdict.why}, but ${error.message}` });
    }
  }
  // What those that stay hold too is there still.
  const left = new HeldTogether(everyOne.map(({ holdings }) => holdings));
  const before = left.bytes;
  for (const { snapshot } of removed) left.letGo(snapshot.holdings);
  const bytes = before - left.bytes;
  return { removed: removed.map(judgedOf), stayed: stayed.map(judgedOf), bytes };
}

/** At the start of the daemon: what a crash left of snapshots that were not made, or are removed. */
export async function sweepSnapshots(core: Core, op: Operation, kept: ReadonlySet<string>): Promise<void> {
  const { host, store } = core.deps;
  const dir = snapshotsDir(core);
  if ((await host.stat(op, dir)) === null) return;
  const live = new Set<string | null>(await store.query('liveSandboxIds', {}));
  // What was kept to undo goes with its sandbox.
  for (const { id } of (await store.query('snapshots', { kind: 'undo' })).filter(({ sandboxId }) => !live.has(sandboxId)))
    await store.commit(op, [{ change: 'removeSnapshot', id, cascade: false, atMs: host.nowMs() }], 'relaxed');
  const known = new Set<string>([...kept, ...(await store.query('snapshots', {})).map(({ id }) => id)]);
  await removeUnknown(op, host, dir, known);
  await sweepBackends(core, op, new Set(core.deps.backends.map(({ name }) => name)));
}

/** What snapshots whose directories are gone had elsewhere. What stays goes with the next, or with the next start of the daemon. */
export async function sweepBackends({ deps }: Pick<Core, 'deps'>, op: Operation, names: ReadonlySet<string>): Promise<void> {
  for (const { name, snapshots } of deps.backends) {
    if (!names.has(name)) continue;
    await snapshots
      ?.sweep?.(op)
      .catch((cause: unknown) => op.log.warn({ backend: name, cause }, 'what a snapshot had elsewhere stays for now'));
  }
}

/** Names of the sandboxes that were made from each. */
/** A time as it is told: in milliseconds, to the microsecond. */
export function inMicroseconds(ms: number): number {
  return Math.round(ms * 1_000) / 1_000;
}

type Users = ReadonlyMap<SnapshotId, readonly string[]>;

async function usersOf({ deps }: Core): Promise<Users> {
  const users = new Map<SnapshotId, string[]>();
  for (const { id, sandbox } of await deps.store.query('snapshotUsers', {})) users.set(id, [...(users.get(id) ?? []), sandbox]);
  return users;
}

type View = Omit<Output<'snapshot.create'>, 'stillMs'>;

export async function shown(core: Core, snapshot: Snapshot): Promise<View> {
  return viewOf(snapshot, await usersOf(core));
}

function viewOf(snapshot: Snapshot, users: Users): View {
  const { id, projectId, name, kind, contents, sandboxId, parentId, ownBytes, apparentBytes, createdAtMs, spec } = snapshot;
  return {
    ...{ id, projectId, name, kind, contents, sandboxId, sandboxName: spec.name, parentId },
    ...{ backend: spec.backend, imageId: spec.imageId, kernelId: spec.kernelId, shape: spec.shape },
    ...{ ownBytes, apparentBytes, createdAtMs, usedBy: [...(users.get(id) ?? [])] },
    before: beforeOf(snapshot),
  };
}

/** One that was made here, or of a user's files, is another one wherever it is brought. */
export async function imageTravels({ deps }: Core, op: Operation, { spec }: Snapshot): Promise<boolean> {
  const image = await deps.store.query('image', { id: spec.imageId });
  return image !== null && deps.images !== null && (await deps.images.layers(op, image.digest)).length > 0;
}
