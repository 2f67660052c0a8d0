// What a machine that runs has: the files that its memory is mapped from, under names of its own, and a note of what
// it was started as. The note lies in the run directory, so it is gone with the boot of the host, as the machine is.
import { join } from 'node:path';
import { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { BASE, layerSchema } from '../stored.ts';
import { fingerprintSchema } from './bundle.ts';

const NOTE = 'machine.json';
const NOTE_BYTES_MAX = 1024 * 1024;
const MEMORY = /^memory-[0-9a-f]{32}$/;

const running = z.strictObject({
  fingerprint: fingerprintSchema,
  own: z.enum(['vdb', 'vdc']),
  /** What the guest was told, or is to be told. */
  started: z.strictObject({
    network: z
      .strictObject({ mac: z.string(), address: z.string(), gateway: z.string(), dns: z.array(z.string()), mtu: z.int() })
      .nullable(),
    disk: z.strictObject({ device: z.string(), sizeBytes: z.int() }),
  }),
  memory: z.strictObject({
    /** Absolute; holds `base`, the layers by their numbers, and their map. */
    dir: z.string(),
    /** What the process has mapped in the place of `base`, where that is no file of the directory. */
    mapped: z.string().exactOptional(),
    /** Of the base, where it is known. */
    base: z.string().nullable(),
    layers: z.array(layerSchema),
  }),
});
/**
 * What a machine that boots has as its memory, through the preloaded library: pages of its own, from zeros, of which no file system holds a
 * second copy. Its directory has a file of zeros in the place of a template's memory, for whoever writes it down.
 */
export const ZEROS = '/dev/zero';

export type Running = z.infer<typeof running>;
export type RunningMemory = Running['memory'];

/** As the process's own list of what it has mapped names it. */
export function mappedOf({ dir, mapped }: RunningMemory): string {
  return mapped ?? join(dir, BASE);
}

/** Its name is not to be guessed: every sandbox's user may read the files in it. */
export function newMemoryName(host: Host): string {
  return `memory-${Buffer.from(host.randomBytes(16)).toString('hex')}`;
}

export async function makeMemoryDir(op: Operation, host: Host, { dataDir }: SandboxPlan): Promise<string> {
  const dir = join(dataDir, newMemoryName(host));
  await host.makeDir(op, dir, 0o711);
  return dir;
}

/** Of a process that is dead, or all but the one that it has mapped. What they lie in may be on its way out itself. */
export async function removeMemoryDirs(op: Operation, host: Host, { dataDir }: SandboxPlan, except: string | null = null): Promise<void> {
  const names = await host.list(op, dataDir).catch((cause: unknown) => {
    if (cause instanceof HutchError && cause.code === 'not_found') return [];
    throw cause;
  });
  for (const name of names) if (MEMORY.test(name) && join(dataDir, name) !== except) await host.remove(op, join(dataDir, name));
}

export async function writeRunning(op: Operation, host: Host, { runDir }: SandboxPlan, note: Running): Promise<void> {
  const bytes = new TextEncoder().encode(JSON.stringify(note));
  await host.writeSparse(op, join(runDir, NOTE), bytes.byteLength, [{ offset: 0, bytes }]);
}

/** Null for one that was started by a version of Hutch that wrote none. */
export async function readRunning(op: Operation, host: Host, { runDir }: SandboxPlan): Promise<Running | null> {
  const path = join(runDir, NOTE);
  if ((await host.stat(op, path)) === null) return null;
  return running.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, NOTE_BYTES_MAX))));
}
