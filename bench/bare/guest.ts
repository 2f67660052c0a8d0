// A guest without Hutch: the same kernel, image and machine, booted cold by a plain QEMU command line.
// Its /init is a few lines of shell that mount image and disk as Hutch's agent does and then read
// commands from the serial console. Its virtio-serial port belongs to nobody: raw bytes go over it.
import { existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { MKFS_OPTIONS } from '../../src/backends/disk.ts';
import { readHostCpu } from '../../src/backends/qemu/cpu.ts';
import { accelerationArgs, kernelCommandLine, QUICK_BOOT } from '../../src/backends/qemu/machine.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { type CpioEntry, cpioArchive } from '../../src/images/cpio.ts';
import { benchOperation } from '../operation.ts';
import { mustRun, type Place } from '../place.ts';
import type { BareTemplate } from './restore.ts';
import { BareVm } from './vm.ts';

const FIRST_LINE = 'bare: first user line';
const SHELL_LINE = 'bare: shell';
const COMMAND_MS = 15 * 60_000;
const DISK_BYTES = 8 * 1024 ** 3;
const DIRECTORIES = ['base', 'bin', 'dev', 'disk', 'lib', 'lib/modules', 'newroot', 'proc', 'sys'];

const INIT = `#!/bin/busybox sh
b=/bin/busybox
echo ${FIRST_LINE}
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for m in $($b cat /lib/modules/order); do $b insmod /lib/modules/$m; done
$b mount -t squashfs -o ro /dev/vda /base
$b mount -t ext4 -o noatime,noinit_itable /dev/vdb /disk
$b mkdir -p /disk/upper /disk/work
$b mount -t overlay -o noatime,lowerdir=/base,upperdir=/disk/upper,workdir=/disk/work overlay /newroot
$b mount --move /dev /newroot/dev
$b mount --move /proc /newroot/proc
$b mount --move /sys /newroot/sys
$b mount -t tmpfs tmpfs /newroot/tmp
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
$b stty raw -echo </newroot/dev/ttyS0
echo ${SHELL_LINE}
# Not from the terminal itself: that shell would be an interactive one.
exec $b chroot /newroot /bin/sh -c 'while IFS= read -r line; do eval "$line"; done' </newroot/dev/ttyS0 >/newroot/dev/ttyS0 2>&1
`;

export type BareBoot = {
  readonly kernelPath: string;
  readonly initramfsPath: string;
  readonly commandLine: string;
  /** Hutch's own, with the agent in it. */
  readonly agentInitramfsPath: string;
};

/** Makes the initramfs beside the template's runs. */
export async function bareBoot(place: Place, template: BareTemplate): Promise<BareBoot> {
  const kernelDir = onlyEntry(join(place.dataDir, 'kernels'));
  const manifest = JSON.parse(readFileSync(join(kernelDir, 'manifest.json'), 'utf8')) as { modules: readonly { file: string }[] };
  const busybox = ['/usr/bin/busybox', '/bin/busybox'].find((path) => existsSync(path));
  if (busybox === undefined) throw new Error('busybox is not installed: ./dev installs it (busybox-static)');
  const modules = manifest.modules.map(({ file }) => file);
  const archive = cpioArchive([
    ...DIRECTORIES.map((path): CpioEntry => ({ type: 'directory', path, mode: 0o755 })),
    { type: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { type: 'file', path: 'bin/busybox', mode: 0o755, content: readFileSync(busybox) },
    { type: 'file', path: 'init', mode: 0o755, content: Buffer.from(INIT) },
    { type: 'file', path: 'lib/modules/order', mode: 0o644, content: Buffer.from(modules.map((file) => `${file}\n`).join('')) },
    ...modules.map(
      (file): CpioEntry => ({
        type: 'file',
        path: `lib/modules/${file}`,
        mode: 0o644,
        content: readFileSync(join(kernelDir, 'modules', file)),
      }),
    ),
  ]);
  const initramfsPath = join(template.workDir, 'initramfs.cpio');
  writeFileSync(initramfsPath, archive);
  const { tscKhz } = await readHostCpu(benchOperation(), nodeHost());
  return {
    kernelPath: join(kernelDir, 'vmlinux'),
    initramfsPath,
    commandLine: plain(kernelCommandLine(template.machine.acceleration, tscKhz)),
    agentInitramfsPath: onlyEntry(join(place.dataDir, 'initramfs')),
  };
}

/** What makes Hutch's boot quicker than anybody's is Hutch's. */
function plain(commandLine: string): string {
  const words: readonly string[] = QUICK_BOOT;
  return commandLine
    .split(' ')
    .filter((word) => !words.includes(word))
    .join(' ');
}

function onlyEntry(dir: string): string {
  const [name] = readdirSync(dir).filter((entry) => !entry.startsWith('.'));
  if (name === undefined) throw new Error(`${dir} is empty`);
  return join(dir, name);
}

export class BareGuest implements AsyncDisposable {
  /** The host's end of the guest's port. */
  readonly port: Socket;
  /** From the start of QEMU to the first line that a program in the guest wrote. */
  readonly firstLineMs: number;
  readonly #shell: Lines;
  readonly #owned: AsyncDisposableStack;
  #commands = 0;

  private constructor(port: Socket, shell: Lines, firstLineMs: number, owned: AsyncDisposableStack) {
    this.port = port;
    this.firstLineMs = firstLineMs;
    this.#shell = shell;
    this.#owned = owned;
  }

  static async boot(template: BareTemplate, boot: BareBoot): Promise<BareGuest> {
    await using undo = new AsyncDisposableStack();
    const dir = join(template.workDir, `guest-${Date.now()}`);
    await mustRun(['mkdir', '-p', dir]);
    undo.defer(() => rm(dir, { recursive: true, force: true }));
    const diskPath = join(dir, 'disk');
    await emptyDisk(diskPath);
    const started = performance.now();
    const vm = undo.use(new BareVm(dir, bootArgs(template, boot, diskPath)));
    const shell = new Lines(await vm.socket('shell.sock'));
    await shell.until((line) => line.includes(FIRST_LINE));
    const firstLineMs = performance.now() - started;
    const port = await vm.socket('port.sock');
    await shell.until((line) => line.includes(SHELL_LINE));
    return new BareGuest(port, shell, firstLineMs, undo.move());
  }

  /** Runs a line of shell; gives what it wrote. One at a time. */
  async run(command: string): Promise<string> {
    this.#commands += 1;
    const end = `@@${this.#commands}:`;
    // In two words, so that an echo of the command would not look like its end.
    this.#shell.send(`${command}; echo "@@""${this.#commands}:$?"\n`);
    const lines = await this.#shell.until((line) => line.includes(end));
    const last = lines.pop() ?? '';
    if (!last.endsWith(`${end}0`)) throw new Error(`in the bare guest '${command}' ended with ${last}: ${lines.join(' | ')}`);
    return lines.join('\n');
  }

  async write(path: string, content: string): Promise<void> {
    await this.run(`echo ${Buffer.from(content).toString('base64')} | base64 -d >${path}`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#owned.disposeAsync();
  }
}

export async function emptyDisk(path: string): Promise<void> {
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  await mustRun(['mke2fs', ...MKFS_OPTIONS, path]);
}

function bootArgs({ qemu, machine, imagePath }: BareTemplate, boot: BareBoot, diskPath: string): string[] {
  const { kernelPath, initramfsPath, commandLine } = boot;
  const file = (name: string, filename: string, extra: object) =>
    JSON.stringify({ driver: 'raw', 'node-name': name, ...extra, file: { driver: 'file', filename } });
  return [
    ...[qemu, '-M', 'microvm,rtc=on,acpi=on', ...accelerationArgs(machine.acceleration)],
    ...['-smp', `cpus=${machine.cpus}`, '-m', `size=${machine.memoryMiB}M`],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-chardev', 'socket,id=shell,server=on,wait=off,path=shell.sock', '-serial', 'chardev:shell'],
    ...['-blockdev', file('vda', imagePath, { 'read-only': true }), '-device', 'virtio-blk-device,drive=vda'],
    ...['-blockdev', file('vdb', diskPath, { discard: 'unmap', 'detect-zeroes': 'unmap' })],
    ...['-device', 'virtio-blk-device,drive=vdb,write-cache=on', '-device', 'virtio-serial-device,max_ports=2'],
    ...['-chardev', 'socket,id=port,server=on,wait=off,path=port.sock', '-device', 'virtserialport,chardev=port,nr=1,name=bench'],
    ...['-kernel', kernelPath, '-initrd', initramfsPath, '-append', commandLine],
  ];
}

/** Lines of the console, taken in order. */
class Lines {
  readonly #socket: Socket;
  #kept: string[] = [];
  #partial = '';
  #wake: (() => void) | null = null;
  #ended = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      const lines = (this.#partial + chunk.toString()).split('\n');
      this.#partial = lines.pop() ?? '';
      this.#kept.push(...lines.map((line) => line.replaceAll('\r', '')));
      this.#wake?.();
    });
    socket.on('close', () => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  send(text: string): void {
    this.#socket.write(text);
  }

  /** Everything up to and with the line that is wanted. */
  async until(wanted: (line: string) => boolean): Promise<string[]> {
    const deadline = performance.now() + COMMAND_MS;
    for (;;) {
      const at = this.#kept.findIndex(wanted);
      if (at >= 0) return this.#kept.splice(0, at + 1);
      if (this.#ended) throw new Error(`the bare guest ended: ${this.#kept.slice(-5).join(' | ')}`);
      await new Promise<void>((resolve, reject) => {
        const late = setTimeout(() => reject(new Error('the bare guest is silent')), Math.max(0, deadline - performance.now()));
        this.#wake = () => {
          clearTimeout(late);
          resolve();
        };
      });
    }
  }
}
