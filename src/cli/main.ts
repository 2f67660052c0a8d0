// The CLI's entry: finds the verb, runs it, tells what went wrong, and ends with a code of the table.
// It loads only what every verb needs: a verb's own file comes when it is asked for.
import { refuseUnknownVariables } from '../config/variables.ts';
import type { HutchError } from '../domain/errors.ts';
import { nearest } from '../domain/nearest.ts';
import { type Args, readArgs, usage } from './args.ts';
import type { Context } from './context.ts';
import { newClient } from './daemon.ts';
import { exitOf } from './exit-codes.ts';
import { tell, toHutchError } from './fail.ts';
import { newInterrupts } from './interrupts.ts';
import { newIo, ReaderGone } from './io.ts';
import { newProgressLine } from './progress.ts';
import { refuseLostBytes } from './text.ts';
import { type Branch, isBranch, type Leaf } from './verb.ts';
import { alsoCalled, firstWords, listedUnder, VERBS } from './verbs.ts';

/** What somebody who comes from Docker types, and what it is called here. */
const FROM_DOCKER: Readonly<Record<string, string>> = {
  ps: 'ls',
  kill: 'stop --force',
  top: 'stats',
  images: 'image ls',
  pull: 'image pull',
  push: 'image push',
  rmi: 'image rm',
  tag: 'image tag',
  load: 'image import',
  save: 'image export',
  commit: 'image commit',
  unpause: 'resume',
  info: 'doctor',
  port: 'ports',
  history: 'image history',
};
/** What other tools call a verb that most groups have. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  ...{ list: 'ls', remove: 'rm', delete: 'rm', del: 'rm', show: 'inspect', get: 'inspect', save: 'export', load: 'import' },
  ...{ resize: 'grow', pull: 'bring', push: 'prepare' },
};

type Found =
  | { readonly path: string; readonly leaf: Leaf; readonly argv: readonly string[] }
  | { readonly help: string; readonly code: number };

/** Given by start.ts: keeps the code that V8 has compiled until now. Not there when the sources run as they are. */
declare const __keepCode: (() => void) | undefined;

const argv = process.argv.slice(2);
const io = newIo();
const interrupts = newInterrupts();
const json = wantsJson(argv);
const progress = newProgressLine(io, json);
let passesExitCode = false;
let flags: Leaf['flags'] = [];

process.on('uncaughtException', (error) => void end(error));
process.on('unhandledRejection', (error) => void end(error));

// Nothing left to wait for, and no result: a bug of ours must not look like success.
process.on('beforeExit', () => void end(new Error('it ended before it had a result')));
main()
  .then(async (code) => {
    await io.flushed();
    process.exit(interrupts.exitCode ?? code);
  })
  .catch((error: unknown) => end(error));

async function main(): Promise<number> {
  const found = await find(argv);
  if ('help' in found) {
    leaveHotCode();
    await io.out(found.help);
    return found.code;
  }
  const { path, leaf } = found;
  passesExitCode = leaf.passesExitCode === true;
  flags = leaf.flags;
  const args: Args = readArgs(path, leaf, found.argv);
  if (args.has('help')) {
    const { leafHelp, leafJson } = await import('./help.ts');
    await io.out(json ? leafJson(path, leaf) : leafHelp(path, leaf));
    return 0;
  }
  refuseLostBytes(argv, leaf, args);
  const run = await leaf.load();
  // What is about the daemon itself must not start it.
  const start = isAboutDaemon(path) ? 'no' : 'when-needed';
  if (start === 'when-needed' || path === 'config show') refuseUnknownVariables(process.env);
  // When the first question is on its way: nothing waits for it then.
  setImmediate(() => setImmediate(leaveHotCode));
  const client = path === 'config completion' ? null : await newClient({ env: process.env, progress, start });
  return await run({ io, json, env: process.env, interrupts, progress, client, flags } as Context, args);
}

/**
 * V8 compiles hot code on threads of its own, and such a thread may wait for the collector of the main thread. When that waits for the
 * threads, as it does in process.exit, neither goes on, for good: nodejs/node#54918. What moves bytes here is not JavaScript, so nothing
 * is lost by leaving it as it is. Not before Node's modules are loaded: V8 takes no compiled code that was made under other flags than
 * it has by then, and compiles each of them anew (5 ms, of 50 that a short command takes). What we keep of ours is kept before, for
 * the same reason.
 */
function leaveHotCode(): void {
  if (typeof __keepCode === 'function') __keepCode();
  const { setFlagsFromString } = process.getBuiltinModule('node:v8');
  for (const flag of ['--no-maglev', '--no-turbofan', '--no-concurrent-sparkplug']) setFlagsFromString(flag);
}

function isAboutDaemon(path: string): boolean {
  return (
    (path.startsWith('daemon ') && path !== 'daemon backends') ||
    path === 'version' ||
    path.startsWith('config ') ||
    (path.startsWith('system ') && path !== 'system backup')
  );
}

