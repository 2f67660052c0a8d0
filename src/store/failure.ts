// How a failure of SQLite becomes a HutchError that names the file and the way out, and how errors
// cross from the worker to the daemon's thread.
import { ERROR_CODES, type ErrorCode, HutchError } from '../domain/errors.ts';

/** Primary result codes (sqlite.org/rescode.html); the low byte of the extended ones. */
const SQLITE = { PERM: 3, BUSY: 5, LOCKED: 6, NOMEM: 7, READONLY: 8, IOERR: 10, CORRUPT: 11, FULL: 13, CANTOPEN: 14, NOTADB: 26 } as const;

/** What node:sqlite throws. */
type SqliteError = Error & { readonly errcode: number; readonly errstr: string };

export function isSqliteError(error: unknown): error is SqliteError {
  return error instanceof Error && 'errcode' in error && typeof error.errcode === 'number';
}

/** The disk itself failed, other than by being full. */
export function isDiskFailure(error: unknown): boolean {
  return isSqliteError(error) && (error.errcode & 0xff) === SQLITE.IOERR;
}

/** Gives HutchErrors back as they are; anything that is neither is a bug, and `internal`. */
export function storeError(error: unknown, path: string): HutchError {
  if (error instanceof HutchError) return error;
  if (!isSqliteError(error)) return new HutchError({ code: 'internal', message: 'the store met a bug of its own', cause: error });
  const { code, message, hint } = describe(error, path);
  return new HutchError({ code, message, ...(hint === undefined ? {} : { hint }), cause: error });
}

function describe(error: SqliteError, path: string): { code: ErrorCode; message: string; hint?: string } {
  switch (error.errcode & 0xff) {
    case SQLITE.FULL:
      return {
        code: 'resource_exhausted',
        message: `the disk is full: the store ${path} could not be written; nothing was changed`,
        hint: 'free some space on it and try again',
      };
    case SQLITE.IOERR:
      return {
        code: 'unavailable',
        message: `the disk failed under the store ${path} (${error.errstr}, SQLite ${error.errcode}); nothing was changed`,
        hint: 'look at the kernel log: dmesg',
      };
    case SQLITE.NOMEM:
      return { code: 'resource_exhausted', message: `there was no memory left for the store ${path}; nothing was changed` };
    case SQLITE.BUSY:
    case SQLITE.LOCKED:
      return {
        code: 'conflict',
        message: `another process has the store ${path} open`,
        hint: 'there can be one daemon to a data directory: hutch daemon status',
      };
    case SQLITE.READONLY:
    case SQLITE.PERM:
    case SQLITE.CANTOPEN:
      return {
        code: 'permission_denied',
        message: `the store ${path} cannot be opened for writing (${error.errstr})`,
        hint: 'check owner and mode of the file and its directory',
      };
    case SQLITE.CORRUPT:
    case SQLITE.NOTADB:
      return damaged(path, error.errstr);
    default:
      return { code: 'internal', message: `the store ${path} met a bug (${error.errstr}, SQLite ${error.errcode})` };
  }
}

function damaged(path: string, what: string): { code: ErrorCode; message: string; hint: string } {
  return {
    code: 'internal',
    message: `the store ${path} is damaged (${what}); it was left as it is`,
    hint: `restore it from a backup, or move ${path} and the files beside it away to begin with an empty one`,
  };
}

export function damagedError(path: string, what: string): HutchError {
  return new HutchError(damaged(path, what));
}

/** An error as a message between threads. `detail` is for the log. */
export type WireError = {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string | null;
  readonly detail: string | null;
};

export function toWire(error: HutchError): WireError {
  const { cause } = error;
  return {
    code: error.code,
    message: error.message,
    hint: error.hint,
    detail: cause instanceof Error ? (cause.stack ?? cause.message) : null,
  };
}

export function fromWire(wire: WireError, opId: string | undefined): HutchError {
  return new HutchError({
    code: wire.code in ERROR_CODES ? wire.code : 'internal',
    message: wire.message,
    ...(wire.hint === null ? {} : { hint: wire.hint }),
    ...(opId === undefined ? {} : { opId }),
    ...(wire.detail === null ? {} : { cause: new Error(wire.detail) }),
  });
}
