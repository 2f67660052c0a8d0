// What happens in the sandbox that becomes a template: its start command is begun, and what must be so before it is written down
// is waited for. Each failure names what was tried, its exit code and its last words.
import { HutchError } from '../../domain/errors.ts';
import { exitCode, startFailureCode } from '../../guest/exit-code.ts';
import type { LinkedProcess } from '../../guest/linked-process.ts';
import { delay } from '../../guest/wait.ts';
import type { Operation } from '../../host/operation.ts';
import { OWN_PROCESS } from '../bring-up.ts';
import type { BuildLog } from '../build-log.ts';
import type { Run } from '../run.ts';
import { reach } from '../runs.ts';
import { SCRUB, SCRUB_HOOKS, SCRUB_MS } from '../scrub.ts';
import type { Parsed } from '../verbs.ts';

export type Ready = NonNullable<Parsed<'template.build'>['ready']>;

/** The id of the start command in the guest: an exec of each sandbox that is made from it. */
export const START = 'start';
const AGAIN_MS = 100;
/** Beyond the time in which it must be so. */
const LAST_TRY_MS = 30_000;
const WORDS_CHARS_MAX = 300;

/** Of a template that is being built. */
export type Stage = { readonly name: string; readonly buildId: string; readonly run: Run; readonly log: BuildLog };

type Ended = { readonly code: number; readonly words: string };

/** The start command, which goes on; disposing it lets go of its output. */
export class StartCommand implements Disposable {
  readonly shown: string;
  readonly #stage: Stage;
  readonly #over = new AbortController();
  #ended: Ended | null = null;

  private constructor(stage: Stage, shown: string) {
    this.#stage = stage;
    this.shown = shown;
  }

  static async begin(op: Operation, stage: Stage, argv: readonly string[]): Promise<StartCommand> {
    const command = new StartCommand(stage, shownArgv(argv));
    try {
      const process = await stage.run.link.start(op, { id: START, argv: [...argv], stdin: 'null', whenUnread: 'drop' });
      void command.#follow(op, process);
    } catch (error) {
      const code = startFailureCode(error);
      if (code === null || !(error instanceof HutchError)) throw error;
      throw failed(op, stage, `the start command of template ${stage.name}: exit code ${code}: ${command.shown}; ${error.message}`);
    }
    return command;
  }

