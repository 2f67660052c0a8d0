import type { LayerAccess } from '../backends/backend.ts';
import type { SandboxId } from '../domain/ids.ts';
import type { BackendName } from '../domain/sandbox.ts';
import type { Agent } from '../guest/agent.ts';
import type { Exit } from '../guest/messages.ts';
import type { Operation } from '../host/operation.ts';
import { broughtBy, changedLayer, type LayerRef, removalsOf, type StageRoot, writeLayer } from '../images/build/layers.ts';
import { diffScans, parseScan, type Scan } from '../images/build/scan.ts';
import type { BuildStaging } from '../images/build/staging.ts';
import { RunDirectory } from './build-run-directory.ts';
import type { Caller } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import type { Run } from './run.ts';
import { reach } from './runs.ts';

/** On a sandbox: the build that it is for. */
export const BUILD_LABEL = 'hutch.build';
/** In the sandbox, in memory: what a build brings and no layer has. */
export const BUILD_DIR = '/run/hutch-build';
const AGENT_ITSELF = '/proc/1/exe';
const TOOL_MS = 10 * 60_000;
const RELEASE_MS = 120_000;
const LIST_BYTES_MAX = 512 * 1024 * 1024;
/** A file that changes within a tick of the clock by which the last look was taken would look as it did. */
const TICK_MS = 12;
/** Bound over the image's by the sandbox itself, or written by it. */
const NEVER_KEPT = new Set(['etc/hosts', 'etc/hostname', 'etc/resolv.conf', 'etc/ld.so.hutch', 'run', 'proc', 'sys', 'dev', '.dockerenv']);

export type Shape = { readonly cpus?: number | undefined; readonly memoryMiB?: number | undefined; readonly diskMiB?: number | undefined };

export type SandboxParts = {
  readonly core: Core;
  readonly handlers: Pick<Handlers, 'sandbox.create' | 'sandbox.delete'>;
  readonly caller: Caller;
  readonly buildId: string;
  readonly staging: BuildStaging;
};

export type Command = {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly user: string;
};

export class StageSandbox implements AsyncDisposable {
  readonly id: SandboxId;
  readonly #parts: SandboxParts;
  readonly #run: Run;
  readonly #access: LayerAccess;
  readonly #runDirectory: RunDirectory;
  /** Layers of the stage that are in it. */
  #applied: number;
  #processes = 0;
  #scan: Scan | null = null;
  #lookedAtMs = Number.NEGATIVE_INFINITY;

  private constructor(parts: SandboxParts, id: SandboxId, run: Run, access: LayerAccess, applied: number) {
    this.#parts = parts;
    this.id = id;
    this.#run = run;
    this.#access = access;
    this.#applied = applied;
    this.#runDirectory = new RunDirectory();
  }

