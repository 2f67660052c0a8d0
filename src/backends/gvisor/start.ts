// Starting a sandbox: its root and network are made in namespaces that end with it, the runtime is
// started in them under a shim, and the agent connects to us from inside. On failure nothing of it is
// left but the logs.
import { basename, join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { errnoOf } from '../../host/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { startShim } from '../../host/shim.ts';
import { type GuestAddress, type Link, type NetworkPlan, seenRules } from '../../network/network.ts';
import type { AgentDoors } from '../agent-door.ts';
import type { SandboxPlan, Started } from '../backend.ts';
import { CELL_DISK_DAMAGED, damagedDisk } from '../damaged.ts';
import { describe, tailOf } from '../dead.ts';
import { mendVolume, requireClosed } from '../disk.ts';
import { allOf } from '../wait.ts';
import type { Agents } from './agents.ts';
import type { Ground } from './base.ts';
import { bundleConfig } from './bundle.ts';
import type { Cgroups } from './cgroup.ts';
import { ARRIVE_MS, type GvisorConfig, RELEASE_MS } from './config.ts';
import { behindGate, makeGate } from './gate.ts';
import type { LayerArgs, Layers } from './layer.ts';
import { writeNote, writePassing } from './note.ts';
import type { Overs } from './over.ts';
import {
  AGENT_SOCKET,
  agentSocketPath,
  diskMountDir,
  diskPath,
  imageMountDir,
  linkDir,
  mountsDir,
  netnsPath,
  networkDir,
  passtLogPath,
  rootDir,
  runtimeLogPath,
  stateDir,
  takenUpDir,
  volumesDir,
} from './paths.ts';
import type { Platform } from './platform.ts';
import type { Processes } from './process.ts';
import type { Rights } from './rights.ts';
import type { Runtime } from './runtime.ts';
import { CHECKPOINT, programsIn } from './saved.ts';

export type StartInput = {
  /** Its digest. */
  readonly image: string;
  readonly runtime: Runtime;
  readonly platform: Platform;
  readonly rights: Rights;
  readonly ground: Ground;
  /** A layer over it; null: none. */
  readonly overPath: string | null;
};

export type StartParts = {
  readonly config: GvisorConfig;
  readonly agents: Agents;
  readonly overs: Overs;
  readonly cgroups: Cgroups;
  readonly layers: Layers;
  readonly processes: Processes;
  readonly doors: AgentDoors;
  readonly take: (op: Operation) => Promise<StartInput>;
};

export const SOCKET_MODE = 0o600;
/** Who carries frames where a sandbox has no user of its own: one of its user namespace. */
const BRIDGE = { uid: 65_534, gid: 65_534 };

/** `checkpointDir`: what ran in it goes on where it was. */
export type StartFrom =
  | 'anew'
  | {
      readonly checkpointDir: string;
      /** It is the same run of the sandbox: what was counted counts on. */
      readonly isSame: boolean;
      /** `down`: no packet of it goes anywhere until `openGate`. */
      readonly link: 'up' | 'down';
      /** At the last moment at which nothing of it has happened. */
      readonly beforeRunning: (op: Operation) => Promise<void>;
    };

export async function startSandbox(op: Operation, parts: StartParts, plan: SandboxPlan, from: StartFrom): Promise<Started> {
  const { config, cgroups, layers, processes, doors } = parts;
  const { host, network } = config;
  const stagesMs: Record<string, number> = {};
  let sinceMs = host.monotonicMs();
  const done = (stage: string): void => {
    const nowMs = host.monotonicMs();
    stagesMs[stage] = nowMs - sinceMs;
    sinceMs = nowMs;
  };
  await using undo = new AsyncDisposableStack();
  const releasing = (release: (op: Operation) => Promise<unknown>): void =>
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await release(late).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed start left something behind'));
    });

  if ((await processes.inspect(op, plan)).alive) throw op.error('conflict', `sandbox ${plan.id} runs already`);
  const layer = await layers.argsOf(op, plan);
  const programs = from === 'anew' ? {} : await programsIn(op, host, from.checkpointDir);
  const agentPath = await parts.agents.find(op, programs.agent);
  const keptOver = programs.over === undefined ? undefined : await parts.overs.find(op, programs.over);
  releasing((late) => cgroups.remove(late, plan));
  releasing((late) => host.remove(late, plan.runDir));
  releasing((late) => network.close(late, networkPlan(plan)));
  releasing(() => doors.close(plan.id));
  // Whoever asked for the agent too early has opened one there, which would stay open where nobody can come to.
  await doors.close(plan.id);
  await host.remove(op, plan.runDir);
  await makePlaces(op, config, plan);
  const isGated = from !== 'anew' && from.link === 'down' && plan.network !== 'none';
  const [taken, link, cgroupsPath] = await allOf([
    parts.take(op),
    network.wire(op, networkPlan(plan)),
    makeCgroups(op, cgroups, plan, from),
    doors.open(op, plan.id, agentSocketPath(plan), SOCKET_MODE),
    isGated ? makeGate(op, host, plan) : Promise.resolve(),
  ]);
  const guest = guestOf(op, link);
  const lent = [agentPath];
  // Each is seen over a file of its name.
  await allOf(lent.map((path) => host.appendFile(op, join(linkDir(plan), basename(path)), new Uint8Array())));
  await writePassing(
    op,
    host,
    `${plan.runDir}/config.json`,
    JSON.stringify(
      bundleConfig({
        rootPath: rootDir(plan),
        hostname: plan.id,
        linkDir: linkDir(plan),
        agent: basename(agentPath),
        agentSocket: AGENT_SOCKET,
        cgroupsPath,
        mounts: [
          ...(plan.mounts ?? []).map((mount, at) => ({ ...mount, source: mountDir(plan, at) })),
          ...(plan.volumes ?? []).map(({ target, readOnly }, at) => ({ source: volumeDir(plan, at), target, readOnly })),
        ],
        netnsPath: guest === null ? null : netnsPath(plan),
      }),
    ),
  );
  const input = keptOver === undefined ? taken : { ...taken, overPath: keptOver };
  const { image, ground, overPath } = input;
  await writeNote(op, host, plan, { network: guest === null ? null : { ...guest, dns: [...guest.dns] }, image, ground, overPath });
  if (from !== 'anew') {
    await nameCheckpoint(op, host, plan, from.checkpointDir);
    await from.beforeRunning(op);
  }
  done('prepared');

  releasing((late) => processes.kill(late, plan, 'now'));
  // From the moment at which it may have run there is no way back.
  if (from !== 'anew') releasing((late) => noteWhetherRan(late, parts, plan));
  const { child, rulesGeneration } = await startShim(op, host, config.shimPath, {
    ...{ dir: plan.runDir, logPath: runtimeLogPath(plan), runAs: null, cgroups: [], awaitSockets: [] },
    ...(input.rights.userId === null ? {} : { privileges: 'given-up-by-itself' as const }),
    ...(link.kind === 'passt'
      ? { also: [carrier(plan, link.argv, isGated)], pair: 'shared' as const, rules: 'asked' as const }
      : { also: [] }),
    argv: [
      config.cellPath,
      ...cellArgs(
        plan,
        [...groundArgs(plan, input), ...layer, ...(await volumeArgs(op, host, plan)), ...(await mountArgs(op, host, plan))],
        lent,
        guest,
      ),
      '--',
      ...runtimeArgs(plan, input, cgroupsPath, guest, from),
    ],
  });
  done('spawned');

  // Nobody speaks in the sandbox but the agent until it is configured, so the rules have until then.
  await allOf([network.admit(op, networkPlan(plan), seenRules(link, rulesGeneration)), arrival(op, parts, plan)]);
  await allOf([cgroups.settle(op, plan), from === 'anew' ? Promise.resolve() : host.remove(op, takenUpDir(plan))]);
  done('arrived');
  undo.move();
  return { evidence: { alive: true, ...child }, network: guest, disk: null, stagesMs };
}

