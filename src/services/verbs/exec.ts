// Commands and ports within a sandbox.
import { z } from 'zod';
import * as view from '../views.ts';
import { alive, argv, count, env, flag, none, path, refuseTooLarge, TIMEOUT_MS_MAX, target, terminal, user, wantedPort } from './fields.ts';
import type { Verb } from './verb.ts';

const SHARE_MS_MIN = 1_000;
const SHARE_MS_MAX = 30 * 86_400_000;
const SHARE_MS = 3_600_000;

/** The first message on an `exec.start` socket. */
export const execRequest = z
  .strictObject({
    argv,
    env: env.optional(),
    cwd: path.optional(),
    user: user.optional(),
    loginShell: z.boolean().optional(),
    terminal: terminal.optional().describe('a pty of this size; absent: pipes'),
    stdin: z.enum(['open', 'null']).default('null'),
    timeoutMs: z.int().min(1).max(TIMEOUT_MS_MAX).optional(),
    whenUnread: z.enum(['block', 'drop']).default('block'),
    tag: z.string().max(64).optional(),
  })
  .superRefine(({ argv, env = {} }, context) => refuseTooLarge(context, argv, env));

export const execVerbs = {
  'exec.start': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/exec',
    summary: 'Run a command in it',
    input: target.extend({
      execId: z
        .string()
        .regex(/^[A-Za-z0-9._-]{1,64}$/)
        .optional(),
    }),
    output: view.processExit,
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'exec.attach': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/execs/{execId}/attach',
    summary: 'Go on with a running command, from a byte offset; `main` is the main process',
    input: target.extend({
      execId: z.string().regex(/^[A-Za-z0-9._-]{1,64}$/),
      stdoutOffset: count.optional(),
      stderrOffset: count.optional(),
      fromNow: flag.optional().describe('output from now on; `started` says the offsets'),
      input: flag.optional(),
      inputOffset: count.optional(),
    }),
    output: view.processExit,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'exec.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/execs',
    summary: 'Commands in it',
    input: target,
    output: z.object({
      execs: z.array(
        z.object({
          execId: z.string(),
          pid: z.int(),
          argv: z.array(z.string()),
          tag: z.string().nullable(),
          running: z.boolean(),
          startedAtMs: z.int(),
          exit: view.processExit.nullable(),
        }),
      ),
    }),
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'exec.signal': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/execs/{execId}/signal',
    summary: 'Send a signal to a command’s process group',
    input: target.extend({ execId: z.string().min(1).max(64), signal: z.string().regex(/^[A-Z0-9+]{1,12}$/) }),
    output: none,
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'port.list': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/ports',
    summary: 'Ports on which it listens, and those that are published',
    input: target,
    output: z.object({
      ports: z.array(view.port),
      published: z.array(
        view.publishedPort.extend({ problem: z.string().nullable().describe('why this machine does not answer at it now') }),
      ),
    }),
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'port.watch': {
    kind: 'lines',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/ports/watch',
    summary: 'Follow the ports on which it listens: those of now, then each that is opened or closed',
    input: target,
    output: view.portChange,
    errors: alive,
    idempotent: true,
    reads: true,
  },
  'port.publish': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/ports',
    summary: 'Answer at a port of this machine for one inside, until it is deleted or unpublished',
    input: target.extend(wantedPort),
    output: view.publishedPort,
    errors: [...alive, 'resource_exhausted', 'permission_denied'],
    idempotent: false,
    reads: false,
  },
  'port.unpublish': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/sandboxes/{ref}/ports',
    summary: 'Do not answer any more at the published ports that match',
    input: target.extend({
      hostAddress: z.union([z.ipv4(), z.ipv6()]).optional(),
      hostPort: count.min(1).max(65_535).optional(),
      guestPort: count.min(1).max(65_535).optional(),
    }),
    output: z.object({ removed: z.array(view.publishedPort) }),
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'port.share': {
    kind: 'unary',
    method: 'POST',
    path: '/v1/sandboxes/{ref}/shares',
    summary: 'Make a link by which whoever has it reaches a port inside, until it expires',
    input: target.extend({
      port: z.int().min(1).max(65_535),
      expiresInMs: z.int().min(SHARE_MS_MIN).max(SHARE_MS_MAX).default(SHARE_MS),
    }),
    output: z.object({
      url: z.string().describe('with the token that opens it'),
      host: z.string(),
      guestPort: z.int(),
      expiresAtMs: z.int(),
      reach: z.enum(['this-machine', 'network']).describe('from where the daemon can be reached'),
    }),
    errors: alive,
    idempotent: false,
    reads: false,
  },
  'port.unshare': {
    kind: 'unary',
    method: 'DELETE',
    path: '/v1/sandboxes/{ref}/shares',
    summary: 'Take back every link to a port inside',
    input: target.extend({ port: count.min(1).max(65_535) }),
    output: none,
    errors: alive,
    idempotent: true,
    reads: false,
  },
  'port.connect': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/connect',
    summary: 'A byte stream to a port or unix socket inside',
    input: target.extend({ port: count.min(1).max(65_535).optional(), host: z.string().max(255).optional(), unix: path.optional() }),
    output: z.any(),
    errors: alive,
    idempotent: false,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
