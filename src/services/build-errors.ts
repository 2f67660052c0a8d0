// What goes wrong with a build, as people are told it: with the file and line where it stands, or what of theirs cannot be used.
import { ArchiveError } from '../domain/archive-error.ts';
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import type { Received } from '../images/build/context.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';

/** `what`: that it is of, for people. @throws HutchError `invalid_argument` where it is no archive, or holds what it may not. */
export async function unlessBad<T>(op: Operation, what: string, receive: () => Promise<T>): Promise<T> {
  try {
    return await receive();
  } catch (error) {
    for (let at: unknown = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth += 1) {
      if (at instanceof ArchiveError) throw op.error('invalid_argument', `${what} cannot be used: ${at.message}`);
    }
    throw error;
  }
}

/** @throws HutchError with file and line for what a Dockerfile has wrong. */
export function named<T>(op: Operation, context: Received, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof DockerfileError ? inFile(op, context, error) : error;
  }
}

function inFile(op: Operation, { dockerfile }: Received, { line, instruction, message }: DockerfileError): HutchError {
  return op.error('invalid_argument', `${dockerfile.name}:${line}: ${instruction === null ? '' : `${instruction}: `}${message}`);
}

/** Whatever ended a build; what is none of these is a bug, and logged. */
export function asHutchError(op: Operation, context: Received | null, error: unknown): HutchError {
  if (error instanceof DockerfileError && context !== null) return inFile(op, context, error);
  if (error instanceof HutchError) return error;
  if (error instanceof ArchiveError) return op.error('failed_precondition', `what is built cannot be used: ${error.message}`);
  op.log.error({ err: error }, 'a build failed for a reason of ours');
  return op.error('internal', `the build failed: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}

/** Of what was given up because something else had failed. */
export function isAbort(reason: unknown): boolean {
  return reason instanceof Error && reason.name === 'AbortError';
}
