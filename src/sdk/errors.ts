// From what went wrong on the way to one HutchError: the server's own where it said one, `unavailable`
// where it could not be reached or its answer broke off, `cancelled` where the caller gave up.

import { ERROR_CODES, type ErrorBody, type ErrorCode, HutchError } from '../domain/errors.ts';
import { type Address, formatAddress } from './address.ts';

/** An error that the server sent; anything else is `unavailable`, since no Hutch answered. */
export function errorFromBody(body: unknown, context: { readonly status?: number; readonly opId?: string | null }): HutchError {
  if (typeof body === 'object' && body !== null) {
    const { code, message, hint, opId } = body as Partial<Record<keyof ErrorBody, unknown>>;
    if (typeof code === 'string' && code in ERROR_CODES && typeof message === 'string') {
      const id = typeof opId === 'string' ? opId : context.opId;
      return new HutchError({
        code: code as ErrorCode,
        message,
        ...(typeof hint === 'string' ? { hint } : {}),
        ...(typeof id === 'string' ? { opId: id } : {}),
      });
    }
  }
  const status = context.status === undefined ? '' : ` (HTTP ${context.status})`;
  return new HutchError({ code: 'unavailable', message: `the answer did not come from a Hutch daemon${status}` });
}

export function cancelled(signal: AbortSignal): HutchError {
  if (signal.reason instanceof HutchError) return signal.reason;
  if (signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError') {
    return new HutchError({ code: 'deadline_exceeded', message: 'the call took longer than its signal allowed', cause: signal.reason });
  }
  return new HutchError({ code: 'cancelled', message: 'the call was cancelled', cause: signal.reason });
}

/** The daemon could not be reached, or the connection broke before the answer was whole. */
export class ConnectionError extends HutchError {
  /** Whether the request can have reached the daemon. */
  readonly sent: boolean;

  constructor(
    message: string,
    options: { readonly sent: boolean; readonly cause?: unknown; readonly hint?: string; readonly opId?: string },
  ) {
    const { sent, ...rest } = options;
    super({ code: 'unavailable', message, ...rest });
    this.sent = sent;
  }
}

/** Refused and absent sockets were not reached; after a reset the request may have arrived. */
export function unreachable(address: Address, cause: NodeJS.ErrnoException): ConnectionError {
  const where = formatAddress(address);
  switch (cause.code) {
    case 'ENOENT':
    case 'ECONNREFUSED':
      return new ConnectionError(`no daemon answers at ${where}`, { sent: false, cause, hint: 'start it with: hutch daemon start' });
    case 'EACCES':
      return new ConnectionError(`the daemon at ${where} may not be used by this user`, {
        sent: false,
        cause,
        hint: 'use it as the user who started it',
      });
    default:
      return new ConnectionError(`the connection to the daemon at ${where} was lost`, { sent: true, cause });
  }
}

/** The answer had begun. */
export function lostMidway(cause: unknown, opId: string | null): ConnectionError {
  return new ConnectionError('the connection to the daemon was lost before its answer was whole', {
    sent: true,
    cause,
    ...(opId === null ? {} : { opId }),
  });
}
