// What the tests of bad days share: a real daemon over real machines, the processes of a sandbox, and
// what must be true whatever has happened.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { DaemonUnderTest, type SandboxView, type StartOptions } from '../support/daemon-under-test.ts';
import { DockerEngine } from '../support/docker-engine.ts';
import { eventually } from '../support/eventually.ts';
import { keepTemplates, lacksTemplates } from '../support/templates.ts';

export const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
export const isLong = process.env['HUTCH_TEST_LONG'] !== undefined;

export function options(env: Readonly<Record<string, string>> = {}): StartOptions {
  return { entry: join(import.meta.dirname, 'real-daemon.ts'), env: { HUTCH_DAEMON_LISTEN: 'off', ...env } };
}

/** A daemon whose template is ready. */
export async function startDaemon(env: Readonly<Record<string, string>> = {}): Promise<DaemonUnderTest> {
  const daemon = await DaemonUnderTest.start(options(env));
  await prepare(daemon);
  return daemon;
}

/** One sandbox is made, which boots where there is no template; then that is waited for. */
async function prepare(daemon: DaemonUnderTest): Promise<void> {
  const make = async () => {
    const { id } = await daemon.call('sandbox.create', { network: 'none' });
    await daemon.call('sandbox.delete', { ref: id, force: true });
  };
  await make();
  if (lacksTemplates(daemon.home)) await make();
  keepTemplates(daemon.home);
}

export type BackendName = 'qemu' | 'docker' | 'gvisor';

/** What sandboxes of one backend need around their daemon, and how a daemon is told to use it. */
export type World = AsyncDisposable & {
  readonly backend: BackendName;
  readonly daemon: DaemonUnderTest;
  options(env?: Readonly<Record<string, string>>): StartOptions;
  /** What the backend's own engine still has of ours. */
  leftInEngine(): Promise<readonly string[]>;
  /** Null but for Docker. */
  readonly engine: DockerEngine | null;
};

/** The reason, where this machine cannot run that backend. */
export async function startWorld(backend: BackendName): Promise<World | string> {
  await using undo = new AsyncDisposableStack();
  const engine = backend === 'docker' ? await DockerEngine.start() : null;
  if (engine !== null) undo.use(engine);
  const own = { HUTCH_SANDBOX_BACKEND: backend, HUTCH_SANDBOX_STOP_GRACE: '2s', ...engine?.env };
  const daemon = undo.use(await DaemonUnderTest.start(options(own)));
  // Asking tries them all, which takes a while; without QEMU nothing here can be run.
  const can = backend === 'qemu' ? [] : (await daemon.call('backends.list', {})).backends;
  const why = can.find(({ name }) => name === backend)?.why ?? null;
  if (why !== null) return why;
  await prepare(daemon);
  const kept = undo.move();
  return {
    backend,
    daemon,
    engine,
    options: (env = {}) => options({ ...own, ...env }),
    leftInEngine: async () => {
      if (engine === null) return [];
      const images = (await engine.ask('GET', '/images/json')).body as readonly { readonly RepoTags: readonly string[] | null }[];
      const kept = images.flatMap(({ RepoTags }) => RepoTags ?? []).filter((tag) => tag.startsWith('hutch/snapshot:'));
      return [...(await engine.containers()).map(({ Names }) => Names.join(' ')), ...kept];
    },
    [Symbol.asyncDispose]: () => kept[Symbol.asyncDispose](),
  };
}

/** Random, but the same for a seed. */
export function* numbers(from: number): Generator<number, never> {
  for (let state = from >>> 0; ; ) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield state / 2 ** 32;
  }
}

/** The one process of a sandbox that has this role. */
export function pidOf(daemon: DaemonUnderTest, id: string, role: 'shim' | 'vmm' | 'passt'): number {
  const record = JSON.parse(readFileSync(join(daemon.home, 'run/sandboxes', id, 'shim.json'), 'utf8')) as { shimPid: number; pid: number };
  if (role !== 'passt') return role === 'shim' ? record.shimPid : record.pid;
  const passt = childrenOf(record.shimPid).find((child) => commandOf(child)[0]?.endsWith('passt'));
  if (passt === undefined) throw new Error(`sandbox ${id} has no passt`);
  return passt;
}

function childrenOf(parent: number): number[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => statOf(pid)?.[1] === String(parent));
}

function commandOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
  } catch {
    return []; // it has ended since
  }
}

