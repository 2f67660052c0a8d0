// hutch demo: what Hutch is for, in half a minute, with nothing made up. A sandbox with a repository in it is warmed up and
// copied while it runs; the copies share the work of a test suite; meanwhile the daemon is killed, and nothing is lost.
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../../domain/errors.ts';
import { deleteQuietly, Sandbox } from '../../sdk/sandbox.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { daemonAccess } from '../daemon.ts';
import { type Copy, work } from '../demo/copies.ts';
import { PARTS, PREPARE, TESTS_PER_PART } from '../demo/guest.ts';
import { exitOf } from '../exit-codes.ts';
import { LiveLines } from '../live.ts';
import { json } from '../output.ts';
import { daemonVersion } from './version.ts';

const ENDED_MS = 10_000;
const POLL_MS = 10;

type Entry = { readonly kind: string; readonly sandboxId: string | null; readonly atMs: number };
type Killed = { readonly pid: number; readonly nextPid: number; readonly withoutMs: number };

export async function run(context: Context, args: Args): Promise<number> {
  const began = performance.now();
  const live = new LiveLines(context.io, 'stderr');
  const say = async (text: string): Promise<void> => {
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    context.progress.clear();
    if (!context.json) await live.settle(`${seconds.padStart(5)} s  ${text}\n`);
  };
  const backend = await backendThatForks(context);
  const mine = new Set<string>();
  try {
    const parent = await change(context, 'sandbox.create', { backend });
    mine.add(parent.id);
    const kernel = await inside(context, parent, 'uname -sr');
    await say(`sandbox ${parent.name}: ${backend}, ${kernel}, a computer of its own`);
    const warm = await inside(context, parent, PREPARE);
    await say(`a repository and its test suite inside: ${warm}`);
    const forked = await change(context, 'sandbox.fork', { ref: parent.id, count: PARTS });
    for (const { sandbox } of forked.children) mine.add(sandbox.id);
    const [refused] = forked.failed;
    if (refused !== undefined) throw new HutchError(refused.error as ConstructorParameters<typeof HutchError>[0]);
    await say(`copied ${PARTS} ways while it ran, memory and all; it stood still for ${Math.round(forked.stillMs)} ms`);
    await say('the suite runs, a part in each copy');
    let killed: Killed | null = null;
    const copies = await work(context, {
      forked,
      live,
      async atFirst() {
        killed = args.has('spare-daemon') ? null : await killDaemon(context, say);
      },
    });
    const all = [...mine];
    const running = await runningOf(context, all);
    await say(
      `${copies.reduce((total, { passed }) => total + passed, 0)} tests passed in ${copies.length} copies; ${running} of ${all.length} sandboxes run on`,
    );
    await remove(context, mine);
    const ledger = await ask(context, 'ledger.verify', {});
    const usedMs = await computeMs(context, new Set(all));
    await say(
      `ledger: ${ledger.ok ? `${ledger.entries} entries, unbroken` : 'BROKEN'}; ${(usedMs / 1000).toFixed(1)} seconds of sandboxes used`,
    );
    await say('all cleaned up');
    const right = ledger.ok && running === all.length && copies.every(isDone);
    if (context.json) await context.io.out(json({ ok: right, backend, stillMs: forked.stillMs, killed, copies, running, usedMs, ledger }));
    return right ? exitOf('ok') : exitOf('failed');
  } finally {
    await remove(context, mine);
  }
}

const isDone = ({ passed, failed, exitCode }: Copy): boolean => passed === TESTS_PER_PART && failed === 0 && exitCode === 0;

/** The default one if it can, else the first that does. */
async function backendThatForks(context: Context): Promise<Output<'backends.list'>['default'] & string> {
  const { default: preferred, backends } = await ask(context, 'backends.list', {});
  const able = backends.filter(({ can }) => can?.fork === true).map(({ name }) => name);
  const backend = able.find((name) => name === preferred) ?? able[0];
  if (backend !== undefined) return backend;
  throw new HutchError({
    code: 'failed_precondition',
    message: 'no backend here can copy a sandbox that runs',
    hint: 'see what is missing for virtual machines with: hutch doctor',
  });
}

async function inside(context: Context, info: Sandbox['info'], script: string): Promise<string> {
  const sandbox = new Sandbox(context.client, info, async () => {});
  const { stdout, stderr, exitCode } = await sandbox.exec(['sh', '-c', script], { signal: context.interrupts.signal });
  if (exitCode === 0) return stdout.trim();
  throw new HutchError({ code: 'internal', message: `in the demo's sandbox a script ended with ${exitCode}: ${stderr.trim()}` });
}

/** As a crash of it: SIGKILL, then a new one over what it has left. Not where somebody else's work would be cut off. */
async function killDaemon(context: Context, say: (text: string) => Promise<void>): Promise<Killed | null> {
  const access = await daemonAccess(context.env);
  const running = access.isLocal ? await daemonVersion(context) : null;
  if (running === null) {
    await say('the daemon is not on this machine, so it is not killed');
    return null;
  }
  const { operations } = await ask(context, 'operation.list', {});
  const others = operations.filter(({ verb }) => verb !== 'exec.start' && verb !== 'operation.list');
  if (others.length > 0) {
    await say(`the daemon has other work (${others[0]?.verb}), so it is not killed`);
    return null;
  }
  const began = performance.now();
  process.kill(running.pid, 'SIGKILL');
  await say(`the daemon (process ${running.pid}) is killed: SIGKILL`);
  const { answers, startDaemon } = await import('../daemon-start.ts');
  while (await answers(access.address)) {
    if (performance.now() - began > ENDED_MS) break; // a service manager has started another one
    await sleep(POLL_MS);
  }
  if (!(await answers(access.address))) await startDaemon({ env: context.env, address: access.address, progress: context.progress });
  const withoutMs = performance.now() - began;
  const next = await ask(context, 'daemon.version', {});
  await say(`a new one (process ${next.pid}) has taken over what runs, ${Math.round(withoutMs)} ms later`);
  return { pid: running.pid, nextPid: next.pid, withoutMs };
}

async function runningOf(context: Context, ids: readonly string[]): Promise<number> {
  const states = await Promise.all(ids.map(async (ref) => (await ask(context, 'sandbox.get', { ref })).state));
  return states.filter((state) => state === 'running').length;
}

/** From start to stop of each, as it is billed. */
async function computeMs(context: Context, ids: ReadonlySet<string>): Promise<number> {
  let total = 0;
  for await (const entry of context.client.lines('ledger.list', {}, { signal: context.interrupts.signal })) {
    const { kind, sandboxId, atMs } = entry as Entry;
    if (sandboxId === null || !ids.has(sandboxId)) continue;
    if (kind === 'vm.compute.stop') total += atMs;
    if (kind === 'vm.compute.start') total -= atMs;
  }
  return total;
}

/** Also after Ctrl-C. `ids` is empty afterwards. */
async function remove(context: Context, ids: Set<string>): Promise<void> {
  await Promise.all([...ids].map((id) => deleteQuietly(context.client, id)));
  ids.clear();
}
