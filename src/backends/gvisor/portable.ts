// Snapshots that travel: the runtime's own file, which goes on with the same release and platform alone, and the disk.
import { join } from 'node:path';
import { partsOf } from '../hashes.ts';
import type { Portable, SnapshotPlaces } from '../snapshots.ts';
import { isOrdered } from '../stored.ts';
import type { GvisorConfig } from './config.ts';
import { CHECKPOINT, keepSaved, parseSaved, readSaved, type Saved } from './saved.ts';
import { makeRoomFor, partsOfDisk } from './saved-disk.ts';

const MIB = 1024 * 1024;
const MODE = 0o600;
/** Beside the memory, what the kernel in user space keeps of its own. */
const CHECKPOINT_MORE_BYTES = 4 * 1024 * MIB;

export function newPortable({ host, imprintPath }: Pick<GvisorConfig, 'host' | 'imprintPath'>): Portable {
  return {
    async parts(op, dir) {
      const read = await readSaved(op, host, dir);
      if (!read.ok) throw op.error('failed_precondition', `the snapshot cannot be used: ${read.why}`);
      return { machine: read.saved, parts: await partsOf(op, host, imprintPath, namesOf(dir, read.saved)) };
    },
    async place(op, dir, machine, { shape, contents, imageDigest }) {
      const refused = (why: string): Error => op.error('failed_precondition', `the snapshot cannot be used: ${why}`);
      const parsed = parseSaved(machine);
      if (!parsed.ok) throw refused('what it says of its machine is damaged');
      const { saved } = parsed;
      const { fingerprint, checkpoint, disk } = saved;
      if ((checkpoint !== null) !== (contents !== 'disk') || disk === null)
        throw refused('what it says of its contents contradicts itself');
      const isSame =
        checkpoint === null ||
        (fingerprint.memoryMiB === shape.memoryMiB &&
          fingerprint.cpus === shape.cpus &&
          (imageDigest === null || fingerprint.image === imageDigest) &&
          checkpoint.bytes <= shape.memoryMiB * MIB + CHECKPOINT_MORE_BYTES);
      if (!isSame || disk.bytes > shape.diskMiB * MIB) throw refused('its shape is not that of its machine');
      if ('layers' in disk && !isOrdered(disk)) throw refused('its layers are in no order');
      await host.makeDir(op, dir, 0o700);
      await makeRoomFor(op, host, dir, disk);
      return {
        parts: namesOf(dir, saved).map((named) => ({ ...named, mode: MODE })),
        complete: (late) => keepSaved(late, host, dir, saved),
      } satisfies SnapshotPlaces;
    },
  };
}

function namesOf(dir: string, { checkpoint, disk }: Saved) {
  return [
    ...(checkpoint === null ? [] : [{ name: 'checkpoint', path: join(dir, CHECKPOINT), bytesMax: checkpoint.bytes }]),
    ...(disk === null ? [] : partsOfDisk(dir, disk)),
  ];
}
