// What projects may have.
import { z } from 'zod';
import { QUOTA_NAMES, QUOTAS, tierName } from '../../domain/quota.ts';
import { none } from './fields.ts';
import type { Verb } from './verb.ts';

const BOUND_MAX = 2 ** 40;
const bound = z.int().min(0).max(BOUND_MAX);
const fields = <T extends z.ZodType>(schema: T) => Object.fromEntries(QUOTA_NAMES.map((name) => [name, schema.describe(about(name))]));
const about = (name: (typeof QUOTA_NAMES)[number]): string => `${QUOTAS[name].about}${QUOTAS[name].unit === 'MiB' ? ', in MiB' : ''}`;
const tier = z.string().refine(tierName, 'must be capital letters, digits, _ and -, at most 32').describe('such as FREE');
const setBounds = z
  .strictObject(fields(z.union([bound, z.null(), z.literal('inherit')]).optional()))
  .describe('null: no bound; inherit: what was set is taken back; absent: as it was');
const someBounds = z.object(fields(bound.nullable().optional())).describe('null: no bound; absent: not said');

const quota = z
  .object({
    projectId: z.string(),
    project: z.string(),
    tier: z.string().nullable(),
    own: someBounds,
    bounds: z.object(fields(z.number().nullable())).describe('what holds'),
    use: z.object(fields(z.number())),
  })
  .meta({ id: 'Quota' });
const tierView = z.object({ name: z.string(), bounds: someBounds }).meta({ id: 'Tier' });

export const quotaVerbs = {
  'quota.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/quotas',
    summary: 'Show what projects may have and what they use',
    input: none,
    output: z.object({ projects: z.array(quota) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'quota.set': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/quotas/{project}',
    summary: 'Set what a project may have: a tier, bounds of its own, or both',
    input: z.strictObject({
      project: z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one'),
      tier: tier.nullable().optional().describe('null: none; absent: as it was'),
      bounds: setBounds.default({}),
    }),
    output: quota,
    errors: ['not_found', 'conflict', 'permission_denied'],
    idempotent: true,
    reads: false,
  },
  'quota.tiers': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/quota-tiers',
    summary: 'List the tiers',
    input: none,
    output: z.object({ tiers: z.array(tierView) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'quota.setTier': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/quota-tiers/{tier}',
    summary: 'Change a tier, or make one; it holds for all of its projects at once',
    input: z.strictObject({ tier, bounds: setBounds.default({}) }),
    output: tierView,
    errors: ['permission_denied'],
    idempotent: true,
    reads: false,
  },
  'quota.removeTier': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/quota-tiers/{tier}',
    summary: 'Remove a tier that no project has',
    input: z.strictObject({ tier }),
    output: z.object({ name: z.string() }),
    errors: ['not_found', 'failed_precondition', 'permission_denied'],
    idempotent: false,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
