// The Docker backend: a sandbox is a container that an Engine runs, with our agent as its first process.
// The Engine knows what is alive; which container is whose stands in a file of the sandbox's own, and
// only containers with this daemon's labels are ever touched.
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { HutchError } from '../../domain/errors.ts';
import { newOperation, type Operation } from '../../host/operation.ts';
import { AgentDoors } from '../agent-door.ts';
import { Asked } from '../asked.ts';
import type { Backend, SandboxPlan, Started } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { pause } from '../wait.ts';
import { attachedStream } from './attached.ts';
import { isAway, unlessAway } from './away.ts';
import { commitContainer, dropImage } from './commit.ts';
import { type DockerConfig, KILL_FORCE_MS, KILL_GRACE_MS, RELEASE_MS, START_MS } from './config.ts';
import { hasLimits, limitsOf } from './container.ts';
import { copiesIn } from './copies.ts';
import { Duties } from './duties.ts';
import { Engine } from './engine.ts';
import { EngineEvents } from './events.ts';
import { evidenceOf } from './evidence.ts';
import { pullImage } from './image.ts';
import { KnownContainers } from './known.ts';
import { findLeaks, listOurs } from './leaks.ts';
import { Maker, makeSocketDir, volumesOf } from './make.ts';
import { requireMounted } from './mounted.ts';
import { ensureNetwork, removeNetworks, whyNoNetworks } from './networks.ts';
import { agentSocketPath, logPath } from './paths.ts';
import { probeEngine } from './probe.ts';
import { Sight } from './sight.ts';
import { SnapshotImages } from './snapshot-images.ts';
import { newSnapshots } from './snapshots.ts';
import { agentArrives, startContainer } from './start.ts';
import { ContainerUse } from './use.ts';
import { mountVolumes, removeVolumePlaces, unmountVolumes, whyNoVolumes } from './volumes.ts';

/** What ends sooner is not worth asking for; what was paused in the meantime is seen then. */
const BEFORE_PAUSE_HINTS_MS = 300;