  /** @throws HutchError when it has ended in failure. */
  check(op: Operation): void {
    if (this.#ended === null || this.#ended.code === 0) return;
    const { code, words } = this.#ended;
    throw failed(op, this.#stage, `the start command of template ${this.#stage.name}: exit code ${code}: ${this.shown}${lastWords(words)}`);
  }

  [Symbol.dispose](): void {
    this.#over.abort();
  }

  async #follow(op: Operation, process: LinkedProcess): Promise<void> {
    const following = { ...op, signal: AbortSignal.any([op.signal, this.#over.signal]) };
    this.#ended = await toItsEnd(following, this.#stage.log, START, process).catch(() => null); // nobody listens any more
  }
}

/** @throws HutchError `failed_precondition` when it is not so in time, or the start command has failed. */
export async function untilReady(op: Operation, stage: Stage, ready: Ready, start: StartCommand | null): Promise<void> {
  if (ready.waitMs !== undefined) {
    for (let leftMs = ready.waitMs; leftMs > 0; leftMs -= AGAIN_MS) {
      await delay(op, Math.min(leftMs, AGAIN_MS));
      start?.check(op);
    }
    return;
  }
  const untilMs = performance.now() + ready.timeoutMs;
  for (let tries = 1; ; tries += 1) {
    start?.check(op);
    // What is under way when the time is over may end: how it ends is what somebody wants to know.
    using limited = op.within(Math.max(0, untilMs - performance.now()) + LAST_TRY_MS, 'one try of the ready check');
    const why = await tried(limited, stage, ready, tries).catch((error: unknown) => {
      if (op.signal.aborted || !limited.signal.aborted) throw error;
      return 'it does not end';
    });
    if (why === null) return;
    if (performance.now() >= untilMs) {
      start?.check(op);
      const seconds = ready.timeoutMs / 1_000;
      throw failed(op, stage, `the ready check of template ${stage.name} was not met within ${seconds} s: ${shownCheck(ready)}: ${why}`);
    }
    await delay(op, AGAIN_MS);
  }
}

/** Why it is not ready; null: it is. */
async function tried(op: Operation, stage: Stage, ready: Ready, tries: number): Promise<string | null> {
  const { command, port, path } = ready;
  if (command !== undefined) {
    const { code, words } = await ran(op, stage, `ready-${tries}`, command, 'only-at-the-end');
    return code === 0 ? null : `exit code ${code}${lastWords(words)}`;
  }
  const agent = await reach(op, stage.name, stage.run);
  try {
    if (port !== undefined) (await agent.connect(op, { tcp: { port } }))[Symbol.dispose]();
    else if (path !== undefined) await agent.file.stat(op, { path, follow: true });
    return null;
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError) || error.code === 'cancelled') throw error;
    return error.message.slice(0, WORDS_CHARS_MAX);
  }
}

/** What must not be in any sandbox of it goes: by the hooks of its image. */
export async function scrub(op: Operation, stage: Stage): Promise<void> {
  using limited = op.within(SCRUB_MS, 'the scrub hooks');
  const { code, words } = await ran(limited, stage, 'scrub', SCRUB, 'as-it-comes', 'root');
  if (code !== 0)
    throw failed(op, stage, `the scrub hooks of template ${stage.name} in ${SCRUB_HOOKS}: exit code ${code}${lastWords(words)}`);
}

async function ran(
  op: Operation,
  { run, log }: Stage,
  what: string,
  argv: readonly string[],
  output: 'as-it-comes' | 'only-at-the-end',
  user?: string,
): Promise<Ended> {
  try {
    const id = `${OWN_PROCESS}${what}`;
    const spec = { id, argv: [...argv], stdin: 'null', whenUnread: 'drop', ...(user === undefined ? {} : { user }) } as const;
    return await toItsEnd(op, output === 'as-it-comes' ? log : null, what, await run.link.start(op, spec));
  } catch (error) {
    const code = startFailureCode(error);
    if (code === null || !(error instanceof HutchError)) throw error;
    return { code, words: error.message };
  }
}

/** Its output goes to the log where there is one. */
async function toItsEnd(op: Operation, log: BuildLog | null, stage: string, process: LinkedProcess): Promise<Ended> {
  let words = '';
  const keep = (line: string): void => {
    if (line.trim() !== '') words = line.slice(0, WORDS_CHARS_MAX);
  };
  const decoder = new TextDecoder();
  const output = log?.output(stage, [], keep);
  try {
    for await (const item of process.items(op)) {
      if (item.type === 'output') {
        output?.write(item.channel, item.bytes);
        if (output === undefined) for (const line of decoder.decode(item.bytes, { stream: true }).split('\n')) keep(line);
      }
      if (item.type === 'exit') {
        output?.end();
        return { code: exitCode(item.exit), words };
      }
    }
  } finally {
    process[Symbol.dispose]();
  }
  throw op.error('unavailable', 'a command ended without an exit');
}

function failed(op: Operation, { buildId }: Stage, message: string): HutchError {
  return op.error('failed_precondition', message, { hint: `mend it and build again; what it said: hutch image build-logs ${buildId}` });
}

export function shownCheck({ command, port, path, waitMs }: Ready): string {
  if (command !== undefined) return shownArgv(command);
  if (waitMs !== undefined) return `${waitMs / 1_000} s are over`;
  return port === undefined ? `${path} is there` : `port ${port} answers`;
}

/** What a shell would be told, where it is one. */
export function shownArgv(argv: readonly string[]): string {
  const [shell, flag, script] = argv;
  const text = argv.length === 3 && shell === 'sh' && flag === '-c' ? (script ?? '') : argv.join(' ');
  return text.trim().replaceAll('\n', '; ').slice(0, WORDS_CHARS_MAX);
}

function lastWords(words: string): string {
  return words === '' ? '' : `; its last words: ${words}`;
}
