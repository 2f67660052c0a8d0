// Files that the daemon lends: a sandbox's own file, opened here through a descriptor of the daemon's, in place of its bytes
// through the connection. Only for who may look into the daemon; everybody else, and whoever is too late, gets the bytes.
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { ClientRequest, IncomingMessage } from 'node:http';
import { HutchError } from '../domain/errors.ts';
import { after } from '../domain/pieces.ts';
import type { Address } from './address.ts';

/** What is smaller goes with the request. */
export const LEND_FROM_BYTES = 1024 * 1024;
const PIECE_BYTES = 1024 * 1024;
/** Pieces that are read while others are looked at: a copy out of the cache is one processor's, and a machine has more. */
const PIECES_AHEAD = 4;
/** So much is written before the disk is asked to begin with it. */
const SYNC_EVERY_BYTES = 32 * 1024 * 1024;

export type Lent = { readonly path: string; readonly device: string; readonly inode: string };

/** Who may open another process's descriptors: on this machine, as root. */
export function mayBeLent(address: Address): boolean {
  return address.type === 'unix' && process.getuid?.() === 0;
}

/** As the head of an answer names it. */
export function lentOf(response: IncomingMessage): Lent | null {
  const found = /^(\/proc\/\d+\/fd\/\d+) (\d+) (\d+)$/.exec(String(response.headers['hutch-lent'] ?? ''));
  const [, path, device, inode] = found ?? [];
  return path === undefined || device === undefined || inode === undefined ? null : { path, device, inode };
}

/** Null: it is not there any more, or not ours to open. */
async function take({ path, device, inode }: Lent, flags: number): Promise<FileHandle | null> {
  const file = await open(path, flags).catch(() => null);
  if (file === null) return null;
  const stat = await file.stat({ bigint: true });
  if (stat.isFile() && String(stat.dev) === device && String(stat.ino) === inode) return file;
  await file.close();
  return null;
}

/** Its bytes from `offset` on, each piece in memory of its own; null when they must be asked for instead. */
export async function lentBytes(
  lent: Lent,
  { offset = 0, length = Number.POSITIVE_INFINITY }: { readonly offset?: number | undefined; readonly length?: number | undefined },
  signal: AbortSignal | undefined,
): Promise<AsyncGenerator<Uint8Array, void, undefined> | null> {
  const file = await take(lent, constants.O_RDONLY);
  return file === null ? null : pieces(file, offset, offset + length, signal);
}

async function* pieces(
  file: FileHandle,
  from: number,
  end: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  await using _ = file;
  const read = async (at: number, most: number): Promise<Uint8Array> => {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafeSlow(most), 0, most, at);
    return buffer.subarray(0, bytesRead);
  };
  type Ahead = { readonly at: number; readonly most: number; readonly read: Promise<Uint8Array> };
  let ahead: Ahead[] = [];
  let asked = from;
  const settled = async (): Promise<void> => {
    await Promise.allSettled(ahead.map((one) => one.read));
    ahead = [];
  };
  try {
    for (;;) {
      while (ahead.length < PIECES_AHEAD && asked < end) {
        const most = Math.min(PIECE_BYTES, end - asked);
        const piece = read(asked, most);
        piece.catch(() => {}); // told when its turn has come
        ahead.push({ at: asked, most, read: piece });
        asked += most;
      }
      const first = ahead.shift();
      if (first === undefined) return;
      const piece = await first.read;
      signal?.throwIfAborted();
      if (piece.byteLength === 0) return;
      if (piece.byteLength < first.most) {
        // The end, or what was the end: what was asked for behind it may have come there since.
        await settled();
        asked = first.at + piece.byteLength;
      }
      yield piece;
    }
  } finally {
    await settled();
  }
}

/**
 * Writes the content of an upload into the file itself and ends the request, where the daemon lends it; false: it is to be sent as
 * the request's body. The request has been made with `Expect: 100-continue`.
 */
export async function wroteLent(request: ClientRequest, content: AsyncIterable<Uint8Array>): Promise<boolean> {
  const lent = await told(request);
  if (lent === 'over') {
    // Refused before it was asked for: an empty body leaves the connection to who comes next.
    request.end();
    return true;
  }
  const file = lent === null ? null : await take(lent, constants.O_WRONLY);
  if (file === null) return false;
  await using _ = file;
  await fill(file, request, content);
  request.end();
  return true;
}

/** What the daemon says before it wants the content; `over` when it wants none. */
function told(request: ClientRequest): Promise<Lent | null | 'over'> {
  const { promise, resolve } = Promise.withResolvers<Lent | null | 'over'>();
  let lent: Lent | null = null;
  request.on('information', ({ statusCode, headers }) => {
    const found = /^<(\/proc\/\d+\/fd\/\d+)>; rel=lent; device=(\d+); inode=(\d+)$/.exec(String(headers['link'] ?? ''));
    const [, path, device, inode] = found ?? [];
    if (statusCode === 103 && path !== undefined && device !== undefined && inode !== undefined) lent = { path, device, inode };
  });
  request.once('continue', () => resolve(lent));
  for (const event of ['response', 'close', 'error']) request.once(event, () => resolve('over'));
  return promise;
}

async function fill(file: FileHandle, request: ClientRequest, content: AsyncIterable<Uint8Array>): Promise<void> {
  let [gathered, bytes, at, synced]: [Uint8Array[], number, number, number] = [[], 0, 0, 0];
  let syncing: Promise<unknown> = Promise.resolve();
  let isSyncing = false;
  let isOver = false;
  request.once('response', () => {
    isOver = true;
  });
  const write = async (): Promise<void> => {
    for (let rest = gathered; rest.length > 0; ) {
      const { bytesWritten } = await file.writev(rest, at);
      at += bytesWritten;
      rest = after(rest, bytesWritten);
    }
    gathered = [];
    bytes = 0;
    if (isSyncing || at - synced < SYNC_EVERY_BYTES) return;
    // The disk works while more comes. What it says, it says again to whoever syncs last.
    isSyncing = true;
    synced = at;
    syncing = file
      .datasync()
      .catch(() => {})
      .finally(() => {
        isSyncing = false;
      });
  };
  try {
    for await (const chunk of content) {
      if (isOver || request.destroyed) return;
      gathered.push(chunk);
      bytes += chunk.byteLength;
      if (bytes >= 4 * LEND_FROM_BYTES) await write();
    }
    await write();
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT')
      throw new HutchError({ code: 'resource_exhausted', message: `the disk of the sandbox is full: ${code}`, cause });
    throw cause;
  } finally {
    await syncing;
  }
}

/** The first part of a content that is as large as to be lent, or all of it. */
export async function begun(content: AsyncIterable<Uint8Array>): Promise<Uint8Array | AsyncIterable<Uint8Array>> {
  const source = content[Symbol.asyncIterator]();
  const first: Uint8Array[] = [];
  for (let bytes = 0; bytes < LEND_FROM_BYTES; ) {
    const { done, value } = await source.next();
    if (done === true) return Buffer.concat(first);
    first.push(value);
    bytes += value.byteLength;
  }
  return (async function* () {
    try {
      yield* first;
      for (;;) {
        const { done, value } = await source.next();
        if (done === true) return;
        yield value;
      }
    } finally {
      await source.return?.();
    }
  })();
}
