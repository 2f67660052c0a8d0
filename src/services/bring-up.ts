// From a sandbox that has a disk to one that runs and is itself: the process is started, the guest is
// told who it is, the network is let in, the main process begins. On failure the process is dead again.
import { createHash } from 'node:crypto';
import type { Backend, Started } from '../backends/backend.ts';
import { damagedDisk } from '../backends/damaged.ts';
import { allOf } from '../backends/wait.ts';
import { HutchError } from '../domain/errors.ts';
import type { Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import type { Configuration } from '../guest/agent.ts';
import { startFailureCode } from '../guest/exit-code.ts';
import type { LinkedProcess } from '../guest/linked-process.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Boot } from './deps.ts';
import { fillRun } from './fill-run.ts';
import { MAIN_LOG_BYTES_MAX, MAIN_LOG_FILES } from './main-log.ts';
import type { Run } from './run.ts';
import { reachStarted } from './runs.ts';
import type { Secrets } from './secrets.ts';
import { tellGuest } from './tell-guest.ts';

/** The id of the main process in the guest, and in the API. */
export const MAIN = 'main';
/** The id in the guest of the process that a warm sandbox has run before it was anybody's: nobody is told of it. */
export const OWN_PROCESS = 'hutch.';
export const WARMER = `${OWN_PROCESS}warmer`;
/** From the start of the process until the guest is configured; the backend has its own bounds before. */
const CONFIGURE_MS = 90_000;
const RELEASE_MS = 30_000;
const ENTROPY_BYTES = 64;
const TERMINAL = { cols: 80, rows: 24 } as const;

export type Terminal = { readonly cols: number; readonly rows: number; readonly term?: string | undefined };

export type BringUp = {
  readonly sandbox: Pick<Sandbox, 'id' | 'spec' | 'startCount'>;
  readonly boot: Boot;
  readonly secrets: Secrets;
  readonly terminal: Terminal | undefined;
};

export type Configured = Pick<BringUp, 'boot' | 'secrets'> & {
  readonly sandbox: Pick<Sandbox, 'id' | 'startCount'> & {
    readonly spec: Pick<SandboxSpec, 'name' | 'env' | 'user' | 'workdir' | 'shape'>;
  };
};

export type Up = {
  readonly started: Started;
  /** When the process began: what is billed from. */
  readonly startedAtMs: number;
};

/** Until the guest is configured and has its network; `startMain` comes after. */
export async function bringUp(op: Operation, host: Host, run: Run, what: BringUp): Promise<Up> {
  const { backend, plan } = run;
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await putDown(late, run);
  });
  op.progress({ step: 'starting' });
  const startedAtMs = host.nowMs();
  const started = await backend.start(op, plan);
  using limited = op.within(CONFIGURE_MS, 'configuring the guest');
  const beganMs = host.monotonicMs();
  const agent = await reachStarted(limited, what.sandbox.spec.name, run);
  const greetedMs = host.monotonicMs();
  await tellGuest(limited, host, run, agent, configurationOf(host, what, started, run.backend)).catch((error: unknown) =>
    Promise.reject(whyNot(op, run, what, started, error)),
  );
  await Promise.all([fillRun(limited, host, agent, what.boot), started.network === null ? null : backend.linkUp(limited, plan)]);
  const stagesMs = { ...started.stagesMs, agentGreeted: greetedMs - beganMs, configured: host.monotonicMs() - greetedMs };
  op.log.debug({ sandbox: plan.id, stagesMs }, 'guest is up');
  undo.move();
  return { started, startedAtMs };
}

/** A disk that the guest cannot use is told with what helps; anything else as it is. */
function whyNot(op: Operation, { backend, plan }: Run, { sandbox }: BringUp, { disk }: Started, error: unknown): unknown {
  if (!(error instanceof HutchError) || disk === null) return error;
  if (error.code !== 'failed_precondition' || !error.message.startsWith(`the disk ${disk.device} `)) return error;
  const path = backend.diskPath?.(plan) ?? null;
  return damagedDisk(op, {
    name: sandbox.spec.name,
    path,
    hasSnapshots: backend.snapshots !== undefined,
    why: error.message,
    cause: error,
  });
}

/** Ends the process, whatever state it is in, and removes what a run leaves. Logs when it cannot. */
export async function putDown(op: Operation, run: Run): Promise<void> {
  try {
    await run.backend.kill(op, run.plan, 'now');
    await run.backend.cleanUp(op, run.plan);
  } catch (cause) {
    op.log.warn({ sandbox: run.id, cause }, 'a sandbox that could not be started left something behind');
  }
}

