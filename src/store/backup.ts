// The store in one file that can be carried away: a line of JSON that says what follows, then the database as SQLite copied it
// at one instant. And the way back: laid beside, checked, and put in place by a rename that the next opening finishes
// whatever interrupted it.
import { Worker } from 'node:worker_threads';
import * as z from 'zod';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { StoreCheck } from './check.ts';
import { fromWire } from './failure.ts';
import { SCHEMA_VERSION } from './schema.ts';
import type { CheckAnswer, CheckStart } from './worker.ts';

const FORMAT = 'hutch-backup-1';
const HEADER_BYTES_MAX = 4_096;
const CHECK_MS = 1_800_000;

const header = z.strictObject({
  format: z.literal(FORMAT),
  /** Of the Hutch that wrote it. */
  version: z.string().max(64),
  schemaVersion: z.int().min(1),
  createdAtMs: z.int(),
  sizeBytes: z.int().min(1),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
  ledger: z.strictObject({ sequence: z.int().min(0), hash: z.string().regex(/^[0-9a-f]{64}$/) }),
});
export type BackupHeader = z.output<typeof header>;

/** The first line of a backup. */
export function headerLine(content: BackupHeader): Uint8Array {
  return new TextEncoder().encode(`${JSON.stringify(content)}\n`);
}

/** Checks a copy of a store, in a worker of its own. @throws HutchError that says what is wrong with it. */
export async function checkCopy(op: Operation, path: string): Promise<StoreCheck> {
  const entry = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './store-worker.mjs', import.meta.url);
  const workerData: CheckStart = { check: path };
  const worker = new Worker(entry, { workerData, execArgv: [], env: {}, name: 'hutch-store-check' });
  using limited = op.within(CHECK_MS, `checking ${path}`);
  const { promise, resolve, reject } = Promise.withResolvers<CheckAnswer>();
  const cancelled = (): void => reject(limited.signal.reason);
  limited.signal.addEventListener('abort', cancelled, { once: true });
  worker.once('message', resolve);
  worker.once('error', reject);
  try {
    const answer = await promise;
    if (answer.ok) return answer.check;
    throw fromWire(answer.error, op.id);
  } finally {
    limited.signal.removeEventListener('abort', cancelled);
    await worker.terminate();
  }
}

type RestoreHost = Pick<Host, 'stat' | 'readRange' | 'readStream' | 'appendStream' | 'sha256' | 'sync' | 'rename' | 'remove'>;

/** @throws HutchError `not_found`; `failed_precondition`: it is no backup, or a newer Hutch wrote it. */
async function readHeader(
  op: Operation,
  host: RestoreHost,
  path: string,
): Promise<{ readonly header: BackupHeader; readonly offset: number }> {
  const info = await host.stat(op, path);
  if (info === null) throw op.error('not_found', `there is no file ${path}`);
  if (info.type === 'directory') throw op.error('invalid_argument', `${path} is a directory, and no backup`);
  const bytes = await host.readRange(op, path, 0, HEADER_BYTES_MAX);
  const end = bytes.indexOf(0x0a);
  const said = end < 0 ? null : jsonOf(new TextDecoder().decode(bytes.subarray(0, end)));
  const parsed = header.safeParse(said);
  if (parsed.success) {
    const { schemaVersion, version } = parsed.data;
    if (schemaVersion <= SCHEMA_VERSION) return { header: parsed.data, offset: end + 1 };
    throw op.error(
      'failed_precondition',
      `the backup has schema ${schemaVersion}, of Hutch ${version}; this Hutch knows schemas up to ${SCHEMA_VERSION}`,
      {
        hint: 'restore it with that Hutch, or a newer one',
      },
    );
  }
  const format = typeof said === 'object' && said !== null && 'format' in said ? String(said.format) : '';
  if (format.startsWith('hutch-backup-') && format !== FORMAT)
    throw op.error('failed_precondition', `${path} is a backup of another kind (${format}), which a newer Hutch wrote`, {
      hint: 'restore it with that one',
    });
  throw op.error('failed_precondition', `${path} is no backup of Hutch`, { hint: 'make one with: hutch system backup -o FILE' });
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export type Restored = { readonly header: BackupHeader; readonly check: StoreCheck; readonly replaced: string | null };

const staged = (storePath: string): string => `${storePath}.restoring`;
/** A file of this name is checked and whole, and is to be the store. */
const pending = (storePath: string): string => `${storePath}.restored`;
const replaced = (storePath: string): string => `${storePath}.replaced`;
const WAL = '-wal';

/** The caller holds the lock of the directory. Until everything is checked the store is as it was. */
export async function restoreStore(op: Operation, host: RestoreHost, storePath: string, backup: string): Promise<Restored> {
  await finishRestore(op, host, storePath);
  const { header: known, offset } = await readHeader(op, host, backup);
  const beside = staged(storePath);
  await removeStaged(op, host, storePath);
  try {
    const sizeBytes = await host.appendStream(op, beside, host.readStream(op, backup, offset));
    if (sizeBytes !== known.sizeBytes || (await host.sha256(op, beside)) !== known.sha256) {
      const why =
        sizeBytes === known.sizeBytes ? 'does not have its checksum' : `has ${sizeBytes} bytes of data, and should have ${known.sizeBytes}`;
      throw op.error('failed_precondition', `the backup ${backup} is damaged: it ${why}`, {
        hint: 'take another one; the store is as it was',
      });
    }
    const check = await checkCopy(op, beside);
    if (
      check.schemaVersion !== known.schemaVersion ||
      check.ledger.sequence !== known.ledger.sequence ||
      check.ledger.hash !== known.ledger.hash
    )
      throw op.error('failed_precondition', `the backup ${backup} is not what it says that it is`, {
        hint: 'take another one; the store is as it was',
      });
    await host.sync(op, beside);
    // From one restore before; the rename below is the point of no return.
    for (const old of [replaced(storePath), `${replaced(storePath)}${WAL}`]) await host.remove(op, old);
    const had = (await host.stat(op, storePath)) !== null;
    await host.rename(op, beside, pending(storePath));
    await finishRestore(op, host, storePath);
    return { header: known, check, replaced: had ? replaced(storePath) : null };
  } finally {
    using late = op.releasing(CHECK_MS);
    await removeStaged(late, host, storePath);
  }
}

async function removeStaged(op: Operation, host: RestoreHost, storePath: string): Promise<void> {
  for (const path of [staged(storePath), `${staged(storePath)}${WAL}`]) await host.remove(op, path);
}

/** What a restore that was cut short has left to do. May be repeated. The log goes first: it must never meet the restored store. */
export async function finishRestore(op: Operation, host: Pick<Host, 'stat' | 'rename'>, storePath: string): Promise<void> {
  if ((await host.stat(op, pending(storePath))) === null) return;
  for (const suffix of [WAL, ''])
    if ((await host.stat(op, `${storePath}${suffix}`)) !== null)
      await host.rename(op, `${storePath}${suffix}`, `${replaced(storePath)}${suffix}`);
  await host.rename(op, pending(storePath), storePath);
}
