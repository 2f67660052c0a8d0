// The Docker backend: a sandbox is a container that an Engine runs, with our agent as its first process.
// The Engine knows what is alive; which container is whose stands in a file of the sandbox's own, and
// only containers with this daemon's labels are ever touched.
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Mount } from '../../domain/mount.ts';
import type { Operation } from '../../host/operation.ts';
import { AgentDoors } from '../agent-door.ts';
import { type Backend, rootFiles, type SandboxPlan, type Started } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { DiskTraffic } from '../disk-traffic.ts';
import { pause } from '../wait.ts';
import { programArchive } from './archive.ts';
import { attachedStream } from './attached.ts';
import { commitContainer, dropImage } from './commit.ts';
import { type DockerConfig, IMAGE_MS, KILL_FORCE_MS, KILL_GRACE_MS, RELEASE_MS, START_MS } from './config.ts';
import {
  type Container,
  containerBody,
  containerName,
  findContainer,
  hasLimits,
  INSIDE,
  isOurs,
  limitsOf,
  type Reach,
} from './container.ts';
import { Duties } from './duties.ts';
import { waitForEnd } from './ended.ts';
import { Engine } from './engine.ts';
import { EngineEvents } from './events.ts';
import { evidenceOf } from './evidence.ts';
import { findImage, importImage, ownImageName, pullImage } from './image.ts';
import { findLeaks, listOurs } from './leaks.ts';
import { requireMounted } from './mounted.ts';
import { ensureNetwork, removeNetworks } from './networks.ts';
import { agentSocketPath, logPath, markPath, socketDir } from './paths.ts';
import { probeEngine } from './probe.ts';
import { Sight } from './sight.ts';
import { agentArrives, startContainer } from './start.ts';
import { readUsage } from './usage.ts';
import { makeVolumePlaces, mountVolumes, removeVolumePlaces, unmountVolumes, volumeAt, whyNoVolumes } from './volumes.ts';
import { waitAgain } from './wait.ts';

const mark = z.strictObject({ containerId: z.string().regex(/^[0-9a-f]{64}$/), reach: z.enum(['mounted', 'attached']) });
const created = z.object({ Id: z.string(), Warnings: z.array(z.string()).nullish() });
const AGENT_BYTES_MAX = 64 * 1024 * 1024;
const MARK_BYTES_MAX = 4_096;
/** What ends sooner is not worth asking for; what was paused in the meantime is seen then. */
const BEFORE_PAUSE_HINTS_MS = 300;

