// The one cold boot: a machine boots the kernel and the image until its agent is ready and configured
// as no sandbox in particular, is stopped, and its memory, device state and disk become the template.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { FULL_DISK_HINT } from '../../domain/full-disk.ts';
import type { Operation } from '../../host/operation.ts';
import { tailOf } from '../dead.ts';
import { type DiskSeeds, dataPieces } from '../disk.ts';
import { MEMORY_MODE } from '../stored.ts';
import { asLongAs } from '../wait.ts';
import { kvmOwner } from './acceleration.ts';
import { BOOT_ATTEMPTS, BOOT_MS, KILL_FORCE_MS, type Owner, type QemuConfig, QMP_READY_MS, RELEASE_MS } from './config.ts';
import { dialVmm, dialWhenThere, IGNORE_SHARED, migrated } from './control.ts';
import type { Emulator } from './emulator.ts';
import { machineArgs, NIC_ID } from './machine.ts';
import { MEMORY_FILE, STATE_BYTES_MAX, STATE_FILE, writeManifest } from './manifest.ts';
import { agentSocketPath, bootLogPath, qmpSocketPath, SOCKETS, socketDir, stateSocketPath, vmmLogPath } from './paths.ts';
import { openQmp, type Qmp } from './qmp.ts';
import type { TemplateRecipe } from './template-key.ts';
import { killVmm, startVmm, vmmEnded } from './vmm.ts';

const LAST_WORDS_MS = 2_000;
/** With less than this on its disk a template failed for want of it, whatever it died of. */
const ROOM_BYTES = 8 * 1_048_576;

type Workplace = { readonly runDir: string; readonly logDir: string };

/** Leaves `memory`, `state` and `manifest.json` in `dir`, durable, and nothing else anywhere. */
export async function buildTemplate(
  op: Operation,
  config: QemuConfig,
  seeds: DiskSeeds,
  emulator: Emulator,
  recipe: TemplateRecipe,
  dir: string,
): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    op.progress({ step: 'template', detail: attempt === 1 ? 'booting the guest once' : 'booting the guest again' });
    try {
      await attemptBuild(op, config, seeds, emulator, recipe, dir);
      return;
    } catch (error) {
      if (!op.signal.aborted) await refuseFull(op, config, dir, error);
      const worthAnother = error instanceof HutchError && (error.code === 'deadline_exceeded' || error.code === 'unavailable');
      if (op.signal.aborted || !worthAnother || attempt >= BOOT_ATTEMPTS) throw error;
      op.log.warn({ template: recipe.key, attempt, why: error.message }, 'boot of a template failed; it is tried again');
    }
  }
}

/** A guest whose disk has no room on the host says that it cannot write; why, the host knows. @throws HutchError `resource_exhausted`. */
async function refuseFull(op: Operation, { host }: QemuConfig, dir: string, cause: unknown): Promise<void> {
  const { freeBytes } = await host.fileSystem(op, dir);
  if (freeBytes >= ROOM_BYTES || (cause instanceof HutchError && cause.code === 'resource_exhausted')) return;
  throw op.error('resource_exhausted', `no room is left in ${dir} to make a template`, { hint: FULL_DISK_HINT, cause });
}

async function attemptBuild(
  op: Operation,
  config: QemuConfig,
  seeds: DiskSeeds,
  emulator: Emulator,
  recipe: TemplateRecipe,
  dir: string,
): Promise<void> {
  const { host } = config;
  const owner = await buildOwner(op, config, recipe);
  await using undo = new AsyncDisposableStack();

  const place = await makeWorkplace(op, config, recipe, owner, undo);
  const memoryPath = join(dir, MEMORY_FILE);
  const vdb = join(dir, 'vdb');
  await seeds.makeDisk(op, vdb, recipe.diskBytes, owner);

  undo.defer(async () => {
    using release = op.releasing(RELEASE_MS);
    await killVmm(release, host, place.runDir, 'now');
  });
  const files = {
    memoryPath: null,
    imagePath: recipe.boot.imagePath,
    disks: { vdb, vdc: null },
    volumes: [],
    filesSocket: null,
  };
  const { kernelPath, initramfsPath } = recipe.boot;
  const role = { kind: 'boot', kernelPath, initramfsPath, commandLine: recipe.commandLine } as const;
  const { evidence } = await startVmm(op, host, config.shimPath, {
    runDir: place.runDir,
    cwd: socketDir(place),
    logPath: vmmLogPath(place),
    consolePath: bootLogPath(place),
    runAs: owner,
    beside: null,
    env: {},
    argv: [emulator.path, ...machineArgs(recipe.machine, files, { kind: 'unconnected' }, role)],
  });
  const qmp = undo.use(await connect(op, config, place));
  await bootUntilReady(op, config, recipe, place, qmp);

  op.progress({ step: 'template', detail: 'saving the machine' });
  const state = await save(op, config, place, qmp, owner);
  await host.cloneFile(op, await memoryOf(op, config, evidence.pid), memoryPath);
  await qmp.execute(op, 'quit');
  using ending = op.within(KILL_FORCE_MS, "the template's machine to end");
  await vmmEnded(ending, host, place.runDir);

  await host.chmod(op, memoryPath, MEMORY_MODE);
  await host.sync(op, memoryPath);
  await host.writeFileAtomic(op, join(dir, STATE_FILE), state, 0o400);
  const disk = { sizeBytes: recipe.diskBytes, pieces: await dataPieces(op, host, vdb, recipe.diskBytes) };
  await host.remove(op, vdb);
  await writeManifest(op, host, dir, recipe.key, state, disk);
}

