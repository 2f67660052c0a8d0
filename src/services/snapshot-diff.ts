// What files differ between two snapshots of one image. Their disks are laid out beside, their journals are written into them by e2fsck, and the rest
// is read by ourselves: no kernel mounts what a guest has written.
import { createHash } from 'node:crypto';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import { named } from '../images/build.ts';
import { rawDisk } from '../images/disk/bytes.ts';
import { type Change, changesBetween, joined, type Node, type Tree } from '../images/disk/changes.ts';
import { Ext4 } from '../images/disk/ext4.ts';
import { parseListing } from '../images/disk/listing.ts';
import { readUpper } from '../images/disk/upper.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import type { Handlers } from './handlers.ts';
import { stagingFor } from './snapshot-packing.ts';
import { findSnapshot, readSnapshotFiles, snapshotDir, snapshotsOf } from './snapshots.ts';
import type { Output } from './verbs.ts';

const LOOK_MS = 10 * 60_000;
/** e2fsck: what was wrong has been mended. */
const MENDED = 1;
const LISTING_BYTES_MAX = 256 * 1024 * 1024;
/** A file of the image that is larger, and was written to, is taken for changed. */
const COMPARED_BYTES_MAX = 32 * 1024 * 1024;
const CHANGES_MAX = 50_000;

type Diff = Output<'snapshot.diff'>;

export function snapshotDiffVerb(core: Core): Pick<Handlers, 'snapshot.diff'> {
  const { host } = core.deps;
  return {
    'snapshot.diff': async (call, { snapshot: text, to }) => {
      const { op, caller } = call;
      const [before, after] = [await findSnapshot(core, op, caller.projectId, text), await findSnapshot(core, op, caller.projectId, to)];
      call.target(before.id);
      if (before.spec.imageId !== after.spec.imageId)
        throw op.error('failed_precondition', `snapshots ${text} and ${to} are not of one image: nearly every file of them differs`, {
          hint: 'compare snapshots of sandboxes of one image; what an image has: hutch image sbom',
        });
      await requireFreeSpace(op, core.deps);
      await using staged = await stagingFor(core, op, 'diff');
      return await named(op, 'the disk of a snapshot', async () => {
        const image = await imageOf(core, op, before);
        const [old, now] = [await sideOf(core, op, before, `${staged.dir}/before`), await sideOf(core, op, after, `${staged.dir}/after`)];
        op.progress({ step: 'comparing files' });
        const isSame = async (path: string, left: Node, right: Node): Promise<boolean> => {
          if (left.inode !== null && right.inode !== null && left.inode.sizeBytes !== right.inode.sizeBytes) return false;
          const [a, b] = [await hashOf(op, path, left, old), await hashOf(op, path, right, now)];
          return a !== null && a === b;
        };
        return await told(changesBetween(joined(image.tree, old.layer), joined(image.tree, now.layer), isSame), before, after);

        /** Null: it is too large to be looked at. */
        async function hashOf(looking: Operation, path: string, { inode }: Node, { files }: Side): Promise<string | null> {
          if (inode !== null) {
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

type Side = { readonly files: Ext4; readonly layer: Awaited<ReturnType<typeof readUpper>> };

async function sideOf(core: Core, op: Operation, snapshot: Snapshot, path: string): Promise<Side> {
  const { host } = core.deps;
  using _reading = readSnapshotFiles(core, op, snapshot);
  const { layOut } = snapshotsOf(core, op, snapshot);
  if (layOut === undefined) throw op.error('failed_precondition', `the disks of the backend ${snapshot.spec.backend} cannot be compared`);
  op.progress({ step: 'laying out its disk' });
  const { layer } = await layOut(op, snapshotDir(core, snapshot.id), path);
  using limited = op.within(LOOK_MS, 'writing the journal of a disk into it');
  const { exitCode, stdout } = await host.run(limited, ['e2fsck', '-y', '-E', 'journal_only', path]);
  if (exitCode > MENDED) {
    const said = new TextDecoder()
      .decode(stdout)
      .replace(/[^\x20-\x7e]+/g, ' ')
      .trim()
      .slice(0, 200);
    throw op.error('failed_precondition', `the disk of snapshot ${snapshot.name ?? snapshot.id} is damaged: ${said}`);
  }
  const files = await Ext4.open(rawDisk(op, host, path, (await host.stat(op, path))?.sizeBytes ?? 0));
  return { files, layer: await readUpper(files, layer) };
}

async function imageOf(core: Core, op: Operation, { spec }: Snapshot): Promise<{ readonly path: string; readonly tree: Tree }> {
  const { files } = await core.deps.boots.of(op, spec, backendOf(core.deps, op, spec.backend).needs);
  if (!('imagePath' in files)) throw op.error('failed_precondition', 'the image of these snapshots lies elsewhere');
  using limited = op.within(LOOK_MS, 'listing the files of an image');
  const argv = ['rdsquashfs', '--describe', files.imagePath];
  const { exitCode, stdout, stderr } = await core.deps.host.run(limited, argv, { outputBytesMax: LISTING_BYTES_MAX });
  if (exitCode !== 0) throw op.error('internal', `the image cannot be listed: ${new TextDecoder().decode(stderr).slice(0, 300)}`);
  return { path: files.imagePath, tree: parseListing(Buffer.from(stdout).toString('latin1')) };
}

async function told(changes: AsyncIterable<Change>, before: Snapshot, after: Snapshot): Promise<Diff> {
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
