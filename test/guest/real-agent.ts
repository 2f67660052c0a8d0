// The real agent, run as a plain process on this machine: it connects out to a socket, as it does from
// a container. Disposing it ends it and everything it started.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectAgent } from '../../src/guest/agent.ts';
import { shared } from '../../src/guest/wait.ts';
import { testOperation } from './support.ts';

const ROOT = join(import.meta.dirname, '../..');
/** The one that is shipped; a newer build beside it is not what users get. */
const PLACES = ['prebuilt/x86_64/hutch-agent', 'rust/target/x86_64-unknown-linux-gnu/release/hutch-agent'];

function agentPath(): string {
  for (const place of PLACES) if (existsSync(join(ROOT, place))) return join(ROOT, place);
  throw new Error(`no agent to test: none of ${PLACES.join(', ')} is there`);
}

export class RealAgent implements AsyncDisposable {
  readonly child: ChildProcess;
  /** Private to the test; gone afterwards. */
  readonly dir: string;
  readonly #server: Server;
  readonly #arrived: Socket[] = [];
  #awaited: ((socket: Socket) => void) | null = null;

  constructor(dir: string, server: Server, child: ChildProcess) {
    this.dir = dir;
    this.#server = server;
    this.child = child;
    server.on('connection', (socket) => {
      socket.on('error', () => {});
      socket.pause();
      if (this.#awaited === null) this.#arrived.push(socket);
      else this.#awaited(socket);
      this.#awaited = null;
    });
  }

  /** The next connection that the agent makes. */
  dial(): Promise<Socket> {
    const arrived = this.#arrived.shift();
    if (arrived !== undefined) return Promise.resolve(arrived);
    return new Promise((resolve) => {
      this.#awaited = resolve;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { child } = this;
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGCONT');
      const ended = new Promise((resolve) => child.once('exit', resolve));
      await Promise.race([ended, this.#shutDown()]);
      child.kill('SIGKILL');
      await ended;
    }
    this.#server.close();
    for (const socket of this.#arrived) socket.destroy();
    await rm(this.dir, { recursive: true, force: true });
  }

  /** Asks it to end, with everything that it started; gives up after a while. */
  async #shutDown(): Promise<void> {
    const op = testOperation();
    using limited = op.within(5_000, 'the end of the agent');
    try {
      using agent = await connectAgent(limited, await shared(limited, this.dial()));
      await agent.shutdown(limited, { graceMs: 0, signal: 'KILL' });
      await shared(limited, new Promise((resolve) => this.child.once('exit', resolve)));
    } catch {
      // It is killed next. What it had started would be left: tests that stop it see to that.
    }
  }
}

export async function realAgent(): Promise<RealAgent> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-agent-'));
  const path = join(dir, 'agent.sock');
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const child = spawn(agentPath(), ['--connect', path], { stdio: ['ignore', 'ignore', 'inherit'] });
  return new RealAgent(dir, server, child);
}
