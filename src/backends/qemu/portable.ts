// Snapshots that travel: the whole chain of layers under each memory and disk, so that nothing is needed where they arrive. What comes
// from elsewhere gets names of ours; that its files are what its manifest says, `Bundles.check` proves before it counts.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { partsOf } from '../hashes.ts';
import type { Portable, SnapshotPlaces } from '../snapshots.ts';
import { BASE, isOrdered, MEMORY_MODE, storedParts } from '../stored.ts';
import { type Manifest, parseManifest, readManifest, STATE, writeManifest } from './bundle.ts';
import { DISK_DIR, SCRATCH_DIR } from './capture.ts';
import type { QemuConfig } from './config.ts';
import { newMemoryName } from './running.ts';

const MIB = 1024 * 1024;
const STATE_MODE = 0o400;
/** The copy of a template's disk, which is as long as the disk of its first sandbox. */
const SCRATCH_BYTES_MAX = 2 ** 47;

export function newPortable(config: Pick<QemuConfig, 'host' | 'imprintPath'>): Portable {
  const { host, imprintPath = '' } = config;
  return {
    async parts(op, dir) {
      const read = await readManifest(op, host, dir);
      if (!read.ok) throw op.error('failed_precondition', `the snapshot cannot be used: ${read.why}`);
      return { machine: travelling(read.manifest), parts: await partsOf(op, host, imprintPath, namesOf(dir, read.manifest)) };
    },
    async place(op, dir, machine, of) {
      const manifest = arrived(op, host, machine, of);
      await host.makeDir(op, dir, 0o700);
      if (manifest.memory !== null) await host.makeDir(op, join(dir, manifest.memory.dir), 0o711);
      if (manifest.disk !== null) await host.makeDir(op, join(dir, DISK_DIR), 0o700);
      if (manifest.scratch !== null) await host.makeDir(op, join(dir, SCRATCH_DIR), 0o700);
      return {
        parts: namesOf(dir, manifest).map((named) => ({ ...named, mode: named.name === STATE ? STATE_MODE : MEMORY_MODE })),
        complete: (late) => writeManifest(late, host, dir, manifest, true),
      } satisfies SnapshotPlaces;
    },
  };
}

type Named = { readonly name: string; readonly path: string; readonly bytesMax: number };

/** In the order in which they travel: what is needed for all of it first. */
function namesOf(dir: string, { state, memory, disk, scratch }: Manifest): readonly Named[] {
  return [
    ...(state === null ? [] : [{ name: STATE, path: join(dir, STATE), bytesMax: state.bytes }]),
    ...(disk === null ? [] : storedParts('disk', join(dir, DISK_DIR), disk)),
    ...(scratch === null ? [] : storedParts('scratch', join(dir, SCRATCH_DIR), scratch)),
    ...(memory === null
      ? []
      : [
          { name: `memory/${BASE}`, path: join(dir, memory.dir, BASE), bytesMax: memory.bytes },
          ...storedParts('memory', join(dir, memory.dir), memory),
        ]),
  ];
}

/** Without the name of a directory that is not to be guessed. */
function travelling({ memory, ...rest }: Manifest): Record<string, unknown> {
  if (memory === null) return { ...rest, sum: undefined, memory };
  const { dir: _, ...store } = memory;
  return { ...rest, sum: undefined, memory: store };
}

function arrived(op: Operation, host: Host, machine: Parameters<Portable['place']>[2], of: Parameters<Portable['place']>[3]): Manifest {
  const refused = (why: string): Error => op.error('failed_precondition', `the snapshot cannot be used: ${why}`);
  const { memory: said, ...rest } = machine;
  const memory = typeof said === 'object' && said !== null ? { ...said, dir: newMemoryName(host) } : said;
  const parsed = parseManifest({ ...rest, memory });
  if (!parsed.ok) throw refused('what it says of its machine is damaged');
  const { manifest } = parsed;
  const { fingerprint, disk, scratch, state } = manifest;
  const hasMemory = manifest.memory !== null && state !== null;
  if (hasMemory !== (of.contents !== 'disk') || (manifest.memory === null) !== (state === null) || disk === null)
    throw refused('what it says of its contents contradicts itself');
  const { cpus, memoryMiB, diskMiB } = of.shape;
  const isSame =
    !hasMemory ||
    (fingerprint.memoryMiB * MIB === manifest.memory?.bytes &&
      fingerprint.memoryMiB === memoryMiB &&
      fingerprint.cpus === cpus &&
      (of.imageDigest === null || fingerprint.image === of.imageDigest));
  const fits = disk.bytes <= diskMiB * MIB && (scratch === null || scratch.bytes <= SCRATCH_BYTES_MAX);
  if (!isSame || !fits) throw refused('its shape is not that of its machine');
  for (const store of [manifest.memory, disk, scratch]) {
    if (store !== null && !isOrdered(store)) throw refused('its layers are in no order');
  }
  return manifest;
}
