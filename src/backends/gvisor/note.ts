// What a sandbox that runs was started with, for a daemon that comes later. It lies in the run directory, so it is gone with the
// boot of the host, as the sandbox is.
import { join } from 'node:path';
import { z } from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';

const NOTE = 'started.json';
const NOTE_BYTES_MAX = 64 * 1024;

const note = z.strictObject({
  image: z.string(),
  basePath: z.string(),
  overPath: z.string().nullable(),
  network: z.strictObject({ mac: z.string(), address: z.string(), gateway: z.string(), dns: z.array(z.string()), mtu: z.int() }).nullable(),
});

export type Note = z.infer<typeof note>;

export async function writeNote(op: Operation, host: Host, { runDir }: SandboxPlan, content: Note): Promise<void> {
  const bytes = new TextEncoder().encode(JSON.stringify(note.parse(content)));
  await host.writeSparse(op, join(runDir, NOTE), bytes.byteLength, [{ offset: 0, bytes }]);
}

/** Null for one that was started by a version of Hutch that wrote none. */
export async function readNote(op: Operation, host: Host, { runDir }: SandboxPlan): Promise<Note | null> {
  const path = join(runDir, NOTE);
  if ((await host.stat(op, path)) === null) return null;
  return note.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, NOTE_BYTES_MAX))));
}
