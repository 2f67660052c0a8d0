// The only door to the system: files, processes, sockets, clock and randomness. A test wraps this
// object to make its N-th call fail, hang, or be the daemon's last; so nothing else in the daemon
// may import node:fs, node:child_process or node:net's connect.
//
// Every method takes the operation first and hears its signal. Every failure is a HutchError:
// ENOENT → not_found, EEXIST → conflict, EACCES/EPERM → permission_denied, ENOSPC/EDQUOT/EMFILE →
// resource_exhausted, ECONNREFUSED/ECONNRESET/EPIPE → unavailable, all else → internal; `cause` keeps
// the errno (`errnoOf` in errors.ts reads it). Paths are absolute. An aborted call throws its signal's
// HutchError, else `cancelled`; it first gets a second to unwind, so that it leaves nothing half-done.
import type { Duplex } from 'node:stream';
import type { Operation } from './operation.ts';

/** A live process, safe against reuse of its pid: `startTicks` is field 22 of /proc/PID/stat. */
export type ProcessRef = { readonly pid: number; readonly startTicks: number };

export type RunOptions = {
  /** Added to PATH, HOME and LANG: nothing of the daemon's own environment is passed on. */
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** A stream is read as fast as the program takes it; when it fails, the program is ended and that is the failure. */
  readonly input?: Uint8Array | AsyncIterable<Uint8Array>;
  /** Output beyond this many bytes per stream is an error, not a truncation. Default 1 MiB. */
  readonly outputBytesMax?: number;
  /** Called with each chunk of both streams, for progress. */
  readonly onOutput?: (chunk: Uint8Array, stream: 'stdout' | 'stderr') => void;
};

/** `exitCode` is 128 + its number when a signal ended the program. */
export type RunResult = { readonly exitCode: number; readonly stdout: Uint8Array; readonly stderr: Uint8Array };

export type SpawnOptions = {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Where stdout and stderr go; the file is appended to. */
  readonly logPath: string;
};

export type FileInfo = {
  readonly type: 'file' | 'directory' | 'symlink' | 'socket' | 'other';
  readonly sizeBytes: number;
  /** Blocks on disk, in bytes: what a sparse file really takes. */
  readonly allocatedBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly inode: bigint;
  readonly device: bigint;
  readonly modifiedNs: bigint;
  readonly changedNs: bigint;
};

/** Bytes at a place in a file that is a hole elsewhere. */
export type SparsePiece = { readonly offset: number; readonly bytes: Uint8Array };
/** Those that come are written as they come: the bytes of each need to be valid until the next is asked for. */
export type SparsePieces = Iterable<SparsePiece> | AsyncIterable<SparsePiece>;

/** Disposing it stops listening; `content` then fails if nothing had come. */
export type Receiver = AsyncDisposable & { readonly content: Promise<Uint8Array> };

/** Peers that come to us. `accept` waits for the next one; of those that come while nobody asks, one may wait. */
export type UnixListener = AsyncDisposable & { accept(op: Operation): Promise<Duplex> };

/** `host` is an address or, to connect to, also a name. */
export type TcpAddress = { readonly host: string; readonly port: number };
/** One that came to us, paused and half-open. */
export type TcpPeer = Duplex & {
  /** Ends it when all that was written is sent. */
  destroySoon(): void;
  /** Ends it so that the other end hears of a failure, and not of an end. */
  resetAndDestroy(): void;
};
/** `port`: the one that was taken where 0 was asked for. Disposing it ends its connections too. */
export type TcpListener = AsyncDisposable & { readonly port: number };
/** Certificates and key as PEM. */
export type TlsOptions = {
  readonly ca?: Uint8Array;
  readonly cert?: Uint8Array;
  readonly key?: Uint8Array;
  /** Whether the other end must prove who it is. */
  readonly verify: boolean;
};

/** `path`: a descriptor of ours, for whoever may look into this process; `device` and `inode` are what must be found there. */
export type BorrowedFile = AsyncDisposable & { readonly path: string; readonly device: string; readonly inode: string };

/** Positions and sizes in bytes. Disposing it waits for what is under way. */
export type InsideFile = AsyncDisposable & {
  stat(): Promise<{ readonly sizeBytes: number; readonly mode: number; readonly uid: number; readonly gid: number }>;
  /** How many bytes came; fewer than there is room for at its end. */
  read(into: Uint8Array, at: number): Promise<number>;
  /** All of it. Whole blocks of 4 KiB go past the host's cache where they lie in `wholePages`. */
  write(block: Uint8Array, at: number): Promise<void>;
  /** Waits for the disk. */
  sync(): Promise<void>;
};

export type FileSystemInfo = { readonly totalBytes: number; readonly freeBytes: number; readonly type: string };

/**
 * `in-place`: all that a socket gives comes to lie in the same memory, so what is to be kept of a chunk must be copied
 * before the next, and nothing but `data` events gives it. For much that comes: a fresh buffer each time is work for the collector.
 */
