// The lab's outer VM: a whole Debian under software emulation that implements AMD's SVM with nested
// paging, so that /dev/kvm in it really runs guests. Owns one directory of state in the user's cache:
// the root image (built once per recipe), an overlay for each life, sockets and the pid.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const BOOT_MS_MAX = 300_000;
const RECIPE = ['build-root.sh', 'customize-root.sh', 'guest-service.py'];
/** Tmp-independent: a unix socket's path may have 107 bytes. */
export const STATE = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'hutch-lab');

const run = join(STATE, 'run');
const pidFile = join(run, 'pid');
const controlSocket = join(run, 'control.sock');

function recipeDigest(): string {
  const hash = createHash('sha256');
  for (const name of RECIPE) hash.update(readFileSync(join(import.meta.dirname, name)));
  return hash.digest('hex').slice(0, 16);
}

/** The pid of the outer VM, or null. The command line is compared: pids are reused. */
export function livingPid(): number | null {
  if (!existsSync(pidFile)) return null;
  const pid = Number(readFileSync(pidFile, 'utf8'));
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(controlSocket) ? pid : null;
  } catch {
    return null;
  }
}

function buildRoot(): string {
  const dir = join(STATE, recipeDigest());
  if (existsSync(join(dir, 'root.ext4'))) return dir;
  for (const old of existsSync(STATE) ? readdirSync(STATE) : [])
    if (/^[0-9a-f]{16}$/.test(old)) rmSync(join(STATE, old), { recursive: true });
  console.error('lab: building the root of the outer VM (about a minute, 1 GB)');
  mkdirSync(dir, { recursive: true });
  const built = spawnSync('sh', [join(import.meta.dirname, 'build-root.sh'), dir], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (built.status !== 0) throw new Error('the root could not be built');
  return dir;
}

/** What goes in: the checkout as it is, with its dependencies, its prepared kernel and image, and our own Node. */
function packCheckout(target: string): void {
  const argv = [
    ...['-c', '-f', target, '--exclude=./rust/target', '--exclude=./.git', '--transform=s,^\\./,hutch/,'],
    ...[
      `--transform=s,^${process.execPath.slice(1)}$,hutch/.tools/lab-node,`,
      '-C',
      process.cwd(),
      './',
      '-C',
      '/',
      process.execPath.slice(1),
    ],
  ];
  const tar = spawnSync('tar', argv, { stdio: ['ignore', 'inherit', 'inherit'] });
  // 1: a file changed while it was read, as logs of tests do.
  if (tar.status !== 0 && tar.status !== 1) throw new Error('the checkout could not be packed');
}

/** Starts the outer VM unless it runs; resolves once commands can be run in it. */
export async function up(): Promise<void> {
  if (livingPid() !== null) return;
  const root = buildRoot();
  rmSync(run, { recursive: true, force: true });
  mkdirSync(run, { recursive: true, mode: 0o700 });
  packCheckout(join(run, 'checkout.tar'));
  spawnSync('truncate', ['-s', '%1M', join(run, 'checkout.tar')]);
  for (const [name, args] of Object.entries({
    'root.qcow2': ['-f', 'qcow2', '-F', 'raw', '-b', join(root, 'root.ext4')],
    'data.raw': ['-f', 'raw'],
  })) {
    const made = spawnSync('qemu-img', ['create', '-q', ...args, join(run, name), ...(name === 'data.raw' ? ['12G'] : [])], {
      stdio: 'inherit',
    });
    if (made.status !== 0) throw new Error(`${name} could not be made (qemu-img is in Debian's qemu-utils)`);
  }
  start(root);
  await ready();
  const set = await command({ argv: ['sh', '-ec', SET_UP] });
  if (set !== 0) throw new Error(`the lab's set-up failed with ${set}`);
}

/** /hutch is the checkout, /data an XFS file system with reflink on which dm-flakey can be laid. */
const SET_UP = `
test -e /hutch || { mkdir /hutch.new; tar -x -f /dev/vdb -C /hutch.new; echo /hutch/.tools/lab-node > /hutch.new/hutch/.tools/node-path; mv /hutch.new/hutch /hutch; rmdir /hutch.new; }
blkid /dev/vdc >/dev/null 2>&1 || mkfs.xfs -q -m reflink=1 /dev/vdc
mkdir -p /data; mountpoint -q /data || mount /dev/vdc /data
chmod 755 /hutch
`;

function start(root: string): void {
  const log = openSync(join(run, 'console.log'), 'a', 0o600);
  const drive = (id: string, file: string, options: string) => [
    '-drive',
    `if=none,id=${id},file=${file},${options}`,
    '-device',
    `virtio-blk-pci,drive=${id}`,
  ];
  const args = [
    ...[
      '-M',
      'q35',
      '-accel',
      'tcg,thread=multi',
      '-smp',
      '2',
      '-cpu',
      'max,+svm,+npt',
      '-m',
      '4096',
      '-nodefaults',
      '-display',
      'none',
      '-no-reboot',
    ],
    ...[
      '-kernel',
      join(root, 'vmlinuz'),
      '-initrd',
      join(root, 'initrd.img'),
      '-append',
      'root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1',
    ],
    ...drive('root', join(run, 'root.qcow2'), 'format=qcow2,cache=unsafe'),
    ...drive('checkout', join(run, 'checkout.tar'), 'format=raw,readonly=on'),
    ...drive('data', join(run, 'data.raw'), 'format=raw,cache=unsafe,discard=unmap'),
    ...[
      '-device',
      'virtio-serial-pci',
      '-chardev',
      `socket,id=control,path=${controlSocket},server=on,wait=off`,
      '-device',
      'virtserialport,chardev=control,name=hutch.lab',
    ],
    ...[
      '-device',
      'virtio-rng-pci',
      '-netdev',
      'user,id=net',
      '-device',
      'virtio-net-pci,netdev=net',
      '-serial',
      'stdio',
      '-qmp',
      `unix:${join(run, 'qmp.sock')},server=on,wait=off`,
    ],
  ];
  const child = spawn('qemu-system-x86_64', args, { detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  writeFileSync(pidFile, String(child.pid));
  child.unref();
}

async function ready(): Promise<void> {
  const deadline = Date.now() + BOOT_MS_MAX;
  console.error('lab: booting the outer VM');
  while (Date.now() < deadline) {
    if (livingPid() === null) throw new Error(`the outer VM ended; see ${join(run, 'console.log')}`);
    const code = await Promise.race([
      command({ argv: ['systemctl', 'is-system-running', '--wait'], quiet: true }).catch(() => null),
      new Promise<null>((resolve) => setTimeout(resolve, 20_000, null)),
    ]);
    if (code !== null) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  throw new Error(`the outer VM was not ready within ${BOOT_MS_MAX} ms; see ${join(run, 'console.log')}`);
}

/** Whether a process still holds its files: a killed one loses its memory first, and its name with it. */
function holdsFiles(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

function kill(): void {
  const pid = livingPid();
  if (pid === null) return;
  process.kill(pid, 'SIGKILL');
  while (holdsFiles(pid)) spawnSync('sleep', ['0.1']);
}

/** Ends the outer VM at once: for what is in it, a power failure. */
export function down(): void {
  kill();
  rmSync(run, { recursive: true, force: true });
}

/** Power failure and a new boot on the same disks. */
export async function powerCycle(): Promise<void> {
  kill();
  start(buildRoot());
  await ready();
  await command({ argv: ['sh', '-ec', SET_UP] });
}

export type Command = {
  readonly argv: readonly string[];
  readonly user?: string;
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly quiet?: boolean;
  readonly input?: NodeJS.ReadableStream;
  /** Takes the output instead of our own stdout and stderr. */
  readonly onOutput?: (fd: 1 | 2, chunk: Buffer) => void;
};

let nextId = (Date.now() % 1_000_000) * 1_000;

/** Runs one command in the lab; resolves with its exit code. One connection at a time. */
export async function command(wanted: Command): Promise<number> {
  const id = nextId++;
  const socket: Socket = connect(controlSocket);
  try {
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    const { argv, user = 'root', cwd = '/', env = {} } = wanted;
    socket.write(`\n${JSON.stringify({ id, argv, user, cwd, env })}\n`);
    wanted.input?.on('data', (chunk: Buffer) => socket.write(`${JSON.stringify({ id, input: chunk.toString('base64') })}\n`));
    wanted.input?.on('end', () => socket.write(`${JSON.stringify({ id, end: true })}\n`));
    if (wanted.input === undefined) socket.write(`${JSON.stringify({ id, end: true })}\n`);
    for await (const line of createInterface({ input: socket })) {
      let message: { id?: number; fd?: 1 | 2; data?: string; exit?: number };
      try {
        message = JSON.parse(line) as typeof message;
      } catch {
        continue; // the tail of a line for an earlier connection
      }
      if (message.id !== id) continue;
      if (message.exit !== undefined) return message.exit;
      const chunk = Buffer.from(message.data ?? '', 'base64');
      if (wanted.onOutput !== undefined) wanted.onOutput(message.fd ?? 1, chunk);
      else if (wanted.quiet !== true) (message.fd === 2 ? process.stderr : process.stdout).write(chunk);
    }
    throw new Error('the lab went away before the command ended');
  } finally {
    socket.destroy();
  }
}
