// A daemon in a process of its own over the reference backend, and a plain HTTP and WebSocket client
// for it. Every JSON answer is held against the verb table's schema. Disposing it deletes what is left,
// and fails when anything of it survives.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import WebSocket from 'ws';
import type { ErrorBody } from '../../src/domain/errors.ts';
import { type Input, type Output, type VerbName, verbs } from '../../src/services/verbs.ts';
import { bundled } from './bundled.ts';
import { eventually } from './eventually.ts';

const ENTRY = join(import.meta.dirname, 'faulty-daemon.ts');
/** A bound against one that hangs, not for a busy machine: others may have the processors. */
const START_MS = 120_000;
const STOP_MS = 20_000;

export type SandboxView = Output<'sandbox.get'>;
type Ready = { ready: true; pid: number; socketPath: string; address: { host: string; port: number } | null; ownerKeyPath: string };
export type StartOptions = {
  readonly env?: Readonly<Record<string, string>>;
  readonly flags?: readonly string[];
  readonly entry?: string;
  /** What must lie in its home before it starts. */
  readonly before?: (home: string) => Promise<void>;
};

export class ApiError extends Error {
  readonly status: number;
  readonly body: ErrorBody;
  readonly headers: IncomingMessage['headers'];

  constructor(status: number, body: ErrorBody, headers: IncomingMessage['headers']) {
    super(`${body.code}: ${body.message}`);
    this.status = status;
    this.body = body;
    this.headers = headers;
  }

  get code(): string {
    return this.body.code;
  }
}

export type Answer = { readonly status: number; readonly headers: IncomingMessage['headers']; readonly body: Buffer };
export type SendOptions = {
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array | AsyncIterable<Uint8Array>;
  readonly signal?: AbortSignal;
  readonly via?: 'unix' | 'tcp';
};

export class DaemonUnderTest implements AsyncDisposable {
  readonly home: string;
  ready: Ready;
  child: ChildProcess;
  key = '';
  #agent = new Agent({ keepAlive: true, maxSockets: 256 });
  readonly #options: StartOptions;

  private constructor(home: string, options: StartOptions, child: ChildProcess, ready: Ready) {
    this.home = home;
    this.#options = options;
    this.child = child;
    this.ready = ready;
  }

  static async start(options: StartOptions = {}): Promise<DaemonUnderTest> {
    const home = await mkdtemp(join(tmpdir(), 'hutch-api-'));
    await chmod(home, 0o711); // the sandboxes' users go through it
    try {
      await options.before?.(home);
      const { child, ready } = await launch(home, options);
      const daemon = new DaemonUnderTest(home, options, child, ready);
      daemon.key = (await readFile(ready.ownerKeyPath, 'utf8')).trim();
      return daemon;
    } catch (error) {
      await rm(home, { recursive: true, force: true }); // of a daemon that is not to start, as some tests want it
      throw error;
    }
  }

  get pid(): number {
    return this.ready.pid;
  }

  /** As a power cut of the daemon alone. */
  async kill9(): Promise<void> {
    await end(this.child, 'SIGKILL');
    this.#agent.destroy();
    this.#agent = new Agent({ keepAlive: true, maxSockets: 256 });
  }

  async terminate(): Promise<number | null> {
    const code = await end(this.child, 'SIGTERM');
    this.#agent.destroy();
    this.#agent = new Agent({ keepAlive: true, maxSockets: 256 });
    return code;
  }

  /** The next daemon over the same directories. */
  async startAgain(options: StartOptions = this.#options): Promise<void> {
    const { child, ready } = await launch(this.home, options);
    this.child = child;
    this.ready = ready;
    this.#agent.destroy(); // what it holds leads to the daemon before
    this.#agent = new Agent({ keepAlive: true, maxSockets: 256 });
  }

  async log(): Promise<string> {
    return await readFile(join(this.home, 'log/hutchd.log'), 'utf8');
  }

  // Requests

