// The private disk of one sandbox: a sparse raw file with an empty ext4 in it. Only the few blocks
// that mke2fs writes are kept as a seed per size; a new disk is those blocks in a hole.
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import type { Host, SparsePiece } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { awaitDetached } from './loop.ts';

/** Null: our own. */
type Owner = { readonly uid: number; readonly gid: number };

const BLOCK_BYTES = 4096;
const READ_BYTES = 4 * 1024 * 1024;
const SEEDS_KEPT_MAX = 16;
const SEED = '.seed-';
const ZEROS = new Uint8Array(BLOCK_BYTES);

export const MKFS_OPTIONS = [
  '-q',
  '-F',
  '-t',
  'ext4',
  '-b',
  String(BLOCK_BYTES),
  '-m',
  '0',
  // No room kept for growing its descriptors: it would be a thousand blocks to write for each disk.
  '-O',
  '^resize_inode',
  // One inode for 16 KiB as usual, but nothing is written for them until they are used.
  '-E',
  'lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0',
  '-L',
  'hutch',
] as const;

/** A disk with these pieces, the sandbox's own. */
export async function layDisk(
  op: Operation,
  host: Host,
  path: string,
  disk: { readonly sizeBytes: number; readonly pieces: readonly SparsePiece[] },
  owner: Owner | null,
): Promise<void> {
  await host.writeSparse(op, path, disk.sizeBytes, disk.pieces);
  if (owner !== null) await host.chown(op, path, owner.uid, owner.gid);
}

/** What was removed from it goes back to this machine, whoever mounts it, or stays for what is written next. */
export type Removed = 'gives-back' | 'keeps';

export class DiskSeeds {
  readonly #host: Host;
  readonly #dir: string;
  readonly #removed: Removed;
  readonly #seeds = new Map<number, Promise<readonly SparsePiece[]>>();
  #swept: Promise<void> | undefined;

  /** `dir` lies on a disk: only there can the file system tell where a file has data. */
  constructor(host: Host, dir: string, removed: Removed = 'keeps') {
    this.#host = host;
    this.#dir = dir;
    this.#removed = removed;
  }

