// hutch ssh, ssh-config: OpenSSH's own client, over the daemon's API: no port is opened, and the sandbox needs no server.
import { type SendHandle, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { constants, homedir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { HutchError } from '../../domain/errors.ts';
import { connectBare, mayBeBare } from '../../sdk/bare.ts';
import { connectSsh } from '../../sdk/tunnel.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json } from '../output.ts';

/** Where `Host *.hutch` leads. */
const SUFFIX = '.hutch';
/** Who logs in as this one is the sandbox's own user. */
const OWN_USER = 'hutch';
/** Its stdout is a socket of ssh's, over which it takes a descriptor. */
const CHANNEL = 'NODE_CHANNEL_FD=1';
/** What the way to the daemon depends on, so that a configuration of ssh keeps it. */
const VARIABLES = ['HUTCH_HOME', 'HUTCH_API_URL', 'HUTCH_DAEMON_SOCKET'] as const;

export async function run(context: Context, args: Args): Promise<number> {
  const ref = nameOf(args.first());
  if (args.has('stdio')) return await carry(context, ref);
  if (args.has('pass')) return await pass(context, ref);
  if (context.json) throw usage('hutch ssh is for people and has no --json', `a program runs: hutch exec --json ${ref} -- CMD`);
  // Whether it is there and runs is told better here than by a proxy's end.
  const { id, state, name } = await ask(context, 'sandbox.get', { ref });
  // One that is suspended may be one that wakes by itself.
  if (state !== 'running' && state !== 'suspended') {
    throw new HutchError({
      code: 'failed_precondition',
      message: `sandbox ${name} does not run: it is ${state}`,
      hint: `start it with: hutch start ${name}`,
    });
  }
  const user = args.value('user');
  // Of what is said twice OpenSSH keeps the first (ssh_config(5)), so that a -l behind these would not be heard.
  const given = { ...(await settings(context, 'passed')), ...(user === undefined ? {} : { User: user }) };
  const options = Object.entries(given).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  const forwards = [...args.values('forward').flatMap((text) => ['-L', text]), ...args.values('reverse').flatMap((text) => ['-R', text])];
  const terminal = args.has('tty') ? ['-t'] : [];
  return await execute(['-F', 'none', ...options, ...forwards, ...terminal, `${id}${SUFFIX}`, '--', ...args.command]);
}

export async function config(context: Context, args: Args): Promise<number> {
  const found = await settings(context, args.has('stdio') ? 'copied' : 'passed');
  if (context.json) {
    await context.io.out(json({ host: `*${SUFFIX}`, settings: found }));
    return 0;
  }
  const lines = Object.entries(found).map(([key, value]) => `  ${key} ${value}\n`);
  await context.io.out(`# of hutch ssh-config: ssh NAME${SUFFIX}\nHost *${SUFFIX}\n${lines.join('')}`);
  return 0;
}

/** `web.hutch` and `web` are the same. */
function nameOf(text: string): string {
  return text.endsWith(SUFFIX) ? text.slice(0, -SUFFIX.length) : text;
}

/** For ssh as its proxy: our stdin and stdout are the connection. */
async function carry({ client, interrupts }: Context, ref: string): Promise<number> {
  const stream = await connectSsh(client, { ref }, { signal: interrupts.signal });
  const inward = pipeline(process.stdin, stream).catch(() => {}); // ssh has gone, or the sandbox: the other way says so
  await pipeline(stream, process.stdout, { end: false }).catch(() => {});
  process.stdin.destroy();
  await inward;
  return 0;
}

/**
 * For ssh as its proxy where it takes a connection from us (ProxyUseFdpass): it then reads and writes what the daemon has, and no
 * process in between copies that. Node passes descriptors over the channel to its parent alone; NODE_CHANNEL_FD says that ssh is that.
 */
async function pass({ client, interrupts }: Context, ref: string): Promise<number> {
  const send = process.send?.bind(process) as
    | undefined
    | ((message: string, handle: SendHandle, done: (error: Error | null) => void) => void);
  if (send === undefined) throw usage('hutch ssh --pass is what ssh runs as its proxy', `for a shell: hutch ssh ${ref}`);
  const socket = await connectBare(client, { ref }, { signal: interrupts.signal });
  await new Promise<void>((resolve, reject) => send('', socket, (error) => (error === null ? resolve() : reject(error))));
  return 0;
}

/** Of ssh_config(5), with the files that they name: made here, as the daemon says. */
async function settings(context: Context, how: 'passed' | 'copied'): Promise<Record<string, string>> {
  const { env } = context;
  const { hostKey, privateKey } = await ask(context, 'ssh.identity', {});
  const dir = placeOf(env);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  // Each daemon has keys of its own.
  const which = createHash('sha256').update(hostKey).digest('hex').slice(0, 16);
  const alias = `hutch-${which}`;
  const identity = join(dir, `${which}.key`);
  const hosts = join(dir, `${which}.hosts`);
  await keep(identity, privateKey);
  await keep(hosts, `${alias} ${hostKey}\n`);
  const set = VARIABLES.flatMap((name) => (env[name] === undefined || env[name] === '' ? [] : [`${name}=${env[name]}`]));
  const [ours = ''] = process.argv.slice(1, 2);
  const passes = how === 'passed' && mayBeBare(context.client);
  const words = passes ? ['env', CHANNEL, ...set] : set.length === 0 ? [] : ['env', ...set];
  const proxy = [...words, process.execPath, ours, 'ssh', passes ? '--pass' : '--stdio'].map(quoted).join(' ');
  return {
    User: OWN_USER,
    ProxyCommand: `${proxy} %n`,
    ...(passes ? { ProxyUseFdpass: 'yes' } : {}),
    IdentityFile: `"${identity}"`,
    IdentitiesOnly: 'yes',
    IdentityAgent: 'none',
    HostKeyAlias: alias,
    UserKnownHostsFile: `"${hosts}"`,
    GlobalKnownHostsFile: '/dev/null',
    StrictHostKeyChecking: 'yes',
    PreferredAuthentications: 'publickey',
  };
}

function placeOf(env: Context['env']): string {
  const home = env['HUTCH_HOME'];
  if (home !== undefined && home !== '') return join(home, 'ssh');
  const config = env['XDG_CONFIG_HOME'];
  return join(config?.startsWith('/') === true ? config : join(homedir(), '.config'), 'hutch', 'ssh');
}

/** Whole or not at all, and only for us to read. */
async function keep(path: string, text: string): Promise<void> {
  const before = await readFile(path, 'utf8').catch(() => null);
  if (before === text) return;
  const beside = `${path}.${process.pid}`;
  await writeFile(beside, text, { mode: 0o600 });
  await chmod(beside, 0o600);
  await rename(beside, path);
}

/** For the shell by which ssh runs its proxy; % means something to ssh. */
function quoted(word: string): string {
  const plain = word.replaceAll('%', '%%');
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(plain) ? plain : `'${plain.replaceAll("'", "'\\''")}'`;
}

async function execute(argv: readonly string[]): Promise<number> {
  const child = spawn('ssh', argv, { stdio: 'inherit' });
  // The terminal's own signals reach it too; it decides.
  const ignore = (): void => {};
  process.on('SIGINT', ignore);
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once('error', (cause) =>
        reject(
          new HutchError({
            code: 'failed_precondition',
            message: 'there is no ssh to connect with',
            hint: 'install it: apt-get install openssh-client; without it: hutch shell',
            cause,
          }),
        ),
      );
      child.once('close', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
    });
  } finally {
    process.off('SIGINT', ignore);
  }
}