  async send(method: string, path: string, options: SendOptions = {}): Promise<Answer> {
    const response = await this.open(method, path, options);
    const chunks: Buffer[] = [];
    for await (const chunk of response) chunks.push(chunk as Buffer);
    return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) };
  }

  /** The answer as it begins. */
  open(method: string, path: string, { headers = {}, body, signal, via = 'unix' }: SendOptions = {}): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const { address, socketPath } = this.ready;
      const where = via === 'unix' ? { socketPath } : { host: address?.host, port: address?.port };
      const request = httpRequest(
        {
          ...where,
          method,
          path,
          agent: this.#agent,
          headers: { Authorization: `Bearer ${this.key}`, ...headers },
          ...(signal === undefined ? {} : { signal }),
        },
        resolve,
      );
      request.on('error', reject);
      if (body === undefined || typeof body === 'string' || body instanceof Uint8Array) request.end(body);
      else void sendAll(request, body).catch(reject);
    });
  }

  /** One unary verb. @throws ApiError */
  async call<N extends VerbName>(name: N, input: Input<N>, options: SendOptions = {}): Promise<Output<N>> {
    const { result } = await this.callWithHeaders(name, input, options);
    return result;
  }

  async callWithHeaders<N extends VerbName>(
    name: N,
    input: Input<N>,
    options: SendOptions = {},
  ): Promise<{ result: Output<N>; headers: IncomingMessage['headers'] }> {
    const { method, path, body } = routeOf(name, input as Record<string, unknown>);
    const json =
      body === undefined ? {} : { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json', ...options.headers } };
    const answer = await this.send(method, path, { ...options, ...json });
    if (answer.status === 500)
      throw new ApiError(
        500,
        {
          ...(JSON.parse(answer.body.toString('utf8')) as ErrorBody),
          message: `${answer.body.toString('utf8')}\n${(await this.log()).slice(-3_000)}`,
        },
        answer.headers,
      );
    if (answer.status !== 200) throw apiError(answer);
    return { result: verbs[name].output.parse(JSON.parse(answer.body.toString('utf8'))) as Output<N>, headers: answer.headers };
  }

  /** A verb of lines, as they come; empty ones are left out. */
  async *lines<N extends VerbName>(name: N, input: Input<N>, options: SendOptions = {}): AsyncGenerator<Output<N>, void, undefined> {
    const { method, path } = routeOf(name, input as Record<string, unknown>);
    const response = await this.open(method, path, options);
    if (response.statusCode !== 200) throw apiError(await whole(response));
    for await (const line of createInterface({ input: response }))
      if (line !== '') yield verbs[name].output.parse(JSON.parse(line)) as Output<N>;
    if (!response.complete) throw new Error('the stream was cut');
  }

  async exec(ref: string, request: Record<string, unknown> & { argv: string[] }, options: ExecOptions = {}): Promise<ExecClient> {
    const query = new URLSearchParams(options.execId === undefined ? {} : { execId: options.execId });
    const client = await this.socket(`/v1/sandboxes/${ref}/exec?${query}`, options.headers);
    client.send(request);
    return client;
  }

  async attach(ref: string, execId: string, query: Record<string, string> = {}): Promise<ExecClient> {
    return await this.socket(`/v1/sandboxes/${ref}/execs/${execId}/attach?${new URLSearchParams(query)}`);
  }

  /** Runs a command to its end. */
  async run(
    ref: string,
    argv: string[],
    more: Record<string, unknown> = {},
  ): Promise<{ exitCode: number; stdout: string; stderr: string }> {
    const client = await this.exec(ref, { argv, ...more });
    const { exitCode } = await client.exit();
    return { exitCode, stdout: client.stdout.toString('utf8'), stderr: client.stderr.toString('utf8') };
  }

  async socket(path: string, headers: Readonly<Record<string, string>> = {}): Promise<ExecClient> {
    const socket = new WebSocket(`ws+unix:${this.ready.socketPath}:${path}`, {
      headers: { Authorization: `Bearer ${this.key}`, ...headers },
      perMessageDeflate: false,
    });
    const client = new ExecClient(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once('open', resolve);
      socket.once('error', reject);
      socket.once('unexpected-response', (_request, response: IncomingMessage) => {
        void whole(response).then((answer) => reject(apiError(answer)), reject);
      });
    });
    return client;
  }

  /** Waits until the sandbox has the state. */
  async until(ref: string, state: SandboxView['state']): Promise<SandboxView> {
    let seen: SandboxView | undefined;
    await eventually(`${ref} is ${state}`, async () => {
      seen = await this.call('sandbox.get', { ref });
      return seen.state === state;
    });
    return seen as SandboxView;
  }

  async processes(): Promise<string[]> {
    return await processesOf(this.home);
  }

  /** Without what other data directories have left on this machine: tests run side by side, and some kill their daemons. */
  async leaks(): Promise<Output<'doctor.leaks'>['leaks']> {
    return (await this.call('doctor.leaks', {})).leaks.filter(({ kind }) => kind !== 'claim' && kind !== 'table');
  }

  /** As `leaks`, once there are so many: while the daemon is at work on something, what may be that is not told. */
  async leaksOnceThereAre(count: number): Promise<Output<'doctor.leaks'>['leaks']> {
    let leaks = await this.leaks();
    await eventually(`${count} leaks are told`, async () => {
      leaks = await this.leaks();
      return leaks.length >= count;
    }).catch(() => {}); // the test says better what is missing
    return leaks;
  }

  async deleteAll(): Promise<void> {
    const { sandboxes } = await this.call('sandbox.list', {});
    await Promise.all(sandboxes.map(({ id }) => this.call('sandbox.delete', { ref: id, force: true })));
  }

  /** With `check: 'no'` for tests that leave a broken daemon behind on purpose. */
  async [Symbol.asyncDispose](): Promise<void> {
    const problems: string[] = [];
    try {
      if (this.child.exitCode === null && this.child.signalCode === null) {
        await this.deleteAll();
        for (const leak of await this.leaks()) problems.push(`${leak.kind}: ${leak.what}`);
        const verdict = await this.call('ledger.verify', {});
        if (!verdict.ok) problems.push(`ledger: ${JSON.stringify(verdict.firstBreak)}`);
      }
    } catch (error) {
      problems.push(`could not be cleaned up: ${error instanceof Error ? error.message : String(error)}`);
    }
    if (this.child.exitCode === null && this.child.signalCode === null) await this.terminate();
    this.#agent.destroy();
    problems.push(...(await leftOver(this.home)));
    if (problems.length > 0)
      problems.push(`log: ${existsSync(join(this.home, 'log/hutchd.log')) ? (await this.log()).slice(-6_000) : 'none'}`);
    await rm(this.home, { recursive: true, force: true });
    if (problems.length > 0) throw new Error(`the daemon left something behind:\n${problems.join('\n')}`);
  }
}

