// The daemon itself: its keys, its configuration, the machine it runs on.
import { z } from 'zod';
import { isName } from '../../domain/ids.ts';
import { BACKENDS } from '../../domain/sandbox.ts';
import * as view from '../views.ts';
import { none, target } from './fields.ts';
import type { Verb } from './verb.ts';

export const daemonVerbs = {
  'key.create': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/keys',
    summary: 'Make an API key; its secret is shown once',
    input: z.strictObject({
      name: z.string().min(1).max(63),
      project: z
        .string()
        .max(63)
        .refine(isName, 'must be lower-case letters, digits and inner hyphens, and not look like an id')
        .optional()
        .describe('of which project; one that is not there yet is made. Default: your own'),
    }),
    output: view.key.extend({ secret: z.string() }),
    errors: ['conflict', 'permission_denied'],
    idempotent: false,
    reads: false,
  },
  'key.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/keys',
    summary: 'List API keys',
    input: none,
    output: z.object({ keys: z.array(view.key) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'key.revoke': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/keys/{ref}',
    summary: 'Revoke an API key',
    input: target,
    output: view.key,
    errors: ['not_found', 'conflict', 'failed_precondition'],
    idempotent: true,
    reads: false,
  },
  'config.get': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/config',
    summary: 'The configuration, and where each value came from',
    input: none,
    output: z.object({ values: z.array(z.object({ key: z.string(), value: z.unknown(), source: z.string() })) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'backends.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/backends',
    summary: 'What runs sandboxes here, and what each can do on this machine',
    input: none,
    output: z.object({
      default: z.enum(BACKENDS).nullable().describe('what runs a sandbox that names none'),
      backends: z.array(view.backend),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'doctor.check': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/doctor',
    summary: 'What this machine can do',
    input: none,
    output: z.object({ ok: z.boolean(), checks: z.array(view.check) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'doctor.leaks': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/doctor/leaks',
    summary: 'What lies under Hutch’s roots and belongs to nothing',
    input: none,
    output: z.object({ leaks: z.array(view.leak) }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'daemon.version': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/version',
    summary: 'Versions of the daemon and its parts',
    input: none,
    output: z.object({
      version: z.string(),
      apiVersion: z.literal('v1'),
      pid: z.int(),
      startedAtMs: z.int(),
      schemaVersion: z.int(),
      agentDigest: z.string().nullable(),
      qemuVersion: z.string().nullable(),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'daemon.stop': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/daemon/stop',
    summary: 'End the daemon; sandboxes go on',
    input: none,
    output: none,
    errors: [],
    idempotent: true,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
