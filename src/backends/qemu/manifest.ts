// What proves that a template is the one that was built. The state is hashed at each restore (tens
// of KiB); the memory's file must be the same file, and its chunks are hashed once in each boot of
// the host, whenever the file is not the same any more, and when somebody asks.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import type { FileInfo, Host, SparsePiece } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { MEMORY_MODE } from '../stored.ts';

export const MEMORY_FILE = 'memory';
export const STATE_FILE = 'state';
/** The pieces of the disk that are not zeros, one after the other. */
const DISK_FILE = 'disk';
const MANIFEST_FILE = 'manifest.json';
const CHECKED_FILE = 'checked.json';

const CHUNK_BYTES = 4 * 1024 * 1024;
const DISK_PIECES_MAX = 100_000;
const DISK_BYTES_MAX = 256 * 1024 * 1024;
const CHUNKS_MAX = 262_144; // 1 TiB
const MANIFEST_BYTES_MAX = 64 * 1024 * 1024;
export const STATE_BYTES_MAX = 64 * 1024 * 1024;

const digest = z.string().regex(/^[0-9a-f]{64}$/);
const manifestSchema = z.strictObject({
  version: z.literal(1),
  key: z.string().regex(/^[0-9a-f]{40}$/),
  memory: z.strictObject({ bytes: z.int().positive(), chunkBytes: z.literal(CHUNK_BYTES), sha256: z.array(digest).max(CHUNKS_MAX) }),
  state: z.strictObject({ bytes: z.int().positive().max(STATE_BYTES_MAX), sha256: digest }),
  disk: z.strictObject({
    sizeBytes: z.int().positive(),
    pieces: z.array(z.tuple([z.int().nonnegative(), z.int().positive()])).max(DISK_PIECES_MAX),
    sha256: digest,
  }),
  builtAtMs: z.int(),
});
export type Manifest = z.infer<typeof manifestSchema>;

/** The last full check of the memory: in which boot, and of which file. */
const checkedSchema = z.strictObject({ bootId: z.string().max(64), identity: z.string().max(256) });

/** `id` is another one for each build: a disk belongs to the memory that knows it. */
export type Sound = { readonly id: string; readonly state: Uint8Array; readonly disk: TemplateDisk };
export type TemplateDisk = { readonly sizeBytes: number; readonly pieces: readonly SparsePiece[] };
export type Checked = ({ readonly ok: true } & Sound) | { readonly ok: false; readonly why: string };

/** Hashes what was built and records it. The files are complete and synced. */
export async function writeManifest(
  op: Operation,
  host: Host,
  dir: string,
  key: string,
  state: Uint8Array,
  disk: TemplateDisk,
): Promise<void> {
  const memory = await host.stat(op, join(dir, MEMORY_FILE));
  if (memory === null) throw op.error('internal', `the template's memory file ${dir}/${MEMORY_FILE} is not there`);
  const content = Buffer.concat(disk.pieces.map(({ bytes }) => bytes));
  await host.writeFileAtomic(op, join(dir, DISK_FILE), content, 0o400);
  const manifest: Manifest = {
    version: 1,
    key,
    memory: {
      bytes: memory.sizeBytes,
      chunkBytes: CHUNK_BYTES,
      sha256: await chunkDigests(op, host, join(dir, MEMORY_FILE), memory.sizeBytes),
    },
    state: { bytes: state.byteLength, sha256: sha256(state) },
    disk: {
      sizeBytes: disk.sizeBytes,
      pieces: disk.pieces.map(({ offset, bytes }) => [offset, bytes.byteLength]),
      sha256: sha256(content),
    },
    builtAtMs: host.nowMs(),
  };
  await host.writeFileAtomic(op, join(dir, MANIFEST_FILE), JSON.stringify(manifest), 0o400);
}

