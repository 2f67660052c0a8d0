// A sandbox's memory and processes written down, and taken up again by another process of the runtime: the
// ground for suspending one. Its private layer is no part of it: it has to be as it was.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { AgentDoors } from '../agent-door.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { RELEASE_MS } from './config.ts';
import { agentSocketPath, stateDir } from './paths.ts';
import type { Processes } from './process.ts';
import type { Rights } from './rights.ts';
import type { Runtime } from './runtime.ts';
import { SOCKET_MODE } from './start.ts';

/** Gigabytes of memory, to a slow disk. */
const SAVE_MS = 10 * 60_000;
const SYNC_MS = 5 * 60_000;
const SAID_CHARS_MAX = 400;

export type SaveParts = {
  readonly host: Host;
  readonly runtime: Runtime;
  readonly rights: Rights;
  readonly processes: Processes;
  readonly doors: AgentDoors;
};

/**
 * Gives the end of its process. On failure it goes on running, and nothing is left of `dir`.
 * @throws HutchError `unavailable` with the runtime's word, as while a socket of the host is open in the sandbox.
 */
export async function saveSandbox(op: Operation, parts: SaveParts, plan: SandboxPlan, dir: string): Promise<Dead> {
  const { host, runtime, rights, processes, doors } = parts;
  await using undo = new AsyncDisposableStack();
  const releasing = (release: (op: Operation) => Promise<unknown>): void =>
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await release(late).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed checkpoint left something behind'));
    });
  if ((await host.stat(op, dir)) !== null) throw op.error('conflict', `there is something already where the checkpoint would be: ${dir}`);
  // An agent that came back meanwhile would hold a socket of the host: the runtime saves none.
  await doors.close(plan.id);
  releasing((late) => doors.open(late, plan.id, agentSocketPath(plan), SOCKET_MODE));
  releasing((late) => host.remove(late, dir));
  await host.makeDir(op, dir, 0o700);
  using limited = op.within(SAVE_MS, 'a checkpoint');
  const now = await processes.inspect(op, plan);
  if (!now.alive) throw op.error('failed_precondition', 'the sandbox does not run');
  const saving = rights.argvOf(now.pid, [runtime.path, '--root', stateDir(plan), 'checkpoint', `--image-path=${dir}`, plan.id]);
  const { exitCode, stderr } = await host.run(limited, saving);
  if (exitCode !== 0) {
    const said = new TextDecoder().decode(stderr).trim().slice(-SAID_CHARS_MAX);
    throw op.error('unavailable', `runsc cannot make a checkpoint of the sandbox: ${said}`);
  }
  const dead = await processes.ended(limited, plan);
  using syncing = op.within(SYNC_MS, 'writing a checkpoint to the disk');
  const synced = await host.run(syncing, ['sync', '--file-system', dir]);
  if (synced.exitCode !== 0)
    throw op.error('unavailable', `a checkpoint cannot be written to the disk: ${new TextDecoder().decode(synced.stderr).trim()}`);
  undo.move();
  return dead;
}
