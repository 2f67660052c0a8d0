// A QEMU backend on the real machine for tests: real kernel, image and agent, made once under
// .tools/data; templates, sandboxes and logs in a fresh directory that is gone afterwards.
import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import type { Backend, MachineFiles, SandboxPlan, Started } from '../../src/backends/backend.ts';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import { findCgroups } from '../../src/backends/qemu/cgroup.ts';
import type { QemuConfig } from '../../src/backends/qemu/config.ts';
import { warmGuest } from '../../src/daemon/warm.ts';
import { newId } from '../../src/domain/ids.ts';
import type { NetworkMode, Shape } from '../../src/domain/sandbox.ts';
import { type Agent, connectAgent } from '../../src/guest/agent.ts';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Operation } from '../../src/host/operation.ts';
import { prepareDefaultImage } from '../../src/images/default-image.ts';
import { prepareInitramfs } from '../../src/images/initramfs.ts';
import { prepareKernel } from '../../src/images/kernel.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { withoutNetwork } from '../../src/network/network.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot, type TestUsers, takeUsers } from '../support/users.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const PREBUILT = join(ROOT, 'prebuilt', 'x86_64');
export const SHAPE: Shape = { cpus: 1, memoryMiB: 512, diskMiB: 8192 };

export type MachineBoot = { readonly kind: 'machine' } & MachineFiles;

export async function realBootFiles(op: Operation, host: Host): Promise<MachineBoot> {
  const paths = imagePaths(join(ROOT, '.tools', 'data'));
  const image = await prepareDefaultImage(op, host, paths);
  const kernel = await prepareKernel(op, host, paths);
  const initramfs = await prepareInitramfs(op, host, paths, { kernel, agentPath: join(PREBUILT, 'hutch-agent') });
  return {
    kind: 'machine',
    imagePath: image.path,
    imageDigest: image.record.digest,
    kernelPath: kernel.vmlinuxPath,
    kernelDigest: kernel.record.digest,
    initramfsPath: initramfs.path,
    initramfsDigest: initramfs.digest,
  };
}

export type UnderTest = AsyncDisposable & {
  readonly backend: Backend;
  readonly host: Host;
  readonly home: string;
  readonly boot: MachineBoot;
  readonly config: QemuConfig;
  plan(options?: { readonly network?: NetworkMode; readonly shape?: Shape }): SandboxPlan;
};

/** `over` changes the backend's configuration; `users` are its own unless given; `inside` is a path of directories to put everything into. */
export async function qemuUnderTest(
  { users, ...over }: Partial<QemuConfig> & { readonly users?: TestUsers } = {},
  inside = '.',
): Promise<UnderTest> {
  await using undo = new AsyncDisposableStack();
  const own = users ?? (isRoot ? undo.use(await takeUsers()) : undefined);
  const firstUid = own?.uids.first ?? null;
  const host = over.host ?? nodeHost();
  const boot = await realBootFiles(testOperation(), nodeHost());
  const top = await mkdtemp(join(tmpdir(), 'hutch-qemu-'));
  undo.defer(() => rm(top, { recursive: true, force: true }));
  const home = join(top, inside);
  await chmod(top, 0o711); // the sandboxes' users go through it
  await host.makeDir(testOperation(), home, 0o711);
  const config: QemuConfig = {
    host,
    templatesDir: join(home, 'templates'),
    workDir: join(home, 'work'),
    shimPath: join(PREBUILT, 'hutch-shim'),
    readonlyLibraryPath: join(PREBUILT, 'hutch-readonly.so'),
    imprintPath: join(PREBUILT, 'hutch-imprint'),
    filesPath: join(PREBUILT, 'hutch-files'),
    templateOwner: firstUid === null ? null : { uid: firstUid, gid: firstUid },
    runRoot: join(home, 'run'),
    cgroups: await findCgroups(testOperation(), nodeHost(), basename(top)),
    network: withoutNetwork('the test wants none'),
    warmAgent: (warming, dial, disk) => warmGuest(warming, nodeHost(), dial, disk),
    ...over,
  };
  let nextUid = (firstUid ?? 0) + 1;
  const kept = undo.move();
  return {
    backend: newQemuBackend(config),
    host,
    home,
    boot,
    config,
    plan({ network = 'none', shape = SHAPE } = {}) {
      const id = newId('sbx', (count) => randomBytes(count));
      const uid = nextUid++;
      const dirs = { dataDir: join(home, 'data', id), runDir: join(home, 'run', id), logDir: join(home, 'log', id) };
      return { id, name: id, projectId: null, shape, network, boot, ...dirs, runAs: firstUid === null ? null : { uid, gid: uid } };
    },
    [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose](),
  };
}

/** Configures a started sandbox as the service does. */
export async function configuredAgent(op: Operation, { backend }: UnderTest, plan: SandboxPlan, started: Started): Promise<Agent> {
  const agent = await connectAgent(op, await backend.dialAgent(op, plan));
  await agent.configure(op, {
    generation: `${plan.id}-${started.evidence.pid}`,
    hostname: 'test',
    clockMs: Date.now(),
    entropy: randomBytes(64),
    ...(started.network === null ? {} : { network: { ...started.network, up: true } }),
    ...(started.disk === null ? {} : { disk: { ...started.disk, mount: 'overlay' as const } }),
    env: {},
    secrets: {},
  });
  if (started.network !== null) await backend.linkUp(op, plan);
  return agent;
}

/** For the scripts beside the tests. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}
