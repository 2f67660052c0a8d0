// One machine that was started before anybody asked for it: how it is made, from the image or from a template, how a new daemon finds
// it again, and what tells whether it still is what a start would make.
import { z } from 'zod';
import type { Backend, Started } from '../backends/backend.ts';
import type { Forced } from '../backends/snapshots.ts';
import { isId, newId, type SandboxId, type SnapshotId, type TemplateId } from '../domain/ids.ts';
import type { Intent } from '../domain/records.ts';
import { BACKENDS, NETWORK_MODES, type NetworkMode, type SandboxSpec, type Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { configurationOf, WARMER } from './bring-up.ts';
import type { Call } from './call.ts';
import { goOn, settle } from './clone.ts';
import type { Core } from './core.ts';
import { type Boot, type Deps, placesOf } from './deps.ts';
import { fillRun } from './fill-run.ts';
import type { Run } from './run.ts';
import { removeUnmade } from './unmade.ts';

/** What one of a template begins with. */
export type Origin = {
  readonly templateId: TemplateId;
  readonly snapshotId: SnapshotId;
  readonly dir: string;
  readonly forced: Forced;
  readonly spec: Pick<SandboxSpec, 'env' | 'user' | 'workdir'>;
};

/** What a sandbox starts from; a member is handed out to who wants exactly the same. `origin` null: an image. */
export type Kind = {
  readonly backend: Backend;
  readonly shape: Shape;
  readonly network: NetworkMode;
  readonly boot: Boot;
  readonly origin: Origin | null;
};

export type Member = {
  readonly run: Run;
  readonly started: Started;
  readonly intentId: number;
  /** Of its kind. */
  readonly key: string;
  /** `Ahead.stamp` from before it was started. */
  readonly stamp: string;
  /** Ends what watches over it while it waits. */
  readonly waiting: AbortController;
};

export type WarmNeeds = Pick<Core, 'deps' | 'operations' | 'runs' | 'startGate' | 'snapshotFiles'>;

/** Beside the memory of the sandbox itself: on a machine with less to spare there is none. */
const SPARE_MIB = 1024;
/** From the start of its process until it is ready. */
const GUEST_MS = 60_000;
const RELEASE_MS = 60_000;
const MEMINFO_BYTES_MAX = 65_536;
const NOBODY = 'warm';
/** One that was left by another daemon answers at once, or it hangs. */
const ANSWER_MS = 10_000;

type Spec = Pick<SandboxSpec, 'name' | 'backend' | 'shape' | 'network' | 'env' | 'user' | 'workdir'>;

/** Starts one, and has its guest do all that every sandbox does first. On failure nothing is left. */
export async function newMember(core: WarmNeeds, call: Call, kind: Kind): Promise<Member> {
  const { op } = call;
  const { host, settings, store } = core.deps;
  const { backend, shape, network, boot, origin } = kind;
  const id = newId('sbx', (count) => host.randomBytes(count));
  call.target(id);
  using _held = origin === null ? null : core.snapshotFiles.read(origin.snapshotId);
  // Of before it is started: what changes meanwhile is found when it is taken.
  const stamp = await stampOf(op, kind);
  if (stamp === null) throw op.error('failed_precondition', 'what a warm sandbox starts from is not there');
  const detail = { backend: backend.name, imageId: boot.image.id, kernelId: boot.kernelId };
  const projectId = store.defaultProjectId;
  const intent = { change: 'addIntent', kind: 'warm', projectId, sandboxId: id, atMs: host.nowMs(), detail } as const;
  const { uids } = settings;
  const [{ id: intentId }, uid] =
    uids === null
      ? [(await call.commit([intent], 'relaxed'))[0], null]
      : await call.commit([intent, { change: 'allocateUid', sandboxId: id, uids }], 'relaxed');
  const { env, user, workdir } = origin?.spec ?? { env: {}, user: null, workdir: null };
  const spec = { name: NOBODY, backend: backend.name, shape, network, env, user, workdir };
  const run = core.runs.make(op, { id, projectId: null, spec }, boot.files, uid);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await removeUnmade(core, late, run, [intentId]).catch((cause: unknown) =>
      op.log.warn({ sandbox: id, cause }, 'a warm sandbox that could not be made left something behind'),
    );
  });
  const started = origin === null ? await booted(core, op, run, kind, spec) : await begunAt(core, op, run, kind, origin, spec);
  const key = keyOf(kind);
  // From here on a daemon that comes later may have it: its guest has been told nothing of anybody.
  if (origin !== null) {
    const { templateId } = origin;
    const ready: Ready = { templateId, key, stamp, started, backend: backend.name, shape, network };
    await call.commit([{ change: 'updateIntent', id: intentId, detail: { ...detail, ready } }], 'relaxed');
  }
  undo.move();
  return { run, started, intentId, key, stamp, waiting: new AbortController() };
}

async function booted(core: WarmNeeds, op: Operation, run: Run, { backend, boot }: Kind, spec: Spec): Promise<Started> {
  const { host } = core.deps;
  await backend.create(op, run.plan);
  const started = await backend.start(op, run.plan);
  using limited = op.within(GUEST_MS, 'making a warm sandbox ready');
  const agent = await run.link.agent(limited);
  const sandbox = { id: run.id, spec, startCount: -1 };
  await agent.configure(limited, configurationOf(host, { sandbox, boot, secrets: {} }, started, backend));
  await fillRun(limited, host, agent, boot);
  await runOnce(limited, run);
  return started;
}

