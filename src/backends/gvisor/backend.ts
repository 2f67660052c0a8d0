// The gVisor backend: sandboxes on a kernel in user space. Each method is one verb; here they are put
// together.
import type { SandboxId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import { companionEnded, shimRef } from '../../host/shim.ts';
import { AgentDoors } from '../agent-door.ts';
import { type Backend, rootFiles, type SandboxPlan } from '../backend.ts';
import { DiskTraffic } from '../disk-traffic.ts';
import { Bases } from './base.ts';
import { Cgroups } from './cgroup.ts';
import { saveSandbox } from './checkpoint.ts';
import { COMMAND_MS, type GvisorConfig, RELEASE_MS } from './config.ts';
import { Layers } from './layer.ts';
import { findLeaks, runtimeOf } from './leaks.ts';
import { Overs } from './over.ts';
import { agentSocketPath, rootDir, stateDir } from './paths.ts';
import { findPlatform, type Platform } from './platform.ts';
import { probeMachine } from './probe.ts';
import { Processes } from './process.ts';
import { type Rights, RightsFinder, removeTree } from './rights.ts';
import { type Runtime, RuntimeFinder } from './runtime.ts';
import { networkPlan, SOCKET_MODE, type StartParts, startSandbox } from './start.ts';
import { DiskUse } from './use.ts';

export function newGvisorBackend(config: GvisorConfig): Backend {
  const { host } = config;
  const finder = new RuntimeFinder(host, config.runsc);
  const cgroups = new Cgroups(host, config.cgroupName);
  const processes = new Processes(host, cgroups);
  const rightsFinder = new RightsFinder(host, config.cellPath);
  const bases = new Bases(host, config.basesDir, rightsFinder);
  const overs = new Overs(host, config.basesDir, config.automountLibraryPath);
  const layers = new Layers(config);
  const doors = new AgentDoors(host);
  const diskUse = new DiskUse(host, rightsFinder);
  const traffic = new DiskTraffic(host);
  /** Asked once; a failure is asked again. */
  let asking: Promise<Platform> | undefined;
  const find = async (op: Operation): Promise<{ readonly runtime: Runtime; readonly rights: Rights; readonly platform: Platform }> => {
    const runtime = await finder.find(op);
    const rights = await rightsFinder.find(op);
    asking ??= findPlatform(op, config, runtime, rights);
    try {
      return { runtime, rights, platform: await asking };
    } catch (error) {
      asking = undefined;
      throw error;
    }
  };
  const take = async (op: Operation, plan: Pick<SandboxPlan, 'boot'>) => {
    const found = await find(op);
    const basePath = await bases.take(op, rootFiles(op, plan.boot));
    return { ...found, basePath, overPath: found.platform.automount === 'taken' ? null : await overs.take(op, basePath) };
  };
  const parts = (plan: SandboxPlan): StartParts => ({ config, cgroups, layers, processes, doors, take: (late) => take(late, plan) });
  const ask = async (op: Operation, plan: SandboxPlan, command: 'pause' | 'resume'): Promise<void> => {
    const [{ path }, rights, now] = await Promise.all([finder.find(op), rightsFinder.find(op), processes.inspect(op, plan)]);
    if (!now.alive) throw op.error('failed_precondition', 'the sandbox does not run');
    using limited = op.within(COMMAND_MS, `runsc ${command}`);
    const { exitCode, stderr } = await host.run(limited, rights.argvOf(now.pid, [path, '--root', stateDir(plan), command, plan.id]));
    if (exitCode === 0) return;
    throw op.error('unavailable', `runsc cannot ${command} the sandbox: ${new TextDecoder().decode(stderr).trim()}`);
  };

  return {
    name: 'gvisor',
    needs: 'root',
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
    async linkUp() {
      // It is up from the start: nothing ran before the rules were there.
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
    pause: (op, plan) => ask(op, plan, 'pause'),
    resume: (op, plan) => ask(op, plan, 'resume'),
    checkpoints: {
      save: async (op, plan, dir) => {
        const [runtime, rights] = [await finder.find(op), await rightsFinder.find(op)];
        return await saveSandbox(op, { host, runtime, rights, processes, doors }, plan, dir);
      },
      restore: (op, plan, dir) => startSandbox(op, parts(plan), plan, { checkpointDir: dir }),
    },
    kill: (op, plan, how) => processes.kill(op, plan, how),
    inspect: (op, plan) => processes.inspect(op, plan),
    ended: (op, plan) => processes.ended(op, plan),
    networkLost: async (op, plan) => (await companionEnded(op, host, plan.runDir)) !== null,
    async cleanUp(op, plan) {
      await doors.close(plan.id);
      await config.network.close(op, networkPlan(plan));
      await cgroups.remove(op, plan);
      diskUse.forget(plan);
      traffic.forget(plan.id);
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
    roots: { list: (op) => bases.list(op), remove: (op, digest) => bases.remove(op, digest) },
    leaks: (op, known: ReadonlySet<SandboxId>) => findLeaks(op, config, cgroups, bases, known),
  };

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
