// Who listens on a TCP port of this machine: for the error that says why we cannot.
import { isIP } from 'node:net';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const LISTEN = '0A';
const TABLE_BYTES_MAX = 16 * 1024 * 1024;
const NAME_BYTES_MAX = 256;
const LOOK_MS = 10_000;
/** Descriptors of one process that are looked at together. */
const AT_ONCE = 64;

/** `node (pid 123)`; null when it cannot be found out, as for processes of other users. */
export async function portOwner(op: Operation, host: Host, port: number): Promise<string | null> {
  using limited = op.within(LOOK_MS, 'looking for the owner of a port');
  const inodes = new Set<string>();
  for (const table of ['/proc/net/tcp', '/proc/net/tcp6']) {
    if ((await host.stat(limited, table)) === null) continue;
    for (const inode of listeners(new TextDecoder().decode(await host.readFile(limited, table, TABLE_BYTES_MAX)), port))
      inodes.add(`socket:[${inode}]`);
  }
  if (inodes.size === 0) return null;
  for (const pid of (await host.list(limited, '/proc')).filter((name) => /^\d+$/.test(name))) {
    if (await holds(limited, host, pid, inodes)) {
      const name = new TextDecoder().decode(await host.readFile(limited, `/proc/${pid}/comm`, NAME_BYTES_MAX)).trim();
      return `${name} (pid ${pid})`;
    }
  }
  return null;
}

/** What has ended meanwhile, or is not ours to look into, holds nothing: a process, or one of its descriptors. */
async function holds(op: Operation, host: Host, pid: string, inodes: ReadonlySet<string>): Promise<boolean> {
  const unlessGone = async <T>(looking: Promise<T>, otherwise: T): Promise<T> => {
    try {
      return await looking;
    } catch {
      if (op.signal.aborted) throw op.signal.reason;
      return otherwise;
    }
  };
  const dir = `/proc/${pid}/fd`;
  const fds = await unlessGone(host.list(op, dir), []);
  // Many at a time: on a busy machine each by itself takes longer than anybody waits.
  for (let at = 0; at < fds.length; at += AT_ONCE) {
    const links = fds.slice(at, at + AT_ONCE).map((fd) => unlessGone(host.readLink(op, `${dir}/${fd}`), ''));
    if ((await Promise.all(links)).some((link) => inodes.has(link))) return true;
  }
  return false;
}

/** Inodes of the sockets that listen on `port`, from the kernel's table. */
export function listeners(table: string, port: number): string[] {
  return table
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(([, local, , state]) => state === LISTEN && Number.parseInt(local?.split(':')[1] ?? '', 16) === port)
    .map((fields) => fields[9] ?? '');
}

/** `127.0.0.1:4880` or `[::1]:4880`, as the configuration has it. */
export function parseAddress(text: string): { readonly host: string; readonly port: number } {
  const at = text.lastIndexOf(':');
  const host = text.slice(0, at).replace(/^\[(.*)\]$/, '$1');
  return { host: isIP(host) === 0 && host === 'localhost' ? '127.0.0.1' : host, port: Number(text.slice(at + 1)) };
}