export function newDockerBackend(config: DockerConfig): Backend {
  const { host, instance } = config;
  const engine = new Engine(host, config.env, join(config.workDir, 'ssh'));
  const events = new EngineEvents(engine, instance);
  const duties = new Duties({ host, engine, events, instance, dir: join(config.workDir, 'duties') });
  const doors = new AgentDoors(host);
  const sight = new Sight(config, engine);
  /** The one attached stream of each sandbox whose agent cannot connect out. */
  const attached = new Map<string, Duplex>();
  /** Images that are being brought into the Engine. */
  const importing = new Map<string, Promise<string>>();
  const traffic = new DiskTraffic(host);
  /** Where the agent for containers lies, once it has been put there. */
  let agent: string | null = null;

  /** Null: it can mount volumes. Asked once; a failure to ask is asked again. */
  let noVolumes: Promise<string | null> | undefined;
  const whyNot = async (op: Operation): Promise<string | null> => {
    noVolumes ??= whyNoVolumes(op, config);
    try {
      return await noVolumes;
    } catch (error) {
      noVolumes = undefined;
      throw error;
    }
  };

  /** As the container's first process may open it: as root inside, which is root here, or nobody else can. */
  const socketMode = host.uid === 0 ? 0o600 : 0o666;

  async function imageOf(op: Operation, plan: Pick<SandboxPlan, 'boot'>): Promise<string> {
    const { boot } = plan;
    if (boot.kind === 'engine') {
      const image = await findImage(op, engine, boot.imageDigest);
      if (image === null) {
        throw op.error('failed_precondition', `the Docker Engine does not have ${boot.reference} any more (${boot.imageDigest})`, {
          hint: `pull it again: docker pull ${boot.reference.replace(/^docker:\/\//, '')}`,
        });
      }
      return image.Id;
    }
    const root = rootFiles(op, boot);
    const name = ownImageName(root.imageDigest);
    // For whoever comes second too: its own patience must not end the first one's work.
    let coming = importing.get(name);
    if (coming === undefined) {
      coming = (async () => {
        using alone = op.releasing(IMAGE_MS);
        await host.makeDir(alone, config.workDir, 0o711);
        return await importImage(alone, config, engine, root);
      })().finally(() => importing.delete(name));
      importing.set(name, coming);
    }
    return await waitAgain(op, coming);
  }

  /** The agent as containers see it: of its own name for each version, so that a running one keeps its own. */
  async function agentForContainers(op: Operation): Promise<string> {
    const known = agent !== null && (await host.stat(op, agent)) !== null;
    if (known) return agent as string;
    const path = join(config.workDir, `agent-${(await host.sha256(op, config.agentPath)).slice(0, 16)}`);
    agent = path;
    if ((await host.stat(op, path)) !== null) return path;
    await host.makeDir(op, config.workDir, 0o711);
    await host.writeFileAtomic(op, path, await host.readFile(op, config.agentPath, AGENT_BYTES_MAX), 0o755);
    return path;
  }

  async function readMark(op: Operation, plan: SandboxPlan) {
    if ((await host.stat(op, markPath(plan))) === null) return null;
    return mark.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, markPath(plan), MARK_BYTES_MAX))));
  }

  /** Ours, wherever it is and whatever it is called now; null where there is none. */
  async function containerOf(
    op: Operation,
    plan: SandboxPlan,
    size: 'with-size' | 'without' = 'without',
  ): Promise<{ readonly container: Container | null; readonly made: boolean; readonly reach: 'mounted' | 'attached' }> {
    const known = await readMark(op, plan);
    // Without a mark it was never finished: then only the name can lead to it, if there is an Engine at all.
    const found =
      known === null
        ? await unlessAway(findContainer(op, engine, containerName(plan), size), null)
        : await findContainer(op, engine, known.containerId, size);
    const container = found !== null && isOurs(found, plan.id, instance) ? found : null;
    return { container, made: known !== null, reach: known?.reach ?? 'mounted' };
  }

  async function running(op: Operation, plan: SandboxPlan): Promise<Container> {
    const { container, made } = await containerOf(op, plan);
    if (container?.State.Running === true) return container;
    throw op.error(
      'failed_precondition',
      container === null && made ? 'its container was removed by somebody else' : 'its container does not run',
    );
  }

  const volumesOf = (plan: SandboxPlan): readonly Mount[] =>
    (plan.volumes ?? []).map(({ target, readOnly }, at) => ({ source: volumeAt(config, plan, at), target, readOnly }));

  /** By its processes, where they are this machine's. */
  async function trafficOf(op: Operation, plan: SandboxPlan) {
    const { container, reach } = await containerOf(op, plan);
    const root = container === null || reach === 'attached' ? null : await host.processRef(op, container.State.Pid);
    return root === null ? null : await traffic.of(op, plan.id, root);
  }

  async function inspect(op: Operation, plan: SandboxPlan) {
    const { container, made } = await containerOf(op, plan);
    return await evidenceOf(op, host, container, made);
  }

  /** One that somebody is removing has ended, but not yet as what it will be found to have ended. */
  async function lookAt(op: Operation, plan: SandboxPlan) {
    const { container, made } = await containerOf(op, plan);
    const evidence = await evidenceOf(op, host, container, made);
    return { evidence, isOver: !evidence.alive && container?.State.Status !== 'removing' };
  }

  async function ended(op: Operation, plan: SandboxPlan): Promise<Dead> {
    const known = await readMark(op, plan);
    // Without one there is nothing that could end.
    if (known === null) return (await lookAt(op, plan)).evidence as Dead;
    return await waitForEnd(op, events.hints(op, 'end', known.containerId), () => lookAt(op, plan));
  }

  async function make(op: Operation, plan: SandboxPlan): Promise<void> {
    const image = await imageOf(op, plan);
    const reach: Reach = (await sight.seesOurFiles(op))
      ? { kind: 'mounted', agentPath: await agentForContainers(op), socketDir: socketDir(plan) }
      : { kind: 'attached' };
    if (reach.kind === 'attached' && plan.volumes !== undefined)
      throw op.error('failed_precondition', 'the Docker Engine does not see the files of this machine: volumes', {
        hint: 'take another backend, or copy in and out: hutch cp',
      });
    if (reach.kind === 'attached' && plan.mounts !== undefined)
      throw op.error('failed_precondition', 'the Docker Engine does not see the files of this machine: hostDirectories', {
        hint: 'copy them in: hutch cp, or hutch run DIR',
      });
    if (plan.network !== 'none') await config.network.protect(op);
    const network = await ensureNetwork(op, config, engine, plan.network);
    // A directory that is to be mounted must be there, or an old Engine makes it.
    await makeSocketDir(op, plan);
    await host.makeDir(op, plan.dataDir, 0o711);
    await makeVolumePlaces(op, config, plan);
    // To the end, whoever gives up: the Engine would go on, and make what nobody has a mark of.
    using whole = op.releasing(START_MS);
    const { Id, Warnings } = await engine
      .json(whole, created, {
        method: 'POST',
        path: '/containers/create',
        query: { name: containerName(plan) },
        body: containerBody(plan, { image, instance, reach, network, volumes: volumesOf(plan) }),
      })
      .catch(async (cause: unknown) => {
        if (!(cause instanceof HutchError && cause.code === 'conflict')) throw cause;
        throw op.error('conflict', `the Docker Engine has a container ${containerName(plan)} that is not Hutch's; it is not touched`, {
          hint: `rename it: docker rename ${containerName(plan)} NAME`,
          cause,
        });
      });
    if ((Warnings ?? []).length > 0)
      op.log.info({ sandbox: plan.id, warnings: Warnings }, 'the Docker Engine has warnings about a container');
    await host.writeFileAtomic(whole, markPath(plan), JSON.stringify({ containerId: Id, reach: reach.kind }), 0o600);
    if (reach.kind === 'attached') await putAgentIn(op, Id);
  }

  async function putAgentIn(op: Operation, containerId: string): Promise<void> {
    const program = await host.readFile(op, config.agentPath, AGENT_BYTES_MAX);
    const archive = programArchive(INSIDE.agent.slice(1), program);
    await engine.call(op, {
      method: 'PUT',
      path: `/containers/${containerId}/archive`,
      query: { path: '/' },
      content: {
        type: 'application/x-tar',
        chunks: (async function* () {
          yield archive;
        })(),
      },
    });
  }

  async function makeSocketDir(op: Operation, plan: SandboxPlan): Promise<void> {
    await host.makeDir(op, plan.runDir, 0o711);
    await host.makeDir(op, socketDir(plan), host.uid === 0 ? 0o700 : 0o755);
  }

  function hangUp(plan: SandboxPlan): Promise<void> {
    attached.get(plan.id)?.destroy();
    attached.delete(plan.id);
    return doors.close(plan.id);
  }

  async function removeContainer(op: Operation, plan: SandboxPlan): Promise<void> {
    const known = await readMark(op, plan);
    let container: Container | null;
    try {
      container = await findContainer(op, engine, known?.containerId ?? containerName(plan));
    } catch (error) {
      // Whether an Engine that was lost in the middle of a creation has made one can be told when it is back.
      if (known !== null || !isAway(error)) throw error;
      if ((await host.stat(op, config.workDir)) !== null) await duties.note(op, plan.id, 'remove');
      return;
    }
    if (container === null || !isOurs(container, plan.id, instance)) return;
    try {
      await engine.call(op, { method: 'DELETE', path: `/containers/${container.Id}`, query: { force: true, v: true } }, START_MS);
    } catch (error) {
      if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
    }
  }

  const backend: Backend = {
    name: 'docker',
    needs: 'root',
    processesBoundBy: 'backend',
    probe: (op) => probeEngine(op, { config, engine, sight, whyNoVolumes: whyNot }),

    async fetchImage(op, reference) {
      return await pullImage(op, config, engine, reference);
    },

    async prepare(op, plan) {
      await imageOf(op, plan);
    },

    endWork: (op) => sight.endWork(op),

    async awake(op) {
      await engine.ping(op);
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
      await make(op, plan);
      undo.move();
    },

    async start(op, plan): Promise<Started> {
      const beganMs = host.monotonicMs();
      const { container, made, reach } = await containerOf(op, plan);
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
      await makeSocketDir(op, plan);
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
      const evidence = await inspect(op, plan);
      if (!evidence.alive) throw op.error('unavailable', `its container ended at once, with exit code ${evidence.exitCode ?? 'unknown'}`);
      await requireMounted(op, host, evidence.pid, { mounts: plan.mounts ?? [], volumes: volumesOf(plan) });
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
      const { container } = await containerOf(op, plan);
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
      const known = await readMark(op, plan);
      if (known?.reach !== 'attached') return await doors.dial(op, plan.id, agentSocketPath(plan), socketMode);
      attached.get(plan.id)?.destroy();
      const raw = await engine.hijack(op, {
        method: 'POST',
        path: `/containers/${known.containerId}/attach`,
        query: { stream: true, stdin: true, stdout: true },
      });
      const stream = attachedStream(raw);
      attached.set(plan.id, stream);
      return stream;
    },

    async commit(op, plan) {
      const { container, made } = await containerOf(op, plan);
      if (container !== null) return await commitContainer(op, engine, instance, container);
      throw op.error('failed_precondition', made ? 'its container was removed by somebody else' : 'it has no container');
    },

    dropCommitted: (op, digest) => dropImage(op, engine, digest),

    async descriptorPath(op, plan, descriptor) {
      if (host.uid !== 0) return null;
      const { container, reach } = await containerOf(op, plan);
      // An Engine elsewhere, whose agent cannot connect out, has another machine's processes.
      if (reach !== 'mounted' || container?.State.Running !== true) return null;
      return `/proc/${container.State.Pid}/fd/${descriptor}`;
    },

    async pause(op, plan) {
      const container = await running(op, plan);
      if (!container.State.Paused) await engine.call(op, { method: 'POST', path: `/containers/${container.Id}/pause` });
    },

    async resume(op, plan) {
      const container = await running(op, plan);
      if (container.State.Paused) await engine.call(op, { method: 'POST', path: `/containers/${container.Id}/unpause` });
    },

    othersPause: {
      isPaused: async (op, plan) => (await running(op, plan)).State.Paused,
      async *hints(op, plan) {
        await pause(op, BEFORE_PAUSE_HINTS_MS);
        yield* events.hints(op, 'pause', (await running(op, plan)).Id);
      },
    },

    async kill(op, plan, how) {
      const { container, made } = await containerOf(op, plan);
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
      const dead = await ended(limited, plan);
      await hangUp(plan);
      return dead;
    },

    inspect,
    ended,

    async cleanUp(op, plan) {
      await hangUp(plan);
      traffic.forget(plan.id);
      await unmountVolumes(op, config, plan);
      await host.remove(op, plan.runDir);
    },

    async remove(op, plan) {
      await removeContainer(op, plan);
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

    async stats(op, plan, own) {
      const { container } = await containerOf(op, plan, 'with-size');
      const usage = container?.State.Running === true ? (own ?? (await readUsage(op, engine, container.Id))) : null;
      return { pssBytes: usage?.memory?.usedBytes ?? 0, cpuUs: usage?.cpuUs ?? 0, diskAllocatedBytes: container?.SizeRw ?? 0 };
    },

    async usage(op, plan) {
      const { Id } = await running(op, plan);
      const usage = await readUsage(op, engine, Id);
      return usage.disk === null ? { ...usage, disk: await trafficOf(op, plan) } : usage;
    },

    leaks: (op, known) => findLeaks(op, engine, instance, known),
  };
  return backend;
}

/** The Engine did not answer, or not to the end: nothing is known of what it was asked. */
function isAway(error: unknown): boolean {
  return error instanceof HutchError && (error.code === 'unavailable' || error.code === 'deadline_exceeded');
}

/** Without an Engine there is nothing of ours in it. */
async function unlessAway<T, U>(asked: Promise<T>, otherwise: U): Promise<T | U> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof HutchError && ['unavailable', 'permission_denied', 'failed_precondition'].includes(error.code)) return otherwise;
    throw error;
  }
}