export type Reads = 'fresh' | 'in-place';

export type HttpRequest = {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  /** What streams is read as fast as the server takes it, and no further once this has answered. */
  readonly body?: string | Uint8Array | { readonly sizeBytes: number; readonly chunks: AsyncIterable<Uint8Array> };
  /** Certificates, in PEM, that are trusted beside the well-known ones. */
  readonly trusted?: string;
  /** The server's certificate is not looked at. */
  readonly anyCertificate?: boolean;
  /** `http_proxy` and its kin, lower case. Never used for loopback. */
  readonly proxy?: Readonly<Record<string, string>>;
  /** Asked about the address that is to be connected to. Not where a proxy resolves the name. */
  readonly mayConnect?: (address: string) => boolean;
  /** How long nothing may come, milliseconds. */
  readonly idleMs: number;
  /** How long it may take until the head of the answer is there, in whatever pieces that comes; milliseconds. Not given: for ever. */
  readonly headMs?: number;
};

/** Whoever has it reads `body` to its end, or disposes it. */
export type HttpAnswer = Disposable & {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** Fails when the connection ends before the answer does. */
  readonly body: AsyncIterable<Uint8Array>;
};

/** A digest that is taken of bytes as they come. */
export type Sum = {
  /** The memory may be used again when this resolves; shared memory is read where it lies, other memory is copied. */
  update(bytes: Uint8Array): Promise<void>;
  /** SHA-256 in hexadecimal; the last thing that it is asked. */
  hex(): Promise<string>;
};

/** Less than this is hashed or copied sooner than a thread has begun; bytes. */
export const ASIDE_BYTES_MIN = 8 * 1024 * 1024;

/** A thread beside the daemon's, for work on many bytes. Whoever has it open disposes it: then nothing of theirs is under way there. */
export type Aside = AsyncDisposable & {
  sum(): Sum;
  /** As `Host.sha256`. */
  sha256(op: Operation, path: string): Promise<string>;
  /**
   * Appends a part of a file to another, made (0600) if there is none; gives how much it was, less where the file ends before,
   * and its SHA-256 in hexadecimal. It ends when `over` aborts, too.
   */
  append(
    op: Operation,
    from: { readonly path: string; readonly offset: number; readonly bytes: number },
    to: string,
    over?: AbortSignal,
  ): Promise<{ readonly sha256: string; readonly bytes: number }>;
};