export function newDockerBackend(config: DockerConfig): Backend {
  const { host, instance } = config;
  const engine = new Engine(host, config.env, join(config.workDir, 'ssh'));
  const events = new EngineEvents(engine, instance);
  const duties = new Duties({ host, engine, events, instance, dir: join(config.workDir, 'duties') });
  const doors = new AgentDoors(host);
  const sight = new Sight(config, engine);
  const known = new KnownContainers({ ...config, engine, events, duties });
  const maker = new Maker({ config, engine, sight, known });
  const images = new SnapshotImages(config, engine);
  /** The one attached stream of each sandbox whose agent cannot connect out. */
  const attached = new Map<string, Duplex>();
  const use = new ContainerUse({ host, engine, known });

  const noVolumes = new Asked<string | null>();
  /** Null: it can mount volumes. */
  const whyNot = (op: Operation): Promise<string | null> => noVolumes.get(op, (asking) => whyNoVolumes(asking, config));

  /** Which Engine it was found of that its networks are elsewhere: it is not asked again. */
  let elsewhere: { readonly identity: string; readonly why: string } | null = null;
  const whyNoNetworksOf = async (op: Operation): Promise<string | null> => {
    const identity = await engine.identity(op);
    if (elsewhere?.identity === identity) return elsewhere.why;
    const why = await whyNoNetworks(op, config, engine);
    elsewhere = why === null ? null : { identity, why };
    return why;
  };

  /** As the container's first process may open it: as root inside, which is root here, or nobody else can. */
  const socketMode = host.uid === 0 ? 0o600 : 0o666;

  function hangUp(plan: SandboxPlan): Promise<void> {
    attached.get(plan.id)?.destroy();
    attached.delete(plan.id);
    return doors.close(plan.id);
  }

  const backend: Backend = {
    name: 'docker',
    needs: 'root',
    processesBoundBy: 'backend',
    probe: (op) => probeEngine(op, { config, engine, sight, whyNoVolumes: whyNot, whyNoNetworks: whyNoNetworksOf }),

    async fetchImage(op, reference) {
      return await pullImage(op, config, engine, reference);
    },

    async prepare(op, plan) {
      await maker.imageOf(op, plan);
    },

    async endWork(op) {
      await sight.endWork(op);
      await duties.resume(op);
      await unlessAway(images.sweep(op), null);
    },

    async awake(op) {
      await engine.ping(op);
    },

    async carries(op, plan) {
      if ((await known.markOf(op, plan))?.reach === 'attached') await engine.ping(op);
    },

    async create(op, plan) {
      await duties.resume(op);
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        using late = op.releasing(RELEASE_MS);
        await backend
          .remove(late, plan)
          .catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed create left something behind'));
      });
      await maker.make(op, plan);
      undo.move();
    },

    async start(op, plan): Promise<Started> {
      const beganMs = host.monotonicMs();
      const { container, made, reach } = await known.find(op, plan);
      if (container === null) {
        throw op.error(
          'failed_precondition',
          made ? 'its container was removed by somebody else, with everything on its disk' : 'it has no container',
          {
            hint: 'delete the sandbox; it cannot be started again',
          },
        );
      }
      await using undo = new AsyncDisposableStack();
      undo.defer(async () => {
        using late = op.releasing(RELEASE_MS);
        await backend
          .kill(late, plan, 'now')
          .then(() => backend.cleanUp(late, plan))
          .catch(async (cause: unknown) => {
            op.log.warn({ sandbox: plan.id, cause }, 'a failed start left something behind');
            if (isAway(cause)) await duties.note(late, plan.id, 'halt');
          });
      });
      await duties.resume(op);
      await duties.drop(op, plan.id);
      await host.makeDir(op, plan.logDir, 0o711);
      await makeSocketDir(op, config, plan);
      if (reach === 'mounted') await doors.open(op, plan.id, agentSocketPath(plan), socketMode);
      if (plan.network !== 'none') {
        await config.network.protect(op);
        await ensureNetwork(op, config, engine, plan.network);
      }
      // The container has mounts of its own from its start.
      await using _volumes = await mountVolumes(op, config, plan);
      const preparedMs = host.monotonicMs();
      {
        // To the end, whoever gives up: else it would start after it was found not to run.
        using whole = op.releasing(START_MS);
        await startContainer(whole, engine, plan, container.Id);
      }
      if (plan.network !== 'none') await config.network.isolate(op);
      const evidence = await known.inspect(op, plan);
      if (!evidence.alive) throw op.error('unavailable', `its container ended at once, with exit code ${evidence.exitCode ?? 'unknown'}`);
      await requireMounted(op, host, evidence.pid, { mounts: plan.mounts ?? [], volumes: volumesOf(config, plan) });
      if (reach === 'mounted') await agentArrives(op, doors, plan, backend.ended);
      await host.appendFile(op, logPath(plan), new TextEncoder().encode(`container ${container.Id} started, pid ${evidence.pid}\n`));
      undo.move();
      return {
        evidence,
        network: null,
        disk: null,
        stagesMs: { prepared: preparedMs - beganMs, started: host.monotonicMs() - preparedMs },
      };
    },

    async reshape(op, plan, now) {
      const { container } = await known.find(op, plan);
      if (container === null && now === 'it is stopped') return; // its start says so
      if (container === null) throw op.error('failed_precondition', 'its container was removed by somebody else');
      if (hasLimits(container, plan.shape)) return;
      try {
        await engine.call(op, { method: 'POST', path: `/containers/${container.Id}/update`, body: limitsOf(plan.shape) });
      } catch (cause) {
        if (!(cause instanceof HutchError && /unable to set memory limit/.test(cause.message))) throw cause;
        throw op.error('failed_precondition', `memoryMiB must be more than it uses now, which ${plan.shape.memoryMiB} is not`, {
          hint: 'end what uses the memory, or change it while the sandbox is stopped',
          cause,
        });
      }
    },

    // The Engine has set it up, behind rules that stood before.
    async linkUp() {},

    async dialAgent(op, plan) {
      const mark = await known.markOf(op, plan);
      if (mark?.reach !== 'attached') return await doors.dial(op, plan.id, agentSocketPath(plan), socketMode);
      attached.get(plan.id)?.destroy();
      const raw = await engine.hijack(op, {
        method: 'POST',
        path: `/containers/${mark.containerId}/attach`,
        query: { stream: true, stdin: true, stdout: true },
      });
      const stream = attachedStream(raw, (signal) => engine.ping(newOperation({ id: op.id, actor: 'daemon', log: op.log, signal })));
      attached.set(plan.id, stream);
      return stream;
    },

    async commit(op, plan) {
      const { container, made } = await known.find(op, plan);
      if (container !== null) return await commitContainer(op, engine, instance, container);
      throw op.error('failed_precondition', made ? 'its container was removed by somebody else' : 'it has no container');
    },

    dropCommitted: (op, digest) => dropImage(op, engine, digest),
    snapshots: newSnapshots({ config, engine, known, maker, images }),
    roots: copiesIn(config, engine),

    async descriptorPath(op, plan, descriptor) {
      if (host.uid !== 0) return null;
      const { container, reach } = await known.find(op, plan);
      // An Engine elsewhere, whose agent cannot connect out, has another machine's processes.
      if (reach !== 'mounted' || container?.State.Running !== true) return null;
      return `/proc/${container.State.Pid}/fd/${descriptor}`;
    },

    async pause(op, plan) {
      const container = await known.running(op, plan);
      if (!container.State.Paused) await engine.call(op, { method: 'POST', path: `/containers/${container.Id}/pause` });
    },

    async resume(op, plan) {
      const container = await known.running(op, plan);
      if (container.State.Paused) await engine.call(op, { method: 'POST', path: `/containers/${container.Id}/unpause` });
    },

    othersPause: {
      isPaused: async (op, plan) => (await known.running(op, plan)).State.Paused,
      async *hints(op, plan) {
        await pause(op, BEFORE_PAUSE_HINTS_MS);
        yield* events.hints(op, 'pause', (await known.running(op, plan)).Id);
      },
    },

    async kill(op, plan, how) {
      const { container, made } = await known.find(op, plan);
      const before = await evidenceOf(op, host, container, made);
      if (!before.alive || container === null) {
        await hangUp(plan);
        return before as Dead;
      }
      const asked =
        how === 'now'
          ? { method: 'POST', path: `/containers/${container.Id}/kill`, query: { signal: 'KILL' } }
          : { method: 'POST', path: `/containers/${container.Id}/stop`, query: { t: Math.ceil(KILL_GRACE_MS / 1000) } };
      await engine.call(op, asked as { method: 'POST'; path: string }, KILL_FORCE_MS).catch((error: unknown) => {
        // It has ended in between.
        if (!(error instanceof HutchError && ['conflict', 'not_found'].includes(error.code))) throw error;
      });
      using limited = op.within(KILL_FORCE_MS, 'the container to end');
      const dead = await known.killed(limited, plan);
      await hangUp(plan);
      return dead;
    },

    inspect: (op, plan) => known.inspect(op, plan),
    ended: (op, plan) => known.ended(op, plan),

    async cleanUp(op, plan) {
      await hangUp(plan);
      use.forget(plan.id);
      await unmountVolumes(op, config, plan);
      await host.remove(op, plan.runDir);
    },

    async remove(op, plan) {
      const wasOfSnapshot = await known.remove(op, plan);
      if (wasOfSnapshot) await images.sweep(op);
      await backend.cleanUp(op, plan);
      await removeVolumePlaces(op, config, plan);
      await host.remove(op, plan.dataDir);
    },

    async end(op) {
      // Who never used an Engine has nothing in it, and need not ask.
      if ((await host.stat(op, config.workDir)) === null) return;
      try {
        const left = await unlessAway(listOurs(op, engine, instance), null);
        // A container that is stopped needs its network again.
        if (left !== null && left.length > 0) return;
        if (left !== null) await removeNetworks(op, config, engine);
        await config.network.end(op);
      } finally {
        await engine.close(op);
      }
    },

    stats: (op, plan, own) => use.stats(op, plan, own),
    usage: (op, plan) => use.usage(op, plan),
    leaks: async (op, known) => [...(await findLeaks(op, engine, instance, known)), ...(await images.leaks(op))],
  };
  return backend;
}
