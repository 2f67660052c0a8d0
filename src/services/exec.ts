// Commands in a sandbox: started once per id, followed by any number of clients over lost connections.
// A session that ends lets go of the command, which goes on; only a cancelled operation ends it.
import { createHash } from 'node:crypto';
import { HutchError } from '../domain/errors.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import { startFailureCode, startFailureText } from '../guest/exit-code.ts';
import { errnoOf } from '../guest/failure.ts';
import type { LinkedProcess } from '../guest/linked-process.ts';
import type { Operation } from '../host/operation.ts';
import type { Awaken } from './awaken.ts';
import { MAIN, OWN_PROCESS } from './bring-up.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { cutOff, endedOutOfMemory, endedTogether } from './cut-off.ts';
import type { ExecItem, ExecSession, ExecStarted, Handlers } from './handlers.ts';
import type { Place } from './kept-places.ts';
import { replayMain } from './main-replay.ts';
import { waitFor } from './operations.ts';
import { pause } from './pause.ts';
import { exitView, pathText } from './present.ts';
import type { Run } from './run.ts';
import { reach } from './runs.ts';
import { keepForUndo } from './undo.ts';

type ExecVerbs = 'exec.start' | 'exec.attach' | 'exec.list' | 'exec.signal';

/** Until the guest says that the command runs. */
const START_MS = 20_000;
/** A start that is answered later may wait for what carries its stream. */
const SILENT_MS = 2_000;
const END_MS = 5_000;

export function execVerbs(core: Core, awaken: Awaken): Pick<Handlers, ExecVerbs> {
  const { sandboxes, runs } = core;
  const claims = new Claims();

  async function targetOf(call: Call, ref: string): Promise<Sandbox> {
    const sandbox = await sandboxes.resolve(call.caller.projectId, ref);
    call.target(sandbox.id);
    return sandbox;
  }

  return {
    'exec.start': async (call, { ref, execId, request }) => {
      const { op } = call;
      const sandbox = await awaken.resolve(call, ref);
      const run = runs.of(op, sandbox);
      const id = execId ?? madeUpId(call);
      if (id === MAIN) throw op.error('invalid_argument', 'execId must not be main: that is the main process');
      const { argv, env, cwd, user, loginShell, terminal, stdin, timeoutMs, whenUnread, tag } = request;
      if ((sandbox.spec.undo ?? 0) > 0 && !(await isStarted(call, run, sandbox, id))) await keepForUndo(core, call, sandbox, argv, claims);
      const opening = within(op, run, sandbox, () =>
        run.link.start(op, {
          id,
          argv,
          stdin: stdin === 'open' ? 'pipe' : 'null',
          whenUnread,
          ...(env === undefined ? {} : { env }),
          ...(cwd === undefined ? {} : { cwd }),
          ...(user === undefined ? {} : { user }),
          ...(loginShell === undefined ? {} : { loginShell }),
          ...(terminal === undefined
            ? {}
            : { pty: { cols: terminal.cols, rows: terminal.rows, ...(terminal.term === undefined ? {} : { term: terminal.term }) } }),
          ...(timeoutMs === undefined ? {} : { lifetimeMs: timeoutMs }),
          ...(tag === undefined ? {} : { tag }),
        }),
      );
      try {
        return new Session(core, call, run, sandbox, await opening, { stdout: 0, stderr: 0 });
      } catch (error) {
        const exitCode = startFailureCode(error);
        if (exitCode === null && run.isOver && !op.signal.aborted)
          throw await cutOff(core, op, { run, name: sandbox.spec.name, execId: id }, error);
        if (exitCode === null || !(error instanceof HutchError)) throw error;
        const { message, hint } = startFailureText(argv[0] ?? '', error);
        return notStarted(
          id,
          exitCode,
          core.deps.host.nowMs(),
          op.error(error.code, message, {
            cause: error,
            ...(errnoOf(error) === 'EAGAIN'
              ? { hint: `it has as many processes as it may: end some, or hutch set --pids N ${sandbox.spec.name}` }
              : hint === undefined
                ? {}
                : { hint }),
          }),
        );
      }
    },

    'exec.attach': async (call, { ref, execId, stdoutOffset, stderrOffset, fromNow = false, input, inputOffset: _ }) => {
      const { op } = call;
      const sandbox = await awaken.resolve(call, ref);
      const wants = { stdout: stdoutOffset ?? 0, stderr: stderrOffset ?? 0 };
      if (execId === MAIN && sandbox.openComputeSinceMs === null) return await replayMain(core, op, sandbox, fromNow ? null : wants);
      const run = runs.of(op, sandbox);
      const isFirst = execId === MAIN && !fromNow && wants.stdout === 0 && wants.stderr === 0;
      const held = isFirst ? run.takeHeld() : null;
      const opening =
        held === null
          ? within(op, run, sandbox, async () => {
              if (execId === MAIN) await run.mainBegun;
              return await run.link.attach(op, {
                id: execId,
                ...(fromNow ? { fromNow } : { stdoutOffset: wants.stdout, stderrOffset: wants.stderr }),
                input: input ?? false,
              });
            })
          : Promise.resolve(held);
      const from = (process: LinkedProcess) => (fromNow ? process.offsets : wants);
      const opened = async (): Promise<LinkedProcess> => {
        const process = await opening;
        if (!fromNow) run.places.resumed(execId, wants);
        return process;
      };
      if (execId !== MAIN) {
        const process = await opened();
        return new Session(core, call, run, sandbox, process, from(process));
      }
      // The guest stays until everything is out of it that whoever follows its main process is to get.
      const followed = Promise.withResolvers<void>();
      run.follow(followed.promise);
      try {
        const process = await opened();
        return new Session(core, call, run, sandbox, process, from(process), followed.resolve);
      } catch (error) {
        followed.resolve();
        throw error;
      }
    },

    'exec.list': async (call, { ref }) => {
      const agent = await runs.agent(call.op, await targetOf(call, ref));
      const processes = await agent.process.list(call.op);
      return {
        execs: processes
          .filter(({ id }) => !id.startsWith(OWN_PROCESS))
          .map(({ id, pid, argv, tag, running, startedAtMs, exit }) => ({
            execId: id,
            pid,
            argv: argv.map(pathText),
            tag,
            running,
            startedAtMs,
            exit: exit === null ? null : exitView(exit),
          })),
      };
    },

    'exec.signal': async (call, { ref, execId, signal }) => {
      const agent = await runs.agent(call.op, await targetOf(call, ref));
      await agent.process.signal(call.op, execId, signal, 'group');
      return {};
    },
  };
}