/** Goes on where its template is, as itself but for what its owner says. */
async function begunAt(core: WarmNeeds, op: Operation, run: Run, { backend, boot }: Kind, origin: Origin, spec: Spec): Promise<Started> {
  const { host, places } = core.deps;
  const { snapshots } = backend;
  if (snapshots === undefined) throw new Error(`the backend ${backend.name} makes no snapshots`);
  const { dir, forced } = origin;
  await host.makeDir(op, placesOf(places, run.id).dir, 0o711);
  await snapshots.create(op, run.plan, dir);
  const settled = settle(core, op, run);
  const what = { sandbox: { id: run.id, spec, startCount: -1 }, boot, secrets: {} };
  const { started } = await goOn(core, op, run, what, 'another', (late) => snapshots.start(late, run.plan, dir, { forced }), 'down');
  using limited = op.within(GUEST_MS, 'making a warm sandbox ready');
  await runOnce(limited, run);
  await settled;
  return started;
}

/** The first program that runs after a restore is by far the slowest: it is this one. An image without it has its own first. */
async function runOnce(op: Operation, run: Run): Promise<void> {
  try {
    using process = await run.link.start(op, { id: WARMER, argv: ['true'], stdin: 'null', whenUnread: 'drop' });
    for await (const item of process.items(op)) if (item.type === 'exit') return;
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.debug({ sandbox: run.id, cause }, 'a warm sandbox has run nothing');
  }
}

const shape = z.object({ cpus: z.number(), memoryMiB: z.number(), diskMiB: z.number(), pids: z.number().exactOptional() });
const readySchema = z.object({
  templateId: z.custom<TemplateId>((value) => isId('tpl', value)),
  key: z.string(),
  stamp: z.string(),
  backend: z.enum(BACKENDS),
  shape,
  network: z.enum(NETWORK_MODES),
  started: z.custom<Started>((value) => typeof value === 'object' && value !== null),
});
type Ready = z.infer<typeof readySchema>;

/** What is on record of one that waits; null: it was not ready, or is not of a template. */
export function readyOf({ kind, detail }: Pick<Intent, 'kind' | 'detail'>): Ready | null {
  const parsed = kind === 'warm' ? readySchema.safeParse(detail['ready']) : null;
  return parsed?.success === true ? parsed.data : null;
}

/** One that an earlier daemon has left: it waits on, where it is of that kind, alive and well. Null: it is removed. */
export async function foundAgain(
  core: WarmNeeds,
  op: Operation,
  id: SandboxId,
  intentId: number,
  ready: Ready,
  kind: Kind | null,
): Promise<Member | null> {
  const { deps } = core;
  const uid = deps.settings.uids === null ? null : await deps.store.query('uid', { sandboxId: id });
  const { backend, shape: made, network, key, stamp, started } = ready;
  const boot = kind?.boot.files ?? ({ kind: 'gone' } as const);
  const run = core.runs.make(op, { id, projectId: null, spec: { name: NOBODY, backend, shape: made, network } }, boot, uid);
  try {
    if (kind === null || key !== keyOf(kind)) throw op.error('failed_precondition', 'it is not what its template is by now');
    using limited = op.within(ANSWER_MS, 'looking at a warm sandbox');
    const now = await run.backend.inspect(limited, run.plan);
    if (!now.alive) throw op.error('unavailable', 'it has ended');
    await run.link.agent(limited);
    return { run, started, intentId, key, stamp, waiting: new AbortController() };
  } catch (cause) {
    op.log.info({ sandbox: id, cause }, 'a warm sandbox of the daemon before is removed');
    using late = op.releasing(RELEASE_MS);
    await removeUnmade(core, late, run, [intentId]);
    return null;
  }
}

/** Why this machine has no memory for one more; null: it has. */
export async function noRoom({ host }: Pick<Deps, 'host'>, op: Operation, memoryMiB: number): Promise<string | null> {
  const text = new TextDecoder().decode(await host.readFile(op, '/proc/meminfo', MEMINFO_BYTES_MAX));
  const availableMiB = Math.floor(Number(/^MemAvailable:\s+(\d+) kB/m.exec(text)?.[1] ?? 0) / 1024);
  const neededMiB = memoryMiB + SPARE_MIB;
  if (availableMiB >= neededMiB) return null;
  return `this machine has ${availableMiB} MiB of memory to spare, and less than ${neededMiB} MiB is too little`;
}

export async function stampOf(op: Operation, { backend, shape: of, boot, network, origin }: Kind): Promise<string | null> {
  return (await backend.ahead?.stamp(op, { shape: of, boot: boot.files, network }, origin === null ? 'boots' : 'goes on')) ?? null;
}

export function keyOf({ backend, shape: { cpus, memoryMiB, diskMiB, pids }, network, boot, origin }: Kind): string {
  const from = origin === null ? [] : [origin.snapshotId, origin.forced, pids ?? null];
  return JSON.stringify([backend.name, cpus, memoryMiB, diskMiB, network, boot.image.id, boot.kernelId, boot.files, ...from]);
}
