// The files as a tar stream, by the tar program: thirty thousand small files in the time that it takes, names as they are.
import { spawn } from 'node:child_process';
import { HutchError } from '../../domain/errors.ts';
import { failure } from './git.ts';
import type { SourceFile } from './source.ts';

const STDERR_BYTES_MAX = 65_536;

export type Archived = {
  /** With all that is below it; null: nothing of the kind. */
  readonly whole: { readonly dir: string; readonly name: string } | null;
  readonly dir: string;
  readonly files: readonly SourceFile[];
};

/** A file that changes meanwhile goes as it is read; one that has gone is left out. Links go as links. */
export async function* tarOf({ whole, dir, files }: Archived, signal?: AbortSignal): AsyncGenerator<Uint8Array, void, undefined> {
  const format = [
    '--format=posix',
    '--pax-option=delete=atime,delete=ctime',
    '--numeric-owner',
    '--owner=0',
    '--group=0',
    '--hard-dereference',
    // One that has gone since it was listed is no failure; one that may not be read is, below.
    '--ignore-failed-read',
  ];
  const first = whole === null ? [] : ['-C', whole.dir, `./${whole.name}`];
  // Options of a list hold from where they stand.
  const listed = ['--no-recursion', '--null', '--verbatim-files-from', '-C', dir, '--files-from=-'];
  const args = ['-c', '-f', '-', '--blocking-factor=128', ...format, ...first, ...listed];
  const env = { ...process.env, LC_ALL: 'C' };
  const child = spawn('tar', args, { stdio: ['pipe', 'pipe', 'pipe'], env, ...(signal === undefined ? {} : { signal }) });
  const ended = Promise.withResolvers<number>();
  ended.promise.catch(() => {}); // awaited below
  child.on('error', (error: NodeJS.ErrnoException) => ended.reject(failure('tar', error, signal)));
  child.on('close', (code) => ended.resolve(code ?? 2));
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    if (stderr.length < STDERR_BYTES_MAX) stderr += chunk.toString('utf8');
  });
  child.stdin.on('error', () => {}); // it ended before it had read all: its code tells
  child.stdin.end(Buffer.concat(files.flatMap(({ path }) => [path, Buffer.of(0)])));
  try {
    yield* child.stdout as AsyncIterable<Buffer>;
    const code = await ended.promise;
    // 1: a file changed, or went, while it was read.
    if (code > 1 || /Permission denied/.test(stderr))
      throw new HutchError({ code: 'failed_precondition', message: `tar failed: ${stderr.trim().split('\n')[0]?.slice(0, 500) ?? code}` });
  } finally {
    child.kill('SIGKILL');
  }
}
