// The context of a build as a tar stream: a directory without what `.dockerignore` leaves out, a revision of a git repository, or what comes
// on stdin, which may also be a Dockerfile alone. Before it stands what belongs to the build alone, under `.hutch-build/`.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createReadStream, lstatSync, readdirSync, readFileSync, readlinkSync, type Stats, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { Ignored } from '../../domain/dockerignore.ts';
import { HutchError } from '../../domain/errors.ts';
import type { PackageSettings } from '../../domain/package-settings.ts';
import { padding } from '../../domain/tar/entry.ts';
import { type EntryToWrite, TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { usage } from '../args.ts';

const OWN = '.hutch-build';
const GIT_TEXT_BYTES_MAX = 64 * 1024;
/** The first entry of an archive. */
const HEADER_BYTES = 512;
const DOCKERFILE_BYTES_MAX = 1024 * 1024;
const PIECE_BYTES = 256 * 1024;
/** A larger file is sent as it is read. */
const SMALL_BYTES = 1024 * 1024;

export type Extra = {
  /** Its content, where it is not taken from the context. */
  readonly dockerfile: Buffer | null;
  readonly ignore: Buffer | null;
  readonly secrets: ReadonlyMap<string, Buffer>;
  /** Asked for once the request is on its way. Null: none, or they come later. */
  readonly settings: () => PackageSettings | null | Promise<PackageSettings | null>;
};

export type ContextSource =
  | { readonly kind: 'directory'; readonly path: string; readonly dockerfile: string | null }
  | { readonly kind: 'git'; readonly path: string; readonly revision: string; readonly below: string }
  | { readonly kind: 'remote'; readonly url: string; readonly revision: string; readonly below: string }
  | { readonly kind: 'stdin' };

/** Addresses that git fetches from. Others that begin with http may be anything. */
const GIT_URL = /^(?:(?:git|ssh|file):\/\/|git@[^/]+:|https?:\/\/[^#]+\.git\/?(?:#|$))/;

/** What is small is read while nothing else goes on, here and below: a file costs a tenth of what asking for it later would. */
function kindOf(path: string): Stats | null {
  try {
    return statSync(path);
  } catch {
    return null;
  }
}

export function contentOrNull(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch {
    return null;
  }
}

/** `-`, `DIR`, `DIR#REVISION[:SUBDIRECTORY]` of a git repository, one without a working tree (`….git`), or the address of one. */
export function sourceOf(text: string, dockerfile: string | null): ContextSource {
  if (text === '-') return { kind: 'stdin' };
  if (GIT_URL.test(text)) {
    const [, url = '', revision = '', below = ''] = /^([^#]+)(?:#([^:]*)(?::(.*))?)?$/.exec(text) ?? [];
    return { kind: 'remote', url, revision: revision || 'HEAD', below };
  }
  if (/^https?:\/\//.test(text))
    throw usage(`${text} is no git repository`, 'one ends with .git; an archive or a Dockerfile comes on stdin: curl URL | hutch build -');
  const info = kindOf(text);
  if (info?.isDirectory()) {
    const isBare = /\.git\/?$/.test(text) && kindOf(join(text, 'HEAD')) !== null;
    return isBare ? { kind: 'git', path: text, revision: 'HEAD', below: '' } : { kind: 'directory', path: text, dockerfile };
  }
  const [, path = '', revision = '', below = ''] = /^(.+?)#([^:]*)(?::(.*))?$/.exec(text) ?? [];
  if (path !== '' && kindOf(path)?.isDirectory()) return { kind: 'git', path, revision: revision || 'HEAD', below };
  throw usage(
    `${text} is no directory`,
    'give the directory with the Dockerfile: hutch build . ; or a tar archive on stdin: hutch build -',
  );
}

export async function* contextOf(source: ContextSource, extra: Extra, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const own = ownEntries(extra, await extra.settings());
  if (own.byteLength > 0) yield own;
  switch (source.kind) {
    case 'directory':
      return yield* directory(source.path, extra);
    case 'git':
      return yield* gitArchive(source, signal);
    case 'remote':
      return yield* fetched(source, signal);
    case 'stdin':
      return yield* fromStdin(process.stdin, extra);
    default:
      return source satisfies never;
  }
}

/** For a build that has begun without them. */
export function settingsArchive(settings: PackageSettings): Buffer {
  return Buffer.concat([ownEntries({ dockerfile: null, ignore: null, secrets: new Map() }, settings), TAR_END]);
}

/** What belongs to the build alone: no archive by itself, as its end is missing. */
function ownEntries({ dockerfile, ignore, secrets }: Omit<Extra, 'settings'>, settings: PackageSettings | null): Buffer {
  const pieces: Buffer[] = [];
  const add = (name: string, content: Buffer) =>
    pieces.push(header({ type: 'file', path: `${OWN}/${name}`, mode: 0o600, sizeBytes: content.byteLength }), ...padded(content));
  if (dockerfile !== null) add('Dockerfile', dockerfile);
  if (ignore !== null) add('dockerignore', ignore);
  for (const [id, value] of secrets) add(`secrets/${id}`, value);
  if (settings !== null) {
    add('settings.json', Buffer.from(JSON.stringify({ env: settings.env, aptMirrors: settings.aptMirrors })));
    for (const [name, content] of settings.files) add(`settings/${name}`, content);
  }
  return Buffer.concat(pieces);
}

type ShortEntry = Pick<EntryToWrite, 'type' | 'path' | 'mode'> & Partial<EntryToWrite>;

/** Names are bytes in an archive, and text here. */
function header({ path, link = '', ...entry }: ShortEntry): Buffer {
  const bytes = (text: string) => Buffer.from(text, 'utf8').toString('latin1');
  const plain = { uid: 0, gid: 0, mtimeSeconds: 0, sizeBytes: 0, devMajor: 0, devMinor: 0, xattrs: null };
  return tarHeader({ ...plain, ...entry, path: bytes(path), link: bytes(link) });
}

function padded(content: Buffer): readonly Buffer[] {
  return [content, Buffer.alloc(padding(content.byteLength))];
}

async function* directory(root: string, extra: Extra): AsyncGenerator<Uint8Array> {
  yield* gathered(below(root, '', ignoredIn(root, extra)));
  yield TAR_END;
}

/** In pieces that are worth a message each. */
async function* gathered(pieces: Iterable<Buffer | LargeFile>): AsyncGenerator<Uint8Array> {
  let waiting: Buffer[] = [];
  let bytes = 0;
  for (const piece of pieces) {
    if ('path' in piece) {
      yield Buffer.concat(waiting);
      [waiting, bytes] = [[], 0];
      yield* contentOf(piece);
      continue;
    }
    waiting.push(piece);
    bytes += piece.byteLength;
    if (bytes < PIECE_BYTES) continue;
    yield Buffer.concat(waiting);
    [waiting, bytes] = [[], 0];
  }
  if (bytes > 0) yield Buffer.concat(waiting);
}

function ignoredIn(root: string, { ignore }: Extra): Ignored {
  const text = ignore ?? contentOrNull(join(root, 'Dockerfile.dockerignore')) ?? contentOrNull(join(root, '.dockerignore'));
  return Ignored.parse(text?.toString() ?? '');
}

/** The daemon needs these, whatever is left out. */
const ALWAYS = new Set(['Dockerfile', 'dockerfile', '.dockerignore', 'Dockerfile.dockerignore']);

type LargeFile = { readonly path: string; readonly sizeBytes: number };

/** Read while nothing else goes on: most contexts are small ones. */
function* below(path: string, name: string, ignored: Ignored): Generator<Buffer | LargeFile> {
  for (const raw of readdirSync(path, { encoding: 'buffer' }).sort(Buffer.compare)) {
    const child = raw.toString('utf8');
    if (!Buffer.from(child, 'utf8').equals(raw)) {
      throw new HutchError({
        code: 'invalid_argument',
        message: `a name in ${path} is no UTF-8: ${JSON.stringify(raw.toString('latin1'))}`,
        hint: 'pack it with tar, and give the archive to: hutch build -',
      });
    }
    const whole = name === '' ? child : `${name}/${child}`;
    const at = join(path, child);
    const info = lstatSync(at);
    if (whole === OWN) continue;
    if (info.isDirectory()) {
      if (ignored.hasAllBelow(whole)) continue;
      if (!ignored.has(whole)) yield header({ type: 'directory', path: `${whole}/`, ...headerOf(info) });
      yield* below(at, whole, ignored);
    } else if (!ignored.has(whole) || ALWAYS.has(whole)) yield* one(at, whole, info);
  }
}

function* one(path: string, name: string, info: Stats): Generator<Buffer | LargeFile> {
  if (info.isSymbolicLink()) return yield header({ type: 'symlink', path: name, link: readlinkSync(path), ...headerOf(info) });
  if (!info.isFile()) return; // a socket or a pipe means nothing elsewhere
  if (info.size <= SMALL_BYTES) {
    const content = readFileSync(path);
    yield header({ type: 'file', path: name, ...headerOf(info), sizeBytes: content.byteLength });
    yield* padded(content);
    return;
  }
  yield header({ type: 'file', path: name, ...headerOf(info), sizeBytes: info.size });
  yield { path, sizeBytes: info.size };
  yield Buffer.alloc(padding(info.size));
}

/** A file that grows meanwhile is cut where it ended; one that shrinks is no part of any archive. */
async function* contentOf({ path, sizeBytes }: LargeFile): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  for await (const chunk of createReadStream(path, { end: sizeBytes - 1, highWaterMark: PIECE_BYTES })) {
    bytes += (chunk as Buffer).byteLength;
    yield chunk as Buffer;
  }
  if (bytes < sizeBytes)
    throw new HutchError({ code: 'failed_precondition', message: `${path} became shorter while it was sent`, hint: 'build again' });
}

function headerOf(info: Stats) {
  return { mode: info.mode & 0o7777, mtimeSeconds: Math.floor(info.mtimeMs / 1_000) };
}

/** One revision, without what came before it, in a directory that goes with it. */
async function* fetched(
  { url, revision, below }: Extract<ContextSource, { kind: 'remote' }>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const path = await mkdtemp(join(tmpdir(), 'hutch-git-'));
  try {
    await git(['init', '--quiet', '--bare', path], signal, url);
    const fetch = ['-C', path, 'fetch', '--quiet', '--no-tags'];
    // A server may give no part of a history, or no commit by its number: then all of it comes.
    await git([...fetch, '--depth=1', '--end-of-options', url, revision], signal, url).catch(async (error: unknown) => {
      const isCommit = /^[0-9a-f]{7,64}$/.test(revision);
      const givesAll = error instanceof Error && error.message.includes('dumb http transport'); // files alone, without git behind them
      if (signal.aborted || !(isCommit || givesAll)) throw error;
      if (!isCommit) return await git([...fetch, '--end-of-options', url, revision], signal, url);
      await git([...fetch, '--end-of-options', url, '+refs/heads/*:refs/heads/*'], signal, url);
      await git(['-C', path, 'update-ref', 'FETCH_HEAD', revision], signal, url);
    });
    yield* gitArchive({ kind: 'git', path, revision: 'FETCH_HEAD', below }, signal);
  } finally {
    await rm(path, { recursive: true, force: true });
  }
}

/** `what`: for people. */
async function git(args: readonly string[], signal: AbortSignal, what: string): Promise<void> {
  for await (const _ of gitOutput(args, signal, (said) => `git cannot fetch ${what}: ${said}`));
}

/** A revision as git has it: no working tree is looked at. */
async function* gitArchive(
  { path, revision, below }: Extract<ContextSource, { kind: 'git' }>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const tree = below === '' ? revision : `${revision}:${below.replace(/^\/+|\/+$/g, '')}`;
  const args = ['-C', path, 'archive', '--format=tar', '--end-of-options', tree];
  yield* gitOutput(args, signal, (said) => `git cannot give ${tree} of ${path}: ${said}`);
}

async function* gitOutput(args: readonly string[], signal: AbortSignal, failed: (said: string) => string): AsyncGenerator<Uint8Array> {
  const child = spawn('git', args, { stdio: ['ignore', 'pipe', 'pipe'], signal });
  const ended = once(child, 'close').catch((error: unknown) => [error]);
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    if (said.length < GIT_TEXT_BYTES_MAX) said += chunk.toString();
  });
  for await (const chunk of child.stdout) yield chunk as Uint8Array;
  const [code] = await ended;
  if (code === 0) return;
  throw new HutchError({
    code: 'invalid_argument',
    message: failed(
      code instanceof Error
        ? code.message
        : said
            .trim()
            .replaceAll(/\s*\n\s*/g, '; ')
            .slice(0, 300),
    ),
    hint: 'write it like DIR#BRANCH or URL#BRANCH:SUBDIRECTORY',
  });
}

/** An archive, packed or not; or the text of a Dockerfile, which has no byte of zeros as every archive has. */
async function* fromStdin(input: AsyncIterable<unknown>, extra: Extra): AsyncGenerator<Uint8Array> {
  const chunks = input[Symbol.asyncIterator]();
  let start = Buffer.alloc(0);
  let isWhole = false;
  while (!isWhole && start.byteLength < HEADER_BYTES) {
    const next = await chunks.next();
    isWhole = next.done === true;
    if (next.done !== true) start = Buffer.concat([start, next.value as Buffer]);
  }
  if (start.byteLength === 0)
    throw usage('there is nothing on stdin', 'give a tar archive, tar c . | hutch build - ; or a Dockerfile: hutch build - < Dockerfile');
  async function* all(): AsyncGenerator<Uint8Array> {
    yield start;
    if (isWhole) return;
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) yield next.value as Uint8Array;
  }
  const hex = start.subarray(0, 4).toString('hex');
  const isGzip = hex.startsWith('1f8b');
  if (isGzip || hex === '28b52ffd') {
    const { createGunzip, createZstdDecompress } = await import('node:zlib'); // a tenth of what a build out of the cache takes
    return yield* Readable.from(all()).compose(isGzip ? createGunzip() : createZstdDecompress()) as AsyncIterable<Uint8Array>;
  }
  if (start.subarray(0, HEADER_BYTES).includes(0)) return yield* all();
  if (extra.dockerfile !== null)
    throw usage('what comes on stdin is no archive', 'give a context as a tar archive: tar c . | hutch build -f FILE -');
  yield ownEntries({ dockerfile: await textOf(all()), ignore: null, secrets: new Map() }, null);
  yield TAR_END;
}

async function textOf(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of chunks) {
    bytes += chunk.byteLength;
    if (bytes > DOCKERFILE_BYTES_MAX)
      throw usage(`what comes on stdin is no archive, and no Dockerfile has more than ${DOCKERFILE_BYTES_MAX} bytes`);
    pieces.push(chunk);
  }
  return Buffer.concat(pieces);
}

/** The Dockerfile's name in the context; null: it lies elsewhere, and is sent along. */
export function nameInContext(context: string, dockerfile: string): string | null {
  const name = relative(resolve(context), resolve(dockerfile));
  return name === '' || name.startsWith('..') ? null : name;
}
