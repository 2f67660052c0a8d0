// A snapshot that comes from elsewhere. Nothing that it says is believed before it was looked at: its files are written where our own numbers say, each within
// its bounds and compared with its digest as it comes, and all of it is compared once more before it is on record. What fails leaves nothing; what a crash
// leaves is no snapshot's, and is removed by the next start.
import { z } from 'zod';
import type { SnapshotPlaces } from '../backends/snapshots.ts';
import { ArchiveError, shown } from '../domain/archive-error.ts';
import { HutchError } from '../domain/errors.ts';
import { isName, newId } from '../domain/ids.ts';
import { IDLE_ACTIONS, NETWORK_MODES, RESTART_POLICIES, type SandboxSpec } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import { through } from '../images/layers/unpack.ts';
import type { Receiver } from '../images/snapshot/archive.ts';
import type { SnapshotConfig } from '../images/snapshot/artifact.ts';
import { unpackPieces } from '../images/snapshot/pieces.ts';
import type { Call } from './call.ts';
import type { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import { beginningOf } from './from-snapshot.ts';
import { foundHoldings } from './holdings.ts';
import { bytesOfImage, type Standing, standingOf, type Target, takeAlong, targetsOf } from './snapshot-bring.ts';
import { requirePortable, stagingFor } from './snapshot-packing.ts';
import { refuseTaken, requireSnapshotRoom, snapshotDir, snapshotsDir } from './snapshots.ts';
import {
  argv,
  CPUS_MAX,
  DISK_MIB_MAX,
  DISK_MIB_MIN,
  env,
  idle,
  label,
  MEMORY_MIB_MAX,
  MEMORY_MIB_MIN,
  PIDS_MAX,
  PIDS_MIN,
  path,
  TIMEOUT_MS_MAX,
  TIMEOUT_MS_MIN,
  undo,
  user,
} from './verbs/fields.ts';

const RELEASE_MS = 60_000;
const MIB = 1_048_576;

const name = z.string().refine(isName, 'is no name of a sandbox');
/** What its sandbox was made as, within the bounds of what anybody may ask for. */
const madeSchema = z.strictObject({
  name,
  shape: z.strictObject({
    cpus: z.int().min(1).max(CPUS_MAX),
    memoryMiB: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX),
    diskMiB: z.int().min(DISK_MIB_MIN).max(DISK_MIB_MAX),
    pids: z.int().min(PIDS_MIN).max(PIDS_MAX).exactOptional(),
  }),
  network: z.enum(NETWORK_MODES),
  env,
  labels: label,
  workdir: path.nullable(),
  user: user.nullable(),
  main: z.strictObject({ argv, tty: z.boolean(), stdin: z.enum(['open', 'null']) }).nullable(),
  timeoutMs: z.int().min(TIMEOUT_MS_MIN).max(TIMEOUT_MS_MAX).nullable(),
  restart: z.enum(RESTART_POLICIES).exactOptional(),
  idleMs: idle.exactOptional(),
  idleAction: z.enum(IDLE_ACTIONS).exactOptional(),
  undo: undo.exactOptional(),
});

export type Arrived = {
  readonly snapshot: Snapshot;
  readonly secretNames: readonly string[] /** Null: its memory can go on here. */;
  readonly misfit: string | null;
};

type Place = {
  readonly config: SnapshotConfig;
  readonly spec: SandboxSpec;
  readonly called: string | null;
  readonly places: SnapshotPlaces;
  readonly standing: Standing;
  /** By the number of a part; null: what it has is not wanted. */
  readonly targets: readonly (Target | null)[];
};

/** `bring` gives all of it to the receiver, in order. @throws HutchError for all that is not whole, or cannot be here. */
export async function takeIn(
  core: Core,
  claims: Claims,
  call: Call,
  wanted: string | undefined,
  bring: (receiver: Receiver<Place>) => Promise<Place>,
): Promise<Arrived> {
  const { op } = call;
  const { host } = core.deps;
  await requireFreeSpace(op, core.deps);
  if (wanted !== undefined) await refuseTaken(core, call, wanted);
  const id = newId('snp', (count) => host.randomBytes(count));
  const dir = snapshotDir(core, id);
  await using cleanUp = new AsyncDisposableStack();
  cleanUp.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host
      .remove(late, dir)
      .catch((cause: unknown) => op.log.warn({ dir, cause }, 'what a failed import wrote stays; the next start of the daemon removes it'));
  });
  await host.makeDir(op, snapshotsDir(core), 0o711);
  await using staged = await stagingFor(core, op, 'import');
  const { config, spec, called, places, standing } = await bring({
    begin: (said) => place(core, claims, call, { dir, along: staged.dir }, said, wanted),
    wants: ({ targets }, at) => targets[at] !== null,
    part: (where, at, bytes, also) => writePart(core, op, where, at, bytes, also),
  });
  await places.complete(op);
  await host.sync(op, dir);
  await host.sync(op, snapshotsDir(core));
  op.progress({ step: 'comparing with what was written' });
  const { snapshots } = backendOf(core.deps, op, spec.backend);
  await snapshots?.check(op, dir);
  const bytes = dataBytes(config.parts.slice(0, places.parts.length));
  const { secretNames, contents } = config;
  const detail = { ...((await snapshots?.describe?.(op, dir)) ?? {}), ...(secretNames.length === 0 ? {} : { secretNames }) };
  const fresh = { id, projectId: call.caller.projectId, name: called, kind: 'kept', contents, sandboxId: null, parentId: null } as const;
  const { freeBytes } = await host.fileSystem(op, core.deps.places.dataDir);
  const along = { dir: staged.dir, bytesMax: Math.max(0, freeBytes - (core.deps.settings.freeMiBMin ?? 0) * MIB) };
  const { holdings, wholeBytes } = await foundHoldings(core, op, spec.backend, dir);
  const whole = { ...fresh, spec, apparentBytes: Math.max(bytes, wholeBytes), createdAtMs: host.nowMs(), detail };
  const snapshot = await takeAlong(core, op, config, standing, along, async (also) => {
    const [put] = await call.commit([{ change: 'createSnapshot', snapshot: whole, holdings }, ...also]);
    return put;
  });
  cleanUp.move();
  call.target(id);
  return { snapshot, secretNames, misfit: await misfitOf(core, op, snapshot) };
}

