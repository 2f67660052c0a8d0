// The lab's outer VM: a whole Debian under software emulation that implements AMD's SVM with nested
// paging, so that /dev/kvm in it really runs guests. Owns one directory of state in the user's cache:
// the root image (built once per recipe), an overlay for each life, sockets and the pid.
// Its clock counts instructions: however busy this machine is, what is in it meets its deadlines.
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** By this machine's clock: a quarter of a processor boots it in three minutes. */
const BOOT_MS_MAX = 1_200_000;
const PROGRESS_EVERY_MS = 20_000;
/** Of the disk with the checkout; sparse. */
const CHECKOUT_BYTES = 4 * 2 ** 30;
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

/** What stays out: what only this machine builds or downloads, and programs that check sources. */
const NOT_IN_THE_LAB = ['.git', 'rust/target', '.tools/compile-cache', '.tools/node-*', '.tools/npm-*', 'node_modules/@biomejs'];

/** What goes in, as a disk: the checkout as it is, bundled, with its prepared kernel and image, and our own Node. */
function packCheckout(target: string): void {
  const must = (argv: readonly string[], allowed: readonly number[] = [0]) => {
    const [program = '', ...args] = argv;
    const { status } = spawnSync(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    if (status === null || !allowed.includes(status)) throw new Error(`the checkout could not be packed: ${argv.join(' ')}`);
  };
  const stage = `${target}.stage`;
  for (const script of ['scripts/prepare.ts', 'scripts/bundle.ts']) must([process.execPath, script]);
  mkdirSync(stage);
  const left = NOT_IN_THE_LAB.map((path) => `--exclude=./${path}`);
  const archive = `${target}.tar`;
  // 1: a file changed while it was read, as logs of tests do.
  must(['tar', '-c', '-f', archive, ...left, './'], [0, 1]);
  must(['tar', '-x', '-f', archive, '-C', stage]);
  must(['cp', process.execPath, join(stage, '.tools/lab-node')]);
  writeFileSync(join(stage, '.tools/node-path'), '/hutch/.tools/lab-node\n');
  writeFileSync(target, '');
  truncateSync(target, CHECKOUT_BYTES);
  must(['mkfs.ext4', '-q', '-d', stage, target]);
  rmSync(stage, { recursive: true });
  rmSync(archive);
}

/** Starts the outer VM unless it runs; resolves once commands can be run in it. */
export async function up(): Promise<void> {
  if (livingPid() !== null) return;
  const root = buildRoot();
  rmSync(run, { recursive: true, force: true });
  mkdirSync(run, { recursive: true, mode: 0o700 });
  console.error('lab: packing the checkout');
  packCheckout(join(run, 'checkout.ext4'));
  image('root.qcow2', '-f', 'qcow2', '-F', 'raw', '-b', join(root, 'root.ext4'));
  image('data.raw', '-f', 'raw');
  image('flaky.raw', '-f', 'raw');
  start(root);
  await ready();
}

function image(name: string, ...how: readonly string[]): void {
  const size = how.includes('-b') ? [] : ['12G'];
  const made = spawnSync('qemu-img', ['create', '-q', ...how, join(run, name), ...size], { stdio: 'inherit' });
  if (made.status !== 0) throw new Error(`${name} could not be made (qemu-img is in Debian's qemu-utils)`);
}

/**
 * At each boot (the mounts only at the first). /hutch is the checkout, of a user who may install; /data is XFS with reflink, where a new Hutch gets
 * its kernel and image without a copy; /dev/vdd is for dm-flakey.
 */
const SET_UP = `
blkid /dev/vdc >/dev/null 2>&1 || mkfs.xfs -q -m reflink=1 /dev/vdc
grep -q /hutch /etc/fstab || printf '%s\\n' '/dev/vdb /hutch ext4 noatime 0 0' '/dev/vdc /data xfs noatime 0 0' >>/etc/fstab
systemctl daemon-reload # or each mount from then on says that it has not been done
for place in /hutch /data; do mkdir -p $place; mountpoint -q $place || mount $place; chmod 755 $place; done
chown ops /hutch /hutch/.tools /hutch/dist
ln -sf /hutch/.tools/lab-node /usr/local/bin/node
test -e /data/seed || { mkdir /data/seed.new; cp -a /hutch/.tools/data/images /hutch/.tools/data/kernels /hutch/.tools/data/initramfs /data/seed.new; mv /data/seed.new /data/seed; }
`;

function start(root: string): void {
  const log = openSync(join(run, 'console.log'), 'a', 0o600);
  const drive = (id: string, file: string, format: 'raw' | 'qcow2') => [
    ...['-drive', `if=none,id=${id},file=${join(run, file)},format=${format},cache=unsafe,discard=unmap`],
    ...['-device', `virtio-blk-pci,drive=${id}`],
  ];
  // With instructions counted there is one thread of emulation, and a second processor would only wait for the first.
  // One instruction is a nanosecond: the lab sees a processor as quick as a real one, and a world that is slow.
  const processor = ['-accel', 'tcg,thread=single', '-icount', 'shift=0,sleep=on', '-smp', '1', '-cpu', 'max,+svm,+npt'];
  // What guards against other programs on a real processor only costs instructions here.
  const kernel =
    'root=/dev/vda rw console=ttyS0 loglevel=4 systemd.show_status=1 panic=-1 mitigations=off audit=0 apparmor=0 systemd.unified_cgroup_hierarchy=1';
  const args = [
    ...['-M', 'q35', ...processor, '-m', '4096', '-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-kernel', join(root, 'vmlinuz'), '-initrd', join(root, 'initrd.img'), '-append', kernel],
    ...drive('root', 'root.qcow2', 'qcow2'),
    ...drive('checkout', 'checkout.ext4', 'raw'),
    ...drive('data', 'data.raw', 'raw'),
    ...drive('flaky', 'flaky.raw', 'raw'),
    ...['-device', 'virtio-serial-pci', '-chardev', `socket,id=control,path=${controlSocket},server=on,wait=off`],
    ...['-device', 'virtserialport,chardev=control,name=hutch.lab'],
    ...['-device', 'virtio-rng-pci', '-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net'],
    ...['-serial', 'stdio', '-qmp', `unix:${join(run, 'qmp.sock')},server=on,wait=off`],
  ];
  const child = spawn('qemu-system-x86_64', args, { detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  writeFileSync(pidFile, String(child.pid));
  child.unref();
}

async function ready(): Promise<void> {
  const deadline = Date.now() + BOOT_MS_MAX;
  console.error('lab: booting the outer VM');
  const progress = setInterval(() => console.error(`lab:   ${lastWords()}`), PROGRESS_EVERY_MS);
  try {
    for (let set: number | null = null; set === null; ) {
      if (livingPid() === null) throw new Error(`the outer VM ended; see ${join(run, 'console.log')}`);
      if (Date.now() > deadline) throw new Error(`the outer VM was not ready within ${BOOT_MS_MAX} ms; see ${join(run, 'console.log')}`);
      // Nothing answers before the service in it runs.
      if (!readFileSync(join(run, 'console.log'), 'utf8').slice(consoleBegan).includes('Lab control'))
        await new Promise((resolve) => setTimeout(resolve, 500));
      else {
        set = await command({ argv: ['sh', '-ec', `systemctl is-system-running --wait >/dev/null || true\n${SET_UP}`] });
        if (set !== 0) throw new Error(`the lab's set-up failed with ${set}`);
      }
    }
  } finally {
    clearInterval(progress);
  }
}

/** Where this boot begins in the console's log. */
let consoleBegan = 0;

function lastWords(): string {
  const lines = readFileSync(join(run, 'console.log'), 'utf8').split(/[\r\n]+/);
  return (lines.findLast((line) => line.trim() !== '') ?? '').replaceAll(/\x1b\[[\d;]*[A-Za-z]/g, '').slice(0, 120);
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
  await again();
}

/** An orderly reboot: what runs is asked to end first. */
export async function reboot(): Promise<void> {
  const pid = livingPid();
  if (pid === null) throw new Error('the outer VM does not run');
  await command({ argv: ['systemctl', '--no-block', 'reboot'] });
  const deadline = Date.now() + BOOT_MS_MAX;
  while (livingPid() !== null || holdsFiles(pid)) {
    if (Date.now() > deadline) throw new Error(`the outer VM did not shut down; see ${join(run, 'console.log')}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  await again();
}

async function again(): Promise<void> {
  consoleBegan = statSync(join(run, 'console.log')).size;
  start(buildRoot());
  await ready();
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
