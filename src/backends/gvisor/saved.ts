// What was saved of a sandbox: the runtime's own file, and in a snapshot the disk (saved-disk.ts), in a directory with a note of what
// it is. It is complete once `manifest.json` is there, which is written last.
import { join } from 'node:path';
import { z } from 'zod';
import { isId, type SandboxId } from '../../domain/ids.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Agents } from './agents.ts';
import type { Overs } from './over.ts';
import { DIGEST_CHARS } from './paths.ts';
import { type SavedDisk, savedDiskSchema, whatIsWrong } from './saved-disk.ts';

/** As the runtime names it. */
export const CHECKPOINT = 'checkpoint.img';
export const MANIFEST = 'manifest.json';
/** What it will be: whoever comes later can complete it. */
export const SAVING = 'saving.json';
export const NOTE_BYTES_MAX = 64 * 1024;

/** Everything that must be the same where it goes on. */
const fingerprintSchema = z.strictObject({
  runtime: z.string().max(256),
  platform: z.string().max(32),
  image: z.string().max(128),
  cpus: z.int().positive(),
  memoryMiB: z.int().positive(),
  network: z.boolean(),
  /** The digest of the agent that is in its memory; none before that was asked, and where there is no memory. */
  agent: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
  /** Of the layer over the image that its programs have files of open in (over.ts); null: there is none. As with the agent. */
  over: z
    .string()
    .regex(/^[0-9a-f]{16}$/)
    .nullable()
    .optional(),
});
export type Fingerprint = z.infer<typeof fingerprintSchema>;

const sandboxId = z.custom<SandboxId>((value) => typeof value === 'string' && isId('sbx', value));
const digest = z.string().regex(/^[0-9a-f]{64}$/);
const savedSchema = z.strictObject({
  version: z.literal(1),
  fingerprint: fingerprintSchema,
  /** Null: a disk alone. */
  checkpoint: z.strictObject({ bytes: z.int().positive(), sha256: digest }).nullable(),
  /** Null: it stays where it is. */
  disk: savedDiskSchema.nullable(),
  savedAtMs: z.int(),
});
export type Saved = z.infer<typeof savedSchema>;

const savingSchema = z.strictObject({
  bootId: z.string().max(64),
  fingerprint: fingerprintSchema,
  /** Whose process ends with it. */
  of: z.strictObject({ id: sandboxId, runDir: z.string().max(4096), dataDir: z.string().max(4096) }),
});
export type Saving = z.infer<typeof savingSchema>;

type Read = { readonly ok: true; readonly saved: Saved } | { readonly ok: false; readonly why: string };

export async function readSaved(op: Operation, host: Host, dir: string): Promise<Read> {
  if ((await host.stat(op, join(dir, MANIFEST))) === null) return { ok: false, why: 'it is not complete: its manifest is missing' };
  return parseSaved(await readJson(op, host, join(dir, MANIFEST)));
}

/** What of Hutch's own it goes on with: only what was asked when it was saved. */
export async function programsIn(op: Operation, host: Host, dir: string): Promise<Pick<Fingerprint, 'agent' | 'over'>> {
  const read = await readSaved(op, host, dir);
  if (!read.ok) return {};
  const { agent, over } = read.saved.fingerprint;
  return { ...(agent === undefined ? {} : { agent }), ...(over === undefined ? {} : { over }) };
}

/** Of whatever release wrote it, and whether or not it is all there: digests of agents and names of layers over images. */
export function programsNamedIn(note: string): readonly string[] {
  return [...note.matchAll(/"(?:agent|over)":"([0-9a-f]{16,64})"/g)].map(([, digest = '']) => digest.slice(0, DIGEST_CHARS));
}

export function parseSaved(value: unknown): Read {
  const parsed = savedSchema.safeParse(value);
  return parsed.success ? { ok: true, saved: parsed.data } : { ok: false, why: 'its manifest is damaged' };
}

/** The disk as a snapshot has it; null where there is none, or it is not whole. */
export async function diskOf(op: Operation, host: Host, dir: string): Promise<SavedDisk | null> {
  const read = await readSaved(op, host, dir);
  return read.ok ? read.saved.disk : null;
}

/** What there is of the two, with its checksums; both are on the disk. */
type Content = Pick<Saved, 'fingerprint' | 'checkpoint' | 'disk'>;

/** The last step: from here on it counts. */
export async function writeSaved(op: Operation, host: Host, dir: string, content: Content): Promise<void> {
  await keepSaved(op, host, dir, { version: 1, ...content, savedAtMs: host.nowMs() });
}