/** All that can be judged before the first of its files comes. */
async function place(
  core: Core,
  claims: Claims,
  call: Call,
  { dir, along }: { readonly dir: string; readonly along: string },
  config: SnapshotConfig,
  wanted: string | undefined,
): Promise<Place> {
  const { op } = call;
  const { host, places: own } = core.deps;
  const made = madeSchema.safeParse(config.made);
  if (!made.success) {
    const [issue] = made.error.issues;
    throw new ArchiveError(
      `what its sandbox was made as is damaged: ${shown(issue?.path.join('.') ?? '')}: ${issue?.message.slice(0, 200)}`,
    );
  }
  const called = wanted ?? config.name;
  if (called !== null && !isName(called)) throw new ArchiveError(`it is called ${shown(called)}, which is no name`);
  if (called !== null) await refuseTaken(core, call, called);
  const backend = backendOf(core.deps, op, config.backend);
  await claims.need(op, backend, 'snapshot');
  const portable = requirePortable(op, backend.snapshots?.portable, backend.name);
  const standing = await standingOf(core, op, config);
  const { imageId, kernelId } = standing;
  const spec = { imageId, kernelId, ...made.data, backend: config.backend, secretNames: [], autoRemove: false };
  const { freeBytes } = await host.fileSystem(op, own.dataDir);
  const needed = dataBytes(config.parts) + (core.deps.settings.freeMiBMin ?? 0) * MIB;
  if (freeBytes < needed) {
    const [needs, free] = [needed, freeBytes].map((bytes) => Math.ceil(bytes / MIB));
    throw op.error(
      'resource_exhausted',
      `the snapshot takes ${needs} MiB with what must stay free (limits.free), and ${free} MiB are free`,
    );
  }
  const { shape } = spec;
  const imageDigest = await bytesOfImage(core, op, config);
  const places = await portable.place(op, dir, config.machine, { shape, contents: config.contents, imageDigest });
  await requireSnapshotRoom(core, call.caller.projectId, dataBytes(config.parts.slice(0, places.parts.length)));
  const expectations = [...places.parts.map((to) => ({ name: to.name, to })), ...targetsOf(config, standing, along)];
  for (const [at, { name: said, bytes, dataBytes: data }] of config.parts.entries()) {
    const expected = expectations[at];
    if (expected?.name !== said || bytes > (expected.to?.bytesMax ?? Number.POSITIVE_INFINITY) || data > bytes)
      throw new ArchiveError(
        `there is a part ${shown(said)} of ${bytes} bytes in it, where ${expected === undefined ? 'none' : shown(expected.name)} should be`,
      );
  }
  if (expectations.length !== config.parts.length) throw new ArchiveError('parts of it are missing');
  return { config, spec, called, places, standing, targets: expectations.map(({ to }) => to) };
}

async function writePart(
  { deps: { host } }: Core,
  op: Operation,
  { config, targets }: Place,
  at: number,
  bytes: AsyncIterable<Uint8Array>,
  also: readonly number[],
): Promise<void> {
  const part = config.parts[at];
  const to = targets[at];
  if (part === undefined || to == null) throw new Error(`a snapshot has no part ${at}`);
  op.progress({ step: 'unpacking', detail: part.name, done: at, total: config.parts.length });
  const pieces = unpackPieces(through(bytes, 'zstd'), { sizeBytes: part.bytes, dataBytes: part.dataBytes });
  await host.writeSparse(op, to.path, part.bytes, pieces);
  for (const other of also) {
    const same = targets[other];
    const said = config.parts[other];
    if (same == null || said?.bytes !== part.bytes || said.dataBytes !== part.dataBytes)
      throw new ArchiveError(`${shown(part.name)} and ${shown(said?.name ?? '')} have the same bytes and not the same length`);
    await host.cloneFile(op, to.path, same.path);
    await settle(same);
  }
  await settle(to);

  async function settle(one: Target): Promise<void> {
    await host.chmod(op, one.path, one.mode);
    await host.sync(op, one.path);
  }
}

function dataBytes(parts: SnapshotConfig['parts']): number {
  return parts.reduce((sum, part) => sum + part.dataBytes, 0);
}

/** It is here whether or not its memory can go on here: on another day, or with force, it may. */
async function misfitOf(core: Core, op: Operation, snapshot: Snapshot): Promise<string | null> {
  try {
    await beginningOf(core, op, snapshot, snapshot.spec, false);
    return null;
  } catch (error) {
    if (error instanceof HutchError && error.code === 'failed_precondition') return error.message;
    throw error;
  }
}
