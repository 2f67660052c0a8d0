// A sandbox's memory and processes written down, and taken up again by another process of the runtime: the
// ground for suspending and for copying one. Its private layer is no part of it: it has to be as it was.
//
// The runtime ends with what it saves, and also with what it finds that it cannot save. So what it cannot save is looked for
// first, while all stands still; and the program that asks it to save runs under a shim, whose record outlives this daemon.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { shimEnded, startShim } from '../../host/shim.ts';
import type { AgentDoors } from '../agent-door.ts';
import type { SandboxPlan } from '../backend.ts';
import { type Dead, describe, tailOf } from '../dead.ts';
import { pause } from '../wait.ts';
import type { Agents } from './agents.ts';
import { COMMAND_MS, RELEASE_MS } from './config.ts';
import { cutConnections } from './connections.ts';
import { awaitLetGo } from './disk-copy.ts';
import { readNote } from './note.ts';
import { Overs } from './over.ts';
import { agentSocketPath, stateDir } from './paths.ts';
import type { Processes } from './process.ts';
import type { Rights } from './rights.ts';
import type { Runtime } from './runtime.ts';
import { checkpointIn, type Fingerprint, readSaved, readSaving, type Saving, writeSaved, writeSaving } from './saved.ts';
import { SOCKET_MODE } from './start.ts';
import { unsavable } from './unsavable.ts';

/** Gigabytes of memory, to a slow disk. */
const SAVE_MS = 10 * 60_000;
const SYNC_MS = 5 * 60_000;
/** For what is open for a moment only. */
const LOOKS = 10;
const LOOK_EVERY_MS = 50;
/** Beside what the sandbox's memory takes. */
const ROOM_BYTES = 64 * 1024 * 1024;
const SAVER = 'saver';

export type SaveParts = {
  readonly host: Host;
  readonly shimPath: string;
  readonly agents: Agents;
  readonly runtime: Runtime;
  readonly rights: Rights;
  readonly processes: Processes;
  readonly doors: AgentDoors;
  readonly fingerprint: Fingerprint;
  /** It stands still from now on. */
  readonly onStill: () => void;
  /** What its memory takes on the host. */
  readonly memoryBytes: (op: Operation) => Promise<number>;
};

/**
 * Gives the end of its process. On failure it goes on running, and nothing is left of `dir`.
 * @throws HutchError `failed_precondition` with what the runtime cannot save, `resource_exhausted` where there is no room for it.
 */
export async function saveSandbox(op: Operation, parts: SaveParts, plan: SandboxPlan, dir: string): Promise<Dead> {
  const { host, processes, doors } = parts;
  await using undo = new AsyncDisposableStack();
  const releasing = (release: (op: Operation) => Promise<unknown>): void =>
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await release(late).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed checkpoint left something behind'));
    });
  if ((await host.stat(op, dir)) !== null) throw op.error('conflict', `there is something already where the checkpoint would be: ${dir}`);
  const now = await processes.inspect(op, plan);
  if (!now.alive) throw op.error('failed_precondition', 'the sandbox does not run');
  // An agent that came back meanwhile would hold a socket of the host: the runtime saves none.
  await doors.close(plan.id);
  releasing((late) => doors.open(late, plan.id, agentSocketPath(plan), SOCKET_MODE));
  releasing((late) => host.remove(late, dir));
  await host.makeDir(op, dir, 0o700);
  const note = await readNote(op, host, plan);
  const over = note === null ? {} : { over: Overs.nameOf(note.overPath) };
  const fingerprint = { ...parts.fingerprint, ...over, agent: await parts.agents.keep(op, plan, now.pid) };
  await refuseWithoutRoom(op, parts, dir);
  releasing((late) => goOn(late, parts, plan));
  await standStill(op, parts, plan);
  const { id, runDir, dataDir } = plan;
  const saving = { bootId: host.bootId(), fingerprint, of: { id, runDir, dataDir } };
  await writeSaving(op, host, dir, saving);
  await save(op, parts, plan, dir, now.pid);
  // It is written down: nothing goes on here any more.
  undo.move();
  using ending = op.releasing(SAVE_MS);
  return await conclude(ending, parts, dir, saving);
}

/** Whether all of it is there; waits for a save that is under way, whoever began it. */
export async function isWhole(op: Operation, { host, processes }: Pick<SaveParts, 'host' | 'processes'>, dir: string): Promise<boolean> {
  if ((await readSaved(op, host, dir)).ok) return true;
  const saving = await readSaving(op, host, dir);
  if (saving === null || saving.bootId !== host.bootId()) return false;
  using limited = op.within(SAVE_MS, 'a checkpoint that is being made');
  const { proof, exitCode } = await shimEnded(limited, host, join(dir, SAVER));
  if (proof !== 'exit.json' || exitCode !== 0) return false;
  await conclude(limited, { host, processes }, dir, saving);
  return true;
}

/** One that stands still, or does not. */
async function goOn(op: Operation, parts: Pick<SaveParts, 'host' | 'runtime' | 'rights' | 'processes'>, plan: SandboxPlan): Promise<void> {
  if ((await parts.processes.inspect(op, plan)).alive) await command(op, parts, plan, 'resume');
}

const REACHED = { pause: 'paused', resume: 'running' } as const;