const RAN = 'ran';
const BOOT = 'boot';
const BOOT_ID_BYTES_MAX = 64;

/** Whether nothing has run of what was to be taken up: it can be taken up still. */
export async function isUnused(
  op: Operation,
  { config: { host }, processes }: Pick<StartParts, 'config' | 'processes'>,
  plan: SandboxPlan,
): Promise<boolean> {
  const own = takenUpDir(plan);
  if ((await host.stat(op, join(own, BOOT))) === null || (await host.stat(op, join(own, RAN))) !== null) return false;
  // Another boot has forgotten whether it ran in the last one.
  const boot = new TextDecoder().decode(await host.readFile(op, join(own, BOOT), BOOT_ID_BYTES_MAX));
  if (boot !== host.bootId()) return false;
  const now = await processes.inspect(op, plan);
  return !now.alive && now.proof === 'never-started';
}

/** Of one that is dead, before that is forgotten with its run directory. */
async function noteWhetherRan(op: Operation, { config: { host }, processes }: StartParts, plan: SandboxPlan): Promise<void> {
  const now = await processes.inspect(op, plan);
  if (now.alive || now.proof !== 'never-started') await host.writeFileAtomic(op, join(takenUpDir(plan), RAN), '', 0o600);
}

/** Its directory may get another name before the runtime opens it. */
async function nameCheckpoint(op: Operation, host: Host, plan: SandboxPlan, dir: string): Promise<void> {
  const own = takenUpDir(plan);
  await host.remove(op, own);
  await host.makeDir(op, own, 0o700);
  await writePassing(op, host, join(own, BOOT), host.bootId());
  try {
    await host.link(op, join(dir, CHECKPOINT), join(own, CHECKPOINT));
  } catch (error) {
    // On another file system: then it is not the sandbox's own, and stays where it is.
    if (errnoOf(error) !== 'EXDEV') throw error;
    await host.symlink(op, join(dir, CHECKPOINT), join(own, CHECKPOINT));
  }
}