async function buildOwner(op: Operation, config: QemuConfig, recipe: TemplateRecipe): Promise<Owner | null> {
  const owner = config.templateOwner ?? null;
  if (owner === null || recipe.machine.acceleration !== 'kvm') return owner;
  return (await kvmOwner(op, config.host, owner)) ?? owner;
}

/** Directories that the machine's user may write; gone at the end. */
async function makeWorkplace(
  op: Operation,
  config: QemuConfig,
  recipe: TemplateRecipe,
  owner: Owner | null,
  undo: AsyncDisposableStack,
): Promise<Workplace> {
  const { host } = config;
  const base = join(config.workDir, `template-${recipe.key.slice(0, 16)}`);
  const place = { runDir: base, logDir: socketDir({ runDir: base }) };
  await host.remove(op, base);
  undo.defer(async () => {
    using release = op.releasing(RELEASE_MS);
    await host.remove(release, base);
  });
  await host.makeDir(op, base, 0o711);
  await host.makeDir(op, socketDir(place), 0o700);
  if (owner !== null) await host.chown(op, socketDir(place), owner.uid, owner.gid);
  return place;
}

/** The guest's memory, in the process that has it; nobody else has a name for it. */
async function memoryOf(op: Operation, { host }: QemuConfig, pid: number): Promise<string> {
  const descriptors = `/proc/${pid}/fd`;
  for (const name of await host.list(op, descriptors)) {
    const path = join(descriptors, name);
    const target = await host.readLink(op, path).catch((error: unknown) => {
      if (error instanceof HutchError && error.code === 'not_found') return ''; // closed since
      throw error;
    });
    if (target.startsWith('/memfd:memory-backend-memfd')) return path;
  }
  throw op.error('internal', 'the memory of the machine that was booted cannot be found');
}

async function connect(op: Operation, config: QemuConfig, place: Workplace): Promise<Qmp> {
  using limited = op.within(QMP_READY_MS, "QEMU's greeting");
  return await openQmp(limited, await dialWhenThere(limited, config.host, qmpSocketPath(place), async () => {}));
}

async function bootUntilReady(op: Operation, config: QemuConfig, recipe: TemplateRecipe, place: Workplace, qmp: Qmp): Promise<void> {
  const bootMs = config.bootMs ?? BOOT_MS[recipe.machine.acceleration];
  using booting = op.within(bootMs, 'the boot of the guest');
  await qmp.execute(booting, 'set_link', { name: NIC_ID, up: false });
  await qmp.execute(booting, 'cont');
  const ended = vmmEnded(booting, config.host, place.runDir).then(() => Promise.reject(op.error('unavailable', 'the machine ended')));
  ended.catch(() => {}); // heard by the race, or no matter any more
  try {
    const warm = config.warmAgent(booting, (dialOp) => dialVmm(dialOp, config.host, agentSocketPath(place)), {
      device: '/dev/vdb',
      sizeBytes: recipe.diskBytes,
    });
    await asLongAs(booting, 'the boot of the guest', Promise.race([ended, warm]));
  } catch (error) {
    throw op.signal.aborted ? error : await bootFailure(op, config, place, bootMs, error);
  }
}

/** What the console said last: without it nobody can tell why a guest does not boot. */
async function bootFailure(op: Operation, config: QemuConfig, place: Workplace, bootMs: number, cause: unknown): Promise<unknown> {
  if (!(cause instanceof HutchError)) return cause;
  const late = cause.code === 'deadline_exceeded';
  // A guest that dies cuts its agent's stream first; its last words and its end come a moment later.
  if (!late) await endedSoon(op, config, place);
  const said = [await tailOf(op, config.host, bootLogPath(place)), await tailOf(op, config.host, vmmLogPath(place))];
  const console = said.filter((text) => text !== '').join(' | ') || '(nothing)';
  return late
    ? op.error('deadline_exceeded', `the guest did not get ready in ${bootMs} ms; its console ends: ${console}`, { cause })
    : op.error(cause.code, `the guest ended while booting (${cause.message}); its console ends: ${console}`, { cause });
}

async function endedSoon(op: Operation, { host }: QemuConfig, place: Workplace): Promise<void> {
  using soon = op.within(LAST_WORDS_MS, 'the end of the machine');
  await vmmEnded(soon, host, place.runDir).catch((error: unknown) => {
    if (op.signal.aborted) throw error;
  });
}

/** Stops the machine and takes its device state. The memory is the shared file itself. */
async function save(op: Operation, config: QemuConfig, place: Workplace, qmp: Qmp, owner: Owner | null): Promise<Uint8Array> {
  using limited = op.within(QMP_READY_MS, 'saving the machine');
  const path = stateSocketPath(place);
  await qmp.execute(limited, 'stop');
  await qmp.execute(limited, 'migrate-set-capabilities', IGNORE_SHARED);
  await using receiver = await config.host.receiveUnix(limited, path, STATE_BYTES_MAX);
  if (owner !== null) await config.host.chown(limited, path, owner.uid, owner.gid);
  await qmp.execute(limited, 'migrate', { uri: `unix:${SOCKETS.state}` });
  await migrated(limited, qmp);
  return await receiver.content;
}
