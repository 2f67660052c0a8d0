// Where agents that connect out arrive: one socket for each sandbox, in a directory that only it sees.
// There is one stream to an agent at a time; asking for a new one ends the old, and the agent comes again.
import type { Duplex } from 'node:stream';
import type { SandboxId } from '../domain/ids.ts';
import type { Host, UnixListener } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

type Door = { readonly listener: Promise<UnixListener>; current: Duplex | null };

export class AgentDoors {
  readonly #host: Host;
  readonly #doors = new Map<SandboxId, Door>();

  constructor(host: Host) {
    this.#host = host;
  }

  /** Before the sandbox starts, or when it is adopted. One that is open stays open. */
  async open(op: Operation, id: SandboxId, path: string, mode: number): Promise<void> {
    await this.#door(op, id, path, mode).listener;
  }

  /** The next stream to the agent; opens the door where that was not done yet. */
  async dial(op: Operation, id: SandboxId, path: string, mode: number): Promise<Duplex> {
    const door = this.#door(op, id, path, mode);
    const listener = await door.listener;
    door.current?.destroy();
    const stream = await listener.accept(op);
    door.current = stream;
    return stream;
  }

  /** Idempotent. */
  async close(id: SandboxId): Promise<void> {
    const door = this.#doors.get(id);
    if (door === undefined) return;
    this.#doors.delete(id);
    door.current?.destroy();
    await (await door.listener.catch(() => null))?.[Symbol.asyncDispose]();
  }

  #door(op: Operation, id: SandboxId, path: string, mode: number): Door {
    const known = this.#doors.get(id);
    if (known !== undefined) return known;
    const listener = this.#host.listenUnix(op, path, mode);
    const door = { listener, current: null };
    this.#doors.set(id, door);
    listener.catch(() => this.#doors.delete(id)); // who asked hears it; the next one tries again
    return door;
  }
}