  /** From an image that has the first `applied` layers of the stage. */
  static async open(
    op: Operation,
    parts: SandboxParts,
    how: { readonly image: string; readonly applied: number; readonly backend: BackendName; readonly name: string; readonly shape: Shape },
  ): Promise<StageSandbox> {
    const { core, handlers, caller, buildId } = parts;
    const { cpus, memoryMiB, diskMiB } = how.shape;
    const made = await core.operations.run(
      { verb: 'sandbox.create', caller, reads: false, signal: op.signal, onProgress: (progress) => op.progress(progress) },
      async (call) =>
        await handlers['sandbox.create'](call, {
          name: how.name,
          image: how.image,
          backend: how.backend,
          labels: { [BUILD_LABEL]: buildId },
          ...(cpus === undefined ? {} : { cpus }),
          ...(memoryMiB === undefined ? {} : { memoryMiB }),
          ...(diskMiB === undefined ? {} : { diskMiB }),
        }),
    );
    const id = made.id as SandboxId;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => removeBuildSandbox(parts, op, id));
    const run = core.runs.get(id);
    if (run === null) throw op.error('unavailable', 'the sandbox of the build has ended');
    if (run.backend.layerAccess === undefined) {
      throw op.error(
        'failed_precondition',
        `the backend ${run.backend.name} cannot build: what a step changed cannot be told from its image there`,
        {
          hint: 'take another one: --backend gvisor or --backend qemu',
        },
      );
    }
    const access = await run.backend.layerAccess(op, run.plan);
    const sandbox = new StageSandbox(parts, id, run, access, how.applied);
    const agent = await sandbox.agent(op);
    await agent.file.mkdir(op, { path: BUILD_DIR, parents: true, mode: 0o755, user: '0' });
    undo.move();
    return sandbox;
  }

  async agent(op: Operation): Promise<Agent> {
    return await reach(op, this.#run.plan.name, this.#run);
  }

  /** The layers of the stage that are not in it yet: made elsewhere, or by an earlier build. */
  async bring(op: Operation, root: StageRoot): Promise<void> {
    const agent = await this.agent(op);
    const left = root.sources(op).slice(this.#applied);
    if (left.length === 0) return await this.#runDirectory.noteFirst(op, agent);
    op.progress({ step: 'build', detail: 'taking over what is built already' });
    const removals = await Promise.all(left.map(removalsOf));
    // As many at once as no removal stands between.
    for (let from = 0; from < left.length; ) {
      const next = removals.findIndex((paths, at) => at > from && paths.length > 0);
      const to = next < 0 ? left.length : next;
      const paths = removals[from] ?? [];
      if (paths.length > 0) await this.tool(op, ['remove'], pathsOf(paths));
      await agent.tar.unpack(op, { path: '/', preserveOwner: true, user: '0' }, broughtBy(left.slice(from, to)));
      this.#applied += to - from;
      from = to;
    }
    this.#scan = null;
    await this.#runDirectory.note(op, agent);
  }

  /** Before the first command, and after what is not the command's doing. */
  async settle(op: Operation): Promise<void> {
    this.#scan ??= await this.#look(op);
  }

  async forgetLook(): Promise<void> {
    this.#scan = null;
  }

  /** Runs a command to its end; its output as it comes. */
  async execute(op: Operation, command: Command, onOutput: (channel: 'stdout' | 'stderr', bytes: Uint8Array) => void): Promise<Exit> {
    const { host } = this.#parts.core.deps;
    const tooEarlyMs = this.#lookedAtMs + TICK_MS - host.monotonicMs();
    if (tooEarlyMs > 0) await pause(tooEarlyMs);
    this.#processes += 1;
    using process = await this.#run.link.start(op, {
      id: `build-${this.#processes}`,
      argv: command.argv.map((argument) => argument),
      env: command.env,
      cwd: command.cwd,
      user: command.user,
      stdin: 'null',
      whenUnread: 'block',
    });
    for await (const item of process.items(op)) {
      if (item.type === 'output') onOutput(item.channel, item.bytes);
      if (item.type === 'exit') return item.exit;
    }
    throw op.error('unavailable', 'the command of a build ended without an exit');
  }

  /** What the last command left running is ended: the next one begins with files alone, as in a container of its own. */
  async quiet(op: Operation): Promise<void> {
    await this.tool(op, ['kill'], null);
  }

  /** What has changed since `settle` or the last capture, as a layer; null: nothing. */
  async capture(
    op: Operation,
    {
      outside,
      clampMtimeSeconds,
      forbidden,
    }: { readonly outside: readonly string[]; readonly clampMtimeSeconds: number | null; readonly forbidden: readonly string[] },
  ): Promise<LayerRef | null> {
    const { core, staging } = this.#parts;
    const agent = await this.agent(op);
    const before = this.#scan ?? new Map();
    const [after, inRun] = await Promise.all([this.#look(op), this.#runDirectory.changes(op, agent)]);
    this.#scan = after;
    const own = outside.map((path) => path.replace(/^\/+/, ''));
    const isOutside = (path: string) =>
      NEVER_KEPT.has(path) || path.startsWith('run/') || own.some((each) => each !== '' && (path === each || path.startsWith(`${each}/`)));
    const diff = diffScans(before, after, isOutside);
    const changed = diff.changed.filter(({ path }) => path !== '');
    if (changed.length + diff.removed.length + inRun.removed.length === 0 && inRun.archive === null) return null;
    const file = await staging.file(op, `changes-${this.id}-${this.#processes}.tar`);
    try {
      await this.#pack(
        op,
        changed.map(({ from, path }) => `${from}${path}`),
        file,
      );
      const layer = changedLayer({
        removed: [...diff.removed, ...inRun.removed],
        opaque: diff.opaque,
        archives: [core.deps.host.readStream(op, file), ...(inRun.archive === null ? [] : [inRun.archive])],
        clampMtimeSeconds,
        forbidden,
      });
      const written = await writeLayer(op, staging, layer);
      this.#applied += 1;
      return written;
    } finally {
      await core.deps.host.remove(op, file);
    }
  }

  /** `hutch-agent --layer …` as root in the sandbox. */
  async tool(op: Operation, args: readonly string[], input: Uint8Array | null): Promise<Buffer> {
    const pieces: Buffer[] = [];
    await this.#inside(op, args, input, (bytes) => void pieces.push(Buffer.from(bytes)));
    return Buffer.concat(pieces);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { core } = this.#parts;
    await core.operations.run(
      { verb: 'daemon.end', caller: this.#parts.caller, reads: true },
      async ({ op }) => await removeBuildSandbox(this.#parts, op, this.id),
    );
  }

  async #look(op: Operation): Promise<Scan> {
    const agent = await this.agent(op);
    await agent.sync(op);
    const { upper, merged } = this.#access;
    const listed =
      this.#access.where === 'host'
        ? await this.#onHost(op, this.#access.tool, ['list', upper, merged])
        : await this.tool(op, ['list', upper, merged], null);
    this.#lookedAtMs = this.#parts.core.deps.host.monotonicMs();
    return parseScan(listed);
  }

  async #onHost(op: Operation, tool: readonly string[], args: readonly string[]): Promise<Buffer> {
    const { host } = this.#parts.core.deps;
    const { exitCode, stdout, stderr } = await host.run(op, [...tool, '--layer', ...args], { outputBytesMax: LIST_BYTES_MAX });
    if (exitCode === 0) return Buffer.from(stdout);
    throw op.error('internal', `the files of a step cannot be looked at: ${said(stderr)}`);
  }

  async #pack(op: Operation, paths: readonly string[], file: string): Promise<void> {
    const { host } = this.#parts.core.deps;
    const { upper, merged } = this.#access;
    const input = pathsOf(paths);
    if (this.#access.where === 'guest') {
      const { readable, write, end } = queue();
      const packing = this.#inside(op, ['pack', upper, merged], input, write).then(end, (error: unknown) => end(error));
      await host.appendStream(op, file, readable);
      await packing;
      return;
    }
    // The shell only opens the output; all names are arguments of its own, never part of the command.
    const argv = ['sh', '-c', 'out=$1; shift; exec "$@" > "$out"', 'sh', file, ...this.#access.tool, '--layer', 'pack', upper, merged];
    const { exitCode, stderr } = await host.run(op, argv, { input });
    if (exitCode !== 0) throw op.error('internal', `the files of a step cannot be packed: ${said(stderr)}`);
  }

  async #inside(
    op: Operation,
    args: readonly string[],
    input: Uint8Array | null,
    onOutput: (bytes: Uint8Array) => void | Promise<void>,
  ): Promise<void> {
    using limited = op.within(TOOL_MS, 'looking at the files of a step');
    this.#processes += 1;
    using process = await this.#run.link.start(limited, {
      id: `build-tool-${this.#processes}`,
      argv: [AGENT_ITSELF, '--layer', ...args],
      cwd: '/',
      user: '0',
      stdin: input === null ? 'null' : 'pipe',
      whenUnread: 'block',
    });
    const writing =
      input === null
        ? Promise.resolve()
        : process.write(limited, input).then(
            () => process.endInput(),
            () => {}, // the exit says why
          );
    const errors: Buffer[] = [];
    for await (const item of process.items(limited)) {
      if (item.type === 'output') {
        if (item.channel === 'stdout') await onOutput(item.bytes);
        else errors.push(Buffer.from(item.bytes));
      }
      if (item.type !== 'exit') continue;
      await writing;
      if (item.exit.code === 0) return;
      throw op.error('internal', `the files of a step cannot be looked at: ${said(Buffer.concat(errors))}`);
    }
  }
}

