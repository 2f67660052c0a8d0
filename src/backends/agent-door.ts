// Where agents that connect out arrive: one socket for each sandbox, in a directory that only it sees.
// There is one stream to an agent at a time; asking for a new one ends the old, and the agent comes again.
import type { Duplex } from 'node:stream';
import type { SandboxId } from '../domain/ids.ts';
import type { Host, UnixListener } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

type Door = {
  readonly listener: Promise<UnixListener>;
  current: Duplex | null;
  early: Duplex | null;
  /** Resolves when somebody comes, whoever asked for him. */
  readonly came: PromiseWithResolvers<void>;
};

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

  /** Resolves when the agent stands at the open door: `dial` then has its stream at once. */
  async arrived(op: Operation, id: SandboxId): Promise<void> {
    const door = this.#doors.get(id);
    if (door === undefined) throw op.error('internal', `the door of sandbox ${id} is not open`);
    const listener = await door.listener;
    if (door.early !== null && !door.early.destroyed) return;
    const settled = new AbortController();
    const waiting = { ...op, signal: AbortSignal.any([op.signal, settled.signal]) };
    const accepted = listener.accept(waiting).then((stream) => {
      door.early = stream;
    });
    accepted.catch(() => {}); // heard by the race, or called off
    // Who dials at the same time may have been given the one who came.
    await Promise.race([accepted, door.came.promise]).finally(() => settled.abort());
  }

  /** The next stream to the agent; opens the door where that was not done yet. */
  async dial(op: Operation, id: SandboxId, path: string, mode: number): Promise<Duplex> {
    const door = this.#door(op, id, path, mode);
    const listener = await door.listener;
    door.current?.destroy();
    const { early } = door;
    door.early = null;
    const stream = early === null || early.destroyed ? await listener.accept(op) : early;
    door.current = stream;
    door.came.resolve();
    return stream;
  }

  /** Nobody comes in any more, until it is opened again; a stream that was dialled stays. */
  async shut(id: SandboxId): Promise<void> {
    const door = this.#doors.get(id);
    if (door === undefined) return;
    this.#doors.delete(id);
    door.early?.destroy();
    await (await door.listener.catch(() => null))?.[Symbol.asyncDispose]();
  }

  /** Idempotent. */
  async close(id: SandboxId): Promise<void> {
    const door = this.#doors.get(id);
    if (door === undefined) return;
    this.#doors.delete(id);
    door.current?.destroy();
    door.early?.destroy();
    await (await door.listener.catch(() => null))?.[Symbol.asyncDispose]();
  }

  #door(op: Operation, id: SandboxId, path: string, mode: number): Door {
    const known = this.#doors.get(id);
    if (known !== undefined) return known;
    const listener = this.#host.listenUnix(op, path, mode);
    const door = { listener, current: null, early: null, came: Promise.withResolvers<void>() };
    this.#doors.set(id, door);
    listener.catch(() => this.#doors.delete(id)); // who asked hears it; the next one tries again
    return door;
  }
}
