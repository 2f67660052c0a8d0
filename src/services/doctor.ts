// What this machine can do: one line each, with the command that mends it. Every check looks at the
// thing itself; a check that fails says so and never fails the others.
import type { z } from 'zod';
import { NO_KVM, RUNS_NOTHING_AS_ROOT } from '../backends/backend.ts';
import { ownGroups } from '../host/groups.ts';
import type { FileInfo, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { findsLocalNames, NAMES_FIX } from '../network/local-names.ts';
import type { Deps } from './deps.ts';
import { noSpace } from './free-space.ts';
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
        if (!probe.ok) return [withCommand({ name: `backend ${backend.name}`, status: 'missing', detail: probe.why, fix: probe.hint })];
        const { acceleration, networks, notes, limits, securityBoundary } = probe.can;
        canRun ||= securityBoundary || backend.name === deps.settings.backend;
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
          networkOf(backend.name, networks, notes),
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
    ['names', async (checking) => [await names(host, checking)]],
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

/** What runs a sandbox for which none is named. `works`: the backends that do here. */
export function chosen(preferred: string | null, works: readonly string[]): Check {
  const check = (status: Check['status'], detail: string): Check => ({ name: 'default backend', status, detail, fix: null });
  if (preferred !== null && works.includes(preferred)) return check('ok', `${preferred}; another one: --backend, or sandbox.backend`);
  if (preferred !== null) return check('missing', `${preferred}, which is configured (sandbox.backend), does not work here: see above`);
  const [asked] = works;
  if (asked === undefined) return check('warning', 'none works here: see above');
  return check(
    'warning',
    `none: ${asked} works where it is asked for (--backend ${asked}, or sandbox.backend), as it is no security boundary`,
  );
}

/** Says why there is none: a package that is missing is a command away, a machine without a route is not. */
export function networkOf(backend: string, networks: readonly string[], notes: readonly string[]): Check {
  const name = `network of ${backend}`;
  const works = `works: ${networks.join(', ')}`;
  if (networks.includes('allow')) return { name, status: 'ok', detail: works, fix: null };
  const why = notes.find((note) => note.startsWith('no network'));
  const installs = why === undefined || /not installed|too old/.test(why);
  return {
    name,
    status: 'warning',
    detail: why === undefined ? works : `${works}; ${why}`,
    fix: installs ? 'apt-get install passt nftables' : null,
  };
}

/** `fix` is what can be pasted into a shell, and nothing else: other advice belongs to the detail. */
export function withCommand(check: Check): Check {
  if (check.fix === null) return check;
  const command = COMMAND.exec(check.fix)?.[1] ?? null;
  if (command === check.fix) return check;
  const words = command === null ? check.fix : check.fix.slice(0, -command.length).replace(/: $/, '');
  const detail = /^(see|install it)?$/.test(words) || words === 'see: hutch doctor' ? check.detail : `${check.detail}; ${words}`;
  return { ...check, detail, fix: command };
}

const COMMAND = /(?:^|: )((?:apt-get|chmod|docker|modprobe|systemctl|usermod) .+)$/;

/** Where sandboxes run one way, what another way lacks is no fault of the machine. */
export function notNeeded(check: Check): Check {
  const ofOneWay = check.name.startsWith('backend ') || check.name === 'QEMU' || check.name === 'mkfs';
  return check.status === 'missing' && ofOneWay ? { ...check, status: 'warning' } : check;
}

/** A command that only root may run, as its user has to type it. */
export function asRoot(fix: string, uid: number): string {
  if (uid === 0) return fix;
  const typed = (command: string): string => {
    if (/^(echo|test) /.test(command)) return `sudo sh -c '${command}'`;
    return /^(apt-get|chmod|cp|mkdir|mkfs\.xfs|modprobe|mount|rmdir|systemctl|truncate|umount|usermod) /.test(command)
      ? `sudo ${command}`
      : command;
  };
  return fix
    .split(/( && | \|\| |; )/)
    .map(typed)
    .join('');
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
  if (device === null) return { name, status: 'warning', ...withoutDevice((await text(host, op, '/proc/cpuinfo')) ?? '') };
  const probes = await Promise.all(backends.map((backend) => backend.probe(op)));
  const ways = probes.flatMap((probe) => (probe.ok ? [probe.can.acceleration] : []));
  if (ways.includes('kvm')) return { name, status: 'ok', detail: 'yes: a small guest ran under /dev/kvm', fix: null };
  const groupFile = (await text(host, op, '/etc/group')) ?? '';
  const closed = closedTo(device, { uid: host.uid, groups: await ownGroups(op, host), groupFile });
  if (closed !== null) {
    const notes = probes.flatMap((probe) => (probe.ok ? probe.can.notes : []));
    return { name, status: 'warning', ...whatOpeningGives(closed, notes, host.uid) };
  }
  if (ways.includes('tcg')) {
    const detail = 'no: /dev/kvm is there, but no guest ran under it; the backend says why. What it lacks is the outer machine’s to give';
    return { name, status: 'warning', detail, fix: null };
  }
  return { name, status: 'warning', detail: 'not tried: /dev/kvm is there, but no backend that could use it works', fix: null };
}

/** Why there is no /dev/kvm. `cpuinfo`: the content of /proc/cpuinfo. */
export function withoutDevice(cpuinfo: string): { readonly detail: string; readonly fix: string | null } {
  const flags = new Set(/^flags\s*:(.*)$/m.exec(cpuinfo)?.[1]?.split(' '));
  const none = 'no: there is no /dev/kvm';
  const extension = flags.has('svm') ? 'kvm_amd' : flags.has('vmx') ? 'kvm_intel' : null;
  if (extension !== null)
    return { detail: `${none}, though the processor can: the kernel's module is not loaded`, fix: `modprobe ${extension}` };
  if (flags.has('hypervisor')) {
    const detail = `${none}: this is a virtual machine without nested virtualization; turn that on where the machine is run`;
    return { detail, fix: null };
  }
  return { detail: `${none}: virtualization is off in the firmware`, fix: 'systemctl reboot --firmware-setup' };
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
    fix: join ? `usermod -aG ${group} "$USER"; hutch daemon stop; newgrp ${group}` : 'chmod 666 /dev/kvm; hutch daemon stop',
  };
}

