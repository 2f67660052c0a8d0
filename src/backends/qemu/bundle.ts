// A machine that was taken down in writing: memory, device state and, in a snapshot, its disks, in a directory that
// needs nothing outside of it. What it has in common with others (the template's memory, earlier layers) is there
// under one more name of the same file, so nothing that it needs can be taken from it, and nothing is stored twice.
//
// It is complete once `manifest.json` is there, which is written last.
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { sha256, storeSchema } from '../stored.ts';
import { STATE_BYTES_MAX } from './manifest.ts';

export const STATE = 'state';
const MANIFEST = 'manifest.json';
const MANIFEST_BYTES_MAX = 1024 * 1024;

const hash = z.string().regex(/^[0-9a-f]{16}$/);

/** Everything that must be the same where it goes on. */
export const fingerprintSchema = z.strictObject({
  emulator: z.string().max(128),
  acceleration: z.enum(['kvm', 'tcg']),
  /** Of the host's processor; empty where the guest does not see it. */
  cpu: z.string().max(128),
  cpus: z.int().positive(),
  memoryMiB: z.int().positive(),
  image: z.string().max(128),
  /** Digest of the machine's argument vector. */
  machine: z.string().max(128),
  /** Digests; what an older version of Hutch wrote has neither. */
  kernel: z.string().max(128).exactOptional(),
  agent: z.string().max(128).exactOptional(),
});
export type Fingerprint = z.infer<typeof fingerprintSchema>;

/** Another one where files mean something else; what an older release left out is optional below. */
const FORMAT = 1;

const manifest = z.strictObject({
  version: z.literal(FORMAT),
  fingerprint: fingerprintSchema,
  /** `dir` has a name that is not to be guessed: what lies in it is read by the users of all machines made from it. */
  memory: storeSchema.extend({ dir: z.string().regex(/^memory-[0-9a-f]{32}$/), base: hash.nullable() }).nullable(),
  state: z.strictObject({ bytes: z.int().positive().max(STATE_BYTES_MAX), sha256: z.string().regex(/^[0-9a-f]{64}$/) }).nullable(),
  /** The sandbox's own; null where it stays where it is. */
  disk: storeSchema.nullable(),
  /** Which of the guest's disks is its own; `vdb` is otherwise a copy of the template's. */
  own: z.enum(['vdb', 'vdc']),
  scratch: storeSchema.nullable(),
  takenAtMs: z.int(),
  /** SHA-256 of all the rest, as it stands in the file; what an older version of Hutch wrote has none. */
  sum: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .exactOptional(),
});
export type Manifest = Omit<z.infer<typeof manifest>, 'sum'>;

export type Read = { readonly ok: true; readonly manifest: Manifest } | { readonly ok: false; readonly why: string };

export async function readManifest(op: Operation, host: Host, dir: string): Promise<Read> {
  const path = join(dir, MANIFEST);
  if ((await host.stat(op, path)) === null) return { ok: false, why: 'it is not complete: its manifest is missing' };
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(await host.readFile(op, path, MANIFEST_BYTES_MAX)));
  } catch (error) {
    if (error instanceof SyntaxError) return { ok: false, why: 'its manifest is damaged' };
    throw error;
  }
  return parseManifest(value);
}

export function parseManifest(value: unknown): Read {
  const said = z.looseObject({ version: z.int() }).safeParse(value);
  if (said.success && said.data.version !== FORMAT)
    return { ok: false, why: `another release of Hutch wrote it, in format ${said.data.version}; this one reads format ${FORMAT}` };
  const parsed = manifest.safeParse(value);
  return parsed.success && isSummed(value, parsed.data.sum)
    ? { ok: true, manifest: parsed.data }
    : { ok: false, why: 'its manifest is damaged' };
}

/** The last step: from here on it counts. `lasts`: it outlives the host. */
export async function writeManifest(op: Operation, host: Host, dir: string, content: Manifest, lasts: boolean): Promise<void> {
  const parsed = manifest.parse(content);
  const summed = { ...parsed, sum: sha256(JSON.stringify(parsed)) };
  await writePart(op, host, join(dir, MANIFEST), new TextEncoder().encode(JSON.stringify(summed)), 0o600, lasts);
}

export async function writePart(op: Operation, host: Host, path: string, bytes: Uint8Array, mode: number, lasts: boolean): Promise<void> {
  if (lasts) await host.writeFileAtomic(op, path, bytes, mode);
  else await host.writeSparse(op, path, bytes.byteLength, [{ offset: 0, bytes }]);
}

function isSummed(value: unknown, sum: string | undefined): boolean {
  if (sum === undefined || typeof value !== 'object' || value === null) return true;
  const rest = Object.fromEntries(Object.entries(value).filter(([key]) => key !== 'sum'));
  return sha256(JSON.stringify(rest)) === sum;
}

/** A machine that goes on brings its kernel and its agent along: that they are others now matters to what is made anew from it. */
const BROUGHT = ['kernel', 'agent'] as const;

/** Null when nothing differs, else what does, in words. `machine`: all that it cannot go on without. */
export function difference(saved: Fingerprint, now: Fingerprint, what: 'machine' | 'everything' = 'machine'): string | null {
  const names: Record<keyof Fingerprint, string> = {
    emulator: 'the version of QEMU',
    acceleration: 'the acceleration',
    cpu: 'the processor',
    cpus: 'the number of processors',
    memoryMiB: 'the memory',
    image: 'the image',
    machine: 'the devices of the machine',
    kernel: 'the kernel',
    agent: 'the agent',
  };
  const isBrought = (key: keyof Fingerprint): boolean => (BROUGHT as readonly string[]).includes(key);
  const keys = (Object.keys(names) as (keyof Fingerprint)[]).filter(
    (key) => saved[key] !== now[key] && (!isBrought(key) || (what === 'everything' && saved[key] !== undefined)),
  );
  if (keys.length === 0) return null;
  const said = keys.map((key) => {
    const values = DIGESTS.includes(key) ? '' : ` (${saved[key]} then, ${now[key]} now)`;
    return `${names[key]}${values}`;
  });
  return `${said.join(', ')} ${keys.length === 1 ? 'is' : 'are'} not what ${keys.length === 1 ? 'it was' : 'they were'} when it was made`;
}

const DIGESTS: readonly (keyof Fingerprint)[] = ['machine', 'cpu', 'image', 'kernel', 'agent'];