export function networkPlan(plan: SandboxPlan): NetworkPlan {
  return { id: plan.id, mode: plan.network, socketDir: networkDir(plan), runAs: plan.runAs };
}

async function makeCgroups(op: Operation, cgroups: Cgroups, plan: SandboxPlan, from: StartFrom): Promise<string | null> {
  if (from === 'anew' || !from.isSame) await cgroups.clear(op, plan);
  await cgroups.make(op, plan);
  return await cgroups.pathFor(op, plan);
}

/** Empty directories for sockets, state and logs. */
async function makePlaces(op: Operation, { host }: GvisorConfig, plan: SandboxPlan): Promise<void> {
  await allOf([host.makeDir(op, plan.runDir, 0o711), host.makeDir(op, plan.logDir, 0o711)]);
  const own = [linkDir(plan), rootDir(plan), imageMountDir(plan), diskMountDir(plan), stateDir(plan), networkDir(plan)];
  await allOf(own.map((dir) => host.makeDir(op, dir, 0o700)));
  if (plan.runAs === null || plan.network === 'none') return;
  // Releases of passt open it as root without root's rights over files, or as the user that they become.
  await host.chmod(op, networkDir(plan), 0o711);
  await host.appendFile(op, passtLogPath(plan), new Uint8Array());
  await host.chown(op, passtLogPath(plan), plan.runAs.uid, 0);
  await host.chmod(op, passtLogPath(plan), 0o660);
}

function volumeDir(plan: SandboxPlan, at: number): string {
  return join(volumesDir(plan), `${at}`);
}

function mountDir(plan: SandboxPlan, at: number): string {
  return join(mountsDir(plan), `${at}`);
}

/** Where the runtime finds them, which follows symlinks: what a directory's path leads to may be another's to change. */
async function mountArgs(op: Operation, host: Host, plan: SandboxPlan): Promise<LayerArgs> {
  const args: string[] = [];
  for (const [at, { source }] of (plan.mounts ?? []).entries()) {
    await host.makeDir(op, mountDir(plan, at), 0o700);
    args.push('--directory', source, '--directory-at', mountDir(plan, at));
  }
  return args;
}

/** Whole, and as large as it is to be, before this machine's kernel has it. */
async function volumeArgs(op: Operation, host: Host, plan: SandboxPlan): Promise<LayerArgs> {
  const args: string[] = [];
  for (const [at, { path, readOnly, target }] of (plan.volumes ?? []).entries()) {
    await host.makeDir(op, volumeDir(plan, at), 0o700);
    await (readOnly ? requireClosed : mendVolume)(op, host, path, target);
    args.push(readOnly ? '--volume-ro' : '--volume', path, '--volume-at', volumeDir(plan, at));
  }
  return args;
}

/** What lies under the private layer. */
function groundArgs(plan: SandboxPlan, { ground, overPath, rights }: StartInput): LayerArgs {
  const image =
    'basePath' in ground
      ? ['--lower', ground.basePath]
      : ['--lower', imageMountDir(plan), '--image', ground.imagePath, '--under', ground.underPath];
  return [...rights.cellArgs, ...image, ...(overPath === null ? [] : ['--over', overPath])];
}