/** Opening it is no help where no guest runs under it anyway: root's daemon has tried that, another one cannot. */
export function whatOpeningGives(
  { why, fix }: { readonly why: string; readonly fix: string },
  notes: readonly string[],
  uid: number,
): { readonly detail: string; readonly fix: string | null } {
  const detail = `no: /dev/kvm is there, but ${why}`;
  if (notes.some((note) => note.startsWith(NO_KVM) && note.endsWith(RUNS_NOTHING_AS_ROOT)))
    return { detail: `${detail}, and ${RUNS_NOTHING_AS_ROOT}: what it lacks is the outer machine’s to give`, fix: null };
  return { detail: uid === 0 ? detail : `${detail}; whether a guest runs under it is seen when it is open`, fix };
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

async function diskSpace(deps: Deps, op: Operation): Promise<Check> {
  const { host, places } = deps;
  const { freeBytes, totalBytes, type } = await host.fileSystem(op, places.dataDir);
  const isTooLittle = (await noSpace(deps, op)) !== null;
  const refused = isTooLittle ? `; no sandbox is made or started with less than ${deps.settings.freeMiBMin} MiB (limits.free)` : '';
  const detail = `${gib(freeBytes)} of ${gib(totalBytes)} free at ${places.dataDir} (${type})${refused}`;
  const status = isTooLittle || freeBytes < FREE_BYTES_MIN ? 'missing' : freeBytes < FREE_BYTES_WARN ? 'warning' : 'ok';
  return {
    name: 'disk space',
    status,
    detail,
    fix: status === 'ok' ? null : 'hutch df; hutch prune --dry-run; hutch image prune',
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
          detail:
            'the file system copies disks (sparsely) instead of sharing blocks; XFS and btrfs share them (with all sandboxes stopped)',
          fix: onXfs(places.dataDir, (await host.fileSystem(op, places.dataDir)).freeBytes),
        };
  } finally {
    using late = op.releasing(CHECK_MS);
    await host.remove(late, probe);
    await host.remove(late, `${probe}-clone`);
  }
}