export type ExecOptions = { readonly execId?: string; readonly headers?: Readonly<Record<string, string>> };

/** The client's side of an exec socket. */
export class ExecClient {
  readonly socket: WebSocket;
  stdout = Buffer.alloc(0);
  stderr = Buffer.alloc(0);
  readonly messages: Record<string, unknown>[] = [];
  /** The headers of the answer that made it a socket. */
  upgraded: IncomingMessage['headers'] | null = null;
  readonly closed: Promise<{ code: number; reason: string }>;
  /** Set false to look at bytes as they come by `onBytes` only. */
  keep = true;
  onBytes: (channel: number, bytes: Buffer) => void = () => {};

  constructor(socket: WebSocket) {
    this.socket = socket;
    socket.on('upgrade', ({ headers }) => {
      this.upgraded = headers;
    });
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (!isBinary) return void this.messages.push(JSON.parse(data.toString('utf8')) as Record<string, unknown>);
      const bytes = data.subarray(1);
      this.onBytes(data[0] ?? 0, bytes);
      if (!this.keep) return;
      if (data[0] === 1) this.stdout = Buffer.concat([this.stdout, bytes]);
      else this.stderr = Buffer.concat([this.stderr, bytes]);
    });
    socket.on('error', () => {});
    // Not `once` of events, which fails at an error that comes before: nobody may be waiting for this one.
    this.closed = new Promise((resolve) => socket.once('close', (code, reason) => resolve({ code, reason: String(reason) })));
  }

  send(message: object): void {
    this.socket.send(JSON.stringify(message));
  }

  input(bytes: Uint8Array | string): void {
    this.socket.send(Buffer.concat([Buffer.from([0]), typeof bytes === 'string' ? Buffer.from(bytes) : bytes]));
  }

  message(type: string): Record<string, unknown> | undefined {
    return this.messages.find((message) => message['type'] === type);
  }

  async saw(type: string): Promise<Record<string, unknown>> {
    await eventually(`a message ${type}; there were ${JSON.stringify(this.messages)}`, () => this.message(type) !== undefined);
    return this.message(type) as Record<string, unknown>;
  }

  async sawOutput(text: string): Promise<void> {
    await eventually(`output ${text}; there was ${this.stdout.toString('utf8').slice(-500)}`, () => this.stdout.includes(text));
  }

  async exit(): Promise<Output<'exec.start'>> {
    await this.closed;
    const exit = this.message('exit');
    if (exit === undefined) {
      const { error } = (this.message('error') ?? {}) as { error?: ErrorBody };
      throw error === undefined ? new Error(`the socket was lost: ${JSON.stringify(await this.closed)}`) : new ApiError(0, error, {});
    }
    return exit as unknown as Output<'exec.start'>;
  }
}

