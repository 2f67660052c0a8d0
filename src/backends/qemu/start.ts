// Starting a sandbox: a process that maps a memory copy-on-write, its template's or that of a machine that was
// written down, loads the device state and goes on there. On failure nothing of it is left but the logs.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { Operation } from '../../host/operation.ts';
import { type Link, seenRules } from '../../network/network.ts';
import { type GuestVolume, machineFiles, type SandboxPlan, type Started, type VolumePlan } from '../backend.ts';
import { describe, tailOf } from '../dead.ts';
import { requireClosed, requireVolumeFile, untilLetGo } from '../disk.ts';
import { BASE } from '../stored.ts';
import { allOf, asLongAs } from '../wait.ts';
import { kvmOwner } from './acceleration.ts';
import type { Fingerprint } from './bundle.ts';
import { joinCgroups, makeCgroups, removeCgroups } from './cgroup.ts';
import { type Owner, type QemuConfig, QMP_READY_MS, RELEASE_MS } from './config.ts';
import { dialVmm, dialWhenThere, IGNORE_SHARED, migrated } from './control.ts';
import type { ChosenDisks } from './drives.ts';
import type { Emulator } from './emulator.ts';
import { endFiles, guestDirectories, startFiles } from './files.ts';
import {
  type MachineShape,
  type MemoryOpening,
  machineArgs,
  NIC_ID,
  type Role,
  VOLUME_NODES,
  type VolumeDrive,
  WIRE_ID,
  type Wire,
} from './machine.ts';
import { startMark } from './panic.ts';
import {
  agentSocketPath,
  bootLogPath,
  diskPath,
  incomingSocketPath,
  qmpSocketPath,
  SOCKETS,
  scratchDiskPath,
  socketDir,
  vmmLogPath,
} from './paths.ts';
import { openQmp, type Qmp } from './qmp.ts';
import { makeMemoryDir, type RunningMemory, removeMemoryDirs, writeRunning, ZEROS } from './running.ts';
import { newStages } from './stages.ts';
import { inspectVmm, killVmm, startVmm, vmmEnded } from './vmm.ts';

type Begins =
  /** Of the devices: it is loaded over the memory that it belongs to. */
  | { readonly with: 'state'; readonly state: Uint8Array }
  /** Boots; its agent answers `withinMs` milliseconds later at most. */
  | {
      readonly with: 'kernel';
      readonly kernelPath: string;
      readonly initramfsPath: string;
      readonly commandLine: string;
      readonly withinMs: number;
    };

export type StartInput = {
  readonly emulator: Emulator;
  readonly machine: MachineShape;
  readonly fingerprint: Fingerprint;
  readonly begins: Begins;
  /** Gives its files names in the directory, `base` and its layers. */
  linkMemory(op: Operation, dir: string): Promise<Pick<RunningMemory, 'base' | 'layers'>>;
  chooseDisks(op: Operation): Promise<ChosenDisks>;
  /** It has been a sandbox before: it knows its disks, and its link may be up. */
  readonly goesOn: boolean;
  /** The last moment at which nothing has happened yet. */
  beforeRunning?(op: Operation): Promise<void>;
};

