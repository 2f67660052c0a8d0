// An Engine behind ssh, as the `docker` command reaches it: ssh runs `docker system dial-stdio` there, whose input and output are
// a connection to its Engine. The user's own ssh: his configuration, keys and known hosts. It never asks anything.
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import type { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { ProgramFailed } from '../../host/program-stream.ts';
import { type DockerEnvironment, userEnvironment } from './config.ts';
import type { Endpoint } from './endpoint.ts';

type SshEndpoint = Extract<Endpoint, { kind: 'ssh' }>;

/** What the path of a control socket may have, with what ssh adds while it makes it. */
const CONTROL_PATH_BYTES_MAX = 90;
const HASH_CHARS = 40;
/** One connection to the machine carries all of ours, and goes so long after the last. */
const PERSIST_S = 60;
const CONNECT_S = 20;
const END_MS = 5_000;
const COMPLAINT_CHARS_MAX = 300;

/** A new connection to the Engine. Whether there is one is seen when it answers. */
export async function connectSsh(
  op: Operation,
  host: Host,
  env: DockerEnvironment,
  endpoint: SshEndpoint,
  dir: string | null,
): Promise<Duplex> {
  const ssh = await host.which(op, 'ssh', env.PATH);
  if (ssh === null) {
    throw op.error('failed_precondition', `${endpoint.source} names ${endpoint.address}, and there is no ssh here`, {
      hint: 'apt-get install openssh-client',
    });
  }
  if (dir !== null) await host.makeDir(op, dir, 0o700);
  return await host.connectProgram(op, [ssh, ...sshArguments(endpoint, dir)], userEnvironment(env));
}

export function sshArguments({ user, host, port, socketPath }: SshEndpoint, dir: string | null): readonly string[] {
  const path = controlPath(dir);
  const shared = path === null ? {} : { ControlMaster: 'auto', ControlPath: path, ControlPersist: String(PERSIST_S) };
  const options = { BatchMode: 'yes', ConnectTimeout: String(CONNECT_S), ServerAliveInterval: '15', ...shared };
  return [
    '-T',
    ...Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`]),
    ...(user === null ? [] : ['-l', user]),
    ...(port === null ? [] : ['-p', String(port)]),
    '--',
    host,
    ...['docker', ...(socketPath === null ? [] : ['--host', `unix://${socketPath}`]), 'system', 'dial-stdio'],
  ];
}

/** Ends the connection that all of ours shared: the program that holds it would stay for a minute. */
export async function endSsh(op: Operation, host: Host, env: DockerEnvironment, endpoint: SshEndpoint, dir: string): Promise<void> {
  const path = controlPath(dir);
  if (path === null || (await host.stat(op, dir)) === null) return;
  const ssh = await host.which(op, 'ssh', env.PATH);
  if (ssh === null) return;
  using limited = op.within(END_MS, 'ssh');
  const { user, port } = endpoint;
  const to = [...(user === null ? [] : ['-l', user]), ...(port === null ? [] : ['-p', String(port)]), '--', endpoint.host];
  // It fails where there is none any more.
  await host.run(limited, [ssh, '-o', 'BatchMode=yes', '-o', `ControlPath=${path}`, '-O', 'exit', ...to], { env: userEnvironment(env) });
}

/** Null where the directory is too deep for a socket. */
function controlPath(dir: string | null): string | null {
  if (dir === null) return null;
  const path = join(dir, '%C');
  return Buffer.byteLength(path) - 2 + HASH_CHARS <= CONTROL_PATH_BYTES_MAX ? path : null;
}

/** Why nothing came from there, in the words of ssh or of the machine behind it. */
export function sshFailed(op: Operation, { source, address, user, host, port }: SshEndpoint, cause: unknown): HutchError {
  const failed = cause instanceof ProgramFailed ? cause : null;
  const said = (failed?.message ?? '')
    .replaceAll(/[^\x20-\x7e\n]+/g, ' ')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  const last = (said.at(-1) ?? '').slice(0, COMPLAINT_CHARS_MAX);
  const try_ = `ssh${port === null ? '' : ` -p ${port}`} ${user === null ? '' : `${user}@`}${host}`;
  const all = said.join(' ');
  if (/Host key verification failed/.test(all)) {
    return op.error('failed_precondition', `the host key of ${host} is not known (from ${source})`, {
      hint: `look at it and accept it once: ${try_} true`,
      cause,
    });
  }
  if (/Permission denied/.test(all) && failed?.exitCode === 255) {
    return op.error('permission_denied', `${address} refuses our login (from ${source}): ${last}`, {
      hint: `it takes a key that asks for nothing, or an agent that the daemon sees (SSH_AUTH_SOCK); try: ${try_} -o BatchMode=yes true`,
      cause,
    });
  }
  if (failed?.exitCode === 127 || /docker: (command )?not found|is not a docker command/.test(all)) {
    return op.error('failed_precondition', `${address} has no docker command that can carry us to its Engine (from ${source}): ${last}`, {
      hint: `${try_} docker system dial-stdio must find Docker 18.09 or newer in its PATH`,
      cause,
    });
  }
  return op.error('unavailable', `the Docker Engine does not answer at ${address} (from ${source})${last === '' ? '' : `: ${last}`}`, {
    hint: `try: ${try_} docker info`,
    cause,
  });
}
