// Which data directory has which block of users, for the whole machine: a claim is a file that is named after the
// block's first user and says whose it is; the data directory says the same in a file of its own, so that it has the
// block again after a reboot, which takes all claims away.
//
// Always true: claims change under one lock, and a block is given away only when no process runs as one of its users
// and its directory is gone or says another block. Where all are taken, one may be taken from a directory
// whose daemon does not run, nor anything else of it: its sandboxes get other users when they start again.
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import { BLOCKS, blockOf, isWithin, SANDBOX_UIDS, type UidRange } from '../domain/users.ts';
import { errnoOf } from '../host/errors.ts';
import type { Host, ProcessRef } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

/** Of the whole machine, wherever the data lies. */
export const CLAIMS_DIR = '/run/hutch/uids';
/** In the data directory: the block that it has. */
export const BLOCK_FILE = 'uid-block';

const LOCK_MS = 20_000;
const LOCK_POLL_MS = 20;
const FILE_BYTES_MAX = 16_384;
const STATUS_BYTES = 1_024;

const daemonSchema = z.strictObject({ pid: z.int().positive(), startTicks: z.int().nonnegative() });
const claimSchema = z.strictObject({ dataDir: z.string(), token: z.string(), daemon: daemonSchema });
const blockSchema = z.strictObject({ first: z.int(), token: z.string() });

export type Claim = z.output<typeof claimSchema>;
type Block = z.output<typeof blockSchema>;

/** The claims of this machine; held, none of them changes. */
export class UidClaims implements AsyncDisposable {
  readonly #host: Host;
  readonly #dir: string;
  readonly #lock: AsyncDisposable;
  #busy: readonly number[] | null = null;

  private constructor(host: Host, dir: string, lock: AsyncDisposable) {
    this.#host = host;
    this.#dir = dir;
    this.#lock = lock;
  }

