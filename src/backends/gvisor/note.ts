// What a sandbox that runs was started with, for a daemon that comes later. It lies in the run directory, so it is gone with the
// boot of the host, as the sandbox is.
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Ground } from './base.ts';

const NOTE = 'started.json';
const NOTE_BYTES_MAX = 64 * 1024;

const said = {
  image: z.string(),
  overPath: z.string().nullable(),
  network: z.strictObject({ mac: z.string(), address: z.string(), gateway: z.string(), dns: z.array(z.string()), mtu: z.int() }).nullable(),
};
const note = z.union([
  z.strictObject({ ...said, basePath: z.string() }),
  z.strictObject({ ...said, imagePath: z.string(), underPath: z.string() }),
]);

export type Note = Omit<z.infer<typeof note>, keyof Ground> & { readonly ground: Ground };

export async function writeNote(op: Operation, host: Host, { runDir }: SandboxPlan, { ground, ...content }: Note): Promise<void> {
  await writePassing(op, host, join(runDir, NOTE), JSON.stringify(note.parse({ ...content, ...ground })));
}

/** A file (0600) of which nobody wants to know after this boot: it is whole or not there, and no disk is waited for. */
export async function writePassing(op: Operation, host: Host, path: string, content: string): Promise<void> {
  const bytes = new TextEncoder().encode(content);
  await host.writeSparse(op, path, bytes.byteLength, [{ offset: 0, bytes }]);
}

/** Null for one that was started by a version of Hutch that wrote none. */
export async function readNote(op: Operation, host: Host, { runDir }: SandboxPlan): Promise<Note | null> {
  const path = join(runDir, NOTE);
  if ((await host.stat(op, path)) === null) return null;
  const read = note.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, NOTE_BYTES_MAX))));
  const { image, overPath, network } = read;
  const ground = 'basePath' in read ? { basePath: read.basePath } : { imagePath: read.imagePath, underPath: read.underPath };
  return { image, overPath, network, ground };
}
