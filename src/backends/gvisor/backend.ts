// The gVisor backend: sandboxes on a kernel in user space. Each method is one verb; here they are put
// together.
import { createHash } from 'node:crypto';
import type { SandboxId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import { companionEnded, rulesGeneration, shimRef } from '../../host/shim.ts';
import { seenRules } from '../../network/network.ts';
import { surroundings } from '../../network/surroundings.ts';
import { AgentDoors } from '../agent-door.ts';
import { Asked } from '../asked.ts';
import { type Backend, rootFiles, type SandboxPlan } from '../backend.ts';
import { DiskTraffic } from '../disk-traffic.ts';
import { Agents } from './agents.ts';
import { Bases } from './base.ts';
import { ROOTS_OWN } from './bundle.ts';
import { Cgroups } from './cgroup.ts';
import { command, isWhole, type SaveParts, saveSandbox } from './checkpoint.ts';
import { type GvisorConfig, RELEASE_MS } from './config.ts';
import { openGate } from './gate.ts';
import { Kept } from './kept.ts';
import { Layers } from './layer.ts';
import { findLeaks, runtimeOf } from './leaks.ts';
import { type Note, readNote } from './note.ts';
import { Overs } from './over.ts';
import { agentSocketPath, diskPath, goneOnDir, layerDir, rootDir, stillDir, takenUpDir } from './paths.ts';
import { findPlatform, type Platform } from './platform.ts';
import { newPortable } from './portable.ts';
import { probeMachine } from './probe.ts';
import { Processes } from './process.ts';
import { type Rights, RightsFinder, removeTree } from './rights.ts';
import { type Runtime, RuntimeFinder } from './runtime.ts';
import { checkSaved, type Fingerprint, readSaved, refuseOther } from './saved.ts';
import { layDiskOut } from './saved-disk.ts';
import { isUnused, networkPlan, SOCKET_MODE, type StartParts, startSandbox } from './start.ts';
import { goOnAfterwards, Replacements, takeAndGoOn, takeDisk, takeSaved } from './still.ts';
import { DiskUse } from './use.ts';

export function newGvisorBackend(config: GvisorConfig): Backend {
  const { host, imprintPath } = config;
  const finder = new RuntimeFinder(host, config.runsc);
  const cgroups = new Cgroups(host, config.cgroupName);
  const processes = new Processes(host, cgroups);
  const rightsFinder = new RightsFinder(host, config.cellPath);
  const bases = new Bases(host, config, rightsFinder);
  const agents = new Agents(config);
  const overs = new Overs(host, config.basesDir, config.automountLibraryPath);
  const kept = new Kept(config, overs);
  const layers = new Layers(config);
  const doors = new AgentDoors(host);
  const diskUse = new DiskUse(host, rightsFinder);
  const traffic = new DiskTraffic(host);
  const replacements = new Replacements();
  const platforms = new Asked<Platform>();
  const find = async (op: Operation): Promise<{ readonly runtime: Runtime; readonly rights: Rights; readonly platform: Platform }> => {
    const runtime = await finder.find(op);
    const rights = await rightsFinder.find(op);
    return { runtime, rights, platform: await platforms.get(op, (asking) => findPlatform(asking, config, runtime, rights)) };
  };
  const take = async (op: Operation, plan: Pick<SandboxPlan, 'boot'>) => {
    const found = await find(op);
    return {
      ...found,
      image: rootFiles(op, plan.boot).imageDigest,
      ground: await bases.take(op, rootFiles(op, plan.boot)),
      overPath: found.platform.automount === 'taken' ? null : await overs.take(op),
    };
  };
  const parts = (plan: SandboxPlan): StartParts => ({
    config,
    agents,
    overs,
    cgroups,
    layers,
    processes,
    doors,
    take: (late) => take(late, plan),
  });
  const reach = async (op: Operation) => {
    const [runtime, rights] = await Promise.all([finder.find(op), rightsFinder.find(op)]);
    return { host, runtime, rights, processes };
  };
  type Shaped = Pick<SandboxPlan, 'shape' | 'network' | 'boot'>;
  const fingerprint = async (op: Operation, plan: Shaped, image: string): Promise<Fingerprint> => {
    const { runtime, platform } = await find(op);
    const { cpus, memoryMiB } = plan.shape;
    return { runtime: runtime.version, platform: platform.name, image, cpus, memoryMiB, network: plan.network !== 'none' };
  };
  const now = async (op: Operation, plan: Shaped) => await fingerprint(op, plan, rootFiles(op, plan.boot).imageDigest);
  /** Of one that runs: what it was made from may be gone since. */
  const noteOf = async (op: Operation, plan: SandboxPlan): Promise<Note> => {
    const note = await readNote(op, host, plan);
    if (note !== null) return note;
    throw op.error('failed_precondition', `sandbox ${plan.name} does not run, or was started by an older version of Hutch`, {
      hint: `start it anew: hutch restart ${plan.name}`,
    });
  };
  const saveParts = async (op: Operation, plan: SandboxPlan, image: string): Promise<SaveParts> => ({
    ...(await reach(op)),
    ...{ shimPath: config.shimPath, agents, doors, fingerprint: await fingerprint(op, plan, image), onStill: () => {} },
    memoryBytes: async (asking) => await memoryOf(asking, plan),
  });

  const takeUp = (op: Operation, plan: SandboxPlan, dir: string, beforeRunning = async (_op: Operation): Promise<void> => {}) =>
    kept.during(async () => {
      const checking = now(op, plan).then((fingerprint) => checkSaved(op, host, dir, { now: fingerprint, imprintPath: null }));
      checking.catch(() => {}); // awaited before anything of it runs, and where its place cannot be made
      try {
        return await startSandbox(op, parts(plan), plan, {
          ...{ checkpointDir: dir, isSame: false, link: 'down' as const },
          async beforeRunning(late) {
            await checking;
            await beforeRunning(late);
          },
        });
      } catch (error) {
        // What is wrong with what was saved says more than what came of it.
        await checking;
        throw error;
      }
    });

  return {
    name: 'gvisor',
    needs: 'root',
    processesBoundBy: 'agent',
    probe: (op) => probeMachine(op, config, { cgroups, layers }, find),
    async prepare(op, plan) {
      await take(op, plan);
    },
    async create(op, plan) {
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        using late = op.releasing(RELEASE_MS);
        await removeTree(late, host, await rightsFinder.find(late), plan.dataDir).catch((cause: unknown) =>
          op.log.warn({ sandbox: plan.id, cause }, 'a failed create left something behind'),
        );
      });
      await take(op, plan);
      await host.makeDir(op, plan.dataDir, 0o711);
      await layers.make(op, plan);
      undo.move();
    },
    start: (op, plan) => startSandbox(op, parts(plan), plan, 'anew'),
    reshape: (op, plan) => layers.grow(op, plan),
    // Of one that was started anew it is up from the start: nothing but the agent ran before the rules were there.
    linkUp: (op, plan) => openGate(op, host, plan),
    ahead: {
      async stamp(op, plan, how) {
        const { runtime, platform } = await find(op);
        const { imageDigest } = rootFiles(op, plan.boot);
        // What goes on in memory has the agent that was saved with it.
        const agent = how === 'goes on' ? null : await host.stat(op, config.agentPath);
        const outside = plan.network === 'none' ? '' : await surroundings(op, host);
        return JSON.stringify([runtime.version, platform.name, imageDigest, String(agent?.modifiedNs), outside]);
      },
      async admit(op, plan) {
        // In this order: what is read after this cannot be older.
        const link = await config.network.wire(op, networkPlan(plan));
        const generation = link.kind === 'passt' ? await rulesGeneration(op, host, plan.runDir) : null;
        await config.network.admit(op, networkPlan(plan), seenRules(link, generation));
      },
    },
    async dialAgent(op, plan) {
      if (!(await processes.inspect(op, plan)).alive) throw op.error('unavailable', 'the sandbox does not run');
      return await doors.dial(op, plan.id, agentSocketPath(plan), SOCKET_MODE);
    },
    async layerAccess(op, plan) {
      const now = await processes.inspect(op, plan);
      if (!now.alive) throw op.error('unavailable', 'the sandbox does not run');
      // Its disk is mounted in its own namespace alone.
      const tool = ['nsenter', '--target', `${now.pid}`, '--mount', '--', config.agentPath];
      return { where: 'host', tool, upper: await layers.upperOf(op, plan), merged: rootDir(plan) };
    },
    async rootOnHost(op, plan) {
      if (host.uid !== 0) return null;
      const now = await processes.inspect(op, plan);
      return now.alive ? { path: `/proc/${now.pid}/root${rootDir(plan)}`, shown: ROOTS_OWN } : null;
    },
    pause: async (op, plan) => void (await command(op, await reach(op), plan, 'pause')),
    resume: async (op, plan) => void (await command(op, await reach(op), plan, 'resume')),
    closeDoor: (_op, plan) => doors.shut(plan.id),
    checkpoints: {
      isWhole: (op, dir) => isWhole(op, { host, processes }, dir),
      isUnused: (op, plan) => isUnused(op, { config, processes }, plan),
      again: async (op, plan) => ({ network: (await noteOf(op, plan)).network, disk: null }),
      save: (op, plan, dir) =>
        kept.during(async () => await saveSandbox(op, await saveParts(op, plan, (await noteOf(op, plan)).image), plan, dir)),
      restore: (op, plan, dir, beforeRunning) => takeUp(op, plan, dir, beforeRunning),
    },
    snapshots: {
      async take(op, plan, dir, { what, since, saved }) {
        if (what !== 'disk' && saved !== undefined) return await kept.during(() => takeSaved(op, config, plan, dir, { saved, since }));
        const note = await readNote(op, host, plan);
        if (what === 'disk')
          return await takeDisk(op, { save: await saveParts(op, plan, note?.image ?? ''), imprintPath }, plan, dir, since);
        const { image, ground, overPath } = note ?? (await noteOf(op, plan));
        const start = { ...parts(plan), take: async (late: Operation) => ({ ...(await find(late)), image, ground, overPath }) };
        const using = { save: await saveParts(op, plan, image), start, imprintPath };
        return await replacements.during(plan.id, () => kept.during(() => takeAndGoOn(op, using, plan, dir, since)));
      },
      async goOn(op, plan) {
        const using = { save: await saveParts(op, plan, rootFiles(op, plan.boot).imageDigest), start: parts(plan) };
        return await replacements.during(plan.id, () => kept.during(() => goOnAfterwards(op, using, plan)));
      },
      async create(op, plan, dir) {
        await host.makeDir(op, plan.dataDir, 0o711);
        await host.makeDir(op, layerDir(plan), 0o700);
        await layOut(op, dir, diskPath(plan));
      },
      start: (op, plan, dir) => takeUp(op, plan, dir),
      // The runtime takes nothing else, whoever insists.
      fits: async (op, plan, dir) => await refuseOther(op, { host, agents, overs }, dir, await now(op, plan)),
      check: async (op, dir) => void (await checkSaved(op, host, dir, { now: null, imprintPath })),
      async layOut(op, dir, path) {
        await layOut(op, dir, path);
        return { layer: 'upper' };
      },
      portable: newPortable(config),
      async describe(op, dir) {
        const read = await readSaved(op, host, dir);
        return read.ok && read.saved.checkpoint !== null ? { ...read.saved.fingerprint } : {};
      },
      async digest(op, dir) {
        const read = await readSaved(op, host, dir);
        if (!read.ok) throw op.error('failed_precondition', `what was saved cannot be used: ${read.why}`);
        return createHash('sha256').update(JSON.stringify(read.saved)).digest('hex');
      },
    },
    kill: (op, plan, how) => processes.kill(op, plan, how),
    inspect: (op, plan) => processes.inspect(op, plan),
    ended: (op, plan) => replacements.beyond(plan.id, () => processes.ended(op, plan)),
    networkLost: (op, plan) => replacements.beyond(plan.id, async () => (await companionEnded(op, host, plan.runDir)) !== null),
    async cleanUp(op, plan) {
      await doors.close(plan.id);
      await config.network.close(op, networkPlan(plan));
      await cgroups.remove(op, plan);
      diskUse.forget(plan);
      traffic.forget(plan.id);
      replacements.forget(plan.id);
      for (const dir of [takenUpDir(plan), stillDir(plan), goneOnDir(plan)]) await host.remove(op, dir);
      await host.remove(op, plan.runDir);
    },
    async remove(op, plan) {
      await this.cleanUp(op, plan);
      await removeTree(op, host, await rightsFinder.find(op), plan.dataDir);
    },
    async stats(op, plan) {
      const [group, single, diskAllocatedBytes] = await Promise.all([cgroups.use(op, plan), ofProcesses(op, plan), diskUse.of(op, plan)]);
      return {
        pssBytes: group?.memoryBytes ?? single.pssBytes,
        cpuUs: group?.cpuUs ?? single.cpuUs,
        diskAllocatedBytes,
      };
    },
    /** The kernel in user space counts no processor time and no traffic of disks. */
    async usage(op, plan) {
      const [group, counted] = await Promise.all([cgroups.use(op, plan), cgroups.disk(op, plan)]);
      if (group === null) return null;
      const root = counted === null ? await shimRef(op, host, plan.runDir) : null;
      const disk = root === null ? counted : await traffic.of(op, plan.id, root);
      return { cpuUs: group.cpuUs, memory: null, disk, network: null, processes: null };
    },
    tidy: (op) => kept.prune(op),
    roots: { list: (op) => bases.list(op), remove: (op, digest) => bases.remove(op, digest) },
    leaks: (op, known: ReadonlySet<SandboxId>) => findLeaks(op, config, cgroups, { bases, kept }, known),
  };

  /** Makes `path` the disk of a snapshot. */
  async function layOut(op: Operation, dir: string, path: string): Promise<void> {
    const { disk } = await checkSaved(op, host, dir, { now: null, imprintPath: null });
    if (disk === null) throw op.error('failed_precondition', 'what was saved has no disk of its own');
    await layDiskOut(op, config, dir, disk, path);
  }

  async function memoryOf(op: Operation, plan: SandboxPlan): Promise<number> {
    return (await cgroups.use(op, plan))?.memoryBytes ?? (await ofProcesses(op, plan)).pssBytes;
  }

  /** Of the shim and the runtime's processes, where there are no cgroups to ask. */
  async function ofProcesses(op: Operation, plan: SandboxPlan): Promise<{ readonly pssBytes: number; readonly cpuUs: number }> {
    const now = await processes.inspect(op, plan);
    const refs = now.alive ? [await shimRef(op, host, plan.runDir), ...(await runtimeOf(op, host, plan.runDir))] : [];
    const uses = await Promise.all(refs.map((ref) => (ref === null ? null : host.processUse(op, ref))));
    return {
      pssBytes: uses.reduce((sum, use) => sum + (use?.pssBytes ?? 0), 0),
      cpuUs: uses.reduce((sum, use) => sum + (use?.cpuUs ?? 0), 0),
    };
  }
}