function routeOf(name: VerbName, input: Record<string, unknown>): { method: string; path: string; body?: Record<string, unknown> } {
  const verb = verbs[name];
  const rest = { ...input };
  const path = verb.path.replaceAll(/\{(\w+)\}/g, (_whole, key: string) => {
    const value = String(rest[key]);
    delete rest[key];
    return encodeURIComponent(value);
  });
  if (verb.kind === 'unary' && verb.method === 'POST') return { method: verb.method, path, body: rest };
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(rest)) {
    if (value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) query.append(key, String(one));
  }
  return { method: verb.method, path: query.size === 0 ? path : `${path}?${query}` };
}

function apiError({ status, headers, body }: Answer): Error {
  try {
    return new ApiError(status, JSON.parse(body.toString('utf8')) as ErrorBody, headers);
  } catch {
    return new Error(`HTTP ${status}: ${body.toString('utf8').slice(0, 500)}`);
  }
}

async function whole(response: IncomingMessage): Promise<Answer> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(chunks) };
}

async function sendAll(request: ReturnType<typeof httpRequest>, body: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const chunk of body) {
    if (request.destroyed) return;
    if (request.write(chunk)) continue;
    const settled = new AbortController();
    await Promise.race([once(request, 'drain', { signal: settled.signal }), once(request, 'close', { signal: settled.signal })]).finally(
      () => settled.abort(),
    );
  }
  request.end();
}

/** @throws ApiError what the daemon said why it cannot start. */
export async function launch(
  home: string,
  { env = {}, flags = [], entry = ENTRY }: StartOptions,
): Promise<{ child: ChildProcess; ready: Ready }> {
  const child = spawn(process.execPath, ['--max-semi-space-size=1', bundled(entry), '--ready-fd', '3', ...flags], {
    stdio: ['ignore', 'inherit', 'pipe', 'pipe'],
    env: {
      PATH: process.env['PATH'] ?? '',
      HOME: home,
      HUTCH_HOME: home,
      HUTCH_DAEMON_LISTEN: '127.0.0.1:0',
      HUTCH_SANDBOX_BACKEND: 'qemu',
      HUTCH_SANDBOX_WARM: '0', // processes are counted: test/faults/warm-tests.ts has some
      NODE_COMPILE_CACHE: process.env['NODE_COMPILE_CACHE'],
      ...env,
    },
  });
  let said = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-4_000);
  });
  const [, , , pipe] = child.stdio;
  const timer = setTimeout(() => child.kill('SIGKILL'), START_MS);
  let line = '';
  for await (const chunk of pipe as NodeJS.ReadableStream) line += String(chunk);
  clearTimeout(timer);
  const told = line === '' ? null : (JSON.parse(line) as Ready | { ready: false; error: ErrorBody });
  if (told?.ready === true) return { child, ready: told };
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  if (told === null) throw new Error(`the daemon did not start (${child.exitCode ?? child.signalCode}): ${said}`);
  throw new ApiError(0, told.error, {});
}

async function end(child: ChildProcess, signal: 'SIGTERM' | 'SIGKILL'): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const ended = once(child, 'exit');
  child.kill(signal);
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
  await ended;
  clearTimeout(timer);
  return child.exitCode;
}

/** Command lines that name the directory. */
export async function processesOf(home: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (command.includes(home)) found.push(`process ${pid}: ${command.replaceAll('\0', ' ').slice(0, 200)}`);
  }
  return found;
}

/** Processes and mounts; what dies with its parent gets a moment. */
async function leftOver(home: string): Promise<string[]> {
  let left: string[] = [];
  try {
    await eventually(
      'nothing is left',
      async () => {
        const mounts = (await readFile('/proc/self/mounts', 'utf8')).split('\n').filter((line) => line.includes(home));
        left = [...(await processesOf(home)), ...mounts.map((mount) => `mount: ${mount}`)];
        return left.length === 0;
      },
      3_000,
    );
  } catch {
    return left;
  }
  return [];
}