/** Puts the data directory on a file system that shares blocks, in a file beside it; what lies there now goes along. */
export function onXfs(dataDir: string, freeBytes: number): string {
  const [dir, next, disk] = [quoted(dataDir), quoted(`${dataDir}.new`), quoted(`${dataDir}.xfs`)];
  const sizeGib = Math.max(1, Math.floor((freeBytes / 1024 ** 3) * 0.8));
  return [
    'apt-get -y install xfsprogs',
    'hutch daemon stop',
    `truncate -s ${sizeGib}G ${disk}`,
    `mkfs.xfs -q -m reflink=1 ${disk}`,
    `mkdir ${next}`,
    `mount -o loop ${disk} ${next}`,
    `cp -a --sparse=always ${dir}/. ${next}`,
    `umount ${next}`,
    `rmdir ${next}`,
    `echo ${disk} ${dir} xfs loop 0 0 >> /etc/fstab`,
    `mount ${dir}`,
  ].join(' && ');
}

function quoted(path: string): string {
  return /^[\w./-]+$/.test(path) ? path : `"${path.replaceAll(/["$`\\]/g, '\\$&')}"`;
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

async function vulnerabilities(host: Host, op: Operation): Promise<Check> {
  const dir = '/sys/devices/system/cpu/vulnerabilities';
  if ((await host.stat(op, dir)) === null)
    return { name: 'CPU vulnerabilities', status: 'warning', detail: 'the kernel does not say', fix: null };
  const open: string[] = [];
  for (const name of await host.list(op, dir))
    if ((await text(host, op, `${dir}/${name}`))?.startsWith('Vulnerable') === true) open.push(name);
  return open.length === 0
    ? { name: 'CPU vulnerabilities', status: 'ok', detail: 'all known ones are mitigated', fix: null }
    : { name: 'CPU vulnerabilities', status: 'warning', ...mitigation(open, (await text(host, op, '/proc/cpuinfo')) ?? '') };
}

/** Kernels mitigate, with the processor's microcode, which a virtual machine has from its host. */
export function mitigation(open: readonly string[], cpuinfo: string): { readonly detail: string; readonly fix: string } {
  const isVirtual = /^flags\s*:.* hypervisor\b/m.test(cpuinfo);
  const microcode = /AuthenticAMD/.test(cpuinfo) ? 'amd64-microcode' : 'intel-microcode';
  const upgrade = `apt-get update && apt-get -y ${isVirtual ? '' : `install ${microcode} && apt-get -y `}dist-upgrade && systemctl reboot`;
  return {
    detail: `not mitigated: ${open.join(', ')}${isVirtual ? '; this is a virtual machine: its host may need the same' : ''}`,
    fix: upgrade,
  };
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

async function names(host: Host, op: Operation): Promise<Check> {
  const detail = {
    yes: 'NAME.hutch.localhost is this machine: published ports answer there',
    unknown: 'whether NAME.hutch.localhost is found cannot be told without getent; browsers find it',
    no: 'NAME.hutch.localhost is not found here by programs other than browsers',
  };
  const found = await findsLocalNames(op, host);
  return { name: 'names', status: found === 'no' ? 'warning' : 'ok', detail: detail[found], fix: found === 'no' ? NAMES_FIX : null };
}
