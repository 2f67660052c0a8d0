// The QEMU backend: microVMs restored from templates. Each method is one verb and lies in a file of
// its own; here they are put together.

import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { HutchError } from '../../domain/errors.ts';
import type { SandboxId } from '../../domain/ids.ts';
import { errnoOf } from '../../host/errors.ts';
import type { Operation } from '../../host/operation.ts';
import { companionEnded, rulesGeneration, shimRef } from '../../host/shim.ts';
import { seenRules } from '../../network/network.ts';
import { surroundings } from '../../network/surroundings.ts';
import { Asked } from '../asked.ts';
import { type Backend, type Mounted, machineFiles, type SandboxPlan, type Started } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { DiskSeeds } from '../disk.ts';
import { BASE, sha256 } from '../stored.ts';
import { allOf } from '../wait.ts';
import { type Accelerated, findAcceleration, giveUpKvm } from './acceleration.ts';
import { buildTemplate } from './build.ts';
import { readManifest } from './bundle.ts';
import { capture, captureSaved } from './capture.ts';
import { removeCgroups } from './cgroup.ts';
import { type QemuConfig, QMP_COMMAND_MS, TEMPLATE_DISK_MIB } from './config.ts';
import { command, dialVmm } from './control.ts';
import { readHostCpu } from './cpu.ts';
import { createSandbox } from './create.ts';
import { chooseDisks } from './drives.ts';
import { type Emulator, EmulatorFinder } from './emulator.ts';
import { endFiles } from './files.ts';
import { FirstBoots, fromKernel } from './first-boot.ts';
import { KeptMemories } from './kept.ts';
import { endWork, findLeaks } from './leaks.ts';
import { volumePlaces, WIRE_ID } from './machine.ts';
import { withPanic } from './panic.ts';
import { agentSocketPath, diskPath, freshMarkPath, qmpSocketPath, scratchDiskPath } from './paths.ts';
import { newPortable } from './portable.ts';
import { probeMachine } from './probe.ts';
import type { Qmp } from './qmp.ts';
import { Bundles, refuseDifference, type Sameness } from './restore.ts';
import { readRunning, removeMemoryDirs } from './running.ts';
import { networkPlan, type StartInput, startSandbox } from './start.ts';
import { type Template, TemplateShelf } from './template.ts';
import { type HostCpu, templateRecipe } from './template-key.ts';
import { withTermination } from './terminated.ts';
import { inspectVmm, killVmm, vmmEnded } from './vmm.ts';

const SAMENESS = { false: 'everything', brought: 'machine', true: 'size' } as const satisfies Record<string, Sameness>;

