// A backend for tests of everything above backends: a sandbox is the real agent in a root, a mount
// and a process namespace of its own, under the real shim. It starts in milliseconds, survives the
// daemon, and dies with its shim, as a virtual machine does; it is no boundary, and only root can run it.
import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Backend, BootFiles, SandboxPlan } from '../../src/backends/backend.ts';
import { mendVolume } from '../../src/backends/disk.ts';
import type { Parts } from '../../src/daemon/daemon.ts';
import { newId } from '../../src/domain/ids.ts';
import type { Image } from '../../src/domain/image.ts';
import { blockOf, SANDBOX_UIDS } from '../../src/domain/users.ts';
import type { Host } from '../../src/host/host.ts';
import type { Operation } from '../../src/host/operation.ts';
import { inspectShim, type ShimDead, shimEnded, signalShim, startShim } from '../../src/host/shim.ts';
import type { BootSource } from '../../src/services/deps.ts';
import { waitFor } from '../../src/services/operations.ts';
import type { Store } from '../../src/store/contract.ts';

const ROOT = join(import.meta.dirname, '../..');
const BIN = join(ROOT, 'prebuilt/x86_64');
const BUSYBOX = '/bin/busybox';
const APPLETS =
  'sh cat echo env sleep true false ls head tail id kill mkdir rm mv cp ln chmod chown stat touch dd wc seq yes sha256sum md5sum hostname date test sort tr printf stty tty nc ps sync tee grep sed awk cut uname pwd whoami trap od expr basename dirname find xargs mkfifo usleep timeout setsid'.split(
    ' ',
  );
const RELEASE_MS = 10_000;

export type ReferenceOptions = {
  readonly host: Host;
  /** Called before the step of that name; what it throws is what the step fails with. */
  readonly before?: (step: string, plan: Pick<SandboxPlan, 'id'>, op: Operation) => void | Promise<void>;
};

type Line = { readonly server: Server; readonly arrived: Socket[]; current: Socket | null; awaited: ((socket: Socket) => void) | null };

