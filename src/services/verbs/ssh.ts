// SSH into sandboxes: the daemon speaks it, nothing in the sandbox needs to.
import { z } from 'zod';
import { alive, none, target } from './fields.ts';
import type { Verb } from './verb.ts';

export const sshVerbs = {
  'ssh.identity': {
    kind: 'unary',
    method: 'GET',
    path: '/v1/ssh',
    summary: 'What a client of SSH needs: the host key of all sandboxes, and the key of this project',
    input: z.strictObject({}),
    output: z.object({
      hostKey: z.string().describe('public, as a line of known_hosts has it behind the name'),
      publicKey: z.string().describe('of the project'),
      privateKey: z.string().describe('of the project, in OpenSSH’s own form: who has it and an API key is let in'),
    }),
    errors: [],
    idempotent: true,
    reads: true,
  },
  'ssh.connect': {
    kind: 'socket',
    method: 'GET',
    path: '/v1/sandboxes/{ref}/ssh',
    summary: 'A connection to the SSH server of a sandbox, as bytes',
    input: target,
    output: none,
    errors: alive,
    idempotent: false,
    reads: false,
  },
} as const satisfies Record<string, Verb>;
