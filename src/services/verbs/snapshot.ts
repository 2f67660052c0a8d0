// Snapshots: sandboxes of one instant, kept under a name.
import { z } from 'zod';
import { CARRIES } from '../../domain/snapshot.ts';
import { ASPECTS, NODE_TYPES } from '../../images/disk/changes.ts';
import * as view from '../views.ts';
import { alive, env, flag, found, ref, TIMEOUT_MS_MAX } from './fields.ts';
import type { Verb } from './verb.ts';

const snapshot = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const compared = snapshot.describe('a snapshot or a sandbox: an id, a name, or a unique prefix; what both are called is the snapshot');
const snapshotTarget = z.strictObject({ snapshot });

const name = z.string().max(63).describe('a DNS label, unique among snapshots');
const carry = z
  .enum(CARRIES)
  .optional()
  .describe('of what it stands on: what no registry has (the default), an image of a registry too, or nothing');
const reference = z.string().min(1).max(512).describe('like registry.example/team/ready:1; without a tag latest is meant');
/** One that came from elsewhere. */
const arrived = view.snapshot.extend({
  secretNames: z.array(z.string()).describe('of secrets that its sandbox had: their values may be in its memory'),
  misfit: z.string().nullable().describe('why its memory cannot go on here; null: it can'),
});

const KEEP_MAX = 100_000;
const POLICY = ['keep', 'olderThanMs', 'bytesMax'] as const;
const judged = z.object({
  id: z.string(),
  name: z.string().nullable(),
  sandboxName: z.string(),
  ownBytes: z.number(),
  createdAtMs: z.int(),
  why: z.string().describe('for people'),
});