  /** Makes `path` a new disk of that size; on failure there is none. */
  async makeDisk(op: Operation, path: string, sizeBytes: number, owner: Owner | null): Promise<void> {
    await layDisk(op, this.#host, path, { sizeBytes, pieces: await this.#seed(op, sizeBytes) }, owner);
  }

  async #seed(op: Operation, sizeBytes: number): Promise<readonly SparsePiece[]> {
    const known = this.#seeds.get(sizeBytes);
    if (known !== undefined) return await known;
    const making = this.#make(op, sizeBytes);
    this.#seeds.set(sizeBytes, making);
    const [oldest] = this.#seeds.keys();
    if (this.#seeds.size > SEEDS_KEPT_MAX && oldest !== undefined) this.#seeds.delete(oldest);
    try {
      return await making;
    } catch (error) {
      this.#seeds.delete(sizeBytes);
      throw error;
    }
  }

  /** What a daemon that was killed in the middle of making one has left: before the first of ours is begun. */
  async #sweep(op: Operation): Promise<void> {
    const host = this.#host;
    await host.makeDir(op, this.#dir, 0o711);
    for (const name of await host.list(op, this.#dir)) if (name.startsWith(SEED)) await host.remove(op, join(this.#dir, name));
  }

  async #make(op: Operation, sizeBytes: number): Promise<readonly SparsePiece[]> {
    const host = this.#host;
    this.#swept ??= this.#sweep(op).catch((error: unknown) => {
      this.#swept = undefined;
      throw error;
    });
    await this.#swept;
    const path = join(this.#dir, `${SEED}${sizeBytes}-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using release = op.releasing(10_000);
      await host.remove(release, path);
    });
    await host.makeDir(op, this.#dir, 0o711); // somebody may have removed it since
    await host.truncate(op, path, sizeBytes);
    using limited = op.within(60_000, 'mke2fs');
    const programs = [['mke2fs', ...MKFS_OPTIONS, path], ...(this.#removed === 'gives-back' ? [['tune2fs', '-o', 'discard', path]] : [])];
    for (const argv of programs) {
      const { exitCode, stderr } = await host.run(limited, argv);
      if (exitCode !== 0) throw op.error('internal', `${argv[0]} failed: ${new TextDecoder().decode(stderr).trim()}`);
    }
    return await dataPieces(op, host, path, sizeBytes);
  }
}

const GROW_MS = 5 * 60_000;
const LET_GO_MS = 10_000;
/** e2fsck: what was wrong has been mended. */
const MENDED = 1;
const SAID_CHARS_MAX = 300;

/** To the size of the file that it lies in, which nobody has mounted. @throws HutchError `failed_precondition` when it is damaged. */
export async function growFileSystem(op: Operation, host: Host, path: string): Promise<void> {
  using limited = op.within(GROW_MS, 'growing a file system');
  // It is grown only after it was looked through.
  const checked = await host.run(limited, ['e2fsck', '-f', '-p', path]);
  const said = ({ stdout, stderr }: typeof checked): string => new TextDecoder().decode(Buffer.concat([stdout, stderr])).trim();
  if (checked.exitCode > MENDED)
    throw op.error('failed_precondition', `the file system in ${path} is damaged: ${whatIsWrong(said(checked), path)}`, {
      hint: `try: e2fsck -f ${path}`,
    });
  const grown = await host.run(limited, ['resize2fs', path]);
  if (grown.exitCode !== 0) throw op.error('internal', `resize2fs failed: ${said(grown)}`);
}

/** Of all that e2fsck says, with advice over many lines, the line for which it ended. */
export function whatIsWrong(said: string, path: string): string {
  const lines = said.split('\n').map((line) => line.replace(`${path}: `, '').replace(` while trying to open ${path}`, '').trim());
  const own = lines.find((line) => line.startsWith('e2fsck: '))?.slice('e2fsck: '.length);
  return (own ?? lines.find((line) => line !== '') ?? 'e2fsck does not say why').slice(0, SAID_CHARS_MAX);
}

/** @throws HutchError `failed_precondition` when the file of a volume is not there. */
export async function requireVolumeFile(op: Operation, host: Host, path: string, what: string): Promise<void> {
  if ((await host.stat(op, path))?.type === 'file') return;
  throw op.error('failed_precondition', `${what} is gone: there is no file ${path}`, {
    hint: 'put the file back; or give it up: hutch volume rm, once no sandbox has it',
  });
}

/** A volume that is about to be mounted: whole, and its file system as large as its file. @throws HutchError `failed_precondition`. */
export async function mendVolume(op: Operation, host: Host, path: string, target: string): Promise<void> {
  await requireVolumeFile(op, host, path, `the volume at ${target}`);
  await untilLetGo(op, host, path, target);
  try {
    await growFileSystem(op, host, path);
  } catch (cause) {
    if (!(cause instanceof HutchError) || cause.code !== 'failed_precondition') throw cause;
    throw op.error('failed_precondition', `the volume at ${target} cannot be used: ${cause.message}`, {
      ...(cause.hint === null ? {} : { hint: cause.hint }),
      cause,
    });
  }
}

/** A sandbox that has just ended had it: a file system is never looked through, nor changed, while a kernel has it mounted. */
export async function untilLetGo(op: Operation, host: Host, path: string, target: string): Promise<void> {
  if (host.uid !== 0) return; // no kernel has mounted it for us
  using limited = op.within(LET_GO_MS, `the end of an earlier mount of the volume at ${target}`);
  await awaitDetached(limited, host, path);
}

/** In the superblock: `s_blocks_count_lo`. */
const BLOCKS_AT = 1024 + 0x04;

/** Of a disk that was made here, whose blocks are all of one size. */
export async function fileSystemBytes(op: Operation, host: Host, path: string): Promise<number> {
  return Buffer.from(await host.readRange(op, path, BLOCKS_AT, 4)).readUInt32LE() * BLOCK_BYTES;
}

/** In the superblock's `s_feature_incompat`: its journal has what is not in its place yet. */
const INCOMPATIBLE_AT = 1024 + 0x60;
const NEEDS_RECOVERY = 4;

/** A volume that is about to be mounted only to be read: then nobody replays its journal. @throws HutchError `failed_precondition`. */
export async function requireClosed(op: Operation, host: Host, path: string, target: string): Promise<void> {
  await requireVolumeFile(op, host, path, `the volume at ${target}`);
  const isClosed = async (): Promise<boolean> => (((await host.readRange(op, path, INCOMPATIBLE_AT, 1))[0] ?? 0) & NEEDS_RECOVERY) === 0;
  if (await isClosed()) return;
  // Who wrote it may have ended a moment ago; whoever else reads it has nothing in its journal.
  await untilLetGo(op, host, path, target);
  if (await isClosed()) return;
  throw op.error('failed_precondition', `the volume at ${target} cannot be used: it was in use when its sandbox or this machine died`, {
    hint: 'mount it once without :ro: that puts its file system in order',
  });
}

/** The runs of blocks that are not all zeros. */
export async function dataPieces(op: Operation, host: Host, path: string, sizeBytes: number): Promise<readonly SparsePiece[]> {
  const pieces: { offset: number; blocks: Uint8Array[] }[] = [];
  for (const extent of await extents(op, host, path, sizeBytes)) {
    for (let at = extent.offset; at < extent.end; at += READ_BYTES) {
      const chunk = await host.readRange(op, path, at, Math.min(READ_BYTES, extent.end - at));
      for (let inside = 0; inside < chunk.byteLength; inside += BLOCK_BYTES) {
        const block = chunk.subarray(inside, inside + BLOCK_BYTES);
        if (Buffer.compare(block, ZEROS.subarray(0, block.byteLength)) === 0) continue;
        const last = pieces.at(-1);
        if (last !== undefined && last.offset + last.blocks.length * BLOCK_BYTES === at + inside) last.blocks.push(block.slice());
        else pieces.push({ offset: at + inside, blocks: [block.slice()] });
      }
    }
  }
  return pieces.map(({ offset, blocks }) => ({ offset, bytes: Buffer.concat(blocks) }));
}

type Extent = { readonly offset: number; readonly end: number };

/** Where the file may have data. Reading gigabytes of holes would take seconds, so the file system is asked; where it cannot tell, all of it. */
async function extents(op: Operation, host: Host, path: string, sizeBytes: number): Promise<readonly Extent[]> {
  await host.sync(op, path); // what is not allocated yet has no place to be told
  const { exitCode, stdout } = await host.run(op, ['filefrag', '-e', `-b${BLOCK_BYTES}`, path]);
  const found = exitCode === 0 ? parseExtents(new TextDecoder().decode(stdout), sizeBytes) : [];
  return found.length > 0 ? found : [{ offset: 0, end: sizeBytes }];
}

/** Of filefrag's table: `ext: logical_offset: physical_offset: length:`, in blocks. */
export function parseExtents(text: string, sizeBytes: number): readonly Extent[] {
  const rows = text.matchAll(/^\s*\d+:\s*(\d+)\.\.\s*(\d+):/gm);
  return [...rows].map(([, first, last]) => ({
    offset: Number(first) * BLOCK_BYTES,
    end: Math.min((Number(last) + 1) * BLOCK_BYTES, sizeBytes),
  }));
}