export type Host = {
  // Files
  /** The whole file; `payload_too_large` beyond `bytesMax`. */
  readFile(op: Operation, path: string, bytesMax: number): Promise<Uint8Array>;
  /** Temp file beside, fsync, rename, fsync of the directory: the old content or the new, never a part. */
  writeFileAtomic(op: Operation, path: string, content: Uint8Array | string, mode: number): Promise<void>;
  /** Makes the file (0600) if there is none. */
  appendFile(op: Operation, path: string, content: Uint8Array): Promise<void>;
  /** At the end of the file, made (0600) if there is none; the next chunk is asked for when the last one is written. Gives their bytes. */
  appendStream(op: Operation, path: string, chunks: AsyncIterable<Uint8Array>): Promise<number>;
  /** In place of what the file has at `offset`; `not_found` where there is none. Durable only after `sync`. */
  writeAt(op: Operation, path: string, offset: number, bytes: Uint8Array): Promise<void>;
  /** Fewer bytes than `length` where the file ends before. */
  readRange(op: Operation, path: string, offset: number, length: number): Promise<Uint8Array>;
  /** Chunks from `offset` to the end of the file as it is then; `in-place`: each is valid until the next is asked for. */
  readStream(op: Operation, path: string, offset?: number, reads?: Reads): AsyncIterable<Uint8Array>;
  /** Of a symlink itself; null where nothing is. */
  stat(op: Operation, path: string): Promise<FileInfo | null>;
  /** What a symlink points to, as it stands there. */
  readLink(op: Operation, path: string): Promise<string>;
  /** Without symlinks and dots; `not_found` where nothing is. */
  realPath(op: Operation, path: string): Promise<string>;
  /** The names in a directory, sorted. */
  list(op: Operation, path: string): Promise<readonly string[]>;
  /** With its parents. One that exists is no error and keeps its mode. */
  makeDir(op: Operation, path: string, mode: number): Promise<void>;
  /** Removes a file or a whole directory; what is not there is no error. */
  remove(op: Operation, path: string): Promise<void>;
  /** Removes one directory that is empty, as a cgroup's must be removed; false while it is not, or is in use. None is no error. */
  removeEmptyDir(op: Operation, path: string): Promise<boolean>;
  /** Replaces `to` if it exists, then fsyncs the directory. */
  rename(op: Operation, from: string, to: string): Promise<void>;
  /** Another name for the same file, on the same file system; `conflict` where something has it. */
  link(op: Operation, from: string, to: string): Promise<void>;
  /** A symlink at `path` to `target`; `conflict` where something has that name. */
  symlink(op: Operation, target: string, path: string): Promise<void>;
  chmod(op: Operation, path: string, mode: number): Promise<void>;
  /** Of a symlink itself, never of what it points to. */
  chown(op: Operation, path: string, uid: number, gid: number): Promise<void>;
  /** Makes the file (0600) if there is none: an empty sparse disk is one call. */
  truncate(op: Operation, path: string, sizeBytes: number): Promise<void>;
  /**
   * Reflink where the file system can, else a sparse copy. The copy replaces `to` when it is whole, has
   * mode 0600 whatever the original's, and is durable only after `sync`.
   */
  cloneFile(op: Operation, from: string, to: string): Promise<'reflink' | 'copy'>;
  /** A file of that size (0600) with only these pieces written; it replaces `path` when it is whole, and is durable only after `sync`. */
  writeSparse(op: Operation, path: string, sizeBytes: number, pieces: SparsePieces): Promise<void>;
  /** A regular file that another process has open, by its path in /proc; null where it is none, or is not to be had. */
  borrowFile(op: Operation, path: string, access: 'read' | 'write'): Promise<BorrowedFile | null>;
  /** A regular file below a directory whose content is not trusted; no symlink below it is followed. Null where it is not to be had. */
  openInside(op: Operation, root: string, path: string, access: 'read' | 'write'): Promise<InsideFile | null>;
  /** fsync of a file or a directory. */
  sync(op: Operation, path: string): Promise<void>;
  fileSystem(op: Operation, path: string): Promise<FileSystemInfo>;
  sha256(op: Operation, path: string): Promise<string>;
  /** Begins nothing yet. */
  aside(): Aside;
  /**
   * Yields at the next change of a directory's entries; throws when the signal aborts. It watches from
   * this call on: watch, then look, then wait, and nothing is missed. Loop over it, or it is held till
   * the signal aborts.
   */
  watchDir(op: Operation, path: string): AsyncIterable<void>;
  /** An exclusive lock on a file, held until disposed or the process ends; null when another holds it. */
  lockFile(op: Operation, path: string): Promise<AsyncDisposable | null>;

  // Processes
  /** Runs to the end; killed (TERM, then KILL) when the signal aborts. Never a shell: an argument vector. */
  run(op: Operation, argv: readonly string[], options?: RunOptions): Promise<RunResult>;
  /** Starts a process in a session of its own that outlives the daemon. */
  spawnDetached(op: Operation, argv: readonly string[], options: SpawnOptions): Promise<ProcessRef>;
  processRef(op: Operation, pid: number): Promise<ProcessRef | null>;
  isAlive(op: Operation, ref: ProcessRef): Promise<boolean>;
  /** Sends a signal if the pid is still that process; false when it is gone. */
  kill(op: Operation, ref: ProcessRef, signal: 'SIGTERM' | 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): Promise<boolean>;
  /** Proportional set size and CPU time, null when the process is gone. */
  processUse(op: Operation, ref: ProcessRef): Promise<{ pssBytes: number; cpuUs: number } | null>;
  /**
   * Bytes that it, its descendants, and those of them that have ended moved to and from disks (proc(5), `io`); null
   * when it is gone, or not this user's to look at.
   */
  processTraffic(op: Operation, ref: ProcessRef): Promise<{ readBytes: number; writtenBytes: number } | null>;
  /** `path`: directories like those of PATH, which are looked at first. */
  which(op: Operation, program: string, path?: string): Promise<string | null>;
  /** Starts a program and gives its input and output as one stream; `env` is added to the little that every program gets. */
  connectProgram(op: Operation, argv: readonly string[], env: Readonly<Record<string, string>>): Promise<Duplex>;

  // Sockets
  connectUnix(op: Operation, path: string, reads?: Reads): Promise<Duplex>;
  /** Listens for one peer and gathers what it sends until it hangs up; more than `bytesMax` fails. */
  receiveUnix(op: Operation, path: string, bytesMax: number): Promise<Receiver>;
  /** Listens at `path`, in place of whatever is there, until disposed; the socket has that mode. Peers are read `in-place`, and paused. */
  listenUnix(op: Operation, path: string, mode: number): Promise<UnixListener>;
  /** One request over HTTP or HTTPS; redirects are the caller's. Resolves with the answer's headers, whatever its status. */
  request(op: Operation, request: HttpRequest): Promise<HttpAnswer>;
  connectTcp(op: Operation, address: TcpAddress, tls?: TlsOptions): Promise<Duplex>;
  /** Has tried by itself that connections come in. `arrived` gets each, and destroys the one that it does not want. */
  listenTcp(op: Operation, address: TcpAddress, arrived: (peer: TcpPeer) => void): Promise<TcpListener>;

  // Clock, randomness, identity
  nowMs(): number;
  monotonicMs(): number;
  bootId(): string;
  randomBytes(count: number): Uint8Array;
  /** Our own user and group id. */
  readonly uid: number;
  readonly gid: number;
};
