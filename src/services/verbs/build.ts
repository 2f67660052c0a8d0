// Builds: a Dockerfile and its context in, an image out.
import { z } from 'zod';
import { BACKENDS } from '../../domain/sandbox.ts';
import * as view from '../views.ts';
import { CPUS_MAX, count, DISK_MIB_MAX, DISK_MIB_MIN, flag, MEMORY_MIB_MAX, MEMORY_MIB_MIN, none } from './fields.ts';
import type { Verb } from './verb.ts';

const TAGS_MAX = 32;
const ARGS_MAX = 256;
const ARG_CHARS_MAX = 32_768;
const PLATFORM_CHARS_MAX = 128;
const REFERENCE_CHARS_MAX = 512;
const WAIT_MS_MAX = 60_000;
/** Of a log that comes with an answer. */
export const LOG_LINES_MAX = 1_000;

const oneOrSeveral = (item: z.ZodString, max: number) => z.union([item, z.array(item).max(max)]);
const build = z.string().min(3).max(64).describe('an id of a build, or a unique prefix of one');
const target = z.strictObject({ build });

export const buildVerbs = {
  'build.start': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/builds',
    summary: 'Build an image: the body is the context as a tar archive; the build goes on when it has arrived',
    input: z.strictObject({
      dockerfile: z
        .string()
        .min(1)
        .max(4_096)
        .optional()
        .describe('in the context; default Dockerfile. The entry .hutch-build/Dockerfile comes before it'),
      tag: oneOrSeveral(z.string().min(1).max(REFERENCE_CHARS_MAX), TAGS_MAX).optional().describe('a name for the image, like web:1'),
      arg: oneOrSeveral(z.string().min(1).max(ARG_CHARS_MAX), ARGS_MAX).optional().describe('NAME=VALUE of an ARG'),
      label: oneOrSeveral(z.string().min(1).max(ARG_CHARS_MAX), ARGS_MAX).optional().describe('KEY=VALUE, as LABEL after the last step'),
      platform: z.string().min(1).max(PLATFORM_CHARS_MAX).optional().describe('what it is to run on: linux/amd64 alone is built'),
      pull: flag.optional().describe('ask registries anew for the images that it is built upon'),
      target: z.string().min(1).max(128).optional().describe('the stage to build; default the last one'),
      noCache: flag.optional().describe('do every step'),
      waitMs: count
        .max(WAIT_MS_MAX)
        .optional()
        .describe('answer when it is over, waits for `build.settings`, or after so long; default at once. Who leaves before cancels it'),
      log: flag.optional().describe('with what it said, where it is over when that is answered and said little'),
      settings: z.literal('later').optional().describe('package settings do not come with the context: `build.settings` gives them'),
      backend: z.enum(BACKENDS).optional().describe('what runs RUN'),
      cpus: count.min(1).max(CPUS_MAX).optional(),
      memoryMiB: count.min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX).optional(),
      diskMiB: count.min(DISK_MIB_MIN).max(DISK_MIB_MAX).optional(),
    }),
    output: view.build.extend({
      log: z
        .array(view.buildLine)
        .max(LOG_LINES_MAX)
        .optional()
        .describe('as `build.logs` has it, whole; absent: it is to be asked for there'),
    }),
    errors: ['failed_precondition', 'resource_exhausted'],
    idempotent: false,
    reads: false,
  },
  'build.settings': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/builds/{build}/settings',
    summary:
      'Package settings of a build that was started without: the body is a tar archive of .hutch-build/settings.json and what it names',
    input: target,
    output: view.build,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: false,
  },
  'build.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/builds',
    summary: 'List builds, newest first',
    input: none,
    output: z.object({ builds: z.array(view.build) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'build.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/builds/{build}',
    summary: 'Show a build',
    input: target,
    output: view.build,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: true,
  },
  'build.logs': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/builds/{build}/logs',
    summary: 'What a build said; with `follow` until it ends. Goes on after a cursor',
    input: target.extend({ after: count.optional().describe('the cursor of the last line that was read'), follow: flag.optional() }),
    output: view.buildLine,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: true,
  },
  'build.cancel': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/builds/{build}/cancel',
    summary: 'End a build that runs, and clean up after it',
    input: target,
    output: view.build,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: false,
  },
  'build.delete': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/builds/{build}',
    summary: 'Forget a build and its log; its image stays',
    input: target,
    output: z.object({ id: z.string() }),
    errors: ['not_found', 'conflict'],
    idempotent: false,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