export async function startSandbox(
  op: Operation,
  config: QemuConfig,
  plan: SandboxPlan,
  take: (op: Operation) => Promise<StartInput>,
  /** Takes over the connection to a machine whose link is to go up. */
  keep: (qmp: Qmp) => void,
): Promise<Started> {
  const { host } = config;
  const stages = newStages(() => host.monotonicMs());
  await using undo = new AsyncDisposableStack();
  const releasing = (release: (op: Operation) => Promise<unknown>): void =>
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await release(late).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed start left something behind'));
    });

  const diskBytes = await checkDisk(op, config, plan);
  releasing((late) => host.remove(late, scratchDiskPath(plan)));
  releasing((late) => removeMemoryDirs(late, host, plan));
  releasing((late) => removeCgroups(late, config, plan));
  releasing((late) => host.remove(late, plan.runDir));
  releasing((late) => config.network.close(late, networkPlan(plan)));
  releasing((late) => endFiles(late, config, plan));
  const places = makePlaces(op, config, plan);
  const taken = take(op);
  const dirMade = removeMemoryDirs(op, host, plan).then(() => makeMemoryDir(op, host, plan));
  const vmmUser = taken.then(({ machine }) => vmmOwner(op, config, machine, plan));
  const [input, disks, link, memoryDir, memory, library, runAs, serving] = await allOf([
    taken,
    taken.then(({ chooseDisks }) => chooseDisks(op)),
    places.then(() => config.network.wire(op, networkPlan(plan))),
    dirMade,
    allOf([taken, dirMade]).then(([{ linkMemory }, dir]) => linkMemory(op, dir)),
    places.then(() => preloadedLibrary(op, config, plan)),
    vmmUser,
    allOf([places, vmmUser]).then(([, user]) => startFiles(op, config, plan, user)),
  ]);
  const { emulator, machine } = input;
  const boots = input.begins.with === 'kernel';
  const given = {
    network: link.kind === 'none' ? null : { ...link.guest, dns: [...link.guest.dns] },
    disk: { device: `/dev/${disks.own}`, sizeBytes: diskBytes },
  };
  await writeRunning(op, host, plan, {
    ...{ fingerprint: input.fingerprint, own: disks.own, started: given },
    memory: { dir: memoryDir, base: memory.base, layers: [...memory.layers], ...(boots ? { mapped: ZEROS } : {}) },
  });
  stages.done('prepared');

  releasing((late) => killVmm(late, host, plan.runDir, 'now'));
  const files = {
    memoryPath: boots ? ZEROS : join(memoryDir, BASE),
    imagePath: machineFiles(op, plan.boot).imagePath,
    disks: disks.drives,
    volumes: await openVolumes(op, config, plan),
    filesSocket: serving?.socket ?? null,
  };
  const { evidence, rulesGeneration } = await startVmm(op, host, config.shimPath, {
    runDir: plan.runDir,
    cwd: socketDir(plan),
    logPath: vmmLogPath(plan),
    consolePath: bootLogPath(plan),
    runAs,
    beside: link.kind === 'passt' ? link.argv : null,
    argv: [emulator.path, ...machineArgs(machine, files, wireOf(link), roleOf(input, library === null ? emulator.memory : 'preload'))],
    env: library === null ? {} : preloading(library, files.memoryPath, memory.layers.length > 0 ? memoryDir : null),
  });
  stages.done('spawned');

  const resumed = goOn(op, config, plan, input, disks, diskBytes, (stage) => stages.done(stage));
  releasing(async () => void (await (await resumed.catch(() => null))?.[Symbol.asyncDispose]()));
  // The link is down until the agent is configured, so the rules have until then.
  // Whatever fails first where it has died, its death is the reason.
  const [, , qmp] = await allOf([
    config.network.admit(op, networkPlan(plan), seenRules(link, rulesGeneration)),
    makeCgroups(op, config, plan).then(() =>
      joinCgroups(op, config, plan, serving === null ? [evidence.pid] : [evidence.pid, serving.pid]),
    ),
    resumed,
  ]).catch(async (error: unknown) => Promise.reject(await explained(op, config, plan, error)));
  stages.done('admitted');
  undo.move();
  if (link.kind === 'none') await qmp[Symbol.asyncDispose]();
  else keep(qmp);
  return {
    evidence,
    ...given,
    ...(boots ? { unprepared: true } : {}),
    ...(plan.volumes === undefined ? {} : { volumes: plan.volumes.map(asGuestSees) }),
    ...(serving === null ? {} : { directories: guestDirectories(plan) }),
    stagesMs: stages.tookMs,
  };
}

async function goOn(
  op: Operation,
  config: QemuConfig,
  plan: SandboxPlan,
  input: StartInput,
  disks: ChosenDisks,
  diskBytes: number,
  done: (stage: string) => void,
): Promise<Qmp> {
  await using undo = new AsyncDisposableStack();
  const qmp = undo.use(await connect(op, config, plan));
  done('greeted');
  if (input.begins.with === 'state') {
    await load(op, config, plan, qmp, input.begins.state);
    done('loaded');
  }
  using command = op.within(QMP_READY_MS, 'starting the guest');
  // Nothing leaves a machine that may not be who it thinks it is, until its agent has said who it is.
  if (input.goesOn) await qmp.execute(command, 'set_link', { name: NIC_ID, up: false });
  // In the template there was next to nothing at vdc: the guest's driver is told what it has now.
  else if (input.begins.with === 'kernel') await qmp.execute(command, 'set_link', SILENT.link);
  else if (disks.drives.vdc !== null) await qmp.execute(command, 'block_resize', { 'node-name': 'vdc', size: diskBytes });
  await disks.settled; // from here on the guest may write
  await input.beforeRunning?.(op);
  await qmp.execute(command, 'cont');
  done('running');
  if (input.begins.with === 'kernel') {
    await untilAnswers(op, config, plan, input.begins.withinMs);
    done('booted');
  }
  undo.move();
  return qmp;
}

