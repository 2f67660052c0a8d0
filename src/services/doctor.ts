// What this machine can do: one line each, with the command that mends it. Every check looks at the
// thing itself; a check that fails says so and never fails the others.
import type { z } from 'zod';
import { ownGroups } from '../host/groups.ts';
import type { FileInfo, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Deps } from './deps.ts';
import type * as view from './views.ts';

export type Check = z.output<typeof view.check>;

const CHECK_MS = 60_000;
const FILE_BYTES_MAX = 65_536;
const FREE_BYTES_WARN = 5 * 1024 ** 3;
const FREE_BYTES_MIN = 500 * 1024 ** 2;

export async function checkMachine(deps: Deps, op: Operation): Promise<Check[]> {
  const { host } = deps;
  let canRun = false;
  const groups: [name: string, check: (op: Operation) => Promise<readonly Check[]>][] = [
    ...deps.backends.map((backend): [string, (op: Operation) => Promise<readonly Check[]>] => [
      `backend ${backend.name}`,
      async (checking) => {
        const probe = await backend.probe(checking);
        if (!probe.ok) return [{ name: `backend ${backend.name}`, status: 'missing', detail: probe.why, fix: probe.hint }];
        const { acceleration, networks, notes, limits, securityBoundary } = probe.can;
        canRun ||= securityBoundary;
        const speed =
          acceleration === 'tcg'
            ? 'software emulation (CPU work is 5 to 17 times slower)'
            : acceleration === 'kvm'
              ? 'hardware virtualization'
              : 'no emulation';
        const unlimited = Object.entries(limits)
          .filter(([, how]) => how === 'no')
          .map(([what]) => what);
        return [
          {
            name: `backend ${backend.name}`,
            status: acceleration === 'tcg' ? 'warning' : 'ok',
            detail: [speed, ...notes].join('; '),
            fix: null,
          },
          ...(securityBoundary
            ? []
            : [
                {
                  name: `isolation of ${backend.name}`,
                  status: 'warning' as const,
                  detail: 'it shares the kernel: no security boundary',
                  fix: null,
                },
              ]),
          {
            name: `network of ${backend.name}`,
            status: networks.includes('allow') ? 'ok' : 'warning',
            detail: `works: ${networks.join(', ')}`,
            fix: networks.includes('allow') ? null : 'apt-get install passt nftables',
          },
          ...(unlimited.length === 0
            ? []
            : [
                {
                  name: `limits of ${backend.name}`,
                  status: 'warning' as const,
                  detail: `not enforced: ${unlimited.join(', ')}`,
                  fix: null,
                },
              ]),
        ];
      },
    ]),
    ['KVM', async (checking) => [await kvm(deps, checking)]],
    [
      'QEMU',
      async (checking) => [await program(host, checking, 'QEMU', 'qemu-system-x86_64', 'apt-get install qemu-system-x86', 'missing')],
    ],
    ['passt', async (checking) => [await program(host, checking, 'passt', 'passt', 'apt-get install passt', 'warning')]],
    ['nftables', async (checking) => [await program(host, checking, 'nftables', 'nft', 'apt-get install nftables', 'warning')]],
    ['mkfs', async (checking) => [await program(host, checking, 'mkfs', 'mkfs.ext4', 'apt-get install e2fsprogs', 'missing')]],
    ['images', async () => await images(deps)],
    ['disk space', async (checking) => [await diskSpace(deps, checking)]],
    ['reflink', async (checking) => [await reflink(deps, checking)]],
    ['cgroups', async (checking) => [await cgroups(host, checking)]],
    ['open files', async (checking) => [await openFiles(host, checking)]],
    ['CPU vulnerabilities', async (checking) => [await vulnerabilities(host, checking)]],
    ['SMT', async (checking) => [await smt(host, checking)]],
  ];
  const checks = await Promise.all(
    groups.map(async ([name, check]): Promise<readonly Check[]> => {
      using limited = op.within(CHECK_MS, `checking ${name}`);
      try {
        return await check(limited);
      } catch (error) {
        if (op.signal.aborted) throw error;
        return [
          { name, status: 'warning', detail: `could not be checked: ${error instanceof Error ? error.message : String(error)}`, fix: null },
        ];
      }
    }),
  );
  const found = checks.flat().map((check) => ({ ...check, fix: check.fix === null ? null : asRoot(check.fix, host.uid) }));
  return canRun ? found.map(notNeeded) : found;
}

