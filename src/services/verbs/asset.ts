// The low-level view of what sandboxes are made from.
import { z } from 'zod';
import { flag, LABELS_MAX, label, ref } from './fields.ts';
import type { Verb } from './verb.ts';

export const ASSET_KINDS = ['kernel', 'rootfs', 'initrd', 'disk'] as const;
const TTL_MS_MIN = 1_000;
const TTL_MS_MAX = 31_536_000_000;
const timeMs = z.int().describe('UTC, in milliseconds since 1970');
const asset = z.string().min(1).max(128).describe('an id, a digest, or a unique prefix of an id');
const ttlMs = z.int().min(TTL_MS_MIN).max(TTL_MS_MAX);

const lease = z
  .object({
    id: z.string(),
    assetId: z.string(),
    holder: z.string(),
    sandboxId: z.string().nullable().describe('whose it is: it holds as long as that is not deleted'),
    createdAtMs: timeMs,
    expiresAtMs: timeMs,
  })
  .meta({ id: 'Lease' });

const assetView = z
  .object({
    id: z.string(),
    kind: z.enum(ASSET_KINDS),
    name: z.string().nullable(),
    digest: z.string().nullable(),
    sizeBytes: z.number(),
    path: z.string().nullable().describe('on this machine; null: a backend keeps it elsewhere'),
    createdAtMs: timeMs,
    lastUsedAtMs: timeMs.nullable().describe('when a sandbox last had it; looking at it is no use'),
    labels: z.record(z.string(), z.string()),
    references: z
      .array(
        z.object({ kind: z.enum(['sandbox', 'snapshot', 'template', 'name', 'image', 'default', 'lease', 'daemon']), what: z.string() }),
      )
      .describe('what keeps it; counted when it is asked for'),
    leases: z.array(lease),
  })
  .meta({ id: 'Asset' });

const assetTarget = z.strictObject({ asset });

export const assetVerbs = {
  'asset.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/assets',
    summary: 'List kernels, root file systems, initrds and disks, with what keeps each',
    input: z.strictObject({
      kind: z.enum(ASSET_KINDS).optional(),
      label: z
        .union([z.string().max(400), z.array(z.string().max(400)).max(LABELS_MAX)])
        .optional()
        .describe('key or key=value; all must match'),
    }),
    output: z.object({ assets: z.array(assetView) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'asset.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/assets/{asset}',
    summary: 'Show an asset',
    input: assetTarget,
    output: assetView,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: true,
  },
  'asset.label': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/assets/{asset}/labels',
    summary: 'Set and take away labels of a kernel or a root file system',
    input: assetTarget.extend({ set: label.default({}), remove: z.array(z.string().min(1).max(63)).max(LABELS_MAX).default([]) }),
    output: assetView,
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
  'asset.acquire': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/assets/{asset}/leases',
    summary: 'Keep a kernel or a root file system from being removed, for a time or as long as a sandbox lives',
    input: assetTarget.extend({
      ttlMs: ttlMs.optional().describe('default a day, and nothing where a sandbox is given'),
      holder: z
        .string()
        .regex(/^[\x20-\x7e]{1,128}$/, 'must be 1 to 128 printable ASCII characters')
        .optional()
        .describe('who wants it, for people; default: who asks'),
      sandbox: ref.optional().describe('it holds as long as this is not deleted, and for ttlMs at least where that is given'),
    }),
    output: lease,
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: false,
    reads: false,
  },
  'asset.renew': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/leases/{lease}/renew',
    summary: 'Let a lease that holds go on, from now',
    input: z.strictObject({ lease: z.string().min(1).max(64), ttlMs: ttlMs.default(86_400_000) }),
    output: lease,
    errors: ['not_found'],
    idempotent: true,
    reads: false,
  },
  'asset.release': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/leases/{lease}',
    summary: 'Give a lease back',
    input: z.strictObject({ lease: z.string().min(1).max(64) }),
    output: z.object({ id: z.string() }),
    errors: ['not_found'],
    idempotent: false,
    reads: false,
  },
  'asset.collect': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/assets/collect',
    summary: 'Remove what nothing keeps and no sandbox has had for a time',
    input: z.strictObject({
      unusedMs: z
        .int()
        .min(0)
        .max(TTL_MS_MAX)
        .default(604_800_000)
        .describe('since it came and since a sandbox last had it; default 7 days'),
      dryRun: flag.optional().describe('only say what would go'),
    }),
    output: z.object({
      removed: z.array(z.object({ id: z.string(), kind: z.enum(ASSET_KINDS), name: z.string().nullable(), sizeBytes: z.number() })),
      bytes: z.number(),
    }),
    errors: [],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