/** @throws HutchError `deadline_exceeded`, or `unavailable` where the machine ends. */
async function untilAnswers(op: Operation, config: QemuConfig, plan: SandboxPlan, withinMs: number): Promise<void> {
  using booting = op.within(withinMs, 'the boot of the guest');
  const ended = vmmEnded(booting, config.host, plan.runDir).then(() => Promise.reject(op.error('unavailable', 'the machine ended')));
  ended.catch(() => {}); // heard by the race, or no matter any more
  const answered = config.greetAgent?.(booting, (dialOp) => dialVmm(dialOp, config.host, agentSocketPath(plan)));
  await asLongAs(booting, 'the boot of the guest', Promise.race([ended, answered]));
}

function roleOf({ begins }: StartInput, memory: MemoryOpening): Role {
  if (begins.with === 'state') return { kind: 'restore', memory };
  const { kernelPath, initramfsPath, commandLine } = begins;
  return { kind: 'boot', kernelPath, initramfsPath, commandLine };
}

/** A VMM that died says why in its log; one that lives has only not answered. */
async function explained(op: Operation, config: QemuConfig, plan: SandboxPlan, error: unknown): Promise<unknown> {
  if (op.signal.aborted) return error;
  const now = await inspectVmm(op, config.host, plan.runDir);
  if (now.alive) return error;
  const said = await tailOf(op, config.host, vmmLogPath(plan));
  return op.error('unavailable', `QEMU ended while starting (${describe(now)})${said === '' ? '' : `: ${said}`}`, { cause: error });
}

async function vmmOwner(op: Operation, { host }: QemuConfig, machine: MachineShape, plan: SandboxPlan): Promise<Owner | null> {
  if (plan.runAs === null || machine.acceleration !== 'kvm') return plan.runAs;
  return (await kvmOwner(op, host, plan.runAs)) ?? plan.runAs;
}

async function checkDisk(op: Operation, { host }: QemuConfig, plan: SandboxPlan): Promise<number> {
  const before = await inspectVmm(op, host, plan.runDir);
  if (before.alive) throw op.error('conflict', `sandbox ${plan.id} runs already`);
  const disk = await host.stat(op, diskPath(plan));
  if (disk?.type !== 'file') throw op.error('failed_precondition', `the disk of sandbox ${plan.id} is gone: ${diskPath(plan)}`);
  const { runAs } = plan;
  // Its user may be another than at its last start.
  if (runAs !== null && disk.uid !== runAs.uid) await host.chown(op, diskPath(plan), runAs.uid, runAs.gid);
  return disk.sizeBytes;
}

/** They are this sandbox's alone while it runs: its user may open them, and nobody else's. */
async function openVolumes(op: Operation, { host }: QemuConfig, { volumes = [], runAs }: SandboxPlan): Promise<readonly VolumeDrive[]> {
  for (const { path, target, readOnly } of volumes) {
    await requireVolumeFile(op, host, path, `the volume at ${target}`);
    await (readOnly ? requireClosed : untilLetGo)(op, host, path, target);
    if (runAs !== null) await host.chown(op, path, runAs.uid, runAs.gid);
  }
  return volumes.map(({ path, readOnly }) => ({ path, readOnly }));
}

function asGuestSees({ target, readOnly }: VolumePlan, at: number): GuestVolume {
  return { device: `/dev/${VOLUME_NODES[at]}`, target, readOnly };
}

/** Empty directories for sockets and logs; what an earlier run left is removed. */
async function makePlaces(op: Operation, { host }: QemuConfig, plan: SandboxPlan): Promise<void> {
  await host.remove(op, plan.runDir);
  await allOf([host.makeDir(op, plan.runDir, 0o711), host.makeDir(op, plan.logDir, 0o711)]);
  await allOf([host.makeDir(op, socketDir(plan), 0o700), host.appendFile(op, bootLogPath(plan), startMark(host.nowMs()))]);
  if (plan.runAs === null) return;
  const { uid, gid } = plan.runAs;
  await host.chown(op, socketDir(plan), uid, gid);
}

