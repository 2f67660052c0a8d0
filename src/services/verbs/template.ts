// Templates: recipes in, snapshots with a tag out, from which sandboxes start.
import { z } from 'zod';
import { BACKENDS, NETWORK_MODES } from '../../domain/sandbox.ts';
import { WARM_MAX } from '../../domain/template.ts';
import * as view from '../views.ts';
import {
  alive,
  argv,
  CPUS_MAX,
  DISK_MIB_MAX,
  DISK_MIB_MIN,
  env,
  flag,
  found,
  MEMORY_MIB_MAX,
  MEMORY_MIB_MIN,
  none,
  PIDS_MAX,
  PIDS_MIN,
  path,
  user,
} from './fields.ts';
import type { Verb } from './verb.ts';

const STEPS_MAX = 128;
const STEP_CHARS_MAX = 65_536;
export const READY_MS_MAX = 30 * 60_000;
const READY_MS = 60_000;
const CHECKS = ['command', 'port', 'path', 'waitMs'] as const;

const template = z.string().min(1).max(64).describe('an id, a name, or a unique prefix of one');
const target = z.strictObject({ template });

const ready = z
  .strictObject({
    command: argv.optional().describe('ends with 0'),
    port: z.int().min(1).max(65_535).optional().describe('somebody answers there, on the loopback of the sandbox'),
    path: path.optional().describe('is there'),
    waitMs: z.int().min(0).max(READY_MS_MAX).optional().describe('so much time is over'),
    timeoutMs: z.int().min(1).max(READY_MS_MAX).default(READY_MS).describe('it must be so within this time'),
  })
  .refine((check) => CHECKS.filter((key) => check[key] !== undefined).length === 1, `one of ${CHECKS.join(', ')} must be given`);

const isPlain = (text: string): boolean => /^[^\s"'\\$]+$/.test(text);

export const recipe = z.strictObject({
  image: z.string().min(1).max(512).refine(isPlain, 'must be the name of an image').describe('what it begins with'),
  kernel: z.string().min(1).max(64).optional().describe('as with sandbox.create'),
  backend: z.enum(BACKENDS).optional(),
  cpus: z.int().min(1).max(CPUS_MAX).optional(),
  memoryMiB: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX).optional(),
  diskMiB: z.int().min(DISK_MIB_MIN).max(DISK_MIB_MAX).optional(),
  pids: z.int().min(PIDS_MIN).max(PIDS_MAX).optional(),
  network: z.enum(NETWORK_MODES).optional(),
  env: env.optional(),
  user: user.optional().describe('of the start command, and of what runs in sandboxes of it'),
  workdir: path.optional(),
  steps: z
    .array(z.string().min(1).max(STEP_CHARS_MAX))
    .max(STEPS_MAX)
    .optional()
    .describe('each as behind RUN in a Dockerfile, as root; several lines are a script that ends at the first failure'),
  start: argv.optional().describe('is begun before the snapshot is taken, and goes on in each sandbox: its exec start'),
  ready: ready.optional().describe('what must be so before the snapshot is taken; with a start command and without this, a second'),
  scrub: z.boolean().optional().describe('run /etc/hutch/scrub.d/* before the snapshot is taken'),
});

const warm = z
  .strictObject({ min: z.int().min(0).max(WARM_MAX), max: z.int().min(0).max(WARM_MAX) })
  .refine(({ min, max }) => min <= max, 'min must not be more than max');

export const templateVerbs = {
  'template.build': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/templates',
    summary: 'Build a template, or build it anew: what has the name serves until the new one is ready. Goes on as a build',
    input: recipe.extend({
      image: recipe.shape.image.optional().describe('what it begins with; without, what a sandbox without one has'),
      name: z.string().min(1).max(63).describe('a DNS label, unique among templates'),
      noCache: z.boolean().optional().describe('do every step'),
    }),
    output: view.build,
    errors: [...alive, 'permission_denied', 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'template.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/templates',
    summary: 'List templates by name',
    input: none,
    output: z.object({ templates: z.array(view.template) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'template.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/templates/{template}',
    summary: 'Show one template',
    input: target,
    output: view.template.extend({ recipe, machine: z.record(z.string(), z.unknown()).describe('on what it was made') }),
    errors: found,
    idempotent: true,
    reads: true,
  },
  'template.set': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/templates/{template}/set',
    summary: 'Say how many sandboxes of a template are kept ready',
    input: target.extend({ warm: warm.describe(`at least min, up to max while they are asked for; at most ${WARM_MAX}`) }),
    output: view.template,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'template.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/templates/{template}',
    summary: 'Remove a template',
    input: target.extend({ force: flag.optional().describe('though sandboxes or snapshots were made from it: they stay') }),
    output: z.object({ id: z.string(), name: z.string(), ownBytes: z.number().describe('that are free again') }),
    errors: alive,
    idempotent: false,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
