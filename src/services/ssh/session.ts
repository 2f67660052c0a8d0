// One session of SSH: a shell, a command, or files (sftp, which scp speaks too). Whoever closes it while its command runs hangs up:
// the command hears SIGHUP.
import type { PseudoTtyInfo, ServerChannel, Session } from 'ssh2';
import { HutchError } from '../../domain/errors.ts';
import { LOGIN_SHELL, SHELL_LINE } from '../../domain/shells.ts';
import type { Call } from '../call.ts';
import type { ExecSession } from '../handlers.ts';
import { whyNoLogin } from './no-login.ts';
import { READERS_GONE } from './readers-gone.ts';
import { piecesOf, type Served, written } from './served.ts';
import { serveSftp } from './sftp.ts';

const ENV_MAX = 64;
const ENV_CHARS_MAX = 4_096;
/** As sshd of most systems: anything else could change what a program of the sandbox's is. */
const ENV_ALLOWED = /^(?:LANG|LC_[A-Z]+|TERM|COLORTERM|GIT_[A-Z_]+|VSCODE_[A-Z_]+)$/;
const SIZE_MAX = 4_096;
const HANG_UP_MS = 10_000;

type Terminal = { cols: number; rows: number; term: string };

export function serveSession(call: Call, session: Session, served: Served, user: string | null, over: () => void): void {
  const env: Record<string, string> = {};
  let terminal: Terminal | null = null;
  let running: ExecSession | null = null;
  session.on('pty', (accept, _reject, info) => {
    terminal = terminalOf(info);
    accept?.();
  });
  session.on('window-change', (accept, _reject, info) => {
    terminal = { ...terminalOf(info), term: terminal?.term ?? 'xterm' };
    running?.resize({ cols: terminal.cols, rows: terminal.rows }).catch(() => {}); // it has ended meanwhile
    accept?.();
  });
  session.on('env', (accept, reject, { key, val }) => {
    if (!ENV_ALLOWED.test(key) || val.length > ENV_CHARS_MAX || Object.keys(env).length >= ENV_MAX) return reject?.();
    env[key] = val;
    accept?.();
  });
  session.on('signal', (accept, _reject, { name }) => {
    running?.signal(name).catch(() => {}); // it has ended meanwhile
    accept?.();
  });
  session.on('sftp', (accept) => serveSftp(call.op, accept(), served, user));
  session.on('close', over);
  const output = { isRead: true };
  session.on(READERS_GONE, () => {
    output.isRead = false;
  });
  const start = (accept: () => ServerChannel, argv: readonly string[]): void => {
    const channel = accept();
    channel.on('error', () => {});
    run(call, channel, served, { argv: [...argv], env, user, terminal, output }, (session) => {
      running = session;
    }).catch((cause: unknown) => fail(call, channel, served, cause));
  };
  session.on('shell', (accept) => start(accept, LOGIN_SHELL));
  session.on('exec', (accept, _reject, { command }) => start(accept, [...SHELL_LINE, command]));
}

function terminalOf({ cols, rows, term }: Pick<PseudoTtyInfo, 'cols' | 'rows'> & { readonly term?: string }): Terminal {
  const within = (count: number, usual: number): number => (count >= 1 && count <= SIZE_MAX ? count : usual);
  return { cols: within(cols, 80), rows: within(rows, 24), term: term === undefined || term === '' ? 'xterm' : term.slice(0, 64) };
}

type Wanted = {
  readonly argv: string[];
  readonly env: Readonly<Record<string, string>>;
  readonly user: string | null;
  readonly terminal: Terminal | null;
  /** Whether its client still takes what it writes. */
  readonly output: { readonly isRead: boolean };
};

async function run(
  call: Call,
  channel: ServerChannel,
  served: Served,
  { argv, env, user, terminal, output }: Wanted,
  onStarted: (session: ExecSession) => void,
): Promise<void> {
  const { ref, handlers } = served;
  await using session = await handlers['exec.start'](call, {
    ref,
    execId: served.processId(),
    request: {
      argv,
      env: { ...env },
      stdin: 'open',
      whenUnread: 'block',
      ...(user === null ? {} : { user }),
      ...(terminal === null ? {} : { terminal }),
    },
  });
  onStarted(session);
  let exited = false;
  channel.once('close', () => {
    if (!exited) hangUp(call, ref, handlers, session.started.execId);
  });
  const inward = (async () => {
    for await (const chunk of piecesOf(channel)) await session.write(chunk);
    await session.endInput();
  })();
  inward.catch(() => {}); // what reads nothing any more ends by itself
  let isTold = false;
  for await (const item of session.items()) {
    if (item.type === 'output' && item.channel === 'stderr') await written(channel.stderr, item.bytes);
    else if (item.type === 'output' && output.isRead) await written(channel, item.bytes);
    else if (item.type === 'output') {
      // As where a pipe breaks, or a terminal goes: not before it writes once more.
      if (!isTold) session.signal(terminal === null ? 'PIPE' : 'HUP').catch(() => {}); // it has ended meanwhile
      isTold = true;
    } else if (item.type === 'exit') {
      exited = true;
      const { exitCode, signal, oomKilled, error } = item.exit;
      if (error !== null) await written(channel.stderr, Buffer.from(`hutch: ${error.message}\n`));
      const hint = exitCode === 1 && signal === null && error === null ? await whyNoLogin(call.op, served, user) : null;
      if (hint !== null) await written(channel.stderr, Buffer.from(`hint: ${hint}${terminal === null ? '' : '\r'}\n`));
      if (signal === null || error !== null) channel.exit(exitCode);
      else channel.exit(signal.replace(/^SIG/, ''), oomKilled);
      channel.close();
    }
  }
}

/** Its client has gone, and the operation with it: that its command hears of it is the last thing that is done. */
function hangUp(call: Call, ref: string, handlers: Served['handlers'], execId: string): void {
  const late = call.op.releasing(HANG_UP_MS);
  void handlers['exec.signal']({ ...call, op: late }, { ref, execId, signal: 'HUP' })
    .catch((cause: unknown) => call.op.log.debug({ sandbox: ref, cause }, 'a command of SSH could not be told that its client has gone'))
    .finally(() => late[Symbol.dispose]());
}

function fail({ op }: Call, channel: ServerChannel, { ref }: Served, cause: unknown): void {
  if (channel.destroyed) return;
  op.log.debug({ sandbox: ref, cause }, 'a session of SSH failed');
  const said = cause instanceof HutchError ? cause.message : 'something went wrong inside Hutch';
  channel.stderr.write(`hutch: ${said}\n`);
  channel.exit(255);
  channel.close();
}
