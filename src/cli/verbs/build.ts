// hutch build: a Dockerfile and its context in, an image out; and the builds that were.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { PackageSettings } from '../../domain/package-settings.ts';
import { GIB, MIB, parseSize } from '../../domain/size.ts';
import { errorFromBody } from '../../sdk/errors.ts';
import type { Input, Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { contentOrNull, contextOf, nameInContext, settingsArchive, sourceOf } from '../build/context.ts';
import { clearedDigestFile, writeDigestFile } from '../build/iidfile.ts';
import { packageSettings } from '../build/package-settings.ts';
import { percentDone } from '../build/percent.ts';
import { secretsOf } from '../build/secrets.ts';
import { ask, type Context, change } from '../context.ts';
import { resumed } from '../follow.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, safeLine, table } from '../output.ts';
import { wholeNumber } from '../spec.ts';

type Build = Output<'build.get'>;
type Begun = Output<'build.start'>;
type Line = Output<'build.logs'>;
const LINES_MAX = 1_000_000_000;
/** A build out of the cache is over by then, and needs no second question. */
const CACHED_MS = 150;

/** What is said of no stage. */
const WHOLE_BUILD = 'build';

type Progress = 'plain' | 'tty' | 'json' | 'quiet';

export async function build(context: Context, args: Args): Promise<number> {
  const place = args.first();
  const file = args.value('file');
  const source = sourceOf(place, file ?? null);
  const isLocal = source.kind === 'directory';
  if (file === '-' && source.kind === 'stdin') throw usage('the Dockerfile and the context cannot both come on stdin');
  const name = file === undefined || file === '-' ? undefined : isLocal ? (nameInContext(place, file) ?? undefined) : file;
  const isSent = file === '-' || (isLocal && file !== undefined);
  const dockerfile = !isSent ? null : file === '-' ? await stdin() : readOr(file ?? '', `${file} cannot be read`);
  const ignore = isLocal && file !== undefined && file !== '-' ? contentOrNull(`${file}.dockerignore`) : null;
  if (isLocal && file === undefined && contentOrNull(join(place, 'Dockerfile')) === null)
    readOr(join(place, 'dockerfile'), `there is no Dockerfile in ${place}`);
  const input: Input<'build.start'> = {
    ...(name === undefined ? {} : { dockerfile: name }),
    ...(args.values('tag').length === 0 ? {} : { tag: [...args.values('tag')] }),
    ...(args.values('build-arg').length === 0 ? {} : { arg: args.values('build-arg').flatMap((text) => argOf(context, text)) }),
    ...(args.values('label').length === 0 ? {} : { label: [...args.values('label')] }),
    ...(args.value('platform') === undefined ? {} : { platform: args.value('platform') }),
    ...(args.has('pull') ? { pull: true } : {}),
    ...(args.value('target') === undefined ? {} : { target: args.value('target') }),
    ...(args.has('no-cache') ? { noCache: true } : {}),
    ...(args.value('backend') === undefined ? {} : { backend: args.value('backend') as 'gvisor' }),
    ...(args.value('cpus') === undefined ? {} : { cpus: Number(args.value('cpus')) }),
    ...(args.value('memory') === undefined ? {} : { memoryMiB: mebibytes('memory', args.value('memory') ?? '') }),
    ...(args.value('disk') === undefined ? {} : { diskMiB: mebibytes('disk', args.value('disk') ?? '') }),
  };
  const isDetached = args.has('detach');
  const iidfile = args.value('iidfile');
  if (iidfile !== undefined && isDetached)
    throw usage('--iidfile and --detach exclude each other', 'its digest comes later: hutch image build-inspect BUILD');
  const digestFile = iidfile === undefined ? null : await clearedDigestFile(iidfile);
  const lends = !args.has('no-package-settings') && isOwnMachine(context);
  // A build out of the cache needs none, and to collect them takes a tenth of it.
  const lendsLater = lends && !isDetached;
  const settings = () => (lends && !lendsLater ? ownSettings(context, args) : null);
  const extra = { dockerfile, ignore, secrets: secretsOf(context.env, args.values('secret')), settings };
  const { signal } = context.interrupts;
  context.progress.show({ step: 'sending the context', detail: place });
  const sent = new Sent(contextOf(source, extra, signal));
  const progress = progressOf(context, args);
  const asked = {
    ...input,
    ...(isDetached ? {} : { waitMs: CACHED_MS }),
    ...(isDetached || progress === 'quiet' ? {} : { log: true }),
    ...(lendsLater ? { settings: 'later' as const } : {}),
  };
  const started = await context.client
    .upload('build.start', asked, sent, { signal })
    .catch((error: unknown) => Promise.reject(sent.failure ?? error))
    .finally(() => context.progress.clear());
  if (isDetached) {
    await context.io.out(context.json ? json(started) : `${started.id}\n`);
    return 0;
  }
  if (lendsLater && started.state === 'running')
    await context.client.upload('build.settings', { build: started.id }, settingsArchive(await ownSettings(context, args)));
  return await follow(
    context,
    started,
    progress,
    ({ image }) => String(image?.digest),
    async ({ image }) => {
      if (digestFile !== null && image !== null) await writeDigestFile(digestFile, image.digest);
    },
  );
}

/** What is sent, and why it ended too early: the connection that breaks with it says only that it broke. */
class Sent implements AsyncIterable<Uint8Array> {
  readonly #chunks: AsyncIterable<Uint8Array>;
  failure: unknown = null;

  constructor(chunks: AsyncIterable<Uint8Array>) {
    this.#chunks = chunks;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    try {
      yield* this.#chunks;
    } catch (error) {
      this.failure = error;
      throw error;
    }
  }
}

