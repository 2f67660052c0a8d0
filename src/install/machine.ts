// What the daemon makes on the machine while it runs, which the installation does not: said before, and taken away after it.
import type { Places } from '../config/places.ts';
import { blockOf, SANDBOX_UIDS } from '../domain/users.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { removeScript } from '../network/firewall.ts';
import { transact } from '../network/nft.ts';
import { bridgesOf, bridgeTableOf, ownName } from '../network/own-name.ts';
import { tableNames, tableOf } from '../network/tables.ts';
import { BLOCK_FILE, CLAIMS_DIR, UidClaims } from '../network/uid-blocks.ts';

export type MachinePart = {
  readonly kind: 'directory' | 'users' | 'interface' | 'rules' | 'cgroup';
  readonly what: string;
  readonly about: string;
};

/** All that it may make, and when. */
export function madeByDaemon(uid: number, places: Places): readonly MachinePart[] {
  const { dataDir, runDir, logDir } = places;
  const dirs: MachinePart[] = [
    { kind: 'directory', what: dataDir, about: 'store, images, disks' },
    { kind: 'directory', what: runDir, about: 'sockets, until the machine is restarted' },
    ...(logDir === dataDir ? [] : [{ kind: 'directory' as const, what: logDir, about: 'the daemon’s log' }]),
  ];
  if (uid !== 0) return dirs;
  const { internet, lan } = bridgesOf(dataDir);
  return [
    ...dirs,
    {
      kind: 'users',
      what: `numbers of ${SANDBOX_UIDS.first} to ${SANDBOX_UIDS.last}`,
      about: 'one for each virtual machine; no entry in /etc/passwd',
    },
    {
      kind: 'rules',
      what: 'nft table inet hutch_uids_FIRST',
      about: 'what those users may reach; FIRST is the first of the daemon’s users',
    },
    { kind: 'rules', what: `nft table inet ${bridgeTableOf(dataDir)}`, about: 'what containers may reach; with the first of them' },
    { kind: 'interface', what: `${internet}, ${lan}`, about: 'bridges for containers, made by the Docker Engine; with the first of them' },
    { kind: 'cgroup', what: ownName(dataDir, '-'), about: 'limits of virtual machines' },
  ];
}

/** Rules, users and cgroups of a daemon that has ended. Gives what there was. */
export async function clearMachine(op: Operation, host: Host, { dataDir }: Places): Promise<readonly MachinePart[]> {
  if (host.uid !== 0) return [];
  const gone: MachinePart[] = [];
  const tables = [bridgeTableOf(dataDir)];
  const first = await firstUser(op, host, dataDir);
  if (first !== null) tables.push(tableOf(blockOf(first)));
  for (const table of (await tableNames(op, host)).filter((name) => tables.includes(name))) {
    const refused = await transact(op, host, removeScript(table));
    if (refused !== '') throw op.error('internal', `the rules cannot be removed: ${refused}`, { hint: `nft delete table inet ${table}` });
    gone.push({ kind: 'rules', what: `nft table inet ${table}`, about: '' });
  }
  if ((await host.stat(op, CLAIMS_DIR)) !== null) {
    await using claims = await UidClaims.hold(op, host);
    await claims.giveBack(op, dataDir);
  }
  for (const dir of await cgroupsOf(op, host, ownName(dataDir, '-')))
    if (await host.removeEmptyDir(op, dir)) gone.push({ kind: 'cgroup', what: dir, about: '' });
  return gone;
}

async function firstUser(op: Operation, host: Host, dataDir: string): Promise<number | null> {
  const path = `${dataDir}/${BLOCK_FILE}`;
  if ((await host.stat(op, path)) === null) return null;
  const found = /"first":(\d+)/.exec(new TextDecoder().decode(await host.readFile(op, path, 16_384)))?.[1];
  return found === undefined ? null : Number(found);
}

const CGROUPS = '/sys/fs/cgroup';

/** In version 2 one directory, in version 1 one with each controller. */
async function cgroupsOf(op: Operation, host: Host, name: string): Promise<readonly string[]> {
  if ((await host.stat(op, CGROUPS)) === null) return [];
  const parents = [CGROUPS, ...(await host.list(op, CGROUPS)).map((entry) => `${CGROUPS}/${entry}`)];
  const found: string[] = [];
  for (const parent of parents) if ((await host.stat(op, `${parent}/${name}`))?.type === 'directory') found.push(`${parent}/${name}`);
  return found;
}