function guestOf(op: Operation, link: Link): GuestAddress | null {
  switch (link.kind) {
    case 'none':
      return null;
    case 'passt':
      return link.guest;
    case 'vmm-user':
      throw op.error('failed_precondition', "gVisor has no network of its own that goes through this machine's", {
        hint: 'start it with --no-net, or see: hutch doctor',
      });
    default:
      return link satisfies never;
  }
}

/** passt is started by root here, and changes to the sandbox's user by itself. */
function carrier(plan: SandboxPlan, argv: readonly string[], isGated: boolean): readonly string[] {
  const { runAs } = plan;
  const asUser = runAs === null ? argv : [...argv, '--runas', `${runAs.uid}:${runAs.gid}`];
  return isGated ? behindGate(plan, asUser) : asUser;
}

function cellArgs(plan: SandboxPlan, layer: LayerArgs, lent: readonly string[], guest: GuestAddress | null): readonly string[] {
  const { uid, gid } = plan.runAs ?? BRIDGE;
  return [
    ...[...layer, '--root', rootDir(plan)],
    ...['--link', linkDir(plan), ...lent.flatMap((path) => ['--show', path])],
    ...(guest === null
      ? []
      : [
          ...['--net', netnsPath(plan), '--address', guest.address, '--gateway', guest.gateway, '--mac', guest.mac],
          ...['--mtu', `${guest.mtu}`, '--uid', `${uid}`, '--gid', `${gid}`],
        ]),
  ];
}

function runtimeArgs(
  plan: SandboxPlan,
  input: StartInput,
  cgroupsPath: string | null,
  guest: GuestAddress | null,
  from: StartFrom,
): readonly string[] {
  const { runtime, platform } = input;
  return [
    ...[runtime.path, '--root', stateDir(plan), `--platform=${platform.name}`, `--network=${guest === null ? 'none' : 'sandbox'}`],
    ...runtime.always,
    ...runtime.options,
    ...(cgroupsPath === null && runtime.canIgnoreCgroups ? ['--ignore-cgroups'] : []),
    // Beside what the runtime itself says: both only append.
    ...(runtime.hasPanicLog ? [`--panic-log=${runtimeLogPath(plan)}`] : []),
    ...(from === 'anew' ? ['run'] : ['restore', `-image-path=${takenUpDir(plan)}`]),
    ...['-bundle', plan.runDir, plan.id],
  ];
}

/** What `hutch-cell` says of a directory that is not what its path said a moment ago. */
const REPLACED = /hutch-cell: cannot take (.+): .*; a symlink on the way is not followed/;

/** Until the agent stands at the door; one that never comes because the runtime ended says so at once. */
async function arrival(op: Operation, { config, processes, doors }: StartParts, plan: SandboxPlan): Promise<void> {
  using limited = op.within(ARRIVE_MS, "the agent's arrival");
  const settled = new AbortController();
  const watching = { ...limited, signal: AbortSignal.any([limited.signal, settled.signal]) };
  const death = processes.ended(watching, plan).then(async (dead) => {
    const said = await tailOf(op, config.host, runtimeLogPath(plan));
    const last = said.split(' | ').at(-1) ?? '';
    if (dead.exitCode === CELL_DISK_DAMAGED) {
      throw damagedDisk(op, { name: plan.name, path: diskPath(plan), hasSnapshots: true, why: last.replace(/^hutch-cell: /, '') });
    }
    const [, replaced] = REPLACED.exec(last) ?? [];
    if (replaced !== undefined)
      throw op.error('failed_precondition', `${replaced} was replaced while it was mounted: what it leads to by now is not shown`, {
        hint: 'put the directory back, and start the sandbox again',
      });
    throw op.error('unavailable', `runsc ended while starting (${describe(dead)})${said === '' ? '' : `: ${said}`}`);
  });
  death.catch(() => {}); // heard by the race, or too late
  try {
    await Promise.race([doors.arrived(watching, plan.id), death]);
  } catch (error) {
    if (error instanceof HutchError) throw error;
    throw op.error('internal', 'the agent cannot be waited for', { cause: error });
  } finally {
    settled.abort();
  }
}
