// Files in the sandbox. Paths are resolved in the guest, as the user that the call names.
import type { Operation } from '../host/operation.ts';
import { CALL_MS, CONTENT, content, events, open, unary, upload } from './calls.ts';
import type { AgentConnection } from './connection.ts';
import {
  bytesMoved,
  changeEvent,
  type Entry,
  entriesEvent,
  entry,
  type FileChange,
  type GuestPath,
  lentEntry,
  lentFile,
  nothing,
  type TarDone,
  tarDone,
} from './messages.ts';
import { pathParam } from './paths.ts';

/** The user who does it; absent: the sandbox's. */
export type As = { readonly user?: string };

export type ReadSpec = As & { readonly path: GuestPath; readonly offset?: number; readonly length?: number };
export type WriteSpec = As & {
  readonly path: GuestPath;
  readonly mode?: number;
  readonly mtimeMs?: number;
  readonly mkdirs?: boolean;
  /** Written in place from this offset; absent: the whole file is replaced atomically. */
  readonly at?: number;
};
/** A file that the agent holds open for us. Disposing it gives it back. */
export type LentFile = Disposable & { readonly descriptor: number };
export type PackSpec = As & { readonly path: GuestPath; readonly dereference?: boolean; readonly includeParent?: boolean };
export type UnpackSpec = As & { readonly path: GuestPath; readonly preserveOwner?: boolean; readonly mkdirs?: boolean };

type Bytes<Result> = AsyncGenerator<Uint8Array, Result, undefined>;

export type AgentFiles = {
  stat(op: Operation, spec: As & { readonly path: GuestPath; readonly follow: boolean }): Promise<Entry>;
  /** In pieces of at most 256, in the order of the agent. */
  list(op: Operation, spec: As & { readonly path: GuestPath; readonly depth: number }): AsyncGenerator<readonly Entry[], void, undefined>;
  read(op: Operation, spec: ReadSpec): Promise<{ readonly entry: Entry; readonly bytes: Bytes<{ readonly bytes: number }> }>;
  /** As `read`, but a large file's descriptor in place of its bytes. */
  readLent(
    op: Operation,
    spec: ReadSpec,
  ): Promise<{ readonly entry: Entry } & ({ readonly lent: LentFile } | { readonly bytes: Bytes<{ readonly bytes: number }> })>;
  /** With `lend`: told the descriptor of the file that is being written, or null, before anything is taken from the source. */
  write(
    op: Operation,
    spec: WriteSpec,
    source: AsyncIterable<Uint8Array>,
    lend?: (descriptor: number | null) => Promise<void>,
  ): Promise<Entry>;
  mkdir(op: Operation, spec: As & { readonly path: GuestPath; readonly mode?: number; readonly parents: boolean }): Promise<Entry>;
  rename(op: Operation, spec: As & { readonly from: GuestPath; readonly to: GuestPath }): Promise<Entry>;
  remove(op: Operation, spec: As & { readonly path: GuestPath; readonly recursive: boolean }): Promise<void>;
  chmod(op: Operation, spec: As & { readonly path: GuestPath; readonly mode: number }): Promise<Entry>;
  chown(op: Operation, spec: As & { readonly path: GuestPath; readonly owner: string; readonly follow: boolean }): Promise<Entry>;
  truncate(op: Operation, spec: As & { readonly path: GuestPath; readonly size: number }): Promise<Entry>;
  symlink(op: Operation, spec: As & { readonly path: GuestPath; readonly target: GuestPath }): Promise<Entry>;
  link(op: Operation, spec: As & { readonly path: GuestPath; readonly target: GuestPath }): Promise<Entry>;
  /** Resolves when the watch is in place: what changes from then on is seen. */
  watch(
    op: Operation,
    spec: As & { readonly path: GuestPath; readonly recursive: boolean },
  ): Promise<AsyncGenerator<FileChange, void, undefined>>;
};

export type AgentTar = {
  /** A PAX archive of a directory or file; returns its size. */
  pack(op: Operation, spec: PackSpec): Promise<Bytes<TarDone>>;
  unpack(op: Operation, spec: UnpackSpec, source: AsyncIterable<Uint8Array>): Promise<TarDone>;
};

/** Removing or making deep trees takes its time on a slow disk. */
const TREE_MS = 10 * CALL_MS;

export function agentFiles(connection: AgentConnection): AgentFiles {
  const onPath = <Spec extends { readonly path: GuestPath }>(spec: Spec) => ({ ...spec, path: pathParam(spec.path) });
  return {
    stat: (op, spec) => unary(op, connection, 'file.stat', onPath(spec), entry),
    async *list(op, spec) {
      const { stream } = await open(op, connection, 'file.list', onPath(spec), nothing);
      for await (const { entries } of events(op, connection, stream, ['entries'], entriesEvent)) yield entries;
    },
    async read(op, spec) {
      const { stream, reply } = await open(op, connection, 'file.read', onPath(spec), entry);
      return { entry: reply, bytes: content(op, connection, stream, CONTENT, bytesMoved) };
    },
    async readLent(op, spec) {
      const { stream, reply } = await open(op, connection, 'file.read', { ...onPath(spec), lend: true }, lentEntry);
      const { lent, ...found } = reply;
      if (lent === null) return { entry: found, bytes: content(op, connection, stream, CONTENT, bytesMoved) };
      return { entry: found, lent: { descriptor: lent, [Symbol.dispose]: () => stream.cancel() } };
    },
    async write(op, spec, source, lend) {
      const { stream, reply } = await open(
        op,
        connection,
        'file.write',
        { ...onPath(spec), ...(lend === undefined ? {} : { lend: true }) },
        lentFile,
      );
      try {
        await lend?.(reply?.lent ?? null);
      } catch (error) {
        stream.cancel();
        throw error;
      }
      return await upload(op, connection, stream, source, entry);
    },
    mkdir: (op, spec) => unary(op, connection, 'file.mkdir', onPath(spec), entry),
    rename: (op, { from, to, ...as }) => unary(op, connection, 'file.rename', { ...as, from: pathParam(from), to: pathParam(to) }, entry),
    remove: (op, spec) => unary(op, connection, 'file.remove', onPath(spec), nothing, TREE_MS),
    chmod: (op, spec) => unary(op, connection, 'file.chmod', onPath(spec), entry),
    chown: (op, spec) => unary(op, connection, 'file.chown', onPath(spec), entry),
    truncate: (op, spec) => unary(op, connection, 'file.truncate', onPath(spec), entry),
    symlink: (op, spec) => unary(op, connection, 'file.symlink', { ...onPath(spec), target: pathParam(spec.target) }, entry),
    link: (op, spec) => unary(op, connection, 'file.link', { ...onPath(spec), target: pathParam(spec.target) }, entry),
    async watch(op, spec) {
      const { stream } = await open(op, connection, 'file.watch', onPath(spec), nothing);
      return events(op, connection, stream, ['change', 'overflow'], changeEvent);
    },
  };
}

export function agentTar(connection: AgentConnection): AgentTar {
  return {
    async pack(op, spec) {
      const { stream } = await open(op, connection, 'tar.pack', { ...spec, path: pathParam(spec.path) }, nothing);
      return content(op, connection, stream, CONTENT, tarDone);
    },
    async unpack(op, spec, source) {
      const { stream } = await open(op, connection, 'tar.unpack', { ...spec, path: pathParam(spec.path) }, nothing);
      return await upload(op, connection, stream, source, tarDone);
    },
  };
}
