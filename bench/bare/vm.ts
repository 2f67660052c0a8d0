// A QEMU process with nothing around it: no daemon, no shim, no user of its own, no network. It lives
// in a directory of its own, in which its sockets lie, and is killed when it is disposed of.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_MS = 30_000;

/** Polled: the socket of a fresh process is there within some milliseconds. */
async function dial(path: string, alive: () => boolean): Promise<Socket> {
  const until = performance.now() + READY_MS;
  for (;;) {
    const socket = await new Promise<Socket | null>((resolve) => {
      const attempt = connect(path);
      attempt.once('connect', () => resolve(attempt));
      attempt.once('error', () => resolve(null));
    });
    if (socket !== null) return socket.on('error', () => {});
    if (!alive() || performance.now() > until) throw new Error(`no QEMU behind ${path}`);
    await sleep(1);
  }
}

export class BareVm implements AsyncDisposable {
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #dir: string;
  readonly #exited: Promise<void>;
  #ended = false;

  /** `argv` begins with the program; its sockets have names, and its console is descriptor 4. */
  constructor(dir: string, argv: readonly string[], env: Readonly<Record<string, string>> = {}) {
    mkdirSync(dir, { recursive: true });
    const [program = '', ...args] = argv;
    const console = openSync(join(dir, 'console'), 'a');
    const errors = openSync(join(dir, 'errors'), 'a');
    this.#child = spawn(program, args, {
      cwd: dir,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', errors, 'ignore', console],
    });
    closeSync(console);
    closeSync(errors);
    this.#dir = dir;
    this.#exited = new Promise((resolve) => {
      const end = () => {
        this.#ended = true;
        resolve();
      };
      this.#child.once('exit', end).once('error', end);
    });
    this.pid = this.#child.pid ?? 0;
  }

  socket(name: string): Promise<Socket> {
    return dial(join(this.#dir, name), () => !this.#ended).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${readFileSync(join(this.#dir, 'errors'), 'utf8').trim()}`);
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exited;
  }
}

/** QEMU's control socket: commands one after the other, and the event that ends a migration. */
export class BareQmp implements Disposable {
  readonly #socket: Socket;
  readonly #replies: { resolve: () => void; reject: (error: Error) => void }[] = [];
  readonly migrated: Promise<void>;

  constructor(socket: Socket) {
    this.#socket = socket;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.migrated = promise;
    promise.catch(() => {}); // heard by whoever migrates
    createInterface({ input: socket }).on('line', (line) => {
      const message = JSON.parse(line) as { return?: unknown; error?: { desc: string }; event?: string; data?: { status?: string } };
      if (message.error !== undefined) this.#replies.shift()?.reject(new Error(message.error.desc));
      else if ('return' in message) this.#replies.shift()?.resolve();
      else if (message.event === 'MIGRATION' && message.data?.status === 'completed') resolve();
      else if (message.event === 'MIGRATION' && message.data?.status === 'failed') reject(new Error('QEMU could not load the state'));
    });
    socket.on('close', () => {
      reject(new Error('QEMU hung up'));
      for (const reply of this.#replies) reply.reject(new Error('QEMU hung up'));
    });
  }

  execute(command: string, args: object = {}): Promise<void> {
    const done = new Promise<void>((resolve, reject) => this.#replies.push({ resolve, reject }));
    done.catch(() => {}); // pipelined: the last one is waited for
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    return done;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}