/** Where sandboxes run one way, what another way lacks is no fault of the machine. */
export function notNeeded(check: Check): Check {
  const ofOneWay = check.name.startsWith('backend ') || check.name === 'QEMU' || check.name === 'mkfs';
  return check.status === 'missing' && ofOneWay ? { ...check, status: 'warning' } : check;
}

/** A command that only root may run, as its user has to type it. */
export function asRoot(fix: string, uid: number): string {
  if (uid === 0) return fix;
  if (fix.startsWith('echo ')) return `sudo sh -c '${fix}'`;
  return /^(apt-get|chmod|usermod) /.test(fix) ? `sudo ${fix}` : fix;
}

async function text(host: Host, op: Operation, path: string): Promise<string | null> {
  if ((await host.stat(op, path)) === null) return null;
  return new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX)).trim();
}

async function program(
  host: Host,
  op: Operation,
  name: string,
  binary: string,
  fix: string,
  otherwise: 'missing' | 'warning',
): Promise<Check> {
  const path = await host.which(op, binary);
  return path === null ? { name, status: otherwise, detail: 'is not installed', fix } : { name, status: 'ok', detail: path, fix: null };
}

/** Whether guests run under it: a device that is there may run none, so the backend's own probe, which runs a small one, decides. */
async function kvm({ host, backends }: Deps, op: Operation): Promise<Check> {
  const name = 'KVM';
  const device = await host.stat(op, '/dev/kvm');
  if (device === null) {
    const fix = 'turn on virtualization in the firmware, or nested virtualization in the outer machine';
    return { name, status: 'warning', detail: 'no: there is no /dev/kvm', fix };
  }
  const probes = await Promise.all(backends.map((backend) => backend.probe(op)));
  const ways = probes.flatMap((probe) => (probe.ok ? [probe.can.acceleration] : []));
  if (ways.includes('kvm')) return { name, status: 'ok', detail: 'yes: a small guest ran under /dev/kvm', fix: null };
  const groupFile = (await text(host, op, '/etc/group')) ?? '';
  const closed = closedTo(device, { uid: host.uid, groups: await ownGroups(op, host), groupFile });
  if (closed !== null) return { name, status: 'warning', detail: `no: /dev/kvm is there, but ${closed.why}`, fix: closed.fix };
  const fix = 'look whether virtualization is on in the firmware, or nested virtualization in the outer machine';
  if (ways.includes('tcg')) return { name, status: 'warning', detail: 'no: /dev/kvm is there, but is not used; the backend says why', fix };
  return { name, status: 'warning', detail: 'not tried: /dev/kvm is there, but no backend that could use it works', fix: null };
}

/** Why whoever runs sandboxes may not open the device, and what lets them. Null: they may. `groupFile`: the content of /etc/group. */
export function closedTo(
  device: Pick<FileInfo, 'mode' | 'gid'>,
  { uid, groups, groupFile }: { readonly uid: number; readonly groups: readonly number[]; readonly groupFile: string },
): { readonly why: string; readonly fix: string } | null {
  if ((device.mode & 0o006) === 0o006) return null;
  const byGroup = (device.mode & 0o060) === 0o060;
  // Root's sandboxes run as users of their own, in the group that the device has.
  if (byGroup && (uid === 0 || groups.includes(device.gid))) return null;
  const group = new RegExp(`^([^:]+):[^:]*:${device.gid}:`, 'm').exec(groupFile)?.[1];
  const join = uid !== 0 && byGroup && device.gid !== 0 && group !== undefined;
  return {
    why: uid === 0 ? 'only root may open it' : 'it is not ours to open',
    fix: join ? `usermod -aG ${group} "$USER"; then log in again, and: hutch daemon stop` : 'chmod 666 /dev/kvm; hutch daemon stop',
  };
}

async function images(deps: Deps): Promise<readonly Check[]> {
  const [found, kernels] = await Promise.all([deps.store.query('images', {}), deps.store.query('kernels', {})]);
  const none = 'is made at first use';
  return [
    {
      name: 'images',
      status: 'ok',
      detail: found.length === 0 ? none : found.map((image) => image.name ?? image.id).join(', '),
      fix: null,
    },
    {
      name: 'guest kernels',
      status: 'ok',
      detail: kernels.length === 0 ? none : kernels.map((kernel) => kernel.version).join(', '),
      fix: null,
    },
  ];
}

