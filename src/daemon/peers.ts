// Which roles this daemon has, by its flag and the configuration, and the way to those that have the others.
import { newPeer, type Peer, type PeerAddress } from '../api/native/forward.ts';
import type { Config } from '../config/schema.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { ROLES, type Role } from '../services/roles.ts';

/** `all`: every role that the configuration does not say to be elsewhere. */
export type RoleFlag = Role | 'all';

const KEY_BYTES_MAX = 1_024;

export function rolesHere(flag: RoleFlag, config: Config): ReadonlySet<Role> {
  if (flag !== 'all') return new Set([flag]);
  return new Set(ROLES.filter((role) => config.roles[role] === null));
}

export function openPeers(op: Operation, host: Host, config: Config, here: ReadonlySet<Role>): readonly Peer[] {
  return ROLES.flatMap((role) => {
    const address = config.roles[role];
    if (here.has(role) || address === null) return [];
    const keyPath = config.roles[`${role}_key`];
    return newPeer({
      role,
      address: peerAddress(address),
      log: op.log,
      monotonicMs: () => host.monotonicMs(),
      random: () => Buffer.from(host.randomBytes(4)).readUInt32LE() / 2 ** 32,
      async key() {
        if (keyPath === null)
          throw op.error('failed_precondition', `there is no key for the daemon with the role ${role}`, {
            hint: `name the file that has it: roles.${role}_key in the configuration`,
          });
        return new TextDecoder().decode(await host.readFile(op, keyPath, KEY_BYTES_MAX)).trim();
      },
    });
  });
}

/** The configuration's pattern has let nothing else through. */
function peerAddress(text: string): PeerAddress {
  if (text.startsWith('unix:')) return { socketPath: text.slice('unix:'.length) };
  const { hostname, port } = new URL(text);
  return { host: hostname.replace(/^\[|\]$/g, ''), port: Number(port) };
}