export function newReferenceBackend({ host, before = () => {} }: ReferenceOptions): Backend {
  const lines = new Map<string, Line>();

  async function listen(plan: SandboxPlan): Promise<Line> {
    const known = lines.get(plan.id);
    if (known !== undefined) return known;
    const path = socketPath(plan);
    await fs.mkdir(join(rootOf(plan), 'run'), { recursive: true });
    await fs.rm(path, { force: true });
    const server = createServer();
    const line: Line = { server, arrived: [], current: null, awaited: null };
    server.on('connection', (socket) => {
      socket.on('error', () => {});
      socket.pause();
      const { awaited } = line;
      line.awaited = null;
      if (awaited !== null) return awaited(socket);
      for (const old of line.arrived.splice(0)) old.destroy();
      line.arrived.push(socket);
    });
    await new Promise<void>((resolve, reject) => server.once('error', reject).listen(path, resolve));
    server.unref();
    lines.set(plan.id, line);
    return line;
  }

  function hangUp(id: string): void {
    const line = lines.get(id);
    if (line === undefined) return;
    lines.delete(id);
    line.server.close();
    for (const socket of [...line.arrived, ...(line.current === null ? [] : [line.current])]) socket.destroy();
  }

  async function signalAgent(op: Operation, plan: SandboxPlan, signal: 'SIGSTOP' | 'SIGCONT'): Promise<void> {
    const found = await inspectShim(op, host, plan.runDir);
    if (!found.alive) throw op.error('failed_precondition', 'it does not run');
    // One that starts another while it is looked at is looked at again: until nobody new is found.
    for (let seen = 0; ; ) {
      const all = await descendants(found.pid);
      for (const pid of all) sendSignal(pid, signal);
      if (signal === 'SIGCONT' || all.length === seen) return;
      seen = all.length;
    }
  }

  const backend: Backend = {
    name: 'qemu',
    needs: 'root',
    processesBoundBy: 'backend',
    async probe() {
      return {
        ok: true,
        can: {
          isolation: 'shared-kernel',
          securityBoundary: false,
          pause: true,
          suspend: false,
          fork: false,
          snapshot: false,
          diskSnapshot: false,
          hostDirectories: true,
          volumes: true,
          devices: false,
          limits: { cpu: 'host-process', memory: 'host-process', disk: 'host-process', processes: 'no' },
          changes: { cpus: 'live', memory: 'live', disk: 'next-start', processes: 'live', network: 'no' },
          networks: ['none'],
          acceleration: 'none',
          notes: [
            'for tests: cpu, memory, disk are taken and bound nothing, processes are the host’s',
            'no network: it has a namespace of its own, and nothing in it',
          ],
        },
      };
    },
    async prepare(op) {
      await before('prepare', { id: 'sbx00000000000000000' as SandboxPlan['id'] }, op);
      op.progress({ step: 'preparing the template', detail: FILES.imageDigest });
    },
    async create(op, plan) {
      await before('create', plan, op);
      await host.makeDir(op, plan.dataDir, 0o711);
      await makeRoot(rootOf(plan));
      await before('created', plan, op);
    },
    async start(op, plan) {
      await before('start', plan, op);
      await host.makeDir(op, plan.runDir, 0o700);
      await host.makeDir(op, plan.logDir, 0o711);
      await host.appendFile(op, join(plan.logDir, 'boot.log'), new TextEncoder().encode(`booting ${plan.id}\n`));
      await listen(plan);
      const root = rootOf(plan);
      const { mounts = [], volumes = [] } = plan;
      for (const { path, target, readOnly } of volumes) if (!readOnly) await mendVolume(op, host, path, target);
      for (const { target } of [...mounts, ...volumes]) await host.makeDir(op, join(root, target), 0o755);
      const shown = [
        ...mounts.map(({ source, target, readOnly }) => ({ source, target, how: '--rbind', readOnly })),
        ...volumes.map(({ path, target, readOnly }) => ({
          source: path,
          target,
          how: readOnly ? '-o loop,ro,noload' : '-o loop',
          readOnly,
        })),
      ];
      const mounting = shown.map(({ how, readOnly }, at) => {
        const [source, target] = [`"$${2 * at + 3}"`, `"$${2 * at + 4}"`];
        return `mount ${how} ${source} ${target} && ${readOnly ? `mount -o remount,bind,ro ${target} && ` : ''}`;
      });
      const script = `${mounting.join('')}busybox ip link set lo up && mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && exec "$2" --root "$1" --connect /run/agent.sock`;
      const program = [
        '/usr/bin/unshare',
        '--mount',
        '--pid',
        '--net',
        '--uts',
        '--fork',
        '--kill-child',
        '--',
        '/bin/sh',
        '-c',
        script,
        'sandbox',
        root,
        join(BIN, 'hutch-agent'),
        ...shown.flatMap(({ source, target }) => [source, join(root, target)]),
      ];
      const { child } = await startShim(op, host, join(BIN, 'hutch-shim'), {
        dir: plan.runDir,
        logPath: join(plan.logDir, 'vmm.log'),
        runAs: null,
        cgroups: [],
        also: [],
        awaitSockets: [],
        argv: program,
      });
      await before('started', plan, op);
      return { evidence: { alive: true, ...child }, network: null, disk: null, stagesMs: {} };
    },
    async reshape(op, plan) {
      await before('reshape', plan, op);
    },
    async linkUp() {},
    async dialAgent(op, plan) {
      await before('dial', plan, op);
      const line = await listen(plan);
      line.current?.destroy();
      let socket = line.arrived.shift();
      while (socket?.destroyed === true) socket = line.arrived.shift();
      if (socket === undefined) {
        const coming = new Promise<Socket>((resolve) => {
          line.awaited = resolve;
        });
        socket = await waitFor(op, coming, 'the agent');
      }
      line.current = socket;
      return socket;
    },
    async pause(op, plan) {
      await before('pause', plan, op);
      await signalAgent(op, plan, 'SIGSTOP');
    },
    async resume(op, plan) {
      await before('resume', plan, op);
      await signalAgent(op, plan, 'SIGCONT');
    },
    async kill(op, plan, how) {
      await before('kill', plan, op);
      const found = await inspectShim(op, host, plan.runDir);
      if (found.alive && how === 'now') await host.kill(op, found, 'SIGKILL');
      else if (found.alive) await signalShim(op, host, plan.runDir, 'SIGKILL');
      using limited = op.within(RELEASE_MS, 'the end of the sandbox');
      const dead = found.alive ? await shimEnded(limited, host, plan.runDir) : found;
      hangUp(plan.id);
      return dead;
    },
    inspect: async (op, plan) => {
      await before('inspect', plan, op);
      return await inspectShim(op, host, plan.runDir);
    },
    ended: (op, plan): Promise<ShimDead> => shimEnded(op, host, plan.runDir),
    async remove(op, plan) {
      await before('remove', plan, op);
      await backend.cleanUp(op, plan);
      await host.remove(op, plan.dataDir);
    },
    async cleanUp(op, plan) {
      await before('cleanUp', plan, op);
      hangUp(plan.id);
      await host.remove(op, plan.runDir);
    },
    async stats(op, plan) {
      const found = await inspectShim(op, host, plan.runDir);
      const use = found.alive ? await host.processUse(op, found) : null;
      return { pssBytes: use?.pssBytes ?? 0, cpuUs: use?.cpuUs ?? 0, diskAllocatedBytes: 0 };
    },
    // The agent would tell of the whole machine's processors.
    async usage(op, plan) {
      const found = await inspectShim(op, host, plan.runDir);
      if (!found.alive) return null;
      const pids = [found.pid, ...(await descendants(found.pid))];
      const used = await Promise.all(pids.map(cpuUsOf));
      return { cpuUs: used.reduce((sum, us) => sum + us, 0), memory: null, disk: await diskOfHost(), network: null, processes: null };
    },
    leaks: async () => [],
  };
  return backend;
}

