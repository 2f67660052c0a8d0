// What several verbs take or answer: bounds, fields, kinds of errors.
import { z } from 'zod';
import { ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, argumentsRefusal, type Refusal } from '../../domain/arguments.ts';
import { LOOPBACK } from '../../domain/published-port.ts';

const ENV_ENTRIES_MAX = 1_000;
const PATH_BYTES_MAX = 4_096;
export const LABELS_MAX = 64;
export const CPUS_MAX = 64;
export const MEMORY_MIB_MIN = 128;
export const MEMORY_MIB_MAX = 262_144;
export const DISK_MIB_MIN = 256;
export const DISK_MIB_MAX = 131_072;
/** The agent and a program need some. */
export const PIDS_MIN = 16;
export const PIDS_MAX = 1_000_000;
export const TIMEOUT_MS_MIN = 1_000;
export const TIMEOUT_MS_MAX = 31_536_000_000;
const IDLE_MS_MIN = 1_000;
export const PAGE_ITEMS_MAX = 1_000;

export const ref = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const envName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'must be a letter or _, then letters, digits and _, at most 128');
const text = (max: number) =>
  z
    .string()
    .max(max)
    .refine((value) => !value.includes('\0'), 'must not contain a NUL byte');
/** How many bytes it may have is judged with all others: `fitting`. */
const argument = z
  .string()
  .refine((value) => !value.includes('\0'), 'must not contain a NUL byte')
  .meta({ maxLength: ARGUMENT_BYTES_MAX });
export const env = z
  .record(envName, argument)
  .refine((map) => Object.keys(map).length <= ENV_ENTRIES_MAX, `at most ${ENV_ENTRIES_MAX} entries`);
export const argv = z.array(argument).min(1).max(ARGUMENTS_MAX);
/** Refuses what no command could be started with; `at` says where in the request an entry stands. */
export function refuseTooLarge(
  { addIssue }: Pick<z.core.$RefinementCtx, 'addIssue'>,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  at: (path: Refusal['path']) => readonly (string | number)[] = (path) => path,
): void {
  const refusal = argumentsRefusal(argv, env);
  if (refusal !== null) addIssue({ code: 'custom', message: refusal.message, path: [...at(refusal.path)] });
}
export const path = text(PATH_BYTES_MAX).min(1);
export const user = z.string().min(1).max(64).describe('name, uid, name:group or uid:gid');
export const flag = z.union([z.boolean(), z.enum(['true', 'false']).transform((word) => word === 'true')]);
export const count = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
export const label = z
  .record(z.string().min(1).max(63), z.string().max(255))
  .refine((map) => Object.keys(map).length <= LABELS_MAX, `at most ${LABELS_MAX} labels`);
/** Each is stored, and takes its time. */
const UNDO_MAX = 50;
export const undo = z.int().min(0).max(UNDO_MAX);
/** 0: never. A sweep of every second need not be told of less. */
export const idle = z
  .int()
  .refine((ms) => ms === 0 || (ms >= IDLE_MS_MIN && ms <= TIMEOUT_MS_MAX), `must be 0, or from ${IDLE_MS_MIN} to ${TIMEOUT_MS_MAX}`);
export const terminal = z.strictObject({
  cols: z.int().min(1).max(4_096),
  rows: z.int().min(1).max(4_096),
  term: z.string().max(64).optional(),
});

/** A port of this machine for one inside, as it is asked for. */
export const wantedPort = {
  hostAddress: z.union([z.ipv4(), z.ipv6()]).default(LOOPBACK).describe('of this machine; 0.0.0.0 or :: is all of them'),
  hostPort: z.int().min(0).max(65_535).default(0).describe('0: one that is free'),
  guestPort: z.int().min(1).max(65_535),
};

export const target = z.strictObject({ ref });
export const none = z.strictObject({});
export const found = ['not_found', 'conflict'] as const;
export const alive = [...found, 'failed_precondition'] as const;
export const files = [...alive, 'permission_denied', 'resource_exhausted'] as const;
export const fileTarget = target.extend({ path, user: user.optional() });
