// What ended a stream or a connection, kept apart from who asked: each caller gets a HutchError of
// its own with its own op id.

import { z } from 'zod';
import { ERROR_CODES, type ErrorCode, type HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { decodeMessage, MessageError } from './messagepack.ts';

export type Failure = { readonly code: ErrorCode; readonly message: string; readonly cause?: unknown };

export function failureError(op: Operation, failure: Failure): HutchError {
  return op.error(failure.code, failure.message, { cause: failure.cause });
}

/** An error that the agent reported. It is the `cause` of the HutchError that the caller gets. */
export class AgentError extends Error {
  /** The name of the system call's error, as `ENOENT`; null when it was none. */
  readonly errno: string | null;

  constructor(message: string, errno: string | null) {
    super(message);
    this.name = 'AgentError';
    this.errno = errno;
  }
}

/** `ENOENT` and its like, when an agent's system call failed; else null. */
export function errnoOf(error: unknown): string | null {
  const cause: unknown = error instanceof Error ? error.cause : undefined;
  return cause instanceof AgentError ? cause.errno : null;
}

const MESSAGE_CHARS_MAX = 4_096;

/** Unknown fields are ignored. The guest's text is cut and cleaned: it ends in terminals and logs. */
const agentFailure = z.object({
  code: z.string().max(64),
  message: z.string(),
  errno: z
    .string()
    .regex(/^E[A-Z0-9]{1,31}$/)
    .nullish()
    .catch(null),
});

/** Reads the payload of an error REPLY or CLOSE. Throws MessageError when it is none. */
export function readFailure(payload: Uint8Array): Failure {
  const parsed = agentFailure.safeParse(decodeMessage(payload));
  if (!parsed.success) throw new MessageError('an error without code or message');
  const { code, message, errno } = parsed.data;
  const text = printable(message).slice(0, MESSAGE_CHARS_MAX) || 'the agent gave no reason';
  return { code: isErrorCode(code) ? code : 'internal', message: text, cause: new AgentError(text, errno ?? null) };
}

function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(ERROR_CODES, code);
}

/** Control characters as spaces: what a guest says must not move the cursor of who reads it. */
function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]+/g, ' ').trim();
}
