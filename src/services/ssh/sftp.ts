// Files over SSH: SFTP, version 3 (draft-ietf-secsh-filexfer-02), on the agent's own files. Requests about one open file are
// answered in their order; what is read or written from beginning to end is one stream of the agent's, not a call for each 32 KiB.
import { Buffer } from 'node:buffer';
import { posix } from 'node:path';
import type { Attributes, FileEntry, SFTPWrapper } from 'ssh2';
import { HutchError } from '../../domain/errors.ts';
import type { Entry, GuestPath } from '../../guest/messages.ts';
import type { Operation } from '../../host/operation.ts';
import { pathText } from '../present.ts';
import type { Served } from './served.ts';
import { announceExtensions, sendLimits } from './sftp-extensions.ts';
import { gatherMessages } from './sftp-messages.ts';
import { Downstream, Upstream } from './streams.ts';
import { touch } from './touch.ts';

const OPEN = { read: 1, write: 2, append: 4, create: 8, truncate: 16, exclusive: 32 } as const;
const STATUS = { ok: 0, end: 1, none: 2, denied: 3, failure: 4, bad: 5, unsupported: 8 } as const;
const HANDLES_MAX = 256;
const READ_BYTES_MAX = 256 * 1024;
const NAMES_AT_ONCE = 64;

const TYPE_BITS: Readonly<Record<Entry['type'], number>> = {
  file: 0o100000,
  dir: 0o040000,
  symlink: 0o120000,
  fifo: 0o010000,
  socket: 0o140000,
  char: 0o020000,
  block: 0o060000,
};

type Opened =
  | { readonly kind: 'file'; readonly path: string; readonly append: boolean; down: Downstream | null; up: Upstream | null }
  | { readonly kind: 'directory'; readonly path: string; left: FileEntry[] | null };
/** What of the library's stands behind such a session (1.17.0, lib/protocol/SFTP.js). */
type Inside = { readonly _protocol: { exitStatus(channel: number, status: number): void }; readonly outgoing: { readonly id: number } };

type Handle = Opened & { turn: Promise<void> };