/** Compares the template with its manifest. `full` hashes the memory even if nothing seems to have changed. */
export async function checkTemplate(op: Operation, host: Host, dir: string, key: string, how: 'quick' | 'full'): Promise<Checked> {
  const manifest = await readJson(op, host, join(dir, MANIFEST_FILE), manifestSchema);
  if (manifest === null || manifest.key !== key) return { ok: false, why: 'its manifest is missing or unreadable' };
  const memoryPath = join(dir, MEMORY_FILE);
  const [memory, state, content] = await Promise.all([
    host.stat(op, memoryPath),
    readOrNull(op, host, join(dir, STATE_FILE), STATE_BYTES_MAX),
    readOrNull(op, host, join(dir, DISK_FILE), DISK_BYTES_MAX),
  ]);
  if (state === null || state.byteLength !== manifest.state.bytes || sha256(state) !== manifest.state.sha256) {
    return { ok: false, why: 'its state is not what was saved' };
  }
  if (content === null || sha256(content) !== manifest.disk.sha256) return { ok: false, why: 'its disk is not what was saved' };
  if (memory === null || memory.type !== 'file' || memory.sizeBytes !== manifest.memory.bytes) {
    return { ok: false, why: 'its memory is missing or has another size' };
  }
  const now = { bootId: host.bootId(), identity: identityOf(memory) };
  const checked = how === 'full' ? null : await readJson(op, host, join(dir, CHECKED_FILE), checkedSchema);
  const sound: Sound = {
    id: manifest.state.sha256,
    state,
    disk: { sizeBytes: manifest.disk.sizeBytes, pieces: piecesOf(manifest.disk.pieces, content) },
  };
  if (checked?.bootId === now.bootId && checked.identity === now.identity) return { ok: true, ...sound };
  const digests = await chunkDigests(op, host, memoryPath, memory.sizeBytes);
  const wrong = digests.findIndex((each, at) => each !== manifest.memory.sha256[at]);
  if (digests.length !== manifest.memory.sha256.length || wrong >= 0) {
    return { ok: false, why: `its memory is not what was saved (in chunk ${wrong} of ${digests.length})` };
  }
  if (memory.mode !== MEMORY_MODE) await host.chmod(op, memoryPath, MEMORY_MODE);
  const after = await host.stat(op, memoryPath); // its change time is another one after a chmod
  if (after !== null)
    await host.writeFileAtomic(op, join(dir, CHECKED_FILE), JSON.stringify({ ...now, identity: identityOf(after) }), 0o600);
  return { ok: true, ...sound };
}

/** Of all that a template is; another one once anything of it was touched. Null when something of it is not there. */
export async function filesIdentity(op: Operation, host: Host, dir: string): Promise<string | null> {
  const infos = await Promise.all([MANIFEST_FILE, MEMORY_FILE, STATE_FILE, DISK_FILE].map((file) => host.stat(op, join(dir, file))));
  const identities = infos.map((info) => (info === null ? null : identityOf(info)));
  return identities.includes(null) ? null : identities.join(' ');
}

/**
 * Any write, truncation or replacement changes at least one of these. Not the time of the last change of its inode: a
 * snapshot gives the memory one more name, and that is no change of it.
 */
function identityOf(info: FileInfo): string {
  return `${info.device}:${info.inode}:${info.sizeBytes}:${info.modifiedNs}:${info.mode}`;
}

async function chunkDigests(op: Operation, host: Host, path: string, bytes: number): Promise<string[]> {
  const digests: string[] = [];
  const zeros = new Uint8Array(CHUNK_BYTES);
  const ofZeros = sha256(zeros);
  for (let at = 0; at < bytes; at += CHUNK_BYTES) {
    const chunk = await host.readRange(op, path, at, Math.min(CHUNK_BYTES, bytes - at));
    // Most of the memory was never touched: comparing with zeros is ten times quicker than hashing.
    digests.push(Buffer.compare(chunk, zeros) === 0 ? ofZeros : sha256(chunk));
  }
  return digests;
}

function piecesOf(places: readonly (readonly [number, number])[], content: Uint8Array): readonly SparsePiece[] {
  let at = 0;
  return places.map(([offset, length]) => {
    at += length;
    return { offset, bytes: content.subarray(at - length, at) };
  });
}

async function readOrNull(op: Operation, host: Host, path: string, bytesMax: number): Promise<Uint8Array | null> {
  return (await host.stat(op, path)) === null ? null : await host.readFile(op, path, bytesMax);
}

async function readJson<T>(op: Operation, host: Host, path: string, schema: z.ZodType<T>): Promise<T | null> {
  if ((await host.stat(op, path)) === null) return null;
  const text = new TextDecoder().decode(await host.readFile(op, path, MANIFEST_BYTES_MAX));
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null; // torn or flipped: refused by the caller, who says so
  }
  const parsed = schema.safeParse(value);
  return parsed.success ? parsed.data : null;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