async function diskSpace({ host, places }: Deps, op: Operation): Promise<Check> {
  const { freeBytes, totalBytes, type } = await host.fileSystem(op, places.dataDir);
  const detail = `${gib(freeBytes)} of ${gib(totalBytes)} free at ${places.dataDir} (${type})`;
  const status = freeBytes < FREE_BYTES_MIN ? 'missing' : freeBytes < FREE_BYTES_WARN ? 'warning' : 'ok';
  return {
    name: 'disk space',
    status,
    detail,
    fix: status === 'ok' ? null : 'remove sandboxes that are not needed: hutch ls; hutch rm NAME',
  };
}

function gib(bytes: number): string {
  return `${(bytes / 1024 ** 3).toFixed(1)} GiB`;
}

async function reflink({ host, places }: Deps, op: Operation): Promise<Check> {
  const probe = `${places.dataDir}/.reflink-${op.id}`;
  try {
    await host.writeFileAtomic(op, probe, 'probe', 0o600);
    const how = await host.cloneFile(op, probe, `${probe}-clone`);
    return how === 'reflink'
      ? { name: 'reflink', status: 'ok', detail: 'disks are cloned without copying', fix: null }
      : {
          name: 'reflink',
          status: 'warning',
          detail: 'the file system copies disks (sparsely) instead of sharing blocks',
          fix: 'put the data directory on XFS or btrfs',
        };
  } finally {
    using late = op.releasing(CHECK_MS);
    await host.remove(late, probe);
    await host.remove(late, `${probe}-clone`);
  }
}

async function cgroups(host: Host, op: Operation): Promise<Check> {
  const two = await text(host, op, '/sys/fs/cgroup/cgroup.controllers');
  if (two !== null) return { name: 'cgroups', status: 'ok', detail: `version 2: ${two}`, fix: null };
  const one = (await host.stat(op, '/sys/fs/cgroup/memory')) !== null;
  return one
    ? { name: 'cgroups', status: 'ok', detail: 'version 1', fix: null }
    : { name: 'cgroups', status: 'warning', detail: 'none: the VMM itself is not limited', fix: null };
}

const OPEN_FILES_MIN = 4_096;

async function openFiles(host: Host, op: Operation): Promise<Check> {
  const limits = (await text(host, op, '/proc/self/limits')) ?? '';
  const soft = Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? 0);
  const status = soft >= OPEN_FILES_MIN ? 'ok' : 'warning';
  return {
    name: 'open files',
    status,
    detail: `at most ${soft}`,
    fix: status === 'ok' ? null : `ulimit -n ${OPEN_FILES_MIN}; hutch daemon stop`,
  };
}

/** A virtual machine has its microcode from its host. */
const MITIGATE = 'apt-get dist-upgrade; then reboot (a virtual machine: its host as well)';

async function vulnerabilities(host: Host, op: Operation): Promise<Check> {
  const dir = '/sys/devices/system/cpu/vulnerabilities';
  if ((await host.stat(op, dir)) === null)
    return { name: 'CPU vulnerabilities', status: 'warning', detail: 'the kernel does not say', fix: null };
  const open: string[] = [];
  for (const name of await host.list(op, dir))
    if ((await text(host, op, `${dir}/${name}`))?.startsWith('Vulnerable') === true) open.push(name);
  return open.length === 0
    ? { name: 'CPU vulnerabilities', status: 'ok', detail: 'all known ones are mitigated', fix: null }
    : { name: 'CPU vulnerabilities', status: 'warning', detail: `not mitigated: ${open.join(', ')}`, fix: MITIGATE };
}

async function smt(host: Host, op: Operation): Promise<Check> {
  const active = await text(host, op, '/sys/devices/system/cpu/smt/active');
  if (active !== '1') return { name: 'SMT', status: 'ok', detail: active === null ? 'unknown to the kernel' : 'off', fix: null };
  return {
    name: 'SMT',
    status: 'warning',
    detail: 'on: sandboxes of different owners may share a core',
    fix: 'echo off > /sys/devices/system/cpu/smt/control',
  };
}