export function serveSftp(op: Operation, sftp: SFTPWrapper, served: Pick<Served, 'agent' | 'processId'>, user: string | null): void {
  const { agent } = served;
  const as = user === null ? {} : { user };
  const handles = new Map<number, Handle>();
  let next = 1;
  announceExtensions(sftp);
  gatherMessages(sftp);

  const handleOf = (buffer: Buffer): Handle | undefined => handles.get(buffer.byteLength === 4 ? buffer.readUInt32BE() : 0);

  function opened(reqId: number, what: Opened): void {
    if (handles.size >= HANDLES_MAX) throw op.error('resource_exhausted', `more than ${HANDLES_MAX} files are open`);
    const id = next;
    next += 1;
    handles.set(id, { ...what, turn: Promise.resolve() });
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32BE(id);
    sftp.handle(reqId, buffer);
  }

  /** Answers a request, with its failure where it fails. */
  function answer(reqId: number, work: () => Promise<void>): void {
    work().catch((cause: unknown) => {
      if (!(cause instanceof HutchError)) op.log.warn({ cause }, 'a request for files over SSH failed');
      sftp.status(reqId, statusOf(cause), cause instanceof HutchError ? cause.message : 'failed');
    });
  }

  const done = (reqId: number, work: () => Promise<unknown>): void =>
    answer(reqId, async () => {
      await work();
      sftp.status(reqId, STATUS.ok);
    });

  /** In the order in which it was asked. */
  function inTurn(reqId: number, buffer: Buffer, work: (handle: Handle) => Promise<void>): void {
    const handle = handleOf(buffer);
    if (handle === undefined) {
      sftp.status(reqId, STATUS.failure, 'no such handle');
      return;
    }
    const turn = handle.turn.then(() => work(handle));
    handle.turn = turn.catch(() => {});
    answer(reqId, () => turn);
  }

  const stat = async (path: string, follow: boolean): Promise<Entry> => await agent.file.stat(op, { ...as, path, follow });

  async function change(path: string, { mode, size, uid, gid, mtime }: Partial<Attributes>): Promise<void> {
    if (size !== undefined) await agent.file.truncate(op, { ...as, path, size });
    if (uid !== undefined && gid !== undefined) await agent.file.chown(op, { ...as, path, owner: `${uid}:${gid}`, follow: true });
    if (mode !== undefined) await agent.file.chmod(op, { ...as, path, mode: mode & 0o7777 });
    if (mtime !== undefined) await touch(op, served, { user, path, seconds: Number(mtime) });
  }

  async function settle(handle: Handle): Promise<void> {
    if (handle.kind !== 'file') return;
    const { up, down } = handle;
    handle.up = null;
    handle.down = null;
    await down?.close();
    await up?.end();
  }

  sftp.on('OPEN', (reqId, path, flags, attrs) =>
    answer(reqId, async () => {
      const existing = await stat(path, true).catch(absent);
      if (existing?.type === 'dir') throw op.error('invalid_argument', `${path} is a directory`);
      if ((flags & OPEN.write) === 0 && existing === null) throw op.error('not_found', `there is no ${path}`);
      if (existing !== null && (flags & OPEN.exclusive) !== 0) throw op.error('conflict', `${path} is there already`);
      if (existing === null && (flags & OPEN.create) === 0) throw op.error('not_found', `there is no ${path}`);
      if (existing === null) await agent.file.write(op, { ...as, path, mode: (attrs.mode ?? 0o644) & 0o7777 }, nothing());
      else if ((flags & OPEN.truncate) !== 0) await agent.file.truncate(op, { ...as, path, size: 0 });
      opened(reqId, { kind: 'file', path, append: (flags & OPEN.append) !== 0, down: null, up: null });
    }),
  );
  sftp.on('READ', (reqId, buffer, offset, length) =>
    inTurn(reqId, buffer, async (handle) => {
      if (handle.kind !== 'file') throw op.error('invalid_argument', 'it is a directory');
      if (handle.up !== null) await settle(handle);
      if (handle.down === null || handle.down.at !== offset) {
        await handle.down?.close();
        handle.down = await Downstream.open(op, agent, { ...as, path: handle.path, offset });
      }
      const bytes = await handle.down.take(Math.min(length, READ_BYTES_MAX));
      if (bytes === null) sftp.status(reqId, STATUS.end);
      else sftp.data(reqId, bytes);
    }),
  );
  sftp.on('WRITE', (reqId, buffer, offset, data) =>
    inTurn(reqId, buffer, async (handle) => {
      if (handle.kind !== 'file') throw op.error('invalid_argument', 'it is a directory');
      if (handle.down !== null || (handle.up !== null && !handle.append && handle.up.at !== offset)) await settle(handle);
      const at = handle.append && handle.up === null ? (await stat(handle.path, true)).size : offset;
      handle.up ??= new Upstream(op, agent, { ...as, path: handle.path, at });
      await handle.up.put(data);
      sftp.status(reqId, STATUS.ok);
    }),
  );
  sftp.on('CLOSE', (reqId, buffer) =>
    inTurn(reqId, buffer, async (handle) => {
      handles.delete(buffer.readUInt32BE());
      await settle(handle);
      sftp.status(reqId, STATUS.ok);
    }),
  );
  sftp.on('FSTAT', (reqId, buffer) =>
    inTurn(reqId, buffer, async (handle) => {
      if (handle.kind === 'file' && handle.up !== null) await settle(handle);
      sftp.attrs(reqId, attributesOf(await stat(handle.path, true)));
    }),
  );
  sftp.on('FSETSTAT', (reqId, buffer, attrs) =>
    inTurn(reqId, buffer, async (handle) => {
      await settle(handle);
      await change(handle.path, attrs);
      sftp.status(reqId, STATUS.ok);
    }),
  );
  sftp.on('STAT', (reqId, path) => answer(reqId, async () => sftp.attrs(reqId, attributesOf(await stat(path, true)))));
  sftp.on('LSTAT', (reqId, path) => answer(reqId, async () => sftp.attrs(reqId, attributesOf(await stat(path, false)))));
  sftp.on('SETSTAT', (reqId, path, attrs) => done(reqId, () => change(path, attrs)));
  sftp.on('OPENDIR', (reqId, path) =>
    answer(reqId, async () => {
      if ((await stat(path, true)).type !== 'dir') throw op.error('not_found', `${path} is no directory`);
      opened(reqId, { kind: 'directory', path, left: null });
    }),
  );
  sftp.on('READDIR', (reqId, buffer) =>
    inTurn(reqId, buffer, async (handle) => {
      if (handle.kind !== 'directory') throw op.error('invalid_argument', 'it is a file');
      handle.left ??= await namesIn(handle.path);
      const some = handle.left.splice(0, NAMES_AT_ONCE);
      if (some.length === 0) sftp.status(reqId, STATUS.end);
      else sftp.name(reqId, some);
    }),
  );
  sftp.on('REMOVE', (reqId, path) =>
    done(reqId, async () => {
      if ((await stat(path, false)).type === 'dir') throw op.error('invalid_argument', `${path} is a directory`);
      await agent.file.remove(op, { ...as, path, recursive: false });
    }),
  );
  sftp.on('RMDIR', (reqId, path) =>
    done(reqId, async () => {
      if ((await stat(path, false)).type !== 'dir') throw op.error('invalid_argument', `${path} is no directory`);
      await agent.file.remove(op, { ...as, path, recursive: false });
    }),
  );
  sftp.on('MKDIR', (reqId, path, attrs) =>
    done(reqId, () => agent.file.mkdir(op, { ...as, path, mode: (attrs.mode ?? 0o755) & 0o7777, parents: false })),
  );
  sftp.on('RENAME', (reqId, from, to) =>
    done(reqId, async () => {
      // Other than the call of the same name, it never takes the place of a file.
      if ((await stat(to, false).catch(absent)) !== null) throw op.error('conflict', `${to} is there already`);
      await agent.file.rename(op, { ...as, from, to });
    }),
  );
  sftp.on('READLINK', (reqId, path) =>
    answer(reqId, async () => {
      const { target } = await stat(path, false);
      if (target === null) throw op.error('invalid_argument', `${path} is no link`);
      sftp.name(reqId, [nameOf(target)]);
    }),
  );
  sftp.on('SYMLINK', (reqId, path, target) => done(reqId, () => agent.file.symlink(op, { ...as, path, target })));
  sftp.on('REALPATH', (reqId, path) => answer(reqId, async () => sftp.name(reqId, [nameOf(await realPath(path))])));
  sftp.on('EXTENDED', (reqId, name, data) => {
    if (name === 'limits@openssh.com') sendLimits(sftp, reqId, HANDLES_MAX);
    else if (name !== 'posix-rename@openssh.com') sftp.status(reqId, STATUS.unsupported);
    else
      done(reqId, async () => {
        const [from, to] = twoStrings(data);
        await agent.file.rename(op, { ...as, from, to });
      });
  });
  sftp.on('end', () => {
    // Its own client, and scp, want to hear how it ended; the library has no public way to say that of this kind of session.
    const { _protocol, outgoing } = sftp as unknown as Inside;
    _protocol.exitStatus(outgoing.id, 0);
    sftp.end();
  });
  sftp.on('close', () => {
    for (const handle of handles.values()) settle(handle).catch(() => {}); // nobody is there to be told
    handles.clear();
  });

  async function namesIn(path: string): Promise<FileEntry[]> {
    const names: FileEntry[] = [];
    for await (const entries of agent.file.list(op, { ...as, path, depth: 1 }))
      for (const entry of entries) names.push({ filename: pathText(entry.name), longname: longName(entry), attrs: attributesOf(entry) });
    return names;
  }

  /** Where a path begins that does not begin with a slash, the agent knows. */
  async function realPath(path: string): Promise<GuestPath> {
    const plain = path === '' ? '.' : path;
    const found = await stat(plain, true).catch(absent);
    if (found !== null) return typeof found.path === 'string' ? posix.normalize(found.path).replace(/(?<=.)\/$/, '') : found.path;
    if (path.startsWith('/')) return path;
    return `${pathText((await stat('.', true)).path)}/${path}`;
  }
}