/** Whether it is there or not, whoever has cancelled what. */
export async function removeBuildSandbox(
  { core, handlers, caller }: Pick<SandboxParts, 'core' | 'handlers' | 'caller'>,
  op: Operation,
  id: SandboxId,
): Promise<void> {
  using late = op.releasing(RELEASE_MS);
  try {
    await core.operations.run(
      { verb: 'sandbox.delete', caller, reads: false, signal: late.signal },
      async (call) => await handlers['sandbox.delete'](call, { ref: id, force: true }),
    );
  } catch (cause) {
    op.log.warn({ sandbox: id, cause }, 'the sandbox of a build was left; the next start removes it');
  }
}

export function pathsOf(paths: readonly string[]): Uint8Array {
  return Buffer.from(paths.map((path) => `${path}\0`).join(''), 'latin1');
}

function said(bytes: Uint8Array): string {
  return Buffer.from(bytes)
    .toString()
    .replace(/^hutch-agent: /, '')
    .trim()
    .slice(0, 400);
}

async function pause(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms));
}

/** What is written comes out in order; a write waits until the one before was taken. */
function queue(): { readonly readable: AsyncIterable<Uint8Array>; write(bytes: Uint8Array): Promise<void>; end(error?: unknown): void } {
  let waiting: { readonly bytes: Uint8Array; readonly taken: () => void } | null = null;
  let ended: { readonly error: unknown } | null = null;
  let wake = (): void => {};
  async function* read(): AsyncGenerator<Uint8Array> {
    for (;;) {
      if (waiting !== null) {
        const { bytes, taken } = waiting;
        waiting = null;
        yield bytes;
        taken();
        continue;
      }
      if (ended !== null) {
        if (ended.error !== undefined) throw ended.error;
        return;
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
  return {
    readable: read(),
    write: (bytes) =>
      new Promise<void>((taken) => {
        waiting = { bytes, taken };
        wake();
      }),
    end: (error) => {
      ended = { error };
      wake();
    },
  };
}
