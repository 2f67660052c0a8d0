// What the daemon keeps on its disk, and what of it can go.
import { z } from 'zod';
import * as view from '../views.ts';
import { none, TIMEOUT_MS_MAX } from './fields.ts';
import type { Verb } from './verb.ts';

const DAY_MS = 86_400_000;

export const systemVerbs = {
  'system.df': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/df',
    summary: 'Show what takes how much of the disk, and how much of that can go',
    input: none,
    output: z.object({
      dataDir: z.string(),
      totalBytes: z.number(),
      freeBytes: z.number(),
      parts: z.array(
        z.object({
          name: z.string().describe('a directory or file where data lies'),
          bytes: z.number().describe('allocated'),
          reclaimableBytes: z.number().nullable().describe('of sandboxes that are stopped; null: not known here'),
        }),
      ),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'system.backup': {
    kind: 'download',
    method: 'GET',
    path: '/v1/backup',
    summary:
      'The store as it is now, checked, in one file: a line of JSON (hutch-backup-1), then an SQLite database. For keys of the project default',
    input: none,
    output: z.any(),
    errors: ['permission_denied', 'resource_exhausted'],
    idempotent: true,
    reads: true,
  },
  'system.prune': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/prune',
    summary:
      'Delete sandboxes that have been stopped for long and, with a key of the project default, templates that no start has used for as long',
    input: z.strictObject({
      olderThanMs: z
        .int()
        .min(0)
        .max(TIMEOUT_MS_MAX)
        .default(7 * DAY_MS),
      dryRun: z.boolean().optional().describe('only tell what would go'),
    }),
    output: z.object({
      sandboxes: z.array(z.object({ id: z.string(), name: z.string(), stoppedAtMs: z.int(), bytes: z.number() })),
      templates: z.array(z.object({ backend: z.string(), template: z.string(), bytes: z.number() })),
      failed: z.array(z.object({ id: z.string(), error: view.errorBody })).describe('what could not be deleted; all else is'),
      bytes: z.number(),
    }),
    errors: [],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
