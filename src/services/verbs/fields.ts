// What several verbs take or answer: bounds, fields, kinds of errors.
import { z } from 'zod';

const ENV_ENTRIES_MAX = 1_000;
const ENV_VALUE_BYTES_MAX = 65_536;
const ARGV_ENTRIES_MAX = 4_096;
const ARGUMENT_BYTES_MAX = 65_536;
const PATH_BYTES_MAX = 4_096;
export const LABELS_MAX = 64;
export const CPUS_MAX = 64;
export const MEMORY_MIB_MIN = 128;
export const MEMORY_MIB_MAX = 262_144;
export const DISK_MIB_MIN = 256;
export const DISK_MIB_MAX = 131_072;
export const TIMEOUT_MS_MIN = 1_000;
export const TIMEOUT_MS_MAX = 31_536_000_000;
export const PAGE_ITEMS_MAX = 1_000;

export const ref = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const envName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, 'must be a letter or _, then letters, digits and _, at most 128');
const text = (max: number) =>
  z
    .string()
    .max(max)
    .refine((value) => !value.includes('\0'), 'must not contain a NUL byte');
export const env = z
  .record(envName, text(ENV_VALUE_BYTES_MAX))
  .refine((map) => Object.keys(map).length <= ENV_ENTRIES_MAX, `at most ${ENV_ENTRIES_MAX} entries`);
export const argv = z.array(text(ARGUMENT_BYTES_MAX)).min(1).max(ARGV_ENTRIES_MAX);
export const path = text(PATH_BYTES_MAX).min(1);
export const user = z.string().min(1).max(64).describe('name, uid, name:group or uid:gid');
export const flag = z.union([z.boolean(), z.enum(['true', 'false']).transform((word) => word === 'true')]);
export const count = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
export const label = z
  .record(z.string().min(1).max(63), z.string().max(255))
  .refine((map) => Object.keys(map).length <= LABELS_MAX, `at most ${LABELS_MAX} labels`);
export const terminal = z.strictObject({
  cols: z.int().min(1).max(4_096),
  rows: z.int().min(1).max(4_096),
  term: z.string().max(64).optional(),
});

export const target = z.strictObject({ ref });
export const none = z.strictObject({});
export const found = ['not_found', 'conflict'] as const;
export const alive = [...found, 'failed_precondition'] as const;
export const files = [...alive, 'permission_denied', 'resource_exhausted'] as const;
export const fileTarget = target.extend({ path, user: user.optional() });