export function newQemuBackend(config: QemuConfig): Backend {
  const { host } = config;
  const finder = new EmulatorFinder(host, config.qemu);
  const seeds = new DiskSeeds(host, config.templatesDir);
  const shelf = new TemplateShelf(host, config.templatesDir, async (op, recipe, dir) =>
    buildTemplate(op, config, seeds, await finder.find(op), recipe, dir),
  );
  /** The one agent stream of each sandbox. */
  const agents = new Map<SandboxId, Duplex>();
  /** Connections to machines that have just started, till their link is up: QEMU takes one at a time. */
  const controls = new Map<SandboxId, Qmp>();
  const letGo = async ({ id }: Pick<SandboxPlan, 'id'>): Promise<void> => {
    const qmp = controls.get(id);
    controls.delete(id);
    await qmp?.[Symbol.asyncDispose]();
  };
  const commanded = async (op: Operation, plan: SandboxPlan, name: string): Promise<void> => {
    await letGo(plan);
    await command(op, host, qmpSocketPath(plan), name);
  };
  /** With what the logs say of an end that was not ours. */
  const explained = async (op: Operation, plan: SandboxPlan, dead: Dead & { readonly startedAtMs?: number }): Promise<Dead> => {
    const told = await withTermination(op, host, plan, dead);
    return told.askedBy === undefined ? await withPanic(op, host, plan, told) : told;
  };
  const answered = new Asked<Accelerated>();
  const accelerated = (op: Operation, emulator: Emulator): Promise<Accelerated> =>
    answered.get(op, (asking) => findAcceleration(asking, config, emulator));

  /** Read once: the kernel takes milliseconds to write it down, and within a boot it stays. */
  let cpu: HostCpu | undefined;

  const firsts = new FirstBoots(shelf);
  /** Only through the library has it pages of its own that can be written down. */
  const canBoot = config.readonlyLibraryPath !== undefined && config.greetAgent !== undefined;
  const bundles = new Bundles(config);
  const kept = new KeptMemories(config);

  type Shaped = Pick<SandboxPlan, 'shape' | 'boot' | 'volumes' | 'mounts'> & { readonly mounted?: Mounted };
  type Taken = Pick<StartInput, 'emulator' | 'machine' | 'fingerprint'> & { readonly template: Template };

  const recipeOf = async (op: Operation, plan: Shaped) => {
    const emulator = await finder.find(op);
    cpu ??= await readHostCpu(op, host);
    const { acceleration } = await accelerated(op, emulator);
    const diskBytes = (config.templateDiskMiB ?? TEMPLATE_DISK_MIB) * 1024 * 1024;
    const mounted = plan.mounted ?? { volumes: plan.volumes?.length ?? 0, directories: plan.mounts?.length ?? 0 };
    const places = { volumes: volumePlaces(mounted.volumes), directories: mounted.directories > 0 };
    const boot = machineFiles(op, plan.boot);
    return { emulator, recipe: templateRecipe(plan.shape, boot, emulator.version, acceleration, cpu, diskBytes, places) };
  };

  const take = async (op: Operation, plan: Shaped, known?: Awaited<ReturnType<typeof recipeOf>>): Promise<Taken> => {
    const { emulator, recipe } = known ?? (await recipeOf(op, plan));
    const { machine, fingerprint } = recipe;
    try {
      const template = await shelf.take(op, recipe);
      firsts.made(recipe.key);
      return { emulator, machine, fingerprint, template };
    } catch (error) {
      const { acceleration } = machine;
      const hopeless = acceleration !== 'kvm' || config.acceleration === 'kvm' || op.signal.aborted || !(error instanceof HutchError);
      if (hopeless || (error.code !== 'deadline_exceeded' && error.code !== 'unavailable')) throw error;
      return await withoutKvm(op, emulator, error.message, () => take(op, plan));
    }
  };

  /** No guest has booted under KVM. Where one does without, KVM is at fault; else the machine is broken, or only too slow just now. */
  const withoutKvm = async <T>(op: Operation, emulator: Emulator, why: string, again: () => Promise<T>): Promise<T> => {
    answered.set({ acceleration: 'tcg', why });
    try {
      const taken = await again();
      op.log.warn({ why }, 'no guest boots under KVM; software emulation is used until the next boot of the host');
      await giveUpKvm(op, config, emulator, why);
      return taken;
    } catch (error) {
      answered.forget();
      throw error;
    }
  };

  const keep = (plan: Pick<SandboxPlan, 'id'>) => (qmp: Qmp) => void controls.set(plan.id, qmp);

  /** Null: it did not boot, and nothing of that is left. What builds templates tries more than once, and without KVM. */
  const bootFirst = async (op: Operation, plan: SandboxPlan, { emulator, recipe }: Awaited<ReturnType<typeof recipeOf>>) => {
    op.progress({ step: 'booting', detail: 'the first of this image and shape' });
    try {
      return await startSandbox(op, config, plan, async () => fromKernel(config, seeds, plan, emulator, recipe), keep(plan));
    } catch (error) {
      const worthAnother = error instanceof HutchError && (error.code === 'deadline_exceeded' || error.code === 'unavailable');
      if (op.signal.aborted || !worthAnother) throw error;
      op.log.warn({ sandbox: plan.id, why: error.message }, 'the first boot of a kind of machine failed; its template is made instead');
      return null;
    } finally {
      firsts.over(recipe.key);
    }
  };

  /** From a bundle. */
  const goOn = async (
    op: Operation,
    plan: SandboxPlan,
    dir: string,
    beforeRunning: (op: Operation) => Promise<void>,
    sameness: Sameness,
  ): Promise<Started> => {
    await letGo(plan);
    return await startSandbox(
      op,
      config,
      plan,
      async (late) => {
        const { emulator, recipe } = await recipeOf(late, plan);
        const { machine, fingerprint } = recipe;
        return await bundles.input(late, plan, dir, { emulator, machine, fingerprint }, beforeRunning, sameness);
      },
      keep(plan),
    );
  };

  return {
    name: 'qemu',
    needs: 'machine',
    processesBoundBy: 'agent',
    probe: (op) => probeMachine(op, config, finder, accelerated),
    async prepare(op, plan) {
      await take(op, plan);
    },
    startsUnprepared: canBoot,
    create: (op, plan) =>
      createSandbox(op, config, seeds, plan, async (late) => {
        const known = await recipeOf(late, plan);
        if (canBoot && (await firsts.claim(late, known.recipe.key, plan.id))) return null;
        return (await take(late, plan, known)).template;
      }),
    async start(op, plan) {
      await letGo(plan);
      const known = await recipeOf(op, plan);
      const booted = canBoot && (await firsts.claim(op, known.recipe.key, plan.id)) ? await bootFirst(op, plan, known) : null;
      return (
        booted ??
        (await startSandbox(op, config, plan, async (late) => fromTemplate(config, plan, await take(late, plan, known)), keep(plan)))
      );
    },
    async reshape(op, plan) {
      // Its memory and processors are those of the template that it starts from.
      const sizeBytes = plan.shape.diskMiB * 1024 * 1024;
      const disk = await host.stat(op, diskPath(plan));
      if (disk === null || disk.sizeBytes >= sizeBytes) return;
      // From now on it is another disk than the template's, and its agent grows what is on it.
      await host.remove(op, freshMarkPath(plan));
      await host.sync(op, plan.dataDir);
      await host.truncate(op, diskPath(plan), sizeBytes);
    },
    checkpoints: {
      isWhole: async (op, dir) => (await readManifest(op, host, dir)).ok,
      async again(op, plan) {
        const running = await readRunning(op, host, plan);
        if (running === null) throw op.error('unavailable', `what sandbox ${plan.name} was started as is not known`);
        return running.started;
      },
      async save(op, plan, dir) {
        await letGo(plan);
        const how = { what: 'memory', since: null, afterwards: 'ends', before: false, lasts: true } as const;
        const { dead } = await capture(op, config, plan, dir, how, kept);
        if (dead === null) throw new Error('a machine that was to end goes on');
        return await withPanic(op, host, plan, dead);
      },
      restore: (op, plan, dir, beforeRunning = async () => {}) => goOn(op, plan, dir, beforeRunning, 'machine'),
    },
    snapshots: {
      async take(op, plan, dir, { what, since, saved, lasts = true }) {
        await letGo(plan);
        const before = what !== 'disk';
        const { stillMs, apparentBytes } =
          saved === undefined
            ? await capture(op, config, plan, dir, { what, since, afterwards: 'goes on', before, lasts }, kept)
            : await captureSaved(op, config, plan, dir, { since, saved, lasts });
        if (!lasts) bundles.passes(dir);
        return { stillMs, apparentBytes };
      },
      commons: (op) => shelf.memories(op),
      async create(op, plan, dir, of = 'kept') {
        await host.makeDir(op, plan.dataDir, 0o711);
        await bundles.layDisk(op, plan, dir, of);
      },
      start: (op, plan, dir, { forced } = { forced: false }) => goOn(op, plan, dir, async () => {}, SAMENESS[`${forced}`]),
      check: async (op, dir) => void (await bundles.check(op, dir, 'full')),
      async layOut(op, dir, path) {
        await bundles.layOut(op, dir, path);
        return { layer: 'upper' };
      },
      portable: newPortable(config),
      async describe(op, dir) {
        const { fingerprint, memory } = await bundles.check(op, dir, 'quick');
        return memory === null ? {} : { ...fingerprint };
      },
      async fits(op, plan, dir, { forced }) {
        const { fingerprint, memory } = await bundles.check(op, dir, 'quick');
        if (memory === null) return;
        refuseDifference(op, fingerprint, (await recipeOf(op, plan)).recipe.fingerprint, SAMENESS[`${forced}`]);
      },
      digest: async (op, dir) => sha256(JSON.stringify(await bundles.check(op, dir, 'quick'))),
    },
    ahead: {
      async stamp(op, plan, how) {
        const { recipe } = await recipeOf(op, plan);
        const [template, outside] = await allOf([
          how === 'boots' ? shelf.look(op, recipe.key) : Promise.resolve({ id: 'its own' }),
          plan.network === 'none' ? Promise.resolve('') : surroundings(op, host),
        ]);
        return template === null ? null : `${recipe.key} ${template.id} ${outside}`;
      },
      async admit(op, plan) {
        // In this order: what is read after this cannot be older.
        const link = await config.network.wire(op, networkPlan(plan));
        const generation = link.kind === 'passt' ? await rulesGeneration(op, host, plan.runDir) : null;
        await config.network.admit(op, networkPlan(plan), seenRules(link, generation));
      },
    },
    async linkUp(op, plan) {
      // Both ends.
      const link = { name: WIRE_ID, up: true };
      const kept = controls.get(plan.id);
      if (kept === undefined) return void (await command(op, host, qmpSocketPath(plan), 'set_link', link));
      try {
        using limited = op.within(QMP_COMMAND_MS, "QEMU's answer to set_link");
        await kept.execute(limited, 'set_link', link);
      } finally {
        await letGo(plan);
      }
    },
    async dialAgent(op, plan) {
      // The port takes one connection: the next would wait in the queue of a QEMU that says nothing.
      agents.get(plan.id)?.destroy();
      const stream = await dialVmm(op, host, agentSocketPath(plan), 'in-place');
      agents.set(plan.id, stream);
      stream.once('close', () => {
        if (agents.get(plan.id) === stream) agents.delete(plan.id);
      });
      return stream;
    },
    // A disk that another run has used stands beside a copy of the template's.
    layerAccess: async (op, plan) => ({
      where: 'guest',
      upper: `device:/dev/${(await host.stat(op, scratchDiskPath(plan))) === null ? 'vdb' : 'vdc'}`,
      merged: '/',
    }),
    pause: (op, plan) => commanded(op, plan, 'stop'),
    resume: (op, plan) => commanded(op, plan, 'cont'),
    async kill(op, plan, how) {
      kept.drop(plan);
      const dead = await killVmm(op, host, plan.runDir, how);
      await endFiles(op, config, plan);
      return await withPanic(op, host, plan, dead);
    },
    async inspect(op, plan) {
      const now = await inspectVmm(op, host, plan.runDir);
      return now.alive ? now : await explained(op, plan, now);
    },
    ended: async (op, plan) => await explained(op, plan, await vmmEnded(op, host, plan.runDir)),
    networkLost: async (op, plan) => (await companionEnded(op, host, plan.runDir)) !== null,
    async cleanUp(op, plan) {
      kept.drop(plan);
      await letGo(plan);
      await endFiles(op, config, plan);
      await allOf([
        config.network.close(op, networkPlan(plan)),
        removeCgroups(op, config, plan),
        host.remove(op, scratchDiskPath(plan)),
        removeMemoryDirs(op, host, plan),
        host.remove(op, plan.runDir),
      ]);
    },
    diskPath,

    async remove(op, plan) {
      firsts.drop(plan.id);
      await allOf([this.cleanUp(op, plan), host.remove(op, plan.dataDir)]);
    },
    async stats(op, plan) {
      const now = await inspectVmm(op, host, plan.runDir);
      const disk = await host.stat(op, diskPath(plan));
      const refs = now.alive ? [now, await shimRef(op, host, plan.runDir)] : [];
      const uses = await Promise.all(refs.map((ref) => (ref === null ? null : host.processUse(op, ref))));
      return {
        pssBytes: uses.reduce((sum, use) => sum + (use?.pssBytes ?? 0), 0),
        cpuUs: uses.reduce((sum, use) => sum + (use?.cpuUs ?? 0), 0),
        diskAllocatedBytes: disk?.allocatedBytes ?? 0,
      };
    },
    prune: (op, unusedMs, how) => shelf.prune(op, unusedMs, how),
    async endWork(op) {
      await endWork(op, config);
      await shelf.sweep(op);
    },
    end: (op) => config.network.end(op),
    leaks: (op, known) => findLeaks(op, config, known),
  };
}

/** Each use of the template's memory has a name for it of its own: it stays as long as it is used, whatever becomes of the template. */
function fromTemplate(
  config: QemuConfig,
  plan: SandboxPlan,
  { template, ...machine }: Pick<StartInput, 'emulator' | 'machine' | 'fingerprint'> & { readonly template: Template },
): StartInput {
  return {
    ...machine,
    begins: { with: 'state', state: template.state },
    async linkMemory(op, dir) {
      const base = join(dir, BASE);
      try {
        await config.host.link(op, template.memoryPath, base);
      } catch (error) {
        // Sandboxes lie on another file system than templates.
        if (errnoOf(error) !== 'EXDEV') throw error;
        await config.host.symlink(op, template.memoryPath, base);
      }
      return { base: null, layers: [] };
    },
    chooseDisks: (op) => chooseDisks(op, config, plan, template),
    goesOn: false,
  };
}