/** Whether the daemon is on this machine: one elsewhere has ways of its own to reach registries. */
function isOwnMachine({ env }: Context): boolean {
  const url = env['HUTCH_API_URL'] ?? '';
  return url === '' || url.startsWith('unix:');
}

async function ownSettings({ env, io }: Context, args: Args): Promise<PackageSettings> {
  const { settings, left } = await packageSettings({ env, root: '/' });
  if (!args.has('quiet')) for (const each of left) await io.err(`note: not given to the build: ${each}\n`);
  return settings;
}

function readOr(path: string, message: string): Buffer {
  const content = contentOrNull(path);
  if (content === null) throw usage(message, 'give the directory with the Dockerfile, or the Dockerfile with -f');
  return content;
}

export async function stdin(): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of process.stdin) pieces.push(piece as Buffer);
  return Buffer.concat(pieces);
}

/** `K=V`; `K` alone takes our own variable. */
function argOf({ env }: Context, text: string): readonly string[] {
  if (text.includes('=')) return [text];
  const own = env[text];
  return own === undefined ? [] : [`${text}=${own}`];
}

function mebibytes(flag: string, text: string): number {
  const parsed = parseSize(text, { what: `--${flag}`, min: MIB, max: 128n * 1024n * GIB });
  if (!parsed.ok) throw usage(parsed.message, parsed.hint);
  return Number(parsed.value / MIB);
}

export function progressOf(context: Context, args: Args): Progress {
  const asked = args.value('progress');
  if (context.json || asked === 'json') return 'json';
  if (args.has('quiet')) return 'quiet';
  return asked === 'tty' || (asked === undefined && context.io.isTerminal.stderr) ? 'tty' : 'plain';
}

/** Until it ends. An interrupt cancels it, and waits for that. */
export async function follow(
  context: Context,
  begun: Begun,
  progress: Progress,
  made: (ended: Build) => string,
  kept: (ended: Build) => Promise<void> = async () => {},
): Promise<number> {
  const { log: said, ...before } = begun;
  const { id } = before;
  const isOver = begun.state !== 'running';
  let isCancelled = false;
  const onInterrupt = (): void => {
    isCancelled = true;
    context.progress.show({ step: 'cancelling' });
    context.client.call('build.cancel', { build: id }, {}).catch(() => {}); // too late is no error: the record says how it ended
  };
  context.interrupts.signal.addEventListener('abort', onInterrupt, { once: true });
  if (context.interrupts.signal.aborted) onInterrupt();
  const plain = plainLines();
  const percent = percentDone(begun.stepsTotal);
  try {
    if (!isOver || progress !== 'quiet')
      for await (const line of said ?? logLines(context, id, !isOver, null, {})) await show(context, line, progress, plain, percent(line));
  } catch (error) {
    if (!isCancelled) throw error;
  } finally {
    context.progress.clear();
  }
  const ended = isOver ? before : await context.client.call('build.get', { build: id }, {});
  if (progress === 'json') await context.io.out(`${JSON.stringify(ended)}\n`);
  // What a line that rewrites itself has shown, or nobody: the last of it, where it went wrong.
  if (ended.state === 'failed' && (progress === 'tty' || progress === 'quiet'))
    await context.io.err(ended.logTail.map((text) => `  ${safeLine(text)}\n`).join(''));
  // By us, for whoever typed Ctrl-C: not somebody else's doing.
  if (isCancelled && ended.state === 'cancelled')
    throw new HutchError({
      code: 'cancelled',
      message: 'interrupted; what was begun is cleaned up',
      ...(ended.opId === null ? {} : { opId: ended.opId }),
    });
  if (ended.state !== 'done') throw errorFromBody(ended.error, { opId: ended.opId });
  await kept(ended);
  if (progress !== 'json') await context.io.out(`${made(ended)}\n`);
  return 0;
}

