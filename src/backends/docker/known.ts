// Which container is whose: a file of the sandbox's own says it, and the container's labels must agree. A name alone means nothing
// but where a creation was cut short before the file was written.
import * as z from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { ProcessEvidence, SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { isAway, unlessAway } from './away.ts';
import { LABEL, START_MS } from './config.ts';
import { type Container, containerName, findContainer, isOurs } from './container.ts';
import type { Duties } from './duties.ts';
import { waitForEnd } from './ended.ts';
import type { Engine } from './engine.ts';
import type { EngineEvents } from './events.ts';
import { askedToEnd, evidenceOf } from './evidence.ts';
import { listOurs } from './leaks.ts';
import { markPath } from './paths.ts';
import { removeIfThere } from './remove.ts';

const mark = z.strictObject({
  containerId: z.string().regex(/^[0-9a-f]{64}$/),
  reach: z.enum(['mounted', 'attached']),
  /** Which Engine made it, and where that was; not there in those of older releases. */
  engine: z.strictObject({ identity: z.string(), address: z.string() }).optional(),
});
export type Mark = z.infer<typeof mark>;
const MARK_BYTES_MAX = 4_096;

export type Found = { readonly container: Container | null; readonly made: boolean; readonly reach: Mark['reach'] };

type Parts = {
  readonly host: Host;
  readonly instance: string;
  /** Beneath it everything of this backend that is no sandbox's lies. */
  readonly workDir: string;
  readonly engine: Engine;
  readonly events: EngineEvents;
  readonly duties: Duties;
};

export class KnownContainers {
  readonly #parts: Parts;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Null: it was never finished. */
  async markOf(op: Operation, plan: SandboxPlan): Promise<Mark | null> {
    const { host } = this.#parts;
    if ((await host.stat(op, markPath(plan))) === null) return null;
    return mark.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, markPath(plan), MARK_BYTES_MAX))));
  }

  async mark(op: Operation, plan: SandboxPlan, made: Omit<Mark, 'engine'>): Promise<void> {
    const { host, engine } = this.#parts;
    const [identity, { address }] = [await engine.identity(op), await engine.endpoint(op)];
    await host.writeFileAtomic(op, markPath(plan), JSON.stringify({ ...made, engine: { identity, address } }), 0o600);
  }

  /**
   * Ours, wherever it is and whatever it is called now; null where there is none.
   * @throws HutchError `unavailable` where another Engine is asked than the one that made it: nothing is known of it then.
   */
  async find(op: Operation, plan: SandboxPlan, size: 'with-size' | 'without' = 'without'): Promise<Found> {
    const { engine, instance } = this.#parts;
    const known = await this.markOf(op, plan);
    // Without a mark it was never finished: then only the name can lead to it, if there is an Engine at all.
    const found =
      known === null
        ? await unlessAway(findContainer(op, engine, containerName(plan), size), null)
        : await findContainer(op, engine, known.containerId, size);
    const container = found !== null && isOurs(found, plan.id, instance) ? found : null;
    if (found === null) await this.#requireItsEngine(op, plan, known);
    return { container, made: known !== null, reach: known?.reach ?? 'mounted' };
  }

  /** A daemon may be started with another DOCKER_HOST or context: what that Engine does not have nobody has removed. */
  async #requireItsEngine(op: Operation, plan: SandboxPlan, known: Mark | null): Promise<void> {
    if (known?.engine === undefined) return;
    const { engine } = this.#parts;
    const { address, source } = await engine.endpoint(op);
    // At its own address another one stands in its place: that has been made anew, without what was in it.
    if (address === known.engine.address || (await engine.identity(op, 'now')) === known.engine.identity) return;
    throw op.error(
      'unavailable',
      `its container is in the Docker Engine at ${known.engine.address}, and ${address} (from ${source}) is asked`,
      {
        hint: `hutch daemon stop, then go on with DOCKER_HOST=${known.engine.address}; if that Engine is no more: rm ${markPath(plan)}`,
      },
    );
  }

  /** @throws HutchError `failed_precondition` when it does not run. */
  async running(op: Operation, plan: SandboxPlan): Promise<Container> {
    const { container, made } = await this.find(op, plan);
    if (container?.State.Running === true) return container;
    throw op.error(
      'failed_precondition',
      container === null && made ? 'its container was removed by somebody else' : 'its container does not run',
    );
  }

  async inspect(op: Operation, plan: SandboxPlan): Promise<ProcessEvidence> {
    const { container, made } = await this.find(op, plan);
    const evidence = await evidenceOf(op, this.#parts.host, container, made);
    return evidence.alive || container === null ? evidence : await askedToEnd(op, this.#parts.engine, container, evidence);
  }

  /** Also who asked for it: of one that nobody here has killed. */
  async ended(op: Operation, plan: SandboxPlan): Promise<Dead> {
    const dead = await this.killed(op, plan);
    const { container } = await this.find(op, plan);
    return container === null ? dead : await askedToEnd(op, this.#parts.engine, container, dead);
  }

  async killed(op: Operation, plan: SandboxPlan): Promise<Dead> {
    const known = await this.markOf(op, plan);
    // Without one there is nothing that could end.
    if (known === null) return (await this.#look(op, plan)).evidence as Dead;
    return await waitForEnd(op, this.#parts.events.hints(op, 'end', known.containerId), () => this.#look(op, plan));
  }

  /** One that somebody is removing has ended, but not yet as what it will be found to have ended. */
  async #look(op: Operation, plan: SandboxPlan) {
    const { container, made } = await this.find(op, plan);
    const evidence = await evidenceOf(op, this.#parts.host, container, made);
    return { evidence, isOver: !evidence.alive && container?.State.Status !== 'removing' };
  }

  /** Gives whether it was made from a snapshot. */
  async remove(op: Operation, plan: SandboxPlan): Promise<boolean> {
    const { host, engine, instance, duties, workDir } = this.#parts;
    const known = await this.markOf(op, plan);
    let container: Container | null;
    try {
      container = await findContainer(op, engine, known?.containerId ?? containerName(plan));
    } catch (error) {
      // Whether an Engine that was lost in the middle of a creation has made one can be told when it is back.
      if (known !== null || !isAway(error)) throw error;
      if ((await host.stat(op, workDir)) !== null) await duties.note(op, plan.id, 'remove');
      return false;
    }
    if (container === null) await this.#requireItsEngine(op, plan, known);
    if (container === null || !isOurs(container, plan.id, instance)) return false;
    await this.#delete(op, container.Id);
    if ((container.Config.Labels?.[LABEL.snapshot] ?? '') === '') return false;
    // One that went back to a snapshot may have left another.
    for (const { Id } of await this.#all(op, plan)) await this.#delete(op, Id);
    return true;
  }

  /** After it went back to a snapshot, or did not: it has one container, of its own name. */
  async settle(op: Operation, plan: SandboxPlan): Promise<void> {
    const own = (await this.markOf(op, plan))?.containerId;
    if (own === undefined) return;
    for (const { Id } of await this.#all(op, plan)) if (Id !== own) await this.#delete(op, Id);
    const container = await findContainer(op, this.#parts.engine, own);
    const name = containerName(plan);
    if (container === null || !container.Name.startsWith(`/${name}-`)) return;
    await this.#parts.engine.call(op, { method: 'POST', path: `/containers/${own}/rename`, query: { name } });
  }

  async #all(op: Operation, { id }: SandboxPlan) {
    const { engine, instance } = this.#parts;
    return (await listOurs(op, engine, instance)).filter(({ Labels }) => Labels?.[LABEL.sandbox] === id);
  }

  async #delete(op: Operation, containerId: string): Promise<void> {
    await removeIfThere(op, this.#parts.engine, { path: `/containers/${containerId}`, query: { force: true, v: true } }, START_MS);
  }
}
