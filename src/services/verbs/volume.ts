// Volumes: named disks that outlive sandboxes.
import { z } from 'zod';
import * as view from '../views.ts';
import { DISK_MIB_MAX, found } from './fields.ts';
import type { Verb } from './verb.ts';

/** An ext4 with its journal takes some of it. */
const VOLUME_MIB_MIN = 16;
const volume = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const sizeMiB = z.int().min(VOLUME_MIB_MIN).max(DISK_MIB_MAX);

export const volumeVerbs = {
  'volume.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/volumes',
    summary: 'Make a volume: an empty ext4 of its own size',
    input: z.strictObject({
      name: z.string().max(63).describe('a DNS label, unique among volumes'),
      sizeMiB: sizeMiB.optional().describe('default: that of a sandbox’s disk; takes on the host only what is written to it'),
    }),
    output: view.volume,
    errors: ['conflict', 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'volume.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/volumes',
    summary: 'List volumes, with what each takes and who mounts it',
    input: z.strictObject({}),
    output: z.object({ volumes: z.array(view.volume) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'volume.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/volumes/{volume}',
    summary: 'Show one volume',
    input: z.strictObject({ volume }),
    output: view.volume,
    errors: found,
    idempotent: true,
    reads: true,
  },
  'volume.grow': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/volumes/{volume}/grow',
    summary: 'Make a volume larger that nobody uses now; its file system follows at the next start',
    input: z.strictObject({ volume, sizeMiB }),
    output: view.volume,
    errors: [...found, 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'volume.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/volumes/{volume}',
    summary: 'Remove a volume and all that is on it; refused while sandboxes mount it',
    input: z.strictObject({ volume }),
    output: view.volume,
    errors: [...found, 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