async function find(words: readonly string[]): Promise<Found> {
  const [first, ...rest] = words;
  if (first === undefined || first === '--help' || first === '-h' || (first === 'help' && rest[0] === undefined)) {
    const { overview, overviewJson } = await import('./help.ts');
    return { help: json ? overviewJson() : overview(), code: first === undefined ? exitOf('usage') : 0 };
  }
  if (first === '--version') return await find(['version', ...rest]);
  if (first === '--json' && rest.some((word) => word !== '--json')) return await find([...rest, '--json']);
  if (first === 'help') return await find([...rest.filter((word) => !word.startsWith('-')), '--help']);
  if (first === '__complete') return { path: first, leaf: (await import('./verbs/complete.ts')).LEAF, argv: rest };
  const verb = VERBS.find(({ name }) => name === first);
  if (verb === undefined) {
    const also = alsoCalled(first);
    if (also !== undefined) return { ...also, argv: rest };
    passesExitCode = first === 'run' || first === 'exec';
    throw unknownVerb(first, 'hutch', firstWords());
  }
  if (!isBranch(verb)) return { path: verb.name, leaf: verb, argv: rest };
  const fallback = verb.subverbs.find(({ name }) => name === verb.fallback);
  // A flag first: with a fallback its value must not be taken for a subverb.
  const at = fallback !== undefined && rest[0]?.startsWith('-') === true ? -1 : rest.findIndex((word) => !word.startsWith('-'));
  const second = at < 0 ? undefined : rest[at];
  if (second === undefined) {
    if (rest.includes('--help') || rest.includes('-h')) {
      const { branchHelp, branchJson } = await import('./help.ts');
      return { help: json ? branchJson(verb) : branchHelp(verb), code: 0 };
    }
    if (fallback !== undefined) return { path: `${verb.name} ${fallback.name}`, leaf: fallback, argv: rest };
    throw usage(`hutch ${verb.name} needs one of ${within(verb).join(', ')}`, `see: hutch ${verb.name} --help`);
  }
  if (listedUnder(verb.name).some(({ name }) => name === second)) return await find([second, ...rest.toSpliced(at, 1)]);
  const leaf = verb.subverbs.find(({ name }) => name === second);
  if (leaf === undefined && fallback !== undefined && verb.fallbackTakes === 'words') {
    return { path: `${verb.name} ${fallback.name}`, leaf: fallback, argv: rest };
  }
  if (leaf === undefined) throw unknownVerb(second, `hutch ${verb.name}`, within(verb));
  return { path: `${verb.name} ${leaf.name}`, leaf, argv: rest.toSpliced(at, 1) };
}

/** What may stand behind the name of a group. */
function within(branch: Branch): readonly string[] {
  return [...branch.subverbs, ...listedUnder(branch.name)].map(({ name }) => name);
}

function unknownVerb(word: string, where: string, known: readonly string[]): HutchError {
  const ours = Object.hasOwn(ELSEWHERE, word) ? ELSEWHERE[word] : undefined;
  const meant =
    (where === 'hutch' && Object.hasOwn(FROM_DOCKER, word) ? FROM_DOCKER[word] : undefined) ??
    (ours !== undefined && known.includes(ours) ? ours : nearest(word, known));
  return usage(`${where} has no verb '${word}'`, meant === null ? `see: ${where} --help` : `did you mean ${where} ${meant}?`);
}

/** Before the command line is understood: an error in it is JSON too. */
function wantsJson(words: readonly string[]): boolean {
  const own = words.slice(0, words.includes('--') ? words.indexOf('--') : words.length);
  const first = own.findIndex((word) => !word.startsWith('-'));
  const verb = VERBS.find(({ name }) => name === own[first]);
  if (verb === undefined || isBranch(verb) || verb.command === undefined) return own.includes('--json');
  // After the sandbox (`exec`) or the first word (`run`) it belongs to the command.
  try {
    return readArgs(verb.name, { ...verb, command: 'optional' }, own.slice(first + 1)).has('json');
  } catch {
    return own.includes('--json');
  }
}

/** Every way out that is not a result. */
async function end(error: unknown): Promise<never> {
  progress.clear();
  let code = exitOf('readerGone');
  // Ctrl-C is how one ends `ls --watch` or `forward`: nothing went wrong, and nothing is left to say.
  if (interrupts.exitCode !== null && !json && error === interrupts.signal.reason) process.exit(interrupts.exitCode);
  if (!(error instanceof ReaderGone)) {
    try {
      code = await tell(io, toHutchError(error), { json, passesExitCode, flags });
      await io.flushed();
    } catch (failure) {
      if (!(failure instanceof ReaderGone)) throw failure;
    }
  }
  process.exit(interrupts.exitCode ?? code);
}
