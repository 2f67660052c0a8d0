// What the table says of each verb.
import type { z } from 'zod';
import type { ErrorCode } from '../../domain/errors.ts';

type VerbKind = 'unary' | 'lines' | 'socket' | 'download' | 'upload';
export type Verb = {
  readonly kind: VerbKind;
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  readonly path: `/${string}`;
  readonly summary: string;
  readonly input: z.ZodObject;
  readonly output: z.ZodType;
  /** Beyond those that any verb may answer: invalid_argument, unauthenticated, unavailable, deadline_exceeded, cancelled, internal. */
  readonly errors: readonly ErrorCode[];
  /** Whether the same call again changes nothing more. */
  readonly idempotent: boolean;
  /** Whether it changes anything: a read never does, and never touches a lifetime. */
  readonly reads: boolean;
};
