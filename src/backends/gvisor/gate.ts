// The link of a sandbox that goes on from memory: its processes run before its agent can be told whose it is, so what carries its
// packets (passt) is not begun until then. It waits at a pipe with a name; what the sandbox has sent meanwhile waits in front of it.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { gatePath } from './paths.ts';

type Gated = Pick<SandboxPlan, 'runDir'>;

const OPEN_MS = 10_000;
/** Becomes the program in the same process, with the descriptors that it was given, when a line comes. */
const WAIT = 'read -r _ <"$0" && exec "$@"';
/** Waits for who waits there. A second line would have no reader. */
const OPEN = 'echo >"$0" && rm -f "$0"';

export async function makeGate(op: Operation, host: Host, plan: Gated): Promise<void> {
  const { exitCode, stderr } = await host.run(op, ['mkfifo', '-m', '600', gatePath(plan)]);
  if (exitCode !== 0) throw op.error('internal', `the gate of the network cannot be made: ${new TextDecoder().decode(stderr).trim()}`);
}

/** The program, once the gate is open. */
export function behindGate(plan: Gated, argv: readonly string[]): readonly string[] {
  return ['/bin/sh', '-c', WAIT, gatePath(plan), ...argv];
}

/** Does nothing where there is none, or it is open. */
export async function openGate(op: Operation, host: Host, plan: Gated): Promise<void> {
  if ((await host.stat(op, gatePath(plan))) === null) return;
  using limited = op.within(OPEN_MS, 'letting the network in');
  const { exitCode, stderr } = await host.run(limited, ['/bin/sh', '-c', OPEN, gatePath(plan)]);
  if (exitCode !== 0) throw op.error('internal', `the network cannot be let in: ${new TextDecoder().decode(stderr).trim()}`);
}
