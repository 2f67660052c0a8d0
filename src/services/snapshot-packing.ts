// A snapshot made ready to travel: each of its files packed, in a directory that goes when it has left. What a crash leaves of that is no
// snapshot's, and is removed by the next start.
import { createHash } from 'node:crypto';
import type { Portable, SnapshotPart } from '../backends/snapshots.ts';
import { hashed } from '../domain/hashed.ts';
import { ENGINE_REFERENCE } from '../domain/image.ts';
import type { SandboxSpec } from '../domain/sandbox.ts';
import { type Carry, type Snapshot, secretsOf } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { PackedPart } from '../images/snapshot/archive.ts';
import { type Artifact, artifactOf, type Brings, type PartSaid, type SnapshotConfig } from '../images/snapshot/artifact.ts';
import { packPieces } from '../images/snapshot/pieces.ts';
import { packedWithZstd } from '../images/zstd.ts';
import type { Core } from './core.ts';
import { requireFreeSpace } from './free-space.ts';
import { carried } from './snapshot-carry.ts';
import { imageTravels, readSnapshotFiles, snapshotDir, snapshotsDir, snapshotsOf } from './snapshots.ts';

const RELEASE_MS = 60_000;

export type PackedSnapshot = AsyncDisposable & {
  readonly artifact: Artifact;
  readonly parts: readonly PackedPart[];
  /** Of the parts. */
  readonly names: readonly string[];
};

/** @throws HutchError `failed_precondition` for one that is damaged, or of a backend whose snapshots stay where they are. */
export async function packSnapshot(core: Core, op: Operation, snapshot: Snapshot, carry: Carry): Promise<PackedSnapshot> {
  await requireImage(core, op, snapshot);
  using _reading = readSnapshotFiles(core, op, snapshot);
  const dir = snapshotDir(core, snapshot.id);
  const snapshots = snapshotsOf(core, op, snapshot);
  const portable = requirePortable(op, snapshots.portable, snapshot.spec.backend);
  await requireFreeSpace(op, core.deps);
  op.progress({ step: 'comparing with what was written' });
  await snapshots.check(op, dir, 'what is needed');
  await using undo = new AsyncDisposableStack();
  const staged = undo.use(await stagingFor(core, op, 'export'));
  const { machine, parts: own } = await portable.parts(op, dir, staged.dir);
  const along = await carried(core, op, snapshot, carry, staged.dir);
  const parts = [...own, ...(along?.parts ?? [])];
  const said: PartSaid[] = [];
  const packed: PackedPart[] = [];
  for (const [at, part] of parts.entries()) {
    op.progress({ step: 'packing', detail: part.name, done: at, total: parts.length });
    const { dataBytes, ...rest } = await packPart(core, op, part, `${staged.dir}/${at}`);
    said.push({ name: part.name, bytes: part.bytes, dataBytes });
    packed.push(rest);
  }
  const artifact = artifactOf(await configOf(core, op, snapshot, { machine, parts: said, brings: along?.brings ?? null }), packed);
  const owned = undo.move();
  return { artifact, parts: packed, names: said.map(({ name }) => name), [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** What only an Engine of others' has, no other machine finds by what is written down of it. */
async function requireImage({ deps: { store } }: Core, op: Operation, { spec, name, id }: Snapshot): Promise<void> {
  const image = await store.query('image', { id: spec.imageId });
  const reference = image?.detail[ENGINE_REFERENCE];
  if (reference === undefined) return;
  throw op.error(
    'failed_precondition',
    `snapshot ${name ?? id} stands on an image of the Docker Engine (${String(reference)}), and stays there`,
    {
      hint: 'one that stands on an image of Hutch travels: hutch image pull REF, then hutch run --backend docker --image REF',
    },
  );
}

/** A directory for what is on its way, gone when it is disposed. */
export async function stagingFor(
  core: Core,
  op: Operation,
  what: 'export' | 'import' | 'pull' | 'diff',
): Promise<AsyncDisposable & { readonly dir: string }> {
  const { host } = core.deps;
  const dir = `${snapshotsDir(core)}/${what}-${op.id}`;
  await host.makeDir(op, snapshotsDir(core), 0o711);
  await host.makeDir(op, dir, 0o700);
  return {
    dir,
    async [Symbol.asyncDispose]() {
      using late = op.releasing(RELEASE_MS);
      await host
        .remove(late, dir)
        .catch((cause: unknown) => op.log.warn({ dir, cause }, 'what was on its way stays; the next start of the daemon removes it'));
    },
  };
}

export function requirePortable(op: Operation, portable: Portable | undefined, backend: string): Portable {
  if (portable !== undefined) return portable;
  throw op.error('failed_precondition', `snapshots of the backend ${backend} stay on the machine on which they were made`);
}

async function packPart(
  { deps: { host } }: Core,
  op: Operation,
  { path, bytes, places }: SnapshotPart,
  to: string,
): Promise<PackedPart & { readonly dataBytes: number }> {
  const hash = createHash('sha256');
  let dataBytes = 0;
  const pieces = packPieces(
    bytes,
    places,
    (offset, length) => host.readRange(op, path, offset, length),
    (data) => {
      dataBytes += data;
    },
  );
  const sizeBytes = await host.appendStream(op, to, hashed(packedWithZstd(pieces), hash));
  return { digest: `sha256:${hash.digest('hex')}`, sizeBytes, dataBytes, open: (offset = 0) => host.readStream(op, to, offset) };
}

async function configOf(
  core: Core,
  op: Operation,
  snapshot: Snapshot,
  { machine, parts, brings }: { readonly machine: object; readonly parts: PartSaid[]; readonly brings: Brings | null },
): Promise<SnapshotConfig> {
  const { name, contents, createdAtMs, spec, detail } = snapshot;
  const { store } = core.deps;
  const image = await store.query('image', { id: spec.imageId });
  const kernel = spec.kernelId === null ? null : await store.query('kernel', { id: spec.kernelId });
  if (image === null || ENGINE_REFERENCE in image.detail) throw new Error('the image of a snapshot is not on record');
  return {
    ...(brings === null ? { version: 1 } : { version: 2, brings }),
    ...{ name, backend: spec.backend, contents, createdAtMs },
    image: { digest: image.digest, names: [...image.names].sort(), travels: await imageTravels(core, op, snapshot) },
    kernel: kernel === null ? null : { digest: kernel.digest, version: kernel.version },
    made: madeAs(spec),
    secretNames: [...secretsOf({ detail })],
    machine: { ...machine },
    parts,
  };
}

/** Nothing of the machine that it was made on: no id, and no place. */
function madeAs({ name, shape, network, env, labels, workdir, user, main, timeoutMs, ...spec }: SandboxSpec): Record<string, unknown> {
  const { restart, idleMs, idleAction, undo } = spec;
  return { name, shape, network, env, labels, workdir, user, main, timeoutMs, restart, idleMs, idleAction, undo };
}