export const snapshotVerbs = {
  'snapshot.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/snapshots',
    summary: 'Keep a sandbox as it is now, with its memory where it has one; it goes on',
    input: z.strictObject({
      ref,
      name: name.optional(),
      diskOnly: z.boolean().optional().describe('without memory: what is made from it boots'),
      scrub: z.boolean().optional().describe('run /etc/hutch/scrub.d/* in it first; it goes on without what they took out'),
    }),
    output: view.snapshot.extend({ stillMs: z.number().describe('how long the sandbox stood still') }),
    errors: [...alive, 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'snapshot.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/snapshots',
    summary: 'List snapshots, parents before what stands on them',
    input: z.strictObject({
      sandbox: ref.optional().describe('only of this one'),
      all: flag.optional().describe('also those that are kept to undo an exec'),
    }),
    output: z.object({ snapshots: z.array(view.snapshot.extend({ depth: z.int().describe('0: it stands on none') })) }),
    errors: found,
    idempotent: true,
    reads: true,
  },
  'snapshot.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/snapshots/{snapshot}',
    summary: 'Show one snapshot',
    input: snapshotTarget,
    output: view.snapshot.extend({
      children: z.array(z.string()).describe('ids of the snapshots that stand on it'),
      made: z.object({
        env,
        labels: z.record(z.string(), z.string()),
        user: z.string().nullable(),
        workdir: z.string().nullable(),
        main: z.array(z.string()).nullable().describe('it runs in the memory, and goes on in what is made from it'),
        network: z.string(),
        timeoutMs: z.number().nullable(),
      }),
      machine: z.record(z.string(), z.unknown()).describe('on what it was made: all of it must be the same where its memory goes on'),
      secretNames: z.array(z.string()).describe('of secrets that its sandbox had: their values may be in its memory'),
      imageTravels: z.boolean().describe('false: its image was made on a machine: where it goes, that goes along'),
    }),
    errors: found,
    idempotent: true,
    reads: true,
  },
  'snapshot.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/snapshots/{snapshot}',
    summary: 'Remove a snapshot',
    input: snapshotTarget.extend({ cascade: flag.optional().describe('with all snapshots that stand on it; sandboxes made from it stay') }),
    output: z.object({ removed: z.array(z.object({ id: z.string(), name: z.string().nullable(), ownBytes: z.number() })) }),
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'snapshot.verify': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/snapshots/{snapshot}/verify',
    summary: 'Compare every file of it with what was written',
    input: snapshotTarget,
    output: z.object({ id: z.string(), apparentBytes: z.number() }),
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'snapshot.export': {
    kind: 'download',
    method: 'GET',
    path: '/v1/snapshots/{snapshot}/export',
    summary: 'A snapshot as one file that needs no other snapshot: an OCI layout in a tar archive',
    input: snapshotTarget.extend({ carry }),
    output: z.any(),
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: true,
  },
  'snapshot.import': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/snapshots',
    summary: 'Take up what snapshot.export gave, here or elsewhere',
    input: z.strictObject({ name: name.optional().describe('instead of the name that it brings') }),
    output: arrived,
    errors: [...alive, 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'snapshot.push': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/snapshots/{snapshot}/push',
    summary: 'Push a snapshot to a registry, with all layers that it stands on; what is there already is not sent again',
    input: snapshotTarget.extend({ name: reference, carry }),
    output: z.object({
      name: z.string(),
      digest: z.string().describe('of the manifest: what it can be pulled by from now on'),
      parts: z.array(
        z.object({ name: z.string(), digest: z.string(), sizeBytes: z.number(), how: z.enum(['existed', 'mounted', 'uploaded']) }),
      ),
      secretNames: z.array(z.string()).describe('of secrets that its sandbox had: their values may be in its memory'),
    }),
    errors: [...alive, 'permission_denied', 'resource_exhausted', 'unavailable'],
    idempotent: true,
    reads: false,
  },
  'snapshot.pull': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/snapshots/pull',
    summary: 'Take up a snapshot from a registry, under the rules that hold for images',
    input: z.strictObject({ name: reference, as: name.optional().describe('instead of the name that it brings') }),
    output: arrived.extend({ from: z.string(), digest: z.string().describe('of its manifest') }),
    errors: [...alive, 'permission_denied', 'resource_exhausted', 'unavailable'],
    idempotent: false,
    reads: false,
  },
  'snapshot.diff': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/snapshots/{snapshot}/diff',
    summary: 'Which files differ on two disks of one image: of snapshots, or of sandboxes as they are',
    input: z.strictObject({ snapshot: compared, to: compared }),
    output: z.object({
      from: z.string().describe('an id'),
      to: z.string(),
      counts: z.object({ added: z.int(), removed: z.int(), changed: z.int() }),
      changes: z.array(
        z.object({
          path: z.string(),
          change: z.enum(['added', 'removed', 'changed']),
          type: z.enum(NODE_TYPES).describe('as it is now, or was'),
          what: z.array(z.enum(ASPECTS)).describe('of what is changed'),
          beforeBytes: z.number().nullable().describe('of a file; null: it is the image’s, or there is none'),
          afterBytes: z.number().nullable(),
        }),
      ),
      left: z.int().describe('how many more there are than are listed'),
    }),
    errors: [...alive, 'resource_exhausted'],
    idempotent: true,
    reads: true,
  },
  'snapshot.prune': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/snapshots/prune',
    summary: 'Remove snapshots by a policy; what something stands on stays',
    input: z
      .strictObject({
        sandbox: ref.optional().describe('only of this one'),
        keep: z.int().min(0).max(KEEP_MAX).optional().describe('of each sandbox the newest so many stay'),
        olderThanMs: z.int().min(0).max(TIMEOUT_MS_MAX).optional(),
        bytesMax: z.int().min(0).optional().describe('what they may take together: the oldest go first'),
        dryRun: z.boolean().optional().describe('only tell what would go'),
      })
      .refine((input) => POLICY.some((key) => input[key] !== undefined), `one of ${POLICY.join(', ')} must be given`),
    output: z.object({
      removed: z.array(judged).describe('or what would be, in a dry run'),
      stayed: z.array(judged).describe('what the policy lets go, and something stands on'),
      bytes: z.number().describe('stored for what was removed alone'),
    }),
    errors: found,
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