/** A start that is repeated runs nothing. */
async function isStarted({ op }: Call, run: Run, { spec }: Sandbox, id: string): Promise<boolean> {
  const agent = await reach(op, spec.name, run);
  return (await agent.process.list(op)).some((process) => process.id === id);
}

/** A guest that hangs is `unavailable` in time; what still comes is let go of. */
async function within(op: Operation, run: Run, sandbox: Sandbox, open: () => Promise<LinkedProcess>): Promise<LinkedProcess> {
  await reach(op, sandbox.spec.name, run);
  const opening = open();
  using limited = op.within(START_MS, 'starting the command');
  const settled = new AbortController();
  try {
    const told = run.backend.carries === undefined ? opening : Promise.race([opening, carrierLost(limited, run, settled.signal)]);
    return await waitFor(limited, told, 'the guest');
  } catch (cause) {
    opening.then(
      (late) => late[Symbol.dispose](),
      () => {},
    );
    if (op.signal.aborted || !limited.signal.aborted) throw cause;
    await run.backend.carries?.(op, run.plan);
    throw op.error('unavailable', `the agent of sandbox ${sandbox.spec.name} does not answer`, { cause });
  } finally {
    settled.abort();
  }
}

/** Fails when an engine that carries the agent's stream hangs while the agent is waited for; else it never ends, but with `settled`. */
async function carrierLost(op: Operation, run: Run, settled: AbortSignal): Promise<never> {
  const { promise: never } = Promise.withResolvers<never>();
  while (!settled.aborted && !op.signal.aborted) {
    await pause(op, SILENT_MS, settled).catch(() => {}); // its time is up: whoever waits says so
    if (!settled.aborted && !op.signal.aborted) await run.backend.carries?.(op, run.plan);
  }
  return await never;
}

/** The same for a repeated request, so that its command runs once. */
function madeUpId(call: Call): string {
  const { idempotencyKey, caller, op } = call;
  if (idempotencyKey === null) return `x-${op.id.slice(3)}`;
  return `i-${createHash('sha256')
    .update(`${caller.keyId ?? ''}\n${idempotencyKey}`)
    .digest('hex')
    .slice(0, 32)}`;
}