/** False: it was so already. @throws HutchError `failed_precondition` when it does not run. */
export async function command(
  op: Operation,
  { host, runtime, rights, processes }: Pick<SaveParts, 'host' | 'runtime' | 'rights' | 'processes'>,
  plan: SandboxPlan,
  wanted: 'pause' | 'resume',
): Promise<boolean> {
  const now = await processes.inspect(op, plan);
  if (!now.alive) throw op.error('failed_precondition', 'the sandbox does not run');
  using limited = op.within(COMMAND_MS, `runsc ${wanted}`);
  const ask = async (name: string) =>
    await host.run(limited, rights.argvOf(now.pid, [runtime.path, '--root', stateDir(plan), name, plan.id]));
  const hasReached = async (what: keyof typeof REACHED): Promise<boolean> =>
    new TextDecoder().decode((await ask('state')).stdout).includes(`"status": "${REACHED[what]}"`);
  const takenUp = await processes.wasTakenUp(limited, now.pid);
  if (takenUp && wanted === 'pause') {
    const frozen = await processes.freeze(limited, plan);
    if (frozen !== 'cannot') return frozen === 'frozen';
  }
  const stood = wanted === 'resume' && (await processes.thaw(limited, plan));
  // Only where it cannot be frozen, and by an older release of Hutch, is such a one paused by its runtime.
  if (takenUp && wanted === 'resume' && !(await hasReached('pause'))) return stood;
  const { exitCode, stderr } = await ask(wanted);
  if (exitCode === 0) return true;
  // It refuses to do again what it has done.
  if (await hasReached(wanted)) return stood;
  throw op.error('unavailable', `runsc cannot ${wanted} the sandbox: ${new TextDecoder().decode(stderr).trim()}`);
}

/** Pauses it at a moment at which there is nothing in it that cannot be saved. */
async function standStill(op: Operation, parts: SaveParts, plan: SandboxPlan): Promise<void> {
  for (let look = 1; ; look += 1) {
    await command(op, parts, plan, 'pause');
    parts.onStill();
    // What is ended is ended for good, so it comes last.
    const found = (await unsavable(op, parts, plan)) ?? (await cutConnections(op, parts.host, plan));
    if (found === null) return;
    await command(op, parts, plan, 'resume');
    if (look === LOOKS)
      throw op.error('failed_precondition', `gVisor cannot save sandbox ${plan.name}: ${found}`, {
        hint: 'end the program that has it open, or keep the sandbox in memory: hutch pause',
      });
    await pause(op, LOOK_EVERY_MS);
  }
}

/** A runtime that finds the disk full ends what it saves. */
async function refuseWithoutRoom(op: Operation, { host, memoryBytes }: SaveParts, dir: string): Promise<void> {
  const { freeBytes } = await host.fileSystem(op, dir);
  const needed = (await memoryBytes(op)) + ROOM_BYTES;
  if (freeBytes < needed)
    throw op.error(
      'resource_exhausted',
      `there is no room for its memory: it may take ${mib(needed)} MiB, and ${mib(freeBytes)} MiB are free`,
    );
}

async function save(
  op: Operation,
  { host, shimPath, runtime, rights, processes }: SaveParts,
  plan: SandboxPlan,
  dir: string,
  pid: number,
): Promise<void> {
  const saver = join(dir, SAVER);
  const logPath = join(saver, 'log');
  await host.makeDir(op, saver, 0o700);
  const asked = ['checkpoint', ...runtime.saving, `--image-path=${dir}`, plan.id];
  const argv = rights.argvOf(pid, [runtime.path, '--root', stateDir(plan), ...asked]);
  // Once it has begun it is not called off: it would end what it saves.
  using limited = op.releasing(SAVE_MS);
  await startShim(limited, host, shimPath, {
    ...{ dir: saver, logPath, runAs: null, cgroups: [], also: [], awaitSockets: [], argv },
    ...(rights.userId === null ? {} : { privileges: 'given-up-by-itself' as const }),
  });
  // It saves itself, and pauses for that.
  await processes.thaw(limited, plan);
  const ended = await shimEnded(limited, host, saver);
  if (ended.exitCode === 0) return;
  const said = `runsc cannot make a checkpoint of the sandbox (${describe(ended)}): ${await tailOf(limited, host, logPath)}`;
  if ((await processes.inspect(limited, plan)).alive) throw op.error('unavailable', said);
  throw op.error('unavailable', `${said}; it has ended with that`);
}

/** Of what is written: makes it count. The process of it stands still for ever, or is dead. */
async function conclude(
  op: Operation,
  { host, processes }: Pick<SaveParts, 'host' | 'processes'>,
  dir: string,
  { fingerprint, of }: Saving,
): Promise<Dead> {
  const dead = await processes.kill(op, of, 'now');
  await awaitLetGo(op, host, of);
  using syncing = op.within(SYNC_MS, 'writing a checkpoint to the disk');
  await sync(syncing, host, dir);
  await writeSaved(syncing, host, dir, { fingerprint, checkpoint: await checkpointIn(syncing, host, dir), disk: null });
  await host.remove(syncing, join(dir, SAVER));
  return dead;
}

/** All of the file system: what was written to the private layer is on it too. */
export async function sync(op: Operation, host: Host, dir: string): Promise<void> {
  const { exitCode, stderr } = await host.run(op, ['sync', '--file-system', dir]);
  if (exitCode !== 0)
    throw op.error('unavailable', `a checkpoint cannot be written to the disk: ${new TextDecoder().decode(stderr).trim()}`);
}

const mib = (bytes: number): number => Math.ceil(bytes / (1024 * 1024));