export type MainStarted = { readonly process: LinkedProcess } | { readonly exitCode: number; readonly error: HutchError };

/** Starts the main process; a program that cannot be executed is how it ended, not a failure of ours. */
export async function startMain(run: Run, what: Pick<BringUp, 'sandbox' | 'terminal'>): Promise<MainStarted | null> {
  const { main } = what.sandbox.spec;
  if (main === null) return null;
  const { cols, rows, term }: Terminal = what.terminal ?? TERMINAL;
  try {
    // Under the run's own operation: the stream outlives the call that started it.
    const starting = run.link.start(run.op, {
      id: MAIN,
      argv: main.argv,
      ...(main.tty ? { pty: { cols, rows, ...(term === undefined ? {} : { term }) } } : {}),
      stdin: main.stdin === 'open' ? 'pipe' : 'null',
      whenUnread: 'block',
      keepLog: true,
    });
    return { process: await starting };
  } catch (error) {
    if (!(error instanceof HutchError)) throw error;
    const exitCode = startFailureCode(error);
    if (exitCode === null) throw error;
    return { exitCode, error };
  }
}

/** One that was started ahead waits for its owner: it answers at once, or it hangs. */
const WAKE_MS = 5_000;

/**
 * As `bringUp`, of a machine that was started ahead and has been configured as nobody's (`configurationOf`): its guest is
 * told whose it is, and its network is let in.
 */
export async function wake(op: Operation, host: Host, run: Run, what: BringUp, started: Started): Promise<Up> {
  const { backend, plan } = run;
  op.progress({ step: 'starting' });
  const startedAtMs = host.nowMs();
  const beganMs = host.monotonicMs();
  using limited = op.within(WAKE_MS, 'waking a warm sandbox');
  const admitted = started.network === null ? Promise.resolve() : backend.ahead?.admit(limited, plan);
  const agent = await run.link.agent(limited);
  const told = tellGuest(limited, host, run, agent, configurationOf(host, what, started, run.backend));
  await allOf([told, admitted ?? Promise.resolve()]);
  const configuredMs = host.monotonicMs();
  if (started.network !== null) await backend.linkUp(limited, plan);
  op.log.debug({ sandbox: plan.id, configuredMs: configuredMs - beganMs, wokenMs: host.monotonicMs() - beganMs }, 'guest is awake');
  return { started, startedAtMs };
}

/** `startCount`: of starts before this one; −1 for a machine that is nobody's yet. */
export function configurationOf(
  host: Host,
  { sandbox, boot, secrets }: Configured,
  started: Pick<Started, 'network' | 'disk' | 'volumes' | 'directories'>,
  { processesBoundBy }: Pick<Backend, 'processesBoundBy'>,
): Configuration {
  const { id, spec, startCount } = sandbox;
  const { config } = boot.image;
  const user = spec.user ?? config.user;
  const workdir = spec.workdir ?? config.workdir;
  const { network, disk } = started;
  const address = network?.address.replace(/\/\d+$/, '') ?? '127.0.1.1';
  return {
    generation: `${id}.${startCount + 1}`,
    hostname: spec.name,
    machineId: createHash('sha256').update(id).digest('hex').slice(0, 32),
    bootId: uuidOf(host.randomBytes(16)),
    clockMs: host.nowMs(),
    entropy: host.randomBytes(ENTROPY_BYTES),
    ...(network === null ? {} : { network: { ...network, up: true } }),
    ...(disk === null ? {} : { disk: { ...disk, mount: 'overlay' as const } }),
    ...(spec.shape.pids === undefined || processesBoundBy === 'backend' ? {} : { pids: spec.shape.pids }),
    ...(started.volumes === undefined ? {} : { volumes: started.volumes }),
    ...(started.directories === undefined ? {} : { directories: started.directories }),
    env: { ...config.env, ...spec.env },
    secrets,
    ...(user === null ? {} : { user }),
    ...(workdir === null ? {} : { workdir }),
    hosts: [[address, spec.name]] as const,
    log: { bytesMax: MAIN_LOG_BYTES_MAX, files: MAIN_LOG_FILES },
  };
}

/** As the kernel makes them (RFC 9562, version 4). */
function uuidOf(bytes: Uint8Array): string {
  const marked = bytes.map((byte, at) => (at === 6 ? (byte & 0x0f) | 0x40 : at === 8 ? (byte & 0x3f) | 0x80 : byte));
  return Buffer.from(marked)
    .toString('hex')
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
