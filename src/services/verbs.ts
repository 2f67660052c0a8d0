// The verb table: each thing a client can ask is written once, in the file of its group. HTTP routes,
// OpenAPI, the SDK's routes, the CLI's `--json`, the exit-code page and the conformance list are derived
// from it.
//
// How a verb travels:
// - unary     JSON in, JSON out. With `Accept: application/x-ndjson` the answer is lines instead:
//             {"type":"progress",…}* and then {"type":"result","result":…} or {"type":"error","error":…}.
// - lines     NDJSON out, each line `output`; with `follow` it goes on. A cut stream resumes by cursor or offset.
// - socket    WebSocket: see docs/api.md for the messages (exec, attach, connect).
// - download  raw bytes out.   - upload   raw bytes in, JSON out.
// Input comes from the path's `{…}`, then the query (upload, GET, DELETE, socket) or the JSON body.
// Every answer has the header Hutch-Op-Id; a client may send Idempotency-Key and traceparent.
import type { z } from 'zod';
import { assetVerbs } from './verbs/asset.ts';
import { buildVerbs } from './verbs/build.ts';
import { daemonVerbs } from './verbs/daemon.ts';
import { execRequest, execVerbs } from './verbs/exec.ts';
import { fileVerbs } from './verbs/file.ts';
import { imageVerbs } from './verbs/image.ts';
import { kernelVerbs } from './verbs/kernel.ts';
import { quotaVerbs } from './verbs/quota.ts';
import { recordVerbs } from './verbs/record.ts';
import { sandboxVerbs } from './verbs/sandbox.ts';
import { snapshotVerbs } from './verbs/snapshot.ts';
import { sshVerbs } from './verbs/ssh.ts';
import { systemVerbs } from './verbs/system.ts';
import { templateVerbs } from './verbs/template.ts';
import type { Verb } from './verbs/verb.ts';
import { volumeVerbs } from './verbs/volume.ts';

export { execRequest, type Verb };

export const verbs = {
  ...sandboxVerbs,
  ...execVerbs,
  ...fileVerbs,
  ...imageVerbs,
  ...kernelVerbs,
  ...buildVerbs,
  ...snapshotVerbs,
  ...templateVerbs,
  ...volumeVerbs,
  ...sshVerbs,
  ...assetVerbs,
  ...quotaVerbs,
  ...recordVerbs,
  ...daemonVerbs,
  ...systemVerbs,
} as const satisfies Record<string, Verb>;

export type VerbName = keyof typeof verbs;
export type Input<N extends VerbName> = z.input<(typeof verbs)[N]['input']>;
export type Parsed<N extends VerbName> = z.output<(typeof verbs)[N]['input']>;
export type Output<N extends VerbName> = z.output<(typeof verbs)[N]['output']>;

export type ExecRequest = z.input<typeof execRequest>;