export function networkPlan(plan: SandboxPlan): Parameters<QemuConfig['network']['wire']>[1] {
  return { id: plan.id, mode: plan.network, socketDir: socketDir(plan), runAs: plan.runAs };
}

/**
 * A copy of the library where every user can read it. Beside the templates: the run directory is on /run, which
 * most systems mount noexec, and nothing there can be loaded. The loader takes no path with a space or a colon
 * ("$" means something to it, too), so below such a path it is the run directory, named from the VMM's working directory.
 */
async function preloadedLibrary(op: Operation, config: QemuConfig, plan: SandboxPlan): Promise<string | null> {
  const { host, readonlyLibraryPath, templatesDir } = config;
  if (readonlyLibraryPath === undefined) return null;
  const bytes = await host.readFile(op, readonlyLibraryPath, LIBRARY_BYTES_MAX);
  const path = join(templatesDir, `.readonly-${createHash('sha256').update(bytes).digest('hex').slice(0, 16)}.so`);
  if (!UNLOADABLE.test(path)) {
    if ((await host.stat(op, path)) === null) {
      await host.makeDir(op, templatesDir, 0o711);
      await host.writeFileAtomic(op, path, bytes, 0o444);
    }
    return path;
  }
  const copy = join(plan.runDir, LIBRARY);
  await host.writeSparse(op, copy, bytes.byteLength, [{ offset: 0, bytes }]);
  await host.chmod(op, copy, 0o444);
  return `../${LIBRARY}`;
}

function preloading(library: string, memoryPath: string, layersDir: string | null): Record<string, string> {
  return { LD_PRELOAD: library, HUTCH_READONLY: memoryPath, ...(layersDir === null ? {} : { HUTCH_LAYERS: layersDir }) };
}

const UNLOADABLE = /[\s:$]/;
const LIBRARY = 'readonly.so';
const LIBRARY_BYTES_MAX = 1024 * 1024;

function wireOf(link: Link): Wire {
  switch (link.kind) {
    case 'none':
      return { kind: 'unconnected' };
    case 'passt':
      return { kind: 'passt' };
    case 'vmm-user':
      return { kind: 'user' };
    default:
      return link satisfies never;
  }
}

async function connect(op: Operation, config: QemuConfig, plan: SandboxPlan): Promise<Qmp> {
  const { host } = config;
  using limited = op.within(QMP_READY_MS, "QEMU's greeting");
  const alive = async (): Promise<void> => {
    if (!(await inspectVmm(limited, host, plan.runDir)).alive) throw op.error('unavailable', 'QEMU ended');
  };
  return await openQmp(limited, await dialWhenThere(limited, host, qmpSocketPath(plan), alive));
}

/**
 * By itself QEMU tells the network where the machine is as soon as its state is loaded, and four times more within a second, under an address
 * that is not its own. Once is the least, as with none QEMU 7.2 crashes when it ends; so that goes nowhere. What the state says of the link is
 * the device's, therefore it is the other end that is down until the machine has its link.
 */
const SILENT = { rounds: { 'announce-rounds': 1 }, link: { name: WIRE_ID, up: false } } as const;

async function load(op: Operation, config: QemuConfig, plan: SandboxPlan, qmp: Qmp, state: Uint8Array): Promise<void> {
  using limited = op.within(QMP_READY_MS, "loading the machine's state");
  const path = incomingSocketPath(plan);
  await Promise.all([
    qmp.execute(limited, 'migrate-set-capabilities', IGNORE_SHARED),
    qmp.execute(limited, 'set_link', SILENT.link),
    qmp.execute(limited, 'migrate-set-parameters', SILENT.rounds),
    qmp.execute(limited, 'migrate-incoming', { uri: `unix:${SOCKETS.incoming}` }),
  ]);
  const stream = await dialVmm(limited, config.host, path);
  stream.on('error', (cause) => op.log.debug({ sandbox: plan.id, cause }, 'QEMU hung up while its state was sent'));
  stream.end(state);
  try {
    await migrated(limited, qmp);
  } finally {
    stream.destroy();
  }
}
