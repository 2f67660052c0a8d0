// Git on the client's machine. The user's own repository is read as the user's own git reads it; what came out of a sandbox
// is looked at only in a repository of ours (`INERT`), in which no hook, filter or configuration takes part.
import { spawn } from 'node:child_process';
import { Readable } from 'node:stream';
import { HutchError } from '../../domain/errors.ts';

export type GitOptions = {
  readonly cwd: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: Uint8Array | string | Readable;
  readonly signal?: AbortSignal | undefined;
  /** Codes that are no failure. */
  readonly accepts?: readonly number[];
};

export type GitResult = { readonly code: number; readonly stdout: Buffer; readonly stderr: string };

const OUTPUT_BYTES_MAX = 512 * 1024 * 1024;
const STDERR_BYTES_MAX = 65_536;

/** Nothing of the user's, the system's or the repository's configuration is heard of, and nothing asks or is fetched. */
export const INERT: Readonly<Record<string, string>> = {
  GIT_CONFIG_NOSYSTEM: '1',
  GIT_CONFIG_GLOBAL: '/dev/null',
  GIT_CONFIG_SYSTEM: '/dev/null',
  GIT_ATTR_NOSYSTEM: '1',
  GIT_TERMINAL_PROMPT: '0',
  GIT_ALLOW_PROTOCOL: 'file',
  GIT_NO_LAZY_FETCH: '1',
  HOME: '/nonexistent',
  XDG_CONFIG_HOME: '/nonexistent',
};

/** Runs git. @throws HutchError with what it said, where its code is none that is accepted. */
export async function git(args: readonly string[], options: GitOptions): Promise<GitResult> {
  const result = await program('git', args, options);
  if (result.code === 0 || options.accepts?.includes(result.code) === true) return result;
  const said = result.stderr.split('\n').find((line) => /^(?:fatal|error): /.test(line)) ?? result.stderr.trim().split('\n').at(-1);
  const words = args.filter((word) => !word.startsWith('-') && !word.includes('=')).slice(0, 2);
  throw new HutchError({
    code: 'failed_precondition',
    message: `git ${words.join(' ')} failed: ${(said ?? '').replace(/^(?:fatal|error): /, '').slice(0, 500) || `it ended with ${result.code}`}`,
  });
}

/** What git says, without the newline at its end. */
export async function gitLine(args: readonly string[], options: GitOptions): Promise<string> {
  return (await git(args, options)).stdout.toString('utf8').replace(/\n$/, '');
}

async function program(name: string, args: readonly string[], options: GitOptions): Promise<GitResult> {
  // Of the caller's own environment: where another git command has set these, ours would look elsewhere.
  const { GIT_DIR: _dir, GIT_WORK_TREE: _tree, GIT_INDEX_FILE: _index, GIT_PREFIX: _prefix, ...own } = process.env;
  const env = { ...own, LC_ALL: 'C.UTF-8', GIT_OPTIONAL_LOCKS: '0', ...options.env };
  const child = spawn(name, args, {
    cwd: options.cwd,
    env,
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const ended = Promise.withResolvers<number>();
  child.on('error', (error: NodeJS.ErrnoException) => ended.reject(failure(name, error, options.signal)));
  child.on('close', (code) => ended.resolve(code ?? 1));
  child.stdin.on('error', () => {}); // it ended before it had read all: its code tells
  if (options.input instanceof Readable) options.input.on('error', ended.reject).pipe(child.stdin);
  else child.stdin.end(options.input ?? '');
  const stdout: Buffer[] = [];
  let bytes = 0;
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => {
    bytes += chunk.byteLength;
    if (bytes <= OUTPUT_BYTES_MAX) stdout.push(chunk);
    else child.kill('SIGKILL');
  });
  child.stderr.on('data', (chunk: Buffer) => {
    if (stderr.length < STDERR_BYTES_MAX) stderr += chunk.toString('utf8');
  });
  const code = await ended.promise;
  if (bytes > OUTPUT_BYTES_MAX)
    throw new HutchError({ code: 'resource_exhausted', message: `${name} wrote more than ${OUTPUT_BYTES_MAX} bytes` });
  return { code, stdout: Buffer.concat(stdout), stderr };
}

export function failure(name: string, error: NodeJS.ErrnoException, signal?: AbortSignal): unknown {
  if (signal?.aborted === true) return signal.reason;
  if (error.code !== 'ENOENT') return error;
  return new HutchError({ code: 'failed_precondition', message: `${name} is not installed here`, hint: `sudo apt-get install ${name}` });
}