/** State, parent, and so on; null when there is no such process. */
function statOf(pid: number): string[] | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch {
    return null;
  }
}

export function isAlive(pid: number): boolean {
  const state = statOf(pid)?.[0];
  return state !== undefined && state !== 'Z';
}

export function rssKiB(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}

export async function works(daemon: DaemonUnderTest, ref: string): Promise<void> {
  expect(await daemon.run(ref, ['echo', 'works'])).toEqual({ exitCode: 0, stdout: 'works\n', stderr: '' });
}

export type Shell = (ref: string, script: string) => Promise<string>;

/** Runs a script in a sandbox, which must work and complain of nothing; gives what it printed. */
export function shellOf(daemon: DaemonUnderTest): Shell {
  return async (ref, script) => {
    const { stdout, stderr, exitCode } = await daemon.run(ref, ['sh', '-c', script]);
    expect([exitCode, stderr], script).toEqual([0, '']);
    return stdout;
  };
}

/** A program that is seen to go on: it counts in memory. */
export const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.02; done';

/** The file is empty for a moment each time it is written. */
export const COUNT = 'until read -r count < /dev/shm/count; do :; done; echo $count';

/** How far it is. */
export async function countOf(sh: Shell, ref: string): Promise<number> {
  return Number(await sh(ref, COUNT));
}

/** What it printed so far. */
export async function mainOutput(daemon: DaemonUnderTest, ref: string): Promise<string> {
  return (await daemon.send('GET', `/v1/sandboxes/${ref}/logs`)).body.toString('latin1');
}

type Entry = { sequence: number; kind: string; sandboxId: string; atMs: number };

/** Kind and reason of each entry about a sandbox. */
export async function ledgerOf(daemon: DaemonUnderTest, id: string): Promise<string[]> {
  const found: string[] = [];
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, reason, sandboxId } = line as Entry & { reason: string };
    if (sandboxId === id) found.push(`${kind} ${reason}`);
  }
  return found;
}

/** What lies in its directory beside the file of its counters, which is there from its first look on. */
export function filesOf(daemon: DaemonUnderTest, id: string): string[] {
  const names = readdirSync(join(daemon.home, 'data/sandboxes', id));
  return names.filter((name) => name !== 'counters').sort();
}

/** The chain holds, and every sandbox's intervals open and close in turn and agree with its state. */
export async function expectSoundLedger(daemon: DaemonUnderTest): Promise<void> {
  expect(await daemon.call('ledger.verify', {})).toMatchObject({ ok: true, firstBreak: null });
  const open = new Map<string, boolean>();
  const last = new Map<string, number>();
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, sandboxId, atMs } = line as Entry;
    if (kind !== 'vm.compute.start' && kind !== 'vm.compute.stop') continue;
    expect([kind, open.get(sandboxId) ?? false], `${sandboxId} in the ledger`).toEqual([kind, kind === 'vm.compute.stop']);
    open.set(sandboxId, kind === 'vm.compute.start');
    expect(atMs, `${sandboxId}: time goes forward in the ledger`).toBeGreaterThanOrEqual(last.get(sandboxId) ?? 0);
    last.set(sandboxId, atMs);
  }
  for (const { id, state } of await all(daemon)) {
    expect([id, open.get(id) ?? false]).toEqual([id, state === 'running' || state === 'paused']);
  }
}

export async function all(daemon: DaemonUnderTest): Promise<readonly SandboxView[]> {
  return (await daemon.call('sandbox.list', {})).sandboxes;
}

/** Every sandbox is what it says that it is, and nothing else is there. */
export async function expectInOrder(daemon: DaemonUnderTest): Promise<void> {
  for (const { id, state, spec } of (await all(daemon)).map((view) => ({ ...view, spec: view.main }))) {
    expect(['created', 'running', 'stopped', 'suspended']).toContain(state);
    if (state !== 'running') continue;
    await works(daemon, id);
    if (spec !== null) await expectMain(daemon, id);
  }
  await expectSoundLedger(daemon);
  await expectNoLeaks(daemon);
}

/** It runs, and was begun once in this run of the sandbox. */
export async function expectMain(daemon: DaemonUnderTest, ref: string): Promise<void> {
  await eventually('the main process runs', async () => {
    const { execs } = await daemon.call('exec.list', { ref });
    return execs.some(({ execId, running }) => execId === 'main' && running);
  });
}

export async function expectNoLeaks(daemon: DaemonUnderTest): Promise<void> {
  expect(await daemon.leaks()).toEqual([]);
}
