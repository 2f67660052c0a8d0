// One sandbox, as a program holds it. `await using` deletes it at the end of the block; a sandbox that
// was looked up (`hutch.sandbox(ref)`) is never deleted by leaving a block.
import type { Duplex } from 'node:stream';
import { HutchError } from '../domain/errors.ts';
import type { ExecRequest, Input, Output } from '../services/verbs.ts';
import type { ApiClient, CallOptions } from './client.ts';
import { Files, split } from './files.ts';
import { type LogPiece, LogRecordReader } from './log-records.ts';
import { type AttachOptions, type ProcessExit, type ProcessOptions, RemoteProcess } from './process.ts';
import { connectTunnel } from './tunnel.ts';

export type SandboxInfo = Output<'sandbox.get'>;
export type Stats = Output<'sandbox.stats'>;
export type Port = Output<'port.list'>['ports'][number];
export type PortChange = Output<'port.watch'>;
export type SnapshotInfo = Output<'snapshot.create'>;
export type PublishedPort = Output<'port.publish'>;

/** How a command is run: the API's request without its argument vector. */
export type ExecOptions = Omit<ExecRequest, 'argv'> & Omit<ProcessOptions, 'ref'>;
export type RunOptions = Omit<ExecOptions, 'stdin'> & {
  /** Given to the command as its whole input. */
  readonly input?: string | Uint8Array;
  /** More output than this is `resource_exhausted`. Default 64 MiB per stream. */
  readonly outputBytesMax?: number;
  /** Each piece of output as it comes; what comes next waits for it. */
  readonly onStdout?: (chunk: Uint8Array) => void | Promise<void>;
  readonly onStderr?: (chunk: Uint8Array) => void | Promise<void>;
};
export type RunResult = ProcessExit & {
  readonly stdout: string;
  readonly stderr: string;
  readonly stdoutBuffer: Buffer;
  readonly stderrBuffer: Buffer;
};
export type LogOptions = Omit<Input<'sandbox.logs'>, 'ref' | 'source'> & CallOptions;

const OUTPUT_BYTES_MAX = 64 * 1024 * 1024;

export class Sandbox implements AsyncDisposable {
  readonly id: string;
  /** As it was when it was last asked for. */
  info: SandboxInfo;
  readonly files: Files;
  readonly #client: ApiClient;
  readonly #onDispose: () => Promise<void>;

  constructor(client: ApiClient, info: SandboxInfo, onDispose: () => Promise<void>) {
    this.#client = client;
    this.info = info;
    this.id = info.id;
    this.files = new Files(client, info.id);
    this.#onDispose = onDispose;
  }

  get name(): string {
    return this.info.name;
  }

  async refresh(options: CallOptions = {}): Promise<SandboxInfo> {
    this.info = await this.#client.call('sandbox.get', { ref: this.id }, options);
    return this.info;
  }

  /** Starts a command and gives its streams. Its output must be read: a full stream holds it up. */
  async spawn(argv: readonly string[], options: ExecOptions = {}): Promise<RemoteProcess> {
    const { execId, signal, reconnectForMs, onOpId, ...request } = options;
    return await RemoteProcess.start(
      this.#client,
      { ...request, argv: [...argv] },
      { ref: this.id, ...defined({ execId, signal, reconnectForMs, onOpId }) },
    );
  }

  /** Runs a command to its end and gives its output. A code that is not 0 is no error. */
  async exec(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    const { input, outputBytesMax = OUTPUT_BYTES_MAX, onStdout, onStderr, ...rest } = options;
    await using process = await this.spawn(argv, { ...rest, stdin: input === undefined ? 'null' : 'open' });
    if (input !== undefined) process.stdin.end(input);
    const [stdoutBuffer, stderrBuffer, exit] = await Promise.all([
      collect(process.stdout, outputBytesMax, onStdout),
      collect(process.stderr, outputBytesMax, onStderr),
      process.exit,
    ]);
    return { ...exit, stdout: stdoutBuffer.toString('utf8'), stderr: stderrBuffer.toString('utf8'), stdoutBuffer, stderrBuffer };
  }