  /** @throws HutchError `deadline_exceeded` when another holds them for too long. */
  static async hold(op: Operation, host: Host, dir = CLAIMS_DIR): Promise<UidClaims> {
    await host.makeDir(op, dir, 0o755);
    using limited = op.within(LOCK_MS, `waiting for the lock of ${dir}`);
    for (;;) {
      const lock = await host.lockFile(limited, join(dir, 'lock'));
      if (lock !== null) return new UidClaims(host, dir, lock);
      await pause(LOCK_POLL_MS, undefined, { signal: limited.signal }).catch(() => {}); // the next call says what it was
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lock[Symbol.asyncDispose]();
  }

  pathOf(first: number): string {
    return join(this.#dir, `${first}`);
  }

  /** Claimed blocks by their first user; null: the file says nothing that could be read. */
  async all(op: Operation): Promise<ReadonlyMap<number, Claim | null>> {
    const found = new Map<number, Claim | null>();
    for (const name of await this.#host.list(op, this.#dir)) {
      const first = BLOCKS.find((candidate) => `${candidate}` === name);
      if (first !== undefined) found.set(first, await readJson(op, this.#host, this.pathOf(first), claimSchema));
    }
    return found;
  }

  /** Whether a claim's directory is still there and says the same. */
  async stands(op: Operation, first: number, claim: Claim | null): Promise<boolean> {
    if (claim === null) return false;
    const own = await readJson(op, this.#host, join(claim.dataDir, BLOCK_FILE), blockSchema);
    if (own !== null && own.first === first && own.token === claim.token) return true;
    // Its daemon may see a directory that we do not.
    return await this.#host.isAlive(op, claim.daemon);
  }

  /** Whether any process runs as a user of this range. */
  async isBusy(op: Operation, range: UidRange): Promise<boolean> {
    this.#busy ??= await busyUids(op, this.#host);
    return this.#busy.some((uid) => isWithin(range, uid));
  }

  /** Users of sandboxes that processes run as, in blocks that nobody has claimed. */
  async busyWithoutClaim(op: Operation): Promise<readonly number[]> {
    const claimed = await this.all(op);
    this.#busy ??= await busyUids(op, this.#host);
    return this.#busy.filter((uid) => ![...claimed.keys()].some((first) => isWithin(blockOf(first), uid)));
  }

  /** The block of a data directory whose lock the caller holds: the one that it had, else one in which nothing runs. */
  async take(op: Operation, dataDir: string, daemon: ProcessRef): Promise<UidRange & { readonly how: 'kept' | 'new' }> {
    const claims = await this.all(op);
    const own = await readJson(op, this.#host, join(dataDir, BLOCK_FILE), blockSchema);
    const kept = await this.#kept(op, claims, dataDir, own);
    const block = kept ?? {
      first: await this.#choose(op, claims, dataDir),
      token: Buffer.from(this.#host.randomBytes(16)).toString('hex'),
    };
    // The directory first: a claim of a directory that says otherwise is stale.
    if (own?.token !== block.token || own.first !== block.first) {
      await this.#host.writeFileAtomic(op, join(dataDir, BLOCK_FILE), `${JSON.stringify(block)}\n`, 0o644);
    }
    const claim: Claim = { dataDir, token: block.token, daemon: { pid: daemon.pid, startTicks: daemon.startTicks } };
    await this.#host.writeFileAtomic(op, this.pathOf(block.first), `${JSON.stringify(claim)}\n`, 0o644);
    return { ...blockOf(block.first), how: kept === null ? 'new' : 'kept' };
  }

  /** Of a directory that needs no users now; it has the block again if nobody takes it meanwhile. */
  async giveBack(op: Operation, dataDir: string): Promise<void> {
    for (const [first, claim] of await this.all(op)) if (claim?.dataDir === dataDir) await this.forget(op, first);
  }

  async forget(op: Operation, first: number): Promise<void> {
    await this.#host.remove(op, this.pathOf(first));
  }

  async #kept(op: Operation, claims: ReadonlyMap<number, Claim | null>, dataDir: string, own: Block | null): Promise<Block | null> {
    if (own === null || !BLOCKS.includes(own.first)) return null;
    const claim = claims.get(own.first);
    if (claim === undefined || claim?.dataDir === dataDir) return own;
    // Somebody has taken it meanwhile, or this directory is a copy of another one.
    return (await this.#isFree(op, claims, own.first)) ? own : null;
  }

  async #choose(op: Operation, claims: ReadonlyMap<number, Claim | null>, dataDir: string): Promise<number> {
    const candidates = inOrderFor(dataDir);
    for (const first of candidates) if (await this.#isFree(op, claims, first)) return first;
    for (const first of candidates) {
      const claim = claims.get(first) ?? null;
      if (claim !== null && (await this.#host.isAlive(op, claim.daemon))) continue;
      if (!(await this.isBusy(op, blockOf(first)))) return first;
    }
    throw op.error('resource_exhausted', `all ${BLOCKS.length} blocks of user ids for sandboxes are taken on this machine`, {
      hint: `end a daemon that is not needed; ${this.#dir} says whose they are`,
    });
  }

  async #isFree(op: Operation, claims: ReadonlyMap<number, Claim | null>, first: number): Promise<boolean> {
    const claim = claims.get(first);
    if (claim !== undefined && (await this.stands(op, first, claim))) return false;
    return !(await this.isBusy(op, blockOf(first)));
  }
}

/** Each directory begins elsewhere, so that those that stopped for a while seldom lose theirs; the system's own has the first. */
function inOrderFor(dataDir: string): readonly number[] {
  if (dataDir === '/var/lib/hutch') return BLOCKS;
  let hash = 0;
  for (const byte of new TextEncoder().encode(dataDir)) hash = (Math.imul(hash, 31) + byte) >>> 0;
  const start = 1 + (hash % (BLOCKS.length - 1));
  return [...BLOCKS.slice(start), ...BLOCKS.slice(0, start)];
}

/** Read from `status`, which says it of every process; a directory in /proc is root's where a process hides from its own user. */
async function busyUids(op: Operation, host: Host): Promise<readonly number[]> {
  const found = new Set<number>();
  for (const name of await host.list(op, '/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readMaybe(() => host.readRange(op, `/proc/${name}/status`, 0, STATUS_BYTES));
    for (const uid of (/^Uid:\s+([\d\s]+?)$/m.exec(text ?? '')?.[1] ?? '').split(/\s+/).map(Number))
      if (isWithin(SANDBOX_UIDS, uid)) found.add(uid);
  }
  return [...found];
}

/** Null where there is none, or nothing of this shape. */
async function readJson<T>(op: Operation, host: Host, path: string, schema: z.ZodType<T>): Promise<T | null> {
  const text = await readMaybe(() => host.readFile(op, path, FILE_BYTES_MAX));
  if (text === null) return null;
  try {
    return schema.safeParse(JSON.parse(text)).data ?? null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

async function readMaybe(read: () => Promise<Uint8Array>): Promise<string | null> {
  try {
    return new TextDecoder().decode(await read());
  } catch (error) {
    // A process may end while it is looked at; a file may be in a directory that has become something else.
    const isGone = error instanceof HutchError && error.code === 'not_found';
    if (isGone || ['ESRCH', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return null;
    throw error;
  }
}
