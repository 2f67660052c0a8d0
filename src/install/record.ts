// What an installation has written down about itself: what it made, so that uninstall removes just that, and an upgrade
// that is under way, so that whoever comes after a power failure can finish or undo it. Written before the deed.
import * as z from 'zod';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { at, type Layout } from './layout.ts';
import { RELEASE_ID } from './release.ts';

const BYTES_MAX = 1_048_576;

const made = z.strictObject({
  kind: z.enum(['directory', 'file', 'link']),
  path: z.string().startsWith('/'),
  /** Of a file: as we made it. One that was changed since is not ours to remove. */
  sha256: z.string().optional(),
});
export type Made = z.output<typeof made>;

const record = z.strictObject({
  format: z.literal(1),
  /** `installing`: it was cut short, or is going on. */
  state: z.enum(['installing', 'installed']),
  service: z.enum(['systemd', 'none']),
  release: z.string().regex(RELEASE_ID),
  previous: z.string().regex(RELEASE_ID).nullable(),
  /** In the order in which it was made. */
  made: z.array(made).max(1_000),
  /** Lingering was turned on by us. */
  linger: z.boolean(),
});
export type InstallRecord = z.output<typeof record>;

const journal = z.strictObject({
  format: z.literal(1),
  from: z.string().regex(RELEASE_ID),
  to: z.string().regex(RELEASE_ID),
  /** `prepared`: nothing is changed yet but for the new release beside; `switching`: anything from there on may have happened. */
  step: z.enum(['prepared', 'switching', 'restoring', 'healthy']),
  /** The store as it was when the old daemon had ended; null until it is copied, and where there is none. */
  storeCopy: z.string().nullable(),
  /** Whether the daemon ran when it began. */
  wasRunning: z.boolean(),
  /** Sandboxes that ran then. */
  running: z.array(z.string()),
  startedAtMs: z.number(),
});
export type Journal = z.output<typeof journal>;

export async function readRecord(op: Operation, host: Host, layout: Layout): Promise<InstallRecord | null> {
  return await read(op, host, at(layout, layout.record), record);
}

export async function writeRecord(op: Operation, host: Host, layout: Layout, content: InstallRecord): Promise<void> {
  await host.writeFileAtomic(op, at(layout, layout.record), `${JSON.stringify(content, null, 1)}\n`, 0o644);
}

export async function readJournal(op: Operation, host: Host, layout: Layout): Promise<Journal | null> {
  return await read(op, host, at(layout, layout.journal), journal);
}

export async function writeJournal(op: Operation, host: Host, layout: Layout, content: Journal): Promise<void> {
  await host.writeFileAtomic(op, at(layout, layout.journal), `${JSON.stringify(content, null, 1)}\n`, 0o644);
}

async function read<T>(op: Operation, host: Host, path: string, schema: z.ZodType<T>): Promise<T | null> {
  if ((await host.stat(op, path)) === null) return null;
  const text = new TextDecoder().decode(await host.readFile(op, path, BYTES_MAX));
  const parsed = schema.safeParse(jsonOf(text));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw op.error('failed_precondition', `${path} cannot be read: ${issue?.path.join('.') ?? ''} ${issue?.message ?? ''}`, {
    hint: 'a newer Hutch may have written it: use that one, or move the file away and install again',
  });
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
