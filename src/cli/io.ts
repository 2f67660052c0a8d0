// Our own stdin, stdout and stderr. Always true: writing waits for the reader, and a reader that went
// away ends the command quietly instead of with a trace.
import { fstatSync } from 'node:fs';
import type { Writable } from 'node:stream';
// Not `process.stdin.isTTY`: looking at it would open the stream.
import { isatty } from 'node:tty';

/** Whoever read our stdout or stderr has gone (EPIPE). */
export class ReaderGone extends Error {
  constructor() {
    super('the reader of our output went away');
    this.name = 'ReaderGone';
  }
}

export type Io = {
  readonly isTerminal: { readonly stdin: boolean; readonly stdout: boolean; readonly stderr: boolean };
  out(content: string | Uint8Array): Promise<void>;
  err(content: string | Uint8Array): Promise<void>;
  /** Aborted once the reader of stdout has gone. */
  readonly readerGone: AbortSignal;
  /** Everything written has left us. */
  flushed(): Promise<void>;
};

export function newIo(): Io {
  const gone = new AbortController();
  const watch = (stream: Writable): void => {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE' && error.code !== 'ECONNRESET' && error.code !== 'EIO') throw error;
      gone.abort(new ReaderGone());
    });
  };
  watch(process.stdout);
  watch(process.stderr);
  const write = async (stream: Writable, content: string | Uint8Array): Promise<void> => {
    if (gone.signal.aborted) throw new ReaderGone();
    if (content.length === 0) return;
    await new Promise<void>((resolve, reject) => {
      stream.write(content, (error) => (error ? reject(new ReaderGone()) : resolve()));
    });
  };
  return {
    isTerminal: { stdin: isatty(0), stdout: isatty(1), stderr: isatty(2) },
    out: (content) => write(process.stdout, content),
    err: (content) => write(process.stderr, content),
    readerGone: gone.signal,
    async flushed() {
      if (gone.signal.aborted) return;
      await Promise.all(
        [process.stdout, process.stderr].map((stream) => new Promise<void>((resolve) => stream.write('', () => resolve()))),
      );
    },
  };
}

/** What our stdin is: pipes, files and sockets are passed on by themselves; a terminal only when asked. */
export function stdinKind(): 'terminal' | 'data' | 'nothing' {
  try {
    const info = fstatSync(0);
    if (info.isFIFO() || info.isFile() || info.isSocket()) return 'data';
    return isatty(0) ? 'terminal' : 'nothing';
  } catch {
    return 'nothing'; // closed: there is nothing to read
  }
}