function absent(error: unknown): null {
  if (error instanceof HutchError && error.code === 'not_found') return null;
  throw error;
}

function statusOf(cause: unknown): number {
  if (!(cause instanceof HutchError)) return STATUS.failure;
  if (cause.code === 'not_found') return STATUS.none;
  return cause.code === 'permission_denied' ? STATUS.denied : STATUS.failure;
}

function attributesOf({ type, mode, size, uid, gid, mtimeMs }: Entry): Attributes {
  const seconds = Math.floor(mtimeMs / 1_000);
  return { mode: TYPE_BITS[type] | (mode & 0o7777), size, uid, gid, atime: seconds, mtime: seconds };
}

/** As `ls -l` shows it: some clients show nothing else. */
function longName(entry: Entry): string {
  const { type, mode, uid, gid, user, group, size, mtimeMs, name } = entry;
  const letter = { file: '-', dir: 'd', symlink: 'l', fifo: 'p', socket: 's', char: 'c', block: 'b' }[type];
  const bits = [...'rwxrwxrwx'].map((bit, at) => ((mode >> (8 - at)) & 1 ? bit : '-')).join('');
  const when = new Date(mtimeMs).toISOString().slice(0, 16).replace('T', ' ');
  return `${letter}${bits} 1 ${user ?? uid} ${group ?? gid} ${size} ${when} ${pathText(name)}`;
}

function nameOf(path: GuestPath): FileEntry {
  const filename = pathText(path);
  return { filename, longname: filename, attrs: { mode: 0, size: 0, uid: 0, gid: 0, atime: 0, mtime: 0 } };
}

function twoStrings(data: Buffer): [string, string] {
  const length = data.readUInt32BE();
  const first = data.toString('utf8', 4, 4 + length);
  return [first, data.toString('utf8', 8 + length, 8 + length + data.readUInt32BE(4 + length))];
}

async function* nothing(): AsyncGenerator<Uint8Array> {}