/** What every disk of this machine has moved: nobody counts for one sandbox. */
async function diskOfHost(): Promise<{ readBytes: number; writtenBytes: number }> {
  const disks = (await fs.readFile('/proc/diskstats', 'utf8')).split('\n').map((line) => line.trim().split(/ +/));
  const bytes = (field: number): number => disks.reduce((sum, fields) => sum + Number(fields[field] ?? 0) * 512, 0);
  return { readBytes: bytes(5), writtenBytes: bytes(9) };
}

/** With what its children had used when it saw their ends: so nothing is lost when one goes. */
async function cpuUsOf(pid: number): Promise<number> {
  const stat = await fs.readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  return Number.isFinite(ticks) ? ticks * 10_000 : 0;
}

/** Everything that runs below a process, but not itself. */
async function descendants(pid: number): Promise<readonly number[]> {
  const threads = await fs.readdir(`/proc/${pid}/task`).catch(() => []); // each has children of its own
  const listed = await Promise.all(threads.map((thread) => fs.readFile(`/proc/${pid}/task/${thread}/children`, 'utf8').catch(() => '')));
  const children = listed.join(' ').split(' ').filter(Boolean).map(Number);
  return [...children, ...(await Promise.all(children.map(descendants))).flat()];
}

/** That it has ended meanwhile is no failure. */
function sendSignal(pid: number, signal: 'SIGSTOP' | 'SIGCONT'): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

const rootOf = (plan: Pick<SandboxPlan, 'dataDir'>): string => join(plan.dataDir, 'root');
const socketPath = (plan: Pick<SandboxPlan, 'dataDir'>): string => join(rootOf(plan), 'run/agent.sock');

async function makeRoot(root: string): Promise<void> {
  if (existsSync(join(root, 'bin/busybox'))) return;
  await Promise.all(
    ['bin', 'dev', 'proc', 'sys', 'run', 'tmp', 'root', 'etc', 'var/log', 'home/user'].map((dir) =>
      fs.mkdir(join(root, dir), { recursive: true }),
    ),
  );
  await fs.chmod(join(root, 'tmp'), 0o1777);
  await fs.copyFile(BUSYBOX, join(root, 'bin/busybox'));
  await Promise.all(APPLETS.map((name) => fs.symlink('busybox', join(root, 'bin', name))));
  await fs.writeFile(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n');
  await fs.writeFile(join(root, 'etc/group'), 'root:x:0:\nuser:x:1000:\n');
  await fs.chown(join(root, 'home/user'), 1000, 1000);
}

const FILES = {
  kind: 'root',
  imagePath: '/nowhere/image',
  imageDigest: `sha256:${'1'.repeat(64)}`,
} as const satisfies BootFiles;

/** A daemon's parts with this backend alone. */
export function referenceParts(store: Store, options: ReferenceOptions): Parts {
  const { host } = options;
  return {
    backends: [newReferenceBackend(options)],
    boots: referenceBoots(store, host),
    images: null,
    kernels: null,
    agentDigest: null,
    qemuVersion: async () => null,
    // Handed out, and used by nobody: its sandboxes run as root.
    uids: host.uid === 0 ? blockOf(SANDBOX_UIDS.first) : null,
    leftovers: async () => [],
    close: async () => {},
  };
}

/** One image, `debian`, which needs no making; anything else is not found. */
export function referenceBoots(store: Store, host: Host): BootSource {
  let known: Promise<Image> | undefined;
  const image = async (op: Operation): Promise<Image> => {
    const found = (await store.query('images', {})).find((candidate) => candidate.name === 'debian');
    if (found !== undefined) return found;
    const [made] = await store.commit(op, [
      {
        change: 'putImage',
        image: {
          id: newId('img', (count) => host.randomBytes(count)),
          name: 'debian',
          digest: FILES.imageDigest,
          architecture: 'x86_64',
          sizeBytes: 1,
          config: {
            env: { IMAGE: 'yes', SHARED: 'image' },
            entrypoint: [],
            command: [],
            workdir: null,
            user: null,
            stopSignal: null,
            exposedPorts: [],
          },
          createdAtMs: host.nowMs(),
          detail: {},
        },
      },
    ]);
    return made;
  };
  const take = async (op: Operation) => {
    known ??= image(op);
    return { image: await known, kernelId: null, files: FILES, runArchive: null };
  };
  return {
    initrds: () => new Set(),
    ownKernel: async () => false,
    async prepare(op, name) {
      if (name !== 'debian') throw op.error('not_found', `there is no image '${name}'`);
      return await take(op);
    },
    renew: async () => {},
    of: (op) => take(op),
  };
}
