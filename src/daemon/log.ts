// The daemon's own log: one JSON object a line, in a file that is rotated (10 MiB × 3), or on stderr
// in the foreground. It never holds secrets, environment values or what guests wrote.
import pino from 'pino';
import type { OpId } from '../domain/ids.ts';
import type { Host } from '../host/host.ts';
import type { Log, Operation } from '../host/operation.ts';

const FILE_BYTES_MAX = 10 * 1024 * 1024;
const OLD_FILES = 2;
const ROTATE_MS = 10_000;
/** Of lines that could not be written yet; what is beyond is lost. */
const WAITING_CHARS_MAX = 1024 * 1024;

export type DaemonLog = {
  readonly log: Log;
  readonly logOf: (opId: OpId) => Log;
  /** Everything logged so far is written. */
  close(): void;
};

export type LogOptions = { readonly level: 'debug' | 'info' | 'warn' | 'error' } & (
  | { readonly to: 'stderr' }
  | { readonly to: 'file'; readonly path: string; readonly host: Host; readonly op: Operation }
);

export async function openLog(options: LogOptions): Promise<DaemonLog> {
  const isFile = options.to === 'file';
  const destination = pino.destination({
    dest: isFile ? options.path : 2,
    // Into a file at once: what waits could only be written at the end, and sonic-boom (4.2.1) tries that for ever on a full disk.
    sync: isFile,
    maxLength: WAITING_CHARS_MAX,
    mode: 0o600,
  });
  // A full disk is no reason to end. What could not be written waits, within its bound, until something can be again.
  let isFailing = false;
  destination.on('error', () => {
    isFailing = true;
  });
  destination.on('write', () => {
    isFailing = false;
  });
  let bytes = options.to === 'file' ? ((await options.host.stat(options.op, options.path))?.sizeBytes ?? 0) : 0;
  let rotating = false;
  const stream = {
    write(line: string): void {
      destination.write(line);
      bytes += Buffer.byteLength(line);
      if (options.to === 'stderr' || bytes < FILE_BYTES_MAX || rotating) return;
      rotating = true;
      bytes = 0;
      void rotate(options.host, options.op, options.path)
        .catch((error: unknown) =>
          destination.write(`${JSON.stringify({ level: 40, msg: 'the log could not be rotated', error: String(error) })}\n`),
        )
        .finally(() => {
          destination.reopen(options.path);
          rotating = false;
        });
    },
  };
  const root = pino(
    { level: options.level, base: null, timestamp: pino.stdTimeFunctions.isoTime, serializers: { err: errorFacts, cause: errorFacts } },
    stream,
  );
  return {
    log: root,
    logOf: (opId) => root.child({ op: opId }),
    close() {
      try {
        if (!isFile && !isFailing) destination.flushSync();
      } catch {
        // It was never opened: there is nobody left to tell.
      }
      if (isFailing) destination.destroy();
      else destination.end();
    },
  };
}

async function rotate(host: Host, op: Operation, path: string): Promise<void> {
  using limited = op.releasing(ROTATE_MS);
  for (let number = OLD_FILES; number >= 1; number -= 1) {
    const from = number === 1 ? path : `${path}.${number - 1}`;
    if ((await host.stat(limited, from)) !== null) await host.rename(limited, from, `${path}.${number}`);
  }
}

const CAUSES_MAX = 5;

/** Message, code and stack of an error and of what caused it. */
function errorFacts(error: unknown, depth = 0): unknown {
  if (!(error instanceof Error)) return error;
  return {
    message: error.message,
    ...('code' in error ? { code: error.code } : {}),
    stack: error.stack
      ?.split('\n')
      .slice(1, 8)
      .map((line) => line.trim()),
    ...(error.cause === undefined || depth >= CAUSES_MAX ? {} : { cause: errorFacts(error.cause, depth + 1) }),
  };
}