export async function keepSaved(op: Operation, host: Host, dir: string, saved: Saved): Promise<void> {
  await host.writeFileAtomic(op, join(dir, MANIFEST), JSON.stringify(savedSchema.parse(saved)), 0o600);
}

export async function checkpointIn(op: Operation, host: Host, dir: string): Promise<Saved['checkpoint']> {
  const path = join(dir, CHECKPOINT);
  return { bytes: (await host.stat(op, path))?.sizeBytes ?? 0, sha256: await host.sha256(op, path) };
}

export async function writeSaving(op: Operation, host: Host, dir: string, saving: Saving): Promise<void> {
  await host.writeFileAtomic(op, join(dir, SAVING), JSON.stringify(saving), 0o600);
}

export async function readSaving(op: Operation, host: Host, dir: string): Promise<Saving | null> {
  if ((await host.stat(op, join(dir, SAVING))) === null) return null;
  return savingSchema.safeParse(await readJson(op, host, join(dir, SAVING))).data ?? null;
}

/**
 * Reads the checkpoint, and the disk too where `imprintPath` is given. `now`: what a sandbox of this plan would be here.
 * @throws HutchError `failed_precondition` with what is wrong.
 */
export async function checkSaved(
  op: Operation,
  host: Host,
  dir: string,
  { now, imprintPath }: { readonly now: Fingerprint | null; readonly imprintPath: string | null },
): Promise<Saved> {
  const refused = (why: string): Error =>
    op.error('failed_precondition', `what was saved cannot be used: ${why}`, { hint: `it lies in ${dir}` });
  const read = await readSaved(op, host, dir);
  if (!read.ok) throw refused(read.why);
  const { saved } = read;
  const { checkpoint, disk } = saved;
  if (checkpoint !== null) {
    const isThere = (await host.stat(op, join(dir, CHECKPOINT)))?.sizeBytes === checkpoint.bytes;
    const isSame = isThere && (await checkpointIn(op, host, dir))?.sha256 === checkpoint.sha256;
    if (!isSame) throw refused(`${CHECKPOINT} is not what was saved`);
  }
  if (disk !== null) {
    const wrong = await whatIsWrong(op, { host, imprintPath }, dir, disk);
    if (wrong !== null) throw refused(`${wrong} is not what was saved`);
  }
  if (now !== null) refuseDifference(op, saved.fingerprint, now);
  return saved;
}

/** Reads no more than its manifest. @throws HutchError `failed_precondition` where it was saved on another machine than `now`. */
export async function refuseOther(
  op: Operation,
  { host, agents, overs }: { readonly host: Host; readonly agents: Agents; readonly overs: Overs },
  dir: string,
  now: Fingerprint,
): Promise<void> {
  const read = await readSaved(op, host, dir);
  if (!read.ok) return;
  refuseDifference(op, read.saved.fingerprint, now);
  await agents.find(op, read.saved.fingerprint.agent);
  await overs.find(op, read.saved.fingerprint.over ?? null);
}

function refuseDifference(op: Operation, saved: Fingerprint, now: Fingerprint): void {
  const why = difference(saved, now);
  if (why === null) return;
  // The runtime has its network in its memory: it is that of then, or none, for good.
  const hint = saved.network
    ? 'it goes on only with a network: without --no-net; a snapshot of the disk alone (--disk-only) begins with any'
    : 'it goes on only without a network: --no-net; a snapshot of the disk alone (--disk-only) begins with any';
  throw op.error('failed_precondition', `what was saved cannot go on here: ${why}`, saved.network === now.network ? {} : { hint });
}

/** Not what is Hutch's own: any that is kept will do (agents.ts, over.ts). */
type Compared = Exclude<keyof Fingerprint, 'agent' | 'over'>;

/** Null when nothing differs, else what does, in words. */
function difference(saved: Fingerprint, now: Fingerprint): string | null {
  const names: Record<Compared, string> = {
    runtime: 'the release of runsc',
    platform: 'the platform of runsc',
    image: 'the image',
    cpus: 'the number of processors',
    memoryMiB: 'the memory',
    network: 'whether it has a network',
  };
  const said = (Object.keys(names) as Compared[])
    .filter((key) => saved[key] !== now[key])
    .map((key) => (key === 'image' || key === 'network' ? names[key] : `${names[key]} (${saved[key]} then, ${now[key]} now)`));
  return said.length === 0 ? null : `${said.join(', ')} ${said.length === 1 ? 'is' : 'are'} not what it was when it was saved`;
}

async function readJson(op: Operation, host: Host, path: string): Promise<unknown> {
  try {
    return JSON.parse(new TextDecoder().decode(await host.readFile(op, path, NOTE_BYTES_MAX)));
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}
