// The machine, as QEMU's argument vector. The same function makes the template's machine and the
// restored one: a state loads only into the machine that it was saved from, so every device is
// written once, here. Values from outside stand only in JSON or as whole arguments, never in QEMU's
// `key=value,…` syntax.
import type { Acceleration } from './config.ts';
import { SOCKETS } from './paths.ts';

/** Everything about a machine that its saved state depends on: the template's key is made from it. */
export type MachineShape = {
  readonly acceleration: Acceleration;
  readonly cpus: number;
  readonly memoryMiB: number;
  /** Places for volumes; a machine without has none, so that its template stays what it was. */
  readonly volumes: number;
  /** A port for directories of the host; likewise. */
  readonly directories: boolean;
};

export type MachineFiles = {
  /** Of a template; null while one is made: then the memory is a file that only the process has. */
  readonly memoryPath: string | null;
  readonly imagePath: string;
  readonly disks: Disks;
  readonly volumes: readonly VolumeDrive[];
  /** Where the program listens that serves directories of the host, from the machine's working directory; null: nobody does. */
  readonly filesSocket: string | null;
};

export type VolumeDrive = { readonly path: string; readonly readOnly: boolean };

/**
 * `vdb` was mounted when the template was saved, so it is always the template's disk as it was then, or
 * a new sandbox's copy of it. A disk that was used before, or has another size, comes as `vdc`, and the
 * agent makes it the root. Null: nothing there, 1 MiB of zeros.
 */
export type Disks = { readonly vdb: string; readonly vdc: string | null };

/** Where the NIC leads. Its link is down until the agent has its address. */
export type Wire =
  /** Nowhere: the port of a hub that has no other. */
  | { readonly kind: 'unconnected' }
  /** To the passt beside it, over the socket that the shim gave to both. */
  | { readonly kind: 'passt' }
  /** QEMU's own user network: reaches the host's loopback; by explicit configuration only. */
  | { readonly kind: 'user' };

export type Role =
  /** Boots a kernel into a memory file that becomes a template. */
  | { readonly kind: 'boot'; readonly kernelPath: string; readonly initramfsPath: string; readonly commandLine: string }
  /** Maps a template's memory copy-on-write and waits for its state. */
  | { readonly kind: 'restore'; readonly memory: MemoryOpening };

/**
 * How the memory file is opened: by the preloaded library, for reading and privately, whatever QEMU is told
 * (rust/readonly); without it by QEMU itself, which can do it from 8.2 on, but then saves no state without its memory.
 */
export type MemoryOpening = 'read-only' | 'preload';

/** What the shim hands to its program (docs/shim.md). */
const PAIR_FD = 3;
const CONSOLE_FD = 4;

/** QEMU's own seccomp filter, everything of it. */
export const SANDBOX_ARGS = ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'] as const;

/** Translated code of one machine, at most: QEMU's own default is an eighth of the host's memory. */
const TRANSLATED_MIB = 256;

const EMPTY_DISK = { driver: 'null-co', size: 1024 * 1024, 'read-zeroes': true };

export const AGENT_PORT = 'hutch.agent.0';
const FILES_PORT = 'hutch.files.0';
/** The other end of its link. */
export const WIRE_ID = 'net0';
export const NIC_ID = 'nic0';
export const DISK_NODES = ['vdb', 'vdc'] as const;
/** As many as a machine has places for; what is not taken of them is empty. */
export const VOLUME_NODES = ['vdd', 'vde', 'vdf', 'vdg'] as const;

/** Few kinds of machines: each has a template. */
export function volumePlaces(count: number): number {
  return count <= 1 ? count : VOLUME_NODES.length;
}

