// Kernels that virtual machines boot.
import { z } from 'zod';
import * as view from '../views.ts';
import { none } from './fields.ts';
import type { Verb } from './verb.ts';

const KERNEL_CHARS_MAX = 128;
const kernel = z.string().min(1).max(KERNEL_CHARS_MAX).describe('an id, a digest, a version, or a unique prefix of an id or a version');
const kernelTarget = z.strictObject({ kernel });

export const kernelVerbs = {
  'kernel.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/kernels',
    summary: 'List kernels, newest first',
    input: none,
    output: z.object({ kernels: z.array(view.kernel) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'kernel.available': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/kernels-available',
    summary: 'List the kernels that the distribution of this machine offers, newest first',
    input: none,
    output: z.object({
      kernels: z.array(
        z.object({
          package: z.string(),
          version: z.string().describe('as uname -r will show it'),
          packageVersion: z.string(),
          sizeBytes: z.number().describe('of the package'),
          isHere: z.boolean(),
        }),
      ),
    }),
    errors: ['unavailable'],
    idempotent: true,
    reads: true,
  },
  'kernel.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/kernels/{kernel}',
    summary: 'Show a kernel',
    input: kernelTarget,
    output: view.kernel,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: true,
  },
  'kernel.pull': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/kernels/pull',
    summary: 'Take a kernel from the packages of the distribution',
    input: z.strictObject({
      wanted: z
        .string()
        .regex(/^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}$/, 'must be letters, digits and . + ~ _ -, at most 128')
        .optional()
        .describe('a package, a version, the beginning of one, or a flavour such as cloud or rt; absent: what Hutch takes by itself'),
      makeDefault: z.boolean().optional(),
    }),
    output: view.kernel,
    errors: ['not_found', 'unavailable', 'failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'kernel.import': {
    kind: 'upload',
    method: 'PUT',
    path: '/v1/kernels',
    summary: 'Take a kernel out of a Debian package, a tar archive with its modules, or a bzImage that has all built in',
    input: none,
    output: view.kernel,
    errors: ['failed_precondition', 'resource_exhausted'],
    idempotent: true,
    reads: false,
  },
  'kernel.setDefault': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/kernels/default',
    summary: 'Say what sandboxes boot that name no kernel; those that exist keep theirs',
    input: z.strictObject({ kernel: kernel.nullable().describe('null: the one that Hutch chose') }),
    output: view.kernel,
    errors: ['not_found', 'conflict'],
    idempotent: true,
    reads: false,
  },
  'kernel.remove': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/kernels/{kernel}',
    summary: 'Remove a kernel that nothing uses',
    input: kernelTarget,
    output: z.object({ id: z.string(), version: z.string() }),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: false,
    reads: false,
  },
  'kernel.verify': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/kernels/{kernel}/verify',
    summary: 'Read a kernel and its modules, and compare them with their digests',
    input: kernelTarget,
    output: z.object({ id: z.string(), digest: z.string() }),
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: true,
  },
} as const satisfies Record<string, Verb>;
