// What files differ between two snapshots of one image, or sandboxes as they are. Their disks are laid out beside, their journals are written into them by e2fsck, and the rest
// is read by ourselves: no kernel mounts what a guest has written.
import { createHash } from 'node:crypto';
import { requireReference } from '../domain/reference.ts';
import type { Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import { named } from '../images/build.ts';
import { rawDisk } from '../images/disk/bytes.ts';
import { type Change, changesBetween, joined, type Layer, type Node, type Tree } from '../images/disk/changes.ts';
import { Ext4, type Inode } from '../images/disk/ext4.ts';
import { type Digested, readLayerTar } from '../images/disk/layer-tar.ts';
import { parseListing } from '../images/disk/listing.ts';
import { readUpper } from '../images/disk/upper.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import type { Handlers } from './handlers.ts';
import { stagingFor } from './snapshot-packing.ts';
import { readSnapshotFiles, snapshotDir, writeDown } from './snapshots.ts';
import type { Output } from './verbs.ts';

const LOOK_MS = 10 * 60_000;
/** e2fsck: what was wrong has been mended. */
const MENDED = 1;
const LISTING_BYTES_MAX = 256 * 1024 * 1024;
/** A file of the image that is larger, and was written to, is taken for changed. */
const COMPARED_BYTES_MAX = 32 * 1024 * 1024;
const CHANGES_MAX = 50_000;

type Diff = Output<'snapshot.diff'>;

/** A snapshot, or a sandbox as it is at this moment. */
type Meant = { readonly id: string; readonly name: string | null; readonly spec: SandboxSpec } & (
  | { readonly snapshot: Snapshot }
  | { readonly sandbox: Sandbox }
);

export function snapshotDiffVerb(core: Core): Pick<Handlers, 'snapshot.diff'> {
  const { host } = core.deps;
  const claims = new Claims();
  return {
    'snapshot.diff': async (call, { snapshot: text, to }) => {
      const { op } = call;
      const [before, after] = [await meant(core, call, text), await meant(core, call, to)];
      call.target(before.id);
      if (before.spec.imageId !== after.spec.imageId)
        throw op.error(
          'failed_precondition',
          `${called(before)} and ${called(after)} are not of one image: nearly every file of them differs`,
          {
            hint: 'compare what is of one image; what an image has: hutch image sbom',
          },
        );
      await requireFreeSpace(op, core.deps);
      await using staged = await stagingFor(core, op, 'diff');
      return await named(op, 'the disk that is compared', async () => {
        const image = await imageOf(core, op, before);
        const [old, now] = [
          await sideOf(core, claims, call, before, `${staged.dir}/before`),
          await sideOf(core, claims, call, after, `${staged.dir}/after`),
        ];
        op.progress({ step: 'comparing files' });
        const isSame = async (path: string, left: Node<Content>, right: Node<Content>): Promise<boolean> => {
          if (left.inode !== null && right.inode !== null && left.inode.sizeBytes !== right.inode.sizeBytes) return false;
          const [a, b] = [await hashOf(op, path, left, old), await hashOf(op, path, right, now)];
          return a !== null && a === b;
        };
        const treeOf = ({ layers }: Side) => layers.reduce((tree, layer) => joined(tree, layer), image.tree as Tree<Content>);
        return await told(changesBetween(treeOf(old), treeOf(now), isSame), before, after);

        /** Null: it is too large to be looked at. */
        async function hashOf(looking: Operation, path: string, { inode }: Node<Content>, { files }: Side): Promise<string | null> {
          if (inode !== null && 'sha256' in inode) return inode.sha256;
          if (inode !== null) {
            if (files === null) throw new Error('a file of a disk is compared, and there is no disk');
            const hash = createHash('sha256');
            for await (const chunk of files.content(inode)) hash.update(chunk);
            return hash.digest('hex');
          }
          using limited = looking.within(LOOK_MS, 'reading a file of the image');
          const argv = ['rdsquashfs', '--cat', `/${path}`, image.path];
          const read = await host.run(limited, argv, { outputBytesMax: COMPARED_BYTES_MAX }).catch(() => null);
          return read?.exitCode === 0 ? createHash('sha256').update(read.stdout).digest('hex') : null;
        }
      });
    },
  };
}

type Content = Inode | Digested;

/** The lowest first. `files`: where what is not read yet is read. */
type Side = { readonly files: Ext4 | null; readonly layers: readonly Layer<Content>[] };

/** A name that a snapshot and a sandbox have means the snapshot; the sandbox has its id. */
async function meant(core: Core, { op, caller: { projectId } }: Call, text: string): Promise<Meant> {
  const { store } = core.deps;
  const snapshots = (await store.query('snapshots', { projectId })).map((snapshot) => ({ ...snapshot, snapshot }));
  const sandboxes = (await store.query('sandboxCandidates', { projectId, text }))
    .filter(({ state }) => state !== 'deleted')
    .map((sandbox) => ({ id: sandbox.id, name: sandbox.spec.name, spec: sandbox.spec, sandbox }));
  const found = requireReference('snapshot or sandbox', text, [...snapshots, ...sandboxes]);
  if ('sandbox' in found && found.sandbox.state === 'error')
    throw op.error('failed_precondition', `${called(found)} is in error: what it is at is not known`, {
      hint: `end it first: hutch stop --force ${found.name}`,
    });
  return found;
}

function called(one: Meant): string {
  return `${'snapshot' in one ? 'snapshot' : 'sandbox'} ${one.name ?? one.id}`;
}

async function sideOf(core: Core, claims: Claims, call: Call, one: Meant, path: string): Promise<Side> {
  const { op } = call;
  const { host } = core.deps;
  op.progress({ step: 'laying out its disk' });
  const out = 'snapshot' in one ? await ofSnapshot(core, op, one.snapshot, path) : await ofSandbox(core, claims, call, one.sandbox, path);
  if ('layers' in out) return { files: null, layers: out.layers };
  const { layer } = out;
  using limited = op.within(LOOK_MS, 'writing the journal of a disk into it');
  const { exitCode, stdout } = await host.run(limited, ['e2fsck', '-y', '-E', 'journal_only', path]);
  if (exitCode > MENDED) {
    const said = new TextDecoder()
      .decode(stdout)
      .replace(/[^\x20-\x7e]+/g, ' ')
      .trim()
      .slice(0, 200);
    throw op.error('failed_precondition', `the disk of ${called(one)} is damaged: ${said}`);
  }
  const files = await Ext4.open(rawDisk(op, host, path, (await host.stat(op, path))?.sizeBytes ?? 0));
  return { files, layers: [await readUpper(files, layer)] };
}

async function ofSnapshot(core: Core, op: Operation, snapshot: Snapshot, path: string): Promise<LaidOut> {
  using _reading = readSnapshotFiles(core, op, snapshot);
  return await layOut(core, op, snapshot.spec, snapshotDir(core, snapshot.id), path);
}

/** Written down for this alone, as for a snapshot of its disk: what runs stands still for that moment. */
async function ofSandbox(core: Core, claims: Claims, call: Call, { id, spec }: Sandbox, path: string): Promise<LaidOut> {
  const { op } = call;
  await claims.need(op, backendOf(core.deps, op, spec.backend), 'snapshot');
  const dir = `${path}.taken`;
  return await core.turns.take(op, id, async () => {
    const sandbox = await core.sandboxes.get(op, id);
    const known = core.runs.get(id);
    const run = known ?? core.runs.make(op, sandbox, { kind: 'gone' }, null);
    using _notKnown = known === null ? run : null;
    await writeDown(core, call, sandbox, { run, dir, contents: 'disk' });
    return await layOut(core, op, spec, dir, path);
  });
}

/** A disk, with the directory in which its layer lies; or layers that are read already. */
type LaidOut = { readonly layer: string } | { readonly layers: readonly Layer<Digested>[] };

async function layOut(core: Core, op: Operation, spec: SandboxSpec, dir: string, path: string): Promise<LaidOut> {
  const { snapshots, name } = backendOf(core.deps, op, spec.backend);
  if (snapshots?.layerFiles !== undefined) {
    const { host } = core.deps;
    const scratch = `${path}.layers`;
    await host.makeDir(op, scratch, 0o700);
    const { paths, hides } = await snapshots.layerFiles(op, dir, scratch);
    const layers: Layer<Digested>[] = [];
    for (const each of paths) layers.push(await readLayerTar(host.readStream(op, each), hides));
    return { layers };
  }
  if (snapshots?.layOut === undefined) throw op.error('failed_precondition', `the disks of the backend ${name} cannot be compared`);
  return await snapshots.layOut(op, dir, path);
}

async function imageOf(core: Core, op: Operation, { spec }: Meant): Promise<{ readonly path: string; readonly tree: Tree }> {
  const { files } = await core.deps.boots.of(op, spec, backendOf(core.deps, op, spec.backend).needs);
  if (!('imagePath' in files))
    throw op.error('failed_precondition', `what stands on an image of the Docker Engine cannot be compared`, {
      hint: 'what stands on an image of Hutch can: hutch image pull REF, then hutch run --backend docker --image REF',
    });
  using limited = op.within(LOOK_MS, 'listing the files of an image');
  const argv = ['rdsquashfs', '--describe', files.imagePath];
  const { exitCode, stdout, stderr } = await core.deps.host.run(limited, argv, { outputBytesMax: LISTING_BYTES_MAX });
  if (exitCode !== 0) throw op.error('internal', `the image cannot be listed: ${new TextDecoder().decode(stderr).slice(0, 300)}`);
  return { path: files.imagePath, tree: parseListing(Buffer.from(stdout).toString('latin1')) };
}

async function told(changes: AsyncIterable<Change<Content>>, before: Meant, after: Meant): Promise<Diff> {
  const counts = { added: 0, removed: 0, changed: 0 };
  const shown: Diff['changes'] = [];
  for await (const { path, change, before: old, after: now, what } of changes) {
    counts[change] += 1;
    if (shown.length >= CHANGES_MAX) continue;
    const [type, wasBytes, isBytes] = [(now ?? old)?.type ?? 'file', old?.inode?.sizeBytes ?? null, now?.inode?.sizeBytes ?? null];
    shown.push({
      path: `/${Buffer.from(path, 'latin1').toString()}`,
      ...{ change, type, what: [...what] },
      ...{ beforeBytes: type === 'file' ? wasBytes : null, afterBytes: type === 'file' ? isBytes : null },
    });
  }
  return { from: before.id, to: after.id, counts, changes: shown, left: counts.added + counts.removed + counts.changed - shown.length };
}
