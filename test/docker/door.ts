// The door before a real Engine, at which a test sees who comes and what for, and may lose an answer on its way back.
import { rm } from 'node:fs/promises';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';

export class EngineDoor implements AsyncDisposable {
  readonly socketPath: string;
  readonly #server: Server;
  readonly #open = new Map<Socket, string>();
  /** First lines of requests whose answer does not arrive. */
  #lost: RegExp | null = null;
  /** First lines of requests that do not reach the Engine. */
  #held: RegExp | null = null;
  /** How many were lost. */
  losses = 0;

  readonly #shut: () => Promise<void>;

  private constructor(dir: string, enginePath: string, shut: () => Promise<void>) {
    this.#shut = shut;
    this.socketPath = join(dir, 'door.sock');
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#came(socket, enginePath));
  }

  /** `shut` is called when nobody is to come any more. */
  static async open(dir: string, enginePath: string, shut: () => Promise<void>): Promise<EngineDoor> {
    const door = new EngineDoor(dir, enginePath, shut);
    await new Promise<void>((resolve, reject) => door.#server.once('error', reject).listen(door.socketPath, resolve));
    return door;
  }

  /** The requests that are under way, by their first line. */
  get underWay(): readonly string[] {
    return [...this.#open.values()];
  }

  /** The Engine hears and does what is asked; whoever asked is cut off before the answer. */
  lose(requests: RegExp): Disposable {
    this.#lost = requests;
    return {
      [Symbol.dispose]: () => {
        this.#lost = null;
      },
    };
  }

  /** Whoever asks this waits, and the Engine hears nothing of it. */
  hold(requests: RegExp): void {
    this.#held = requests;
  }

  /** All connections at once, as when a network goes. */
  cut(): void {
    for (const socket of this.#open.keys()) socket.destroy();
  }

  #came(socket: Socket, enginePath: string): void {
    const engine = connect({ path: enginePath, allowHalfOpen: true });
    this.#open.set(socket, '');
    const over = (): void => {
      this.#open.delete(socket);
      socket.destroy();
      engine.destroy();
    };
    for (const end of [socket, engine]) end.on('error', over).on('close', over);
    // Half open, nothing else would end one that went away before it asked, or before its question was let through.
    socket.once('end', over);
    socket.once('data', (first: Buffer) => {
      const line = first.toString('latin1').split('\r\n')[0] ?? '';
      this.#open.set(socket, line);
      if (this.#held?.test(line) === true) return;
      socket.off('end', over);
      engine.write(first);
      socket.pipe(engine);
    });
    engine.once('data', () => {
      if (this.#lost?.test(this.#open.get(socket) ?? '') !== true) return;
      this.losses += 1;
      over();
    });
    engine.pipe(socket);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#shut();
    this.cut();
    this.#server.close();
    await rm(this.socketPath, { force: true });
  }
}