class Session implements ExecSession {
  readonly started: ExecStarted;
  readonly #core: Core;
  readonly #call: Call;
  readonly #run: Run;
  readonly #sandbox: Sandbox;
  readonly #process: LinkedProcess;
  readonly #onDone: () => void;
  readonly #place: Place;
  #keepsPlace = false;

  constructor(
    core: Core,
    call: Call,
    run: Run,
    sandbox: Sandbox,
    process: LinkedProcess,
    from: { readonly stdout: number; readonly stderr: number },
    onDone: () => void = () => {},
  ) {
    this.#core = core;
    this.#call = call;
    this.#run = run;
    this.#sandbox = sandbox;
    this.#process = process;
    this.#onDone = onDone;
    this.#place = run.places.enter(process);
    const { id, pid, existing } = process;
    this.started = { execId: id, pid, stdoutOffset: from.stdout, stderrOffset: from.stderr, inputOffset: process.inputOffset, existing };
  }

  get #command() {
    return { run: this.#run, name: this.#sandbox.spec.name, execId: this.started.execId };
  }

  async *items(): AsyncGenerator<ExecItem, void, undefined> {
    try {
      for (;;) {
        const item = await this.#process.next(this.#call.op);
        if (item.type === 'end') continue;
        if (item.type === 'output') yield { type: 'output', channel: item.channel, bytes: item.bytes };
        else if (item.type === 'exit') {
          // All before it has been taken out of the guest: its end need not wait until the client has heard.
          this.#onDone();
          const error = await endedTogether(this.#core, this.#call.op, this.#command, item.exit);
          yield { type: 'exit', exit: { ...exitView(item.exit), error } };
          return;
        } else yield item;
      }
    } catch (error) {
      if (this.#call.op.signal.aborted || !this.#run.isOver) throw error;
      const killed = await endedOutOfMemory(this.#core, this.#call.op, this.#command, this.#process.offsets);
      if (killed !== null) {
        this.#onDone();
        yield { type: 'exit', exit: killed };
        return;
      }
      throw await cutOff(this.#core, this.#call.op, this.#command, error);
    }
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#process.write(this.#call.op, bytes);
  }

  async endInput(): Promise<void> {
    this.#process.endInput();
  }

  async resize(size: { readonly cols: number; readonly rows: number }): Promise<void> {
    await (await this.#run.link.agent(this.#call.op)).process.resize(this.#call.op, this.#process.id, size);
  }

  async signal(signal: string): Promise<void> {
    await (await this.#run.link.agent(this.#call.op)).process.signal(this.#call.op, this.#process.id, signal, 'group');
  }

  onInputAccepted(listener: (offset: number) => void): void {
    this.#process.onInputAccepted(listener);
  }

  keepPlace(): void {
    this.#keepsPlace = true;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#keepsPlace && !this.#call.wasCancelled() && !this.#run.isOver) this.#place.keep();
    else this.#place.leave();
    this.#onDone();
    if (!this.#call.wasCancelled()) return;
    const { op } = this.#call;
    using late = op.releasing(END_MS);
    try {
      await (await this.#run.link.agent(late)).process.signal(late, this.#process.id, 'KILL', 'group');
    } catch (cause) {
      if (!(cause instanceof HutchError && (cause.code === 'not_found' || cause.code === 'failed_precondition'))) {
        op.log.warn({ sandbox: this.#run.id, cause }, 'a cancelled command could not be ended');
      }
    }
  }
}

/** A command whose program cannot be executed has an exit code all the same, as in a shell. */
function notStarted(execId: string, exitCode: number, endedAtMs: number, error: HutchError): ExecSession {
  return {
    started: { execId, pid: 0, stdoutOffset: 0, stderrOffset: 0, inputOffset: 0, existing: false },
    async *items() {
      yield {
        type: 'exit',
        exit: {
          exitCode,
          signal: null,
          oomKilled: false,
          reason: 'not-started',
          stdoutBytes: 0,
          stderrBytes: 0,
          endedAtMs,
          error: error.toBody(),
        },
      };
    },
    write: async () => {},
    endInput: async () => {},
    resize: async () => {},
    signal: async () => {},
    onInputAccepted: () => {},
    keepPlace: () => {},
    [Symbol.asyncDispose]: async () => {},
  };
}
