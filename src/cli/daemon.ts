// The way to the daemon: where it listens, the owner's key, and starting it when it does not run.
// A daemon elsewhere (HUTCH_API_URL) is never started.
import { existsSync, readFileSync } from 'node:fs';
import { type Environment, type Places, placesOf } from '../config/places.ts';
import { HutchError } from '../domain/errors.ts';
import { type Address, parseAddress } from '../sdk/address.ts';
import { ApiClient } from '../sdk/client.ts';
import type { ConnectionError } from '../sdk/errors.ts';
import { readOwnerKey } from '../sdk/owner-key.ts';
import type { ProgressLine } from './progress.ts';

/** How long a daemon that we may start is tried again. */
const OURS_MS = 60_000;
/** One elsewhere may be restarting. */
const ELSEWHERE_MS = 1_000;

export type DaemonAccess = { readonly address: Address; readonly places: Places; readonly isLocal: boolean };

export function ourPlaces(env: Environment): Places {
  return placesOf({ env, uid: process.getuid?.() ?? 0 });
}

export async function daemonAccess(env: Environment): Promise<DaemonAccess> {
  const places = ourPlaces(env);
  const url = env['HUTCH_API_URL'];
  if (url !== undefined && url !== '') return { address: parseAddress(url), places, isLocal: false };
  return { address: { type: 'unix', path: await socketPath(env, places) }, places, isLocal: true };
}

/** The configuration may name another socket; it is read only where one does. */
async function socketPath(env: Environment, places: Places): Promise<string> {
  const set = env['HUTCH_DAEMON_SOCKET'];
  if (set !== undefined && set !== '' && set !== 'default') return set;
  for (const path of places.configPaths) {
    if (!existsSync(path)) continue;
    const text = readFileSync(path, 'utf8');
    if (!text.includes('socket')) break;
    const { loadConfig } = await import('../config/config.ts');
    const { config } = await loadConfig({ paths: [path], readFile: async () => text, env });
    return config.daemon.socket ?? places.socketPath;
  }
  return places.socketPath;
}

export type ClientChoice = {
  readonly env: Environment;
  readonly progress: ProgressLine;
  /** `no`: the verb is about the daemon itself. */
  readonly start: 'when-needed' | 'no';
};

export async function newClient({ env, progress, start }: ClientChoice): Promise<ApiClient> {
  const { address, places, isLocal } = await daemonAccess(env);
  const given = env['HUTCH_API_KEY'];
  const mayStart = start === 'when-needed' && isLocal && env['HUTCH_NO_START'] !== '1';
  return new ApiClient({
    address,
    key: given === undefined || given === '' ? () => ownerKey(places, mayStart ? () => startIt() : null) : given,
    // Nobody else's answers come to this socket.
    ...(isLocal ? { connections: 'one-each' as const } : {}),
    retryForMs: mayStart ? OURS_MS : isLocal ? 0 : ELSEWHERE_MS,
    onUnreachable: async (error) => {
      if (mayStart && !error.sent && isAbsent(error)) await startIt();
    },
  });

  async function startIt(): Promise<void> {
    const { startDaemon } = await import('./daemon-start.ts');
    await startDaemon({ env, address, progress });
  }
}

/** Before a first start there is no key yet. */
async function ownerKey(places: Places, startIt: (() => Promise<void>) | null): Promise<string> {
  try {
    return readOwnerKey(places.ownerKeyPath);
  } catch (error) {
    const code = error instanceof HutchError ? (error.cause as NodeJS.ErrnoException).code : undefined;
    // Where a file is in the place of a directory, the daemon says so.
    if ((code !== 'ENOENT' && code !== 'ENOTDIR') || startIt === null) throw error;
    await startIt();
    return readOwnerKey(places.ownerKeyPath);
  }
}

function isAbsent(error: ConnectionError): boolean {
  const { code } = error.cause as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ECONNREFUSED';
}
