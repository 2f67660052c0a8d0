// A container is made: of an image that the Engine has, or is given, with our agent in it and everything that it needs mounted.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Mount } from '../../domain/mount.ts';
import type { Operation } from '../../host/operation.ts';
import { rootFiles, type SandboxPlan } from '../backend.ts';
import { programArchive } from './archive.ts';
import { type DockerConfig, IMAGE_MS, START_MS } from './config.ts';
import { containerBody, containerName, findContainer, INSIDE, isOurs, type Reach } from './container.ts';
import type { Engine } from './engine.ts';
import { findImage, importImage, ownImageName } from './image.ts';
import type { KnownContainers } from './known.ts';
import { ensureNetwork } from './networks.ts';
import { socketDir } from './paths.ts';
import type { Sight } from './sight.ts';
import { makeVolumePlaces, volumeAt } from './volumes.ts';
import { waitAgain } from './wait.ts';

const created = z.object({ Id: z.string(), Warnings: z.array(z.string()).nullish() });
const AGENT_BYTES_MAX = 64 * 1024 * 1024;

type Parts = { readonly config: DockerConfig; readonly engine: Engine; readonly sight: Sight; readonly known: KnownContainers };

export class Maker {
  readonly #parts: Parts;
  /** Images that are being brought into the Engine. */
  readonly #importing = new Map<string, Promise<string>>();
  /** Where the agent for containers lies, once it has been put there. */
  #agent: string | null = null;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** The id of the image in the Engine, which is brought there if need be. */
  async imageOf(op: Operation, { boot }: Pick<SandboxPlan, 'boot'>): Promise<string> {
    const { config, engine } = this.#parts;
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
    let coming = this.#importing.get(name);
    if (coming === undefined) {
      coming = (async () => {
        using alone = op.releasing(IMAGE_MS);
        await config.host.makeDir(alone, config.workDir, 0o711);
        return await importImage(alone, config, engine, root);
      })().finally(() => this.#importing.delete(name));
      this.#importing.set(name, coming);
    }
    return await waitAgain(op, coming);
  }

  /** On failure something may be left, which `KnownContainers.remove` finds. */
  async make(op: Operation, plan: SandboxPlan): Promise<void> {
    await this.#make(op, plan, await this.imageOf(op, plan), containerName(plan));
  }

  /**
   * Of an image that has the sandbox's disk already. Where the sandbox has a container, this one stands beside it under another name,
   * and nothing of that one is touched; on failure something may be left, which `KnownContainers.settle` finds.
   */
  async makeFrom(op: Operation, plan: SandboxPlan, image: string): Promise<void> {
    const { config, engine } = this.#parts;
    const there = await findContainer(op, engine, containerName(plan));
    const isBeside = there !== null && isOurs(there, plan.id, config.instance);
    const name = isBeside ? `${containerName(plan)}-${Buffer.from(config.host.randomBytes(4)).toString('hex')}` : containerName(plan);
    const id = await this.#make(op, plan, image, name);
    // The Engine mounts it once: what it does not have of it is missed now, and not when it is to start.
    await engine.call(op, { method: 'HEAD', path: `/containers/${id}/archive`, query: { path: '/' } }, START_MS);
  }

  async #make(op: Operation, plan: SandboxPlan, image: string, name: string): Promise<string> {
    const { config, engine, sight, known } = this.#parts;
    const { host, instance } = config;
    const reach: Reach = (await sight.seesOurFiles(op))
      ? { kind: 'mounted', agentPath: await this.#agentForContainers(op), socketDir: socketDir(plan) }
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
    await makeSocketDir(op, config, plan);
    await host.makeDir(op, plan.dataDir, 0o711);
    await makeVolumePlaces(op, config, plan);
    // Known before there is something to be marked with it.
    await engine.identity(op);
    // To the end, whoever gives up: the Engine would go on, and make what nobody has a mark of.
    using whole = op.releasing(START_MS);
    const { Id, Warnings } = await engine
      .json(whole, created, {
        method: 'POST',
        path: '/containers/create',
        query: { name },
        body: containerBody(plan, { image, instance, reach, network, volumes: volumesOf(config, plan) }),
      })
      .catch(async (cause: unknown) => {
        if (!(cause instanceof HutchError && cause.code === 'conflict')) throw cause;
        throw op.error('conflict', `the Docker Engine has a container ${name} that is not Hutch's; it is not touched`, {
          hint: `rename it: docker rename ${name} NAME`,
          cause,
        });
      });
    if ((Warnings ?? []).length > 0)
      op.log.info({ sandbox: plan.id, warnings: Warnings }, 'the Docker Engine has warnings about a container');
    await known.mark(whole, plan, { containerId: Id, reach: reach.kind });
    if (reach.kind === 'attached') await this.#putAgentIn(op, Id);
    return Id;
  }

  /** The agent as containers see it: of its own name for each version, so that a running one keeps its own. */
  async #agentForContainers(op: Operation): Promise<string> {
    const { host, workDir, agentPath } = this.#parts.config;
    if (this.#agent !== null && (await host.stat(op, this.#agent)) !== null) return this.#agent;
    const path = join(workDir, `agent-${(await host.sha256(op, agentPath)).slice(0, 16)}`);
    this.#agent = path;
    if ((await host.stat(op, path)) !== null) return path;
    await host.makeDir(op, workDir, 0o711);
    await host.writeFileAtomic(op, path, await host.readFile(op, agentPath, AGENT_BYTES_MAX), 0o755);
    return path;
  }

  async #putAgentIn(op: Operation, containerId: string): Promise<void> {
    const { config, engine } = this.#parts;
    const program = await config.host.readFile(op, config.agentPath, AGENT_BYTES_MAX);
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
}

/** Where the Engine finds a sandbox's volumes. */
export function volumesOf(config: DockerConfig, plan: SandboxPlan): readonly Mount[] {
  return (plan.volumes ?? []).map(({ target, readOnly }, at) => ({ source: volumeAt(config, plan, at), target, readOnly }));
}

export async function makeSocketDir(op: Operation, { host }: Pick<DockerConfig, 'host'>, plan: SandboxPlan): Promise<void> {
  await host.makeDir(op, plan.runDir, 0o711);
  await host.makeDir(op, socketDir(plan), host.uid === 0 ? 0o700 : 0o755);
}
