// What is written down of a snapshot: which layers its disk has, each by the digest of its bytes, and where in the Engine they lie.
import { join } from 'node:path';
import * as z from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/);
/** An Engine mounts no more of them over each other. */
export const LAYERS_MAX = 125;
const BYTES_MAX = 16 * 1024 ** 4;

const layers = z.array(digest).min(1).max(LAYERS_MAX);
const files = z.array(z.strictObject({ digest, bytes: z.int().min(0).max(BYTES_MAX) })).max(LAYERS_MAX);
const savedSchema = z.strictObject({
  version: z.literal(1),
  /** Of what it stands on beside the image: the last one is what was written last. */
  layers,
  /** Null: it was brought here, and is brought into an Engine when it is wanted. */
  image: z
    .strictObject({
      id: digest,
      below: z.array(digest).max(LAYERS_MAX),
      engine: z.strictObject({ identity: z.string(), address: z.string() }),
      /** What each of `layers` takes there; what an older version of Hutch wrote does not say. */
      layerBytes: z.array(z.int().min(0)).max(LAYERS_MAX).exactOptional(),
    })
    .nullable(),
  /** Those that lie beside this, as files. */
  files,
});
export type Saved = z.infer<typeof savedSchema>;

/** What travels: no word of the Engine that it was made by. */
const machineSchema = z.strictObject({
  version: z.literal(1),
  layers,
  files: files.min(1),
});
export type Machine = z.infer<typeof machineSchema>;

const NOTE = 'snapshot.json';
const NOTE_BYTES_MAX = 64 * 1024;

export async function writeSaved(op: Operation, host: Host, dir: string, saved: Saved): Promise<void> {
  await host.writeFileAtomic(op, join(dir, NOTE), JSON.stringify(savedSchema.parse(saved)), 0o600);
}

/** @throws HutchError `failed_precondition` when it is damaged, or not there. */
export async function readSaved(op: Operation, host: Host, dir: string): Promise<Saved> {
  const path = join(dir, NOTE);
  if ((await host.stat(op, path)) === null) throw unusable(op, dir, `${NOTE} is gone`);
  const read = savedSchema.safeParse(jsonOf(await host.readFile(op, path, NOTE_BYTES_MAX)));
  if (read.success) return read.data;
  throw unusable(op, dir, `${NOTE} is damaged`);
}

/** Null: it is none. */
export function parseMachine(value: unknown): Machine | null {
  const read = machineSchema.safeParse(value);
  if (!read.success) return null;
  const { layers, files } = read.data;
  const had = new Set(files.map(({ digest }) => digest));
  return had.size === files.length && layers.every((layer) => had.has(layer)) ? read.data : null;
}

export function unusable(op: Operation, dir: string, why: string, hint = `it lies in ${dir}`): Error {
  return op.error('failed_precondition', `what was saved cannot be used: ${why}`, { hint });
}

function jsonOf(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null; // which no schema takes
  }
}