  /** Goes on with a command that runs; `main` is the main process. */
  async attach(execId = 'main', options: Omit<AttachOptions, 'ref' | 'execId'> = {}): Promise<RemoteProcess> {
    return await RemoteProcess.attach(this.#client, { ...options, ref: this.id, execId });
  }

  async execs(options: CallOptions = {}): Promise<Output<'exec.list'>['execs']> {
    return (await this.#client.call('exec.list', { ref: this.id }, options)).execs;
  }

  async signal(execId: string, signal: string, options: CallOptions = {}): Promise<void> {
    await this.#client.call('exec.signal', { ref: this.id, execId, signal }, options);
  }

  async start(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.start', { ref: this.id }, options));
  }

  async stop(options: CallOptions & { readonly graceMs?: number; readonly force?: boolean } = {}): Promise<SandboxInfo> {
    const { own, call } = split(options);
    return this.#became(await this.#client.call('sandbox.stop', { ...own, ref: this.id }, call));
  }

  async restart(options: CallOptions & { readonly graceMs?: number } = {}): Promise<SandboxInfo> {
    const { own, call } = split(options);
    return this.#became(await this.#client.call('sandbox.restart', { ...own, ref: this.id }, call));
  }

  async pause(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.pause', { ref: this.id }, options));
  }

  async resume(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.resume', { ref: this.id }, options));
  }

  /** Its memory goes to the disk and its process ends; `resume` lets it go on where it was. */
  async suspend(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.suspend', { ref: this.id }, options));
  }

  /**
   * Children with its memory, processes, open files and disk, each with an identity of its own; it goes on after standing still
   * for a moment. @throws HutchError when none could be made; those that could not are missing.
   */
  async fork(options: CallOptions & { readonly count?: number; readonly namePrefix?: string } = {}): Promise<Sandbox[]> {
    const { own, call } = split(options);
    const { children } = await this.#client.call('sandbox.fork', { ...own, ref: this.id }, call);
    return children.map(({ sandbox }) => new Sandbox(this.#client, sandbox, () => deleteQuietly(this.#client, sandbox.id)));
  }

  /** What is not named stays as it is. `atNextStart` names what is kept until then; all else is in force. */
  async set(change: Omit<Input<'sandbox.set'>, 'ref'>, options: CallOptions = {}): Promise<Output<'sandbox.set'>> {
    const changed = await this.#client.call('sandbox.set', { ...change, ref: this.id }, options);
    this.info = changed.sandbox;
    return changed;
  }

  /** Keeps it as it is now, with its memory unless only its disk is asked for; it goes on. `Hutch.create({ from })` begins there. */
  async snapshot(
    options: CallOptions & { readonly name?: string; readonly diskOnly?: boolean; readonly scrub?: boolean } = {},
  ): Promise<SnapshotInfo> {
    const { own, call } = split(options);
    return await this.#client.call('snapshot.create', { ...own, ref: this.id }, call);
  }

  /**
   * It goes back to a snapshot, in place; name, labels, environment, time limits and ports stay its own. One that is damaged or does not fit leaves it as it is.
   * `foreign`: also one of another sandbox; `force`: also one whose memory was written down on another kind of machine.
   */
  async restore(
    snapshot: string,
    options: CallOptions & { readonly force?: boolean; readonly foreign?: boolean } = {},
  ): Promise<SandboxInfo> {
    const { own, call } = split(options);
    return this.#became(await this.#client.call('sandbox.restore', { ...own, ref: this.id, snapshot }, call));
  }

  /** Back to before its last exec, where it was made with `undo`; once more: to before the one before. */
  async undo(options: CallOptions = {}): Promise<Output<'sandbox.undo'>> {
    const undone = await this.#client.call('sandbox.undo', { ref: this.id }, options);
    this.info = undone.sandbox;
    return undone;
  }

  async rename(name: string, options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.rename', { ref: this.id, name }, options));
  }

  async delete(options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('sandbox.delete', { ref: this.id, force: true }, options));
  }

  /** Until it does not run any more. The exit code is its main process's, null when there was none. */
  async wait(options: CallOptions = {}): Promise<{ readonly exitCode: number | null; readonly sandbox: SandboxInfo }> {
    const ended = await this.#client.call('sandbox.wait', { ref: this.id }, options);
    this.info = ended.sandbox;
    return ended;
  }

  async stats(options: CallOptions = {}): Promise<Stats> {
    return await this.#client.call('sandbox.stats', { ref: this.id }, options);
  }

  async ports(options: CallOptions = {}): Promise<Port[]> {
    return (await this.#client.call('port.list', { ref: this.id }, options)).ports;
  }

  /** What listens now, then each port that is opened or closed, until the loop is left; a connection that is lost ends it with an error. */
  watchPorts(options: CallOptions = {}): AsyncGenerator<PortChange, void, undefined> {
    return this.#client.lines('port.watch', { ref: this.id }, options);
  }

  /** This machine answers for a port inside from now on, on the loopback and at a free port unless they are named. */
  async publish(
    guestPort: number,
    options: CallOptions & { readonly hostAddress?: string; readonly hostPort?: number } = {},
  ): Promise<PublishedPort> {
    const { own, call } = split(options);
    return await this.#client.call('port.publish', { ...own, ref: this.id, guestPort }, call);
  }

  /** Those of its published ports that match: all that `guestPort` says, unless a port of this machine is named. */
  async unpublish(
    port: { readonly guestPort?: number; readonly hostAddress?: string; readonly hostPort?: number },
    options: CallOptions = {},
  ): Promise<readonly PublishedPort[]> {
    return (await this.#client.call('port.unpublish', { ...port, ref: this.id }, options)).removed;
  }

  /** Gives a running sandbox that has no main process one, and starts it. */
  async begin(main: Input<'main.begin'>['main'], options: CallOptions = {}): Promise<SandboxInfo> {
    return this.#became(await this.#client.call('main.begin', { ref: this.id, main }, options));
  }

  /** Records which git repository has been copied in: `prepareWorkspace` does both. */
  async recordWorkspace(
    workspace: Input<'workspace.put'>['workspace'],
    options: CallOptions = {},
  ): Promise<NonNullable<SandboxInfo['workspace']>> {
    const { workspace: recorded } = this.#became(await this.#client.call('workspace.put', { ref: this.id, workspace }, options));
    if (recorded === null) throw new Error('the record of a workspace was not kept');
    return recorded;
  }

  /** A byte stream to a port inside, or to a unix socket. */
  async connect(
    to: number | { readonly port: number; readonly host?: string } | { readonly unix: string },
    options: CallOptions = {},
  ): Promise<Duplex> {
    return await connectTunnel(this.#client, { ref: this.id, ...(typeof to === 'number' ? { port: to } : to) }, options);
  }

  /** What its main process has written; with `follow` also what it goes on to write. */
  async *logs(options: LogOptions = {}): AsyncGenerator<LogPiece, void, undefined> {
    const { own, call } = split(options);
    const { bytes } = await this.#client.download('sandbox.logs', { ...own, ref: this.id, source: 'main' }, call);
    const reader = new LogRecordReader();
    for await (const chunk of bytes) yield* reader.push(chunk);
  }

  /** The log of its boot (the console), or of the VMM. */
  async systemLog(source: 'boot' | 'vmm', options: LogOptions = {}): Promise<AsyncIterable<Uint8Array>> {
    const { own, call } = split(options);
    return (await this.#client.download('sandbox.logs', { ...own, ref: this.id, source }, call)).bytes;
  }

  async why(options: CallOptions = {}): Promise<Output<'why.get'>> {
    return await this.#client.call('why.get', { ref: this.id }, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#onDispose();
  }

  #became(info: SandboxInfo): SandboxInfo {
    this.info = info;
    return info;
  }
}

/** Deletes a sandbox that this program made; that it is gone already is as well. */
export async function deleteQuietly(client: ApiClient, id: string): Promise<void> {
  try {
    await client.call('sandbox.delete', { ref: id, force: true });
  } catch (error) {
    if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
  }
}

async function collect(stream: AsyncIterable<Uint8Array>, bytesMax: number, hear: RunOptions['onStdout']): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of stream) {
    bytes += chunk.byteLength;
    if (bytes > bytesMax)
      throw new HutchError({
        code: 'resource_exhausted',
        message: `the command wrote more than ${bytesMax} bytes`,
        hint: 'read it as a stream: sandbox.spawn()',
      });
    chunks.push(chunk);
    await hear?.(chunk);
  }
  return Buffer.concat(chunks);
}

function defined<T extends object>(members: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
