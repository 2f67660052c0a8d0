// What could not be taken back because the Engine was away in the middle of an operation: a container that
// must not run, or must not be there. It is written down, and done as soon as the Engine answers again.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import { isId, type SandboxId } from '../../domain/ids.ts';
import type { Host } from '../../host/host.ts';
import { newOperation, type Operation } from '../../host/operation.ts';
import { containerName, findContainer, isOurs } from './container.ts';
import type { Engine } from './engine.ts';
import type { EngineEvents } from './events.ts';

export type Duty = 'halt' | 'remove';

const SETTLE_MS = 60_000;

export class Duties {
  readonly #host: Host;
  readonly #engine: Engine;
  readonly #events: EngineEvents;
  readonly #instance: string;
  readonly #dir: string;
  /** Null until it was looked what an earlier daemon left. */
  #open: Map<SandboxId, Duty> | null = null;
  #following: Promise<void> | null = null;

  constructor(parts: {
    readonly host: Host;
    readonly engine: Engine;
    readonly events: EngineEvents;
    readonly instance: string;
    readonly dir: string;
  }) {
    this.#host = parts.host;
    this.#engine = parts.engine;
    this.#events = parts.events;
    this.#instance = parts.instance;
    this.#dir = parts.dir;
  }

  async note(op: Operation, id: SandboxId, duty: Duty): Promise<void> {
    const open = await this.#all(op);
    if (open.get(id) === duty) return this.#follow(op);
    await this.#host.makeDir(op, this.#dir, 0o700);
    await this.#host.writeFileAtomic(op, join(this.#dir, id), duty, 0o600);
    open.set(id, duty);
    this.#follow(op);
  }

  /** It is wanted again, or somebody else has seen to it. */
  async drop(op: Operation, id: SandboxId): Promise<void> {
    const open = await this.#all(op);
    if (!open.delete(id)) return;
    await this.#host.remove(op, join(this.#dir, id));
  }

  /** From here on what an earlier daemon left is seen to. */
  async resume(op: Operation): Promise<void> {
    if (this.#open === null && (await this.#all(op)).size > 0) this.#follow(op);
  }

  #follow({ id, log }: Operation): void {
    this.#following ??= this.#settleAll(newOperation({ id, actor: 'daemon', log })).finally(() => {
      this.#following = null;
    });
  }

  async #settleAll(op: Operation): Promise<void> {
    for await (const _ of this.#events.hints(op, 'end', null)) {
      for (const [id, duty] of [...(await this.#all(op))]) {
        try {
          using limited = op.within(SETTLE_MS, 'what was left in the Docker Engine');
          await this.#carryOut(limited, id, duty);
          await this.drop(limited, id);
          op.log.info({ sandbox: id, duty }, 'what an Engine that was away had left was taken back');
        } catch (cause) {
          op.log.debug({ sandbox: id, duty, cause }, 'what is left in the Docker Engine cannot be taken back yet');
        }
      }
      if ((await this.#all(op)).size === 0) return;
    }
  }

  async #carryOut(op: Operation, id: SandboxId, duty: Duty): Promise<void> {
    const container = await findContainer(op, this.#engine, containerName({ id }));
    if (container === null || !isOurs(container, id, this.#instance)) return;
    const ask =
      duty === 'remove'
        ? ({ method: 'DELETE', path: `/containers/${container.Id}`, query: { force: true, v: true } } as const)
        : ({ method: 'POST', path: `/containers/${container.Id}/kill`, query: { signal: 'KILL' } } as const);
    try {
      await this.#engine.call(op, ask);
    } catch (error) {
      // Gone, or not running: as it should be.
      if (!(error instanceof HutchError && ['not_found', 'conflict'].includes(error.code))) throw error;
    }
  }

  async #all(op: Operation): Promise<Map<SandboxId, Duty>> {
    if (this.#open !== null) return this.#open;
    const open = new Map<SandboxId, Duty>();
    if ((await this.#host.stat(op, this.#dir)) !== null) {
      for (const name of await this.#host.list(op, this.#dir)) {
        if (!isId('sbx', name)) continue;
        const text = new TextDecoder().decode(await this.#host.readFile(op, join(this.#dir, name), 16));
        open.set(name, text === 'remove' ? 'remove' : 'halt');
      }
    }
    this.#open ??= open;
    return this.#open;
  }
}