export function machineArgs(shape: MachineShape, files: MachineFiles, wire: Wire, role: Role): string[] {
  const memory = {
    // On a disk's file system each page that the guest touches first would be a block to allocate.
    ...(files.memoryPath === null
      ? { 'qom-type': 'memory-backend-memfd', seal: false }
      : { 'qom-type': 'memory-backend-file', 'mem-path': files.memoryPath }),
    id: 'memory',
    size: shape.memoryMiB * 1024 * 1024,
    // As shared QEMU leaves it out of its saved state. The preloaded library maps it privately all the same.
    share: role.kind === 'boot' || role.memory === 'preload',
    ...(role.kind === 'restore' && role.memory === 'read-only' ? { readonly: true, rom: 'off' } : {}),
    // Pages of one sandbox are not compared with another's (KSM is a side channel), nor put into core dumps.
    merge: false,
    dump: false,
  };
  return [
    ...['-M', 'microvm,rtc=on,acpi=on,memory-backend=memory'],
    ...accelerationArgs(shape.acceleration),
    ...['-smp', `cpus=${shape.cpus}`, '-m', `size=${shape.memoryMiB}M`],
    ...['-object', JSON.stringify(memory)],
    // No default devices, no configuration files, and the guest's reset ends the process: its kernel is not here any more.
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-msg', 'timestamp=on'],
    ...SANDBOX_ARGS,
    ...['-add-fd', `fd=${CONSOLE_FD},set=${CONSOLE_FD}`],
    ...['-chardev', `file,id=console,append=on,path=/dev/fdset/${CONSOLE_FD}`, '-serial', 'chardev:console'],
    ...[
      '-blockdev',
      JSON.stringify({ driver: 'raw', 'node-name': 'vda', 'read-only': true, file: { driver: 'file', filename: files.imagePath } }),
    ],
    ...['-device', 'virtio-blk-device,drive=vda'],
    // Written back by the host's cache; a flush by the guest is a flush to the disk.
    ...DISK_NODES.flatMap((node) => {
      const path = files.disks[node];
      const backing = path === null ? EMPTY_DISK : { driver: 'file', filename: path };
      const drive = { driver: 'raw', 'node-name': node, discard: 'unmap', 'detect-zeroes': 'unmap', file: backing };
      // By default QEMU freezes a machine whose disk has no room on the host, for good and without a word.
      return ['-blockdev', JSON.stringify(drive), '-device', `virtio-blk-device,drive=${node},write-cache=on,werror=report`];
    }),
    ...VOLUME_NODES.slice(0, shape.volumes).flatMap((node, at) => volumeArgs(node, files.volumes[at])),
    ...['-device', `virtio-serial-device,max_ports=${shape.directories ? 3 : 2}`],
    ...['-chardev', `socket,id=agent,server=on,wait=off,path=${SOCKETS.agent}`],
    ...['-device', `virtserialport,chardev=agent,nr=1,name=${AGENT_PORT}`],
    ...(shape.directories ? filesArgs(files.filesSocket) : []),
    ...['-netdev', JSON.stringify(netdev(wire)), '-device', `virtio-net-device,netdev=${WIRE_ID},id=${NIC_ID}`],
    // What the guest has freed goes back to the host. Its pages then hold anything, not zeros: the guest is told of no poison, and
    // one that would count on zeros (init_on_free) reports none.
    ...['-device', 'virtio-balloon-device,free-page-reporting=on,page-poison=off'],
    ...['-chardev', `socket,id=qmp,server=on,wait=off,path=${SOCKETS.qmp}`, '-mon', 'chardev=qmp,mode=control'],
    ...['-S', ...roleArgs(role)],
  ];
}

/** When who listens there hangs up, the guest hears of it, and its directories end. */
function filesArgs(socket: string | null): string[] {
  const chardev = socket === null ? 'null,id=files' : `socket,id=files,server=off,path=${socket}`;
  return ['-chardev', chardev, '-device', `virtserialport,chardev=files,nr=2,name=${FILES_PORT}`];
}

function volumeArgs(node: string, volume: VolumeDrive | undefined): string[] {
  const drive =
    volume === undefined
      ? { driver: 'raw', 'node-name': node, file: EMPTY_DISK }
      : {
          ...{ driver: 'raw', 'node-name': node, 'read-only': volume.readOnly },
          ...(volume.readOnly ? {} : { discard: 'unmap', 'detect-zeroes': 'unmap' }),
          file: { driver: 'file', filename: volume.path },
        };
  return ['-blockdev', JSON.stringify(drive), '-device', `virtio-blk-device,drive=${node},write-cache=on,werror=report`];
}

/**
 * The emulator does `rep movsb` and `rep stosb` byte by byte, and a kernel or libc that sees ERMS or FSRM
 * uses them for everything: without the two flags pipes, page clearing and memcpy were 7 to 40 times faster.
 */
const EMULATED_CPU = 'max,-erms,-fsrm';

export function accelerationArgs(acceleration: Acceleration): string[] {
  return acceleration === 'kvm'
    ? ['-accel', 'kvm', '-cpu', 'host']
    : ['-accel', `tcg,thread=multi,tb-size=${TRANSLATED_MIB}`, '-cpu', EMULATED_CPU];
}

function roleArgs(role: Role): string[] {
  if (role.kind === 'restore') return ['-incoming', 'defer'];
  return ['-kernel', role.kernelPath, '-initrd', role.initramfsPath, '-append', role.commandLine];
}

function netdev(wire: Wire): object {
  switch (wire.kind) {
    case 'unconnected':
      return { type: 'hubport', id: WIRE_ID, hubid: 0 };
    case 'passt':
      return { type: 'stream', id: WIRE_ID, server: false, addr: { type: 'fd', str: String(PAIR_FD) } };
    case 'user':
      return { type: 'user', id: WIRE_ID };
    default:
      return wire satisfies never;
  }
}

/**
 * The kernel's command line. Under software emulation the guest cannot measure its clock reliably
 * (3 of 8 boots hung), so it is told the frequency; under KVM it has a clock of its own.
 */
export function kernelCommandLine(acceleration: Acceleration, tscKhz: number | null): string {
  const clock = acceleration === 'tcg' && tscKhz !== null ? [`tsc_early_khz=${tscKhz}`, 'tsc=reliable', 'no_timer_check'] : [];
  return ['console=ttyS0', 'quiet', 'random.trust_cpu=on', 'panic=-1', 'reboot=t', ...clock, ...QUICK_BOOT].join(' ');
}

/**
 * What a boot need not do or wait for: tests of the kernel's own ciphers (a sixth of it under emulation), probing
 * serial ports that are not there, and grace periods that pass while one processor sleeps (loading a module has several).
 */
export const QUICK_BOOT = ['cryptomgr.notests', '8250.nr_uarts=1', 'rcupdate.rcu_expedited=1'] as const;