function logLines(
  context: Context,
  build: string,
  following: boolean,
  from: number | null,
  until: { readonly signal?: AbortSignal },
): AsyncGenerator<Line, void, undefined> {
  return resumed<Line>(context, {
    open: (after) =>
      context.client.lines('build.logs', { build, ...(following ? { follow: true } : {}), ...(after === null ? {} : { after }) }, until),
    cursorAfter: ({ cursor }) => cursor,
    from,
    ends: true,
  });
}

async function show(
  { io, progress: line }: Context,
  said: Line,
  progress: Progress,
  plain: (said: Line) => string,
  percent: number,
): Promise<void> {
  if (progress === 'quiet') return;
  if (progress === 'json') return await io.out(`${JSON.stringify(said)}\n`);
  const now = () => line.show({ step: `${percent} % ${safe(said.stage)}`, detail: safe(said.text.replaceAll('\t', ' ')) });
  if (progress === 'tty' && said.type === 'output') return now();
  if (progress === 'tty') line.clear();
  await io.err(plain(said));
  // A step may say nothing for long.
  if (progress === 'tty' && said.type === 'step') now();
}

/**
 * Lines as people read them. One that is not of the stage whose step was named last, or whose lines came first, has its stage before it:
 * stages run beside each other.
 */
function plainLines(): (said: Line) => string {
  let named: string | null = null;
  return ({ type, stage, number, count, text }) => {
    if (type === 'step') {
      named = stage;
      return `[${safe(stage)}${number === undefined ? '' : ` ${number}/${count}`}] ${safe(text)}\n`;
    }
    named ??= stage;
    return `  ${stage === named || stage === WHOLE_BUILD ? '' : `[${safe(stage)}] `}${safeLine(text)}\n`;
  };
}

export async function builds(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'build.list', {});
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.builds.map(({ id }) => `${id}\n`).join(''));
  else await context.io.out(table(['ID', 'STATE', 'STEPS', 'NAME', 'IMAGE', 'SIZE', 'AGE'], answer.builds.map(rowOf)));
  return 0;
}

function rowOf({ id, state, stepsDone, stepsTotal, names, image, template, createdAtMs }: Build): string[] {
  return [
    id,
    state,
    `${stepsDone}/${stepsTotal}`,
    names[0] ?? (template === null ? '-' : `template ${template}`),
    image?.digest.slice(7, 19) ?? '-',
    image === null ? '-' : roughSize(image.sizeBytes),
    roughAge(Date.now() - createdAtMs),
  ];
}

/** Followed to its end, it ends as `hutch build` would have. */
export async function buildLogs(context: Context, args: Args): Promise<number> {
  const id = args.first();
  const after = args.value('after');
  const isFollowing = args.has('follow');
  const plain = plainLines();
  const from = after === undefined ? null : wholeNumber('after', after, 0, LINES_MAX);
  // Whoever leaves leaves the build to itself.
  for await (const line of logLines(context, id, isFollowing, from, { signal: context.interrupts.signal }))
    await context.io.out(context.json ? `${JSON.stringify(line)}\n` : plain(line));
  if (!isFollowing) return 0;
  const { state, error, opId } = await context.client.call('build.get', { build: id }, {});
  if (state !== 'done') throw errorFromBody(error, { opId });
  return 0;
}

export async function buildInspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (id) => ask(context, 'build.get', { build: id }), {
    text: (one) => `${JSON.stringify(one, null, 2)}\n`,
  });
}

export async function buildCancel(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (id) => change(context, 'build.cancel', { build: id }), {
    text: ({ id, state }) => `${id}: ${state}\n`,
  });
}

export async function buildRemove(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (id) => change(context, 'build.delete', { build: id }), {
    text: ({ id }) => `${id}\n`,
  });
}
