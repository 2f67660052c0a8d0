// Life of the daemon's process: starts it, tells the starter, ends it on a signal.
import { Socket } from 'node:net';
import { HutchError } from '../domain/errors.ts';
import { ROLES } from '../services/roles.ts';
import { SCHEMA_VERSION } from '../store/schema.ts';
import { AnotherDaemon, type Daemon, type DaemonOptions, startDaemon } from './daemon.ts';
import type { RoleFlag } from './peers.ts';
import { restoreAndTell } from './restore.ts';
import { VERSION } from './version.ts';

type Flags = { readonly foreground: boolean; readonly readyFd: number | null; readonly measureLoop: boolean; readonly role: RoleFlag };

const USAGE = `usage: hutchd [--role all|vm] [--foreground] [--ready-fd N] [--measure-loop] | --about | --restore FILE

  --role ROLE      what this daemon is: all (but what roles.* says to be elsewhere), or vm alone
  --foreground     log to stderr instead of the log file
  --ready-fd N     write one line of JSON to this descriptor once it is ready, or has failed
  --restore FILE   put a backup in the place of the store, say so as one line of JSON, and end
  --about          say as one line of JSON what this is, and end
  --measure-loop   measure how long the event loop is held up: /health tells
`;

/** @throws HutchError \`invalid_argument\`. */
function parseFlags(argv: readonly string[]): Flags {
  let [foreground, measureLoop] = [false, false];
  let readyFd: number | null = null;
  let role: RoleFlag = 'all';
  const rest = [...argv];
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    if (arg === '--foreground') foreground = true;
    else if (arg === '--measure-loop') measureLoop = true;
    else if (arg === '--role') role = roleFlag(rest.shift());
    else if (arg === '--ready-fd') readyFd = descriptor(rest.shift());
    else throw new HutchError({ code: 'invalid_argument', message: `unknown argument ${arg}`, hint: USAGE });
  }
  return { foreground, readyFd, measureLoop, role };
}

function descriptor(text: string | undefined): number {
  if (text !== undefined && /^\d{1,3}$/.test(text) && Number(text) > 2) return Number(text);
  throw new HutchError({ code: 'invalid_argument', message: '--ready-fd needs the number of a descriptor above 2' });
}

function roleFlag(text: string | undefined): RoleFlag {
  const known = [...ROLES, 'all'] as const;
  const found = known.find((role) => role === text);
  if (found !== undefined) return found;
  throw new HutchError({ code: 'invalid_argument', message: `--role takes one of ${known.join(', ')}, not '${text ?? ''}'` });
}

const EXIT_BUG = 70;
const EXIT_LOST = 1;

/** Exit codes: 0 it was asked to end, 1 it failed or its data directory is gone, 2 wrong flags, 70 an error that nobody caught. */
export async function runDaemon(argv: readonly string[], options: Pick<DaemonOptions, 'host' | 'env' | 'makeParts'>): Promise<number> {
  if (argv.length === 1 && argv[0] === '--about') {
    process.stdout.write(`${JSON.stringify({ version: VERSION, schemaVersion: SCHEMA_VERSION })}\n`);
    return 0;
  }
  if (argv.length === 2 && argv[0] === '--restore') return await restoreAndTell(options.host, options.env, argv[1] ?? '');
  let flags: Flags;
  try {
    flags = parseFlags(argv);
  } catch (error) {
    if (!(error instanceof HutchError)) throw error;
    complain(error);
    return 2;
  }
  const ended = Promise.withResolvers<number>();
  let daemon: Daemon | null = null;
  const end = (code: number) => (): void => {
    if (daemon === null) process.exit(code); // nothing is there yet that would need releasing
    daemon.close().then(
      () => ended.resolve(code),
      () => ended.resolve(1),
    );
  };
  process.on('SIGTERM', end(0));
  process.on('SIGINT', end(0));
  process.on('SIGHUP', () => {}); // the terminal that started it may go
  process.on('uncaughtException', (error) => {
    daemon?.fatal(error);
    process.stderr.write(`${error.stack ?? error.message}\n`);
    process.exit(EXIT_BUG);
  });
  try {
    daemon = await startDaemon({
      ...options,
      log: flags.foreground ? 'stderr' : 'file',
      measureLoop: flags.measureLoop,
      role: flags.role,
      onStop: end(0),
      onLost: () => process.exit(EXIT_LOST),
    });
  } catch (error) {
    const failure =
      error instanceof HutchError
        ? error
        : new HutchError({ code: 'internal', message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    await tell(flags.readyFd, { ready: false, another: failure instanceof AnotherDaemon, error: failure.toBody() });
    complain(failure);
    return 1;
  }
  const { pid, socketPath, address, ownerKeyPath } = daemon;
  await tell(flags.readyFd, { ready: true, pid, socketPath, address, ownerKeyPath });
  return await ended.promise;
}

function complain({ message, hint }: HutchError): void {
  process.stderr.write(`error: ${message}${hint === null ? '' : `\n${hint}`}\n`);
}

/** One line, then end-of-file. A starter that has gone is no failure. */
async function tell(fd: number | null, message: object): Promise<void> {
  if (fd === null) return;
  await new Promise<void>((resolve) => {
    const socket = new Socket({ fd, readable: false, writable: true });
    socket.on('error', () => resolve());
    socket.end(`${JSON.stringify(message)}\n`, () => resolve());
  });
}
