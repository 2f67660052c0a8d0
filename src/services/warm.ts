// Warm sandboxes: machines of the default image, shape and network that were started before anybody asked. They wait
// without a name and without a link, and the next create that wants their kind gets one instead of starting its own
// (docs/decisions/0025-warm-sandboxes.md).
//
// Always true:
// 1. A member is an intent of kind `warm` in the store and no sandbox: nobody lists it, nothing bills it.
// 2. Whoever takes one is the only one that has it, and what was told whose it is never comes back.
// 3. A daemon that is told to end leaves none; what a killed one leaves, the next start removes.
import type { Backend, Started } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { newId } from '../domain/ids.ts';
import type { NetworkMode, SandboxSpec, Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { configurationOf, WARMER } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { type Boot, type Deps, placesOf } from './deps.ts';
import type { Check } from './doctor.ts';
import { waitFor } from './operations.ts';
import type { Run } from './run.ts';
import { inPlace } from './start-up.ts';
import { ownCaller } from './supervisor.ts';

/** What a sandbox starts from; a member is handed out to who wants exactly the same. */
export type Kind = { readonly backend: Backend; readonly shape: Shape; readonly network: NetworkMode; readonly boot: Boot };

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

export type Taken = {
  readonly member: Member;
  /** Whether a start would make the same now: its guest may be told nothing before. */
  readonly isCurrent: Promise<boolean>;
};

/** A member is made only when nobody has started anything for so long. */
const QUIET_MS = 200;
/** Beside the memory of the sandbox itself: on a machine with less to spare there is none. */
const SPARE_MIB = 1024;
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 5 * 60_000;
/** From the start of its process until it is ready. */
const GUEST_MS = 60_000;
const RELEASE_MS = 60_000;
const MEMINFO_BYTES_MAX = 65_536;
const NOBODY = 'warm';

type Needs = Pick<Core, 'deps' | 'operations' | 'runs' | 'startGate'>;

export class WarmSandboxes {
  readonly #core: Needs;
  readonly #over = new AbortController();
  /** What the last create of the default kind wanted; null: there was none. */
  #kind: Kind | null = null;
  #ready: Member[] = [];
  /** Under way: one at a time. Never rejects. */
  #making: Promise<Member | null> | null = null;
  /** Somebody waits for the one that is being made. */
  #isMakingTaken = false;
  /** Those that are being removed. */
  readonly #going = new Set<Promise<void>>();
  #timer: NodeJS.Timeout | null = null;
  #takenAtMs = Number.NEGATIVE_INFINITY;
  #failures = 0;
  /** Why there is none though one is wanted. */
  #trouble: string | null = null;

  constructor(core: Needs) {
    this.#core = core;
  }

  /** One of this kind, for the caller alone: it must become a sandbox, be given back, or be dropped. Null: there is none. */
  async take(op: Operation, kind: Kind): Promise<Taken | null> {
    if (this.#over.signal.aborted || kind.backend.ahead === undefined || this.#wanted === 0) return null;
    this.#want(kind);
    this.#takenAtMs = performance.now();
    const member = this.#ready.shift() ?? (await this.#next(op));
    this.#refillIn(QUIET_MS);
    return member === null ? null : { member, isCurrent: this.#isCurrent(op, kind, member) };
  }

  /** Looked at while it is claimed. Never rejects: what cannot be told is not current. */
  async #isCurrent(op: Operation, kind: Kind, member: Member): Promise<boolean> {
    try {
      if ((await stampOf(op, kind)) === member.stamp && member.key === keyOf(kind)) return true;
    } catch (cause) {
      if (op.signal.aborted) return false;
      op.log.warn({ sandbox: member.run.id, cause }, 'whether a warm sandbox is what a start would make now cannot be told');
    }
    void this.drain(); // what waits beside it is as old
    return false;
  }

  /** It is somebody's from here on: nobody here looks after it any more. */
  handOver({ waiting }: Member): void {
    waiting.abort();
  }

  /** Nobody has told it anything yet: the next one may have it. */
  giveBack(member: Member): void {
    if (this.#over.signal.aborted) void this.drop(member);
    else this.#ready.unshift(member);
  }

  /** Removes one that nobody will get. Never fails: what stays is removed by the next start of the daemon. */
  drop(member: Member): Promise<void> {
    const going = this.#remove(member).finally(() => this.#going.delete(going));
    this.#going.add(going);
    return going;
  }

  async #remove({ run, intentId, waiting }: Member): Promise<void> {
    waiting.abort();
    using late = run.op.releasing(RELEASE_MS);
    await removeUnmade(this.#core, late, run, [intentId]).catch((cause: unknown) =>
      late.log.warn({ sandbox: run.id, cause }, 'a warm sandbox left something behind; the next start of the daemon removes it'),
    );
  }

  /** Removes all that wait; new ones are made when somebody asks for their kind. */
  async drain(): Promise<void> {
    const members = this.#ready;
    this.#ready = [];
    await Promise.all(members.map((member) => this.drop(member)));
  }

  /** From time to time: a machine that has run short of memory gets it back. */
  async tend(op: Operation): Promise<void> {
    if (this.#kind === null || this.#ready.length === 0) return;
    this.#trouble = await noRoom(this.#core.deps, op, 0);
    if (this.#trouble === null) return;
    op.log.info({ why: this.#trouble }, 'warm sandboxes are given up');
    await this.drain();
    this.#refillIn(RETRY_MAX_MS);
  }

  /** The daemon ends: none is made or handed out any more. */
  stop(): void {
    this.#over.abort(new HutchError({ code: 'unavailable', message: 'the daemon is shutting down' }));
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  /** After `stop`, and when nobody can have taken one who may give it back: none is left. */
  async close(): Promise<void> {
    await this.#making;
    await this.drain();
    await Promise.all(this.#going);
  }

  check(): Check {
    const name = 'warm sandboxes';
    const wanted = this.#wanted;
    if (wanted === 0) return { name, status: 'ok', detail: 'none are kept: sandbox.warm is 0', fix: null };
    if (!this.#core.deps.backends.some(({ ahead }) => ahead !== undefined))
      return { name, status: 'ok', detail: 'none: no backend here keeps any', fix: null };
    const count = `${this.#ready.length} of ${wanted} ready`;
    if (this.#trouble !== null) return { name, status: 'warning', detail: `${count}: ${this.#trouble}`, fix: null };
    const ids = this.#ready.map(({ run }) => run.id);
    if (ids.length > 0) return { name, status: 'ok', detail: `${count} (${ids.join(', ')})`, fix: null };
    const why = this.#kind === null ? 'the first sandbox of the default kind brings them' : 'one is made when this machine is quiet';
    return { name, status: 'ok', detail: `${count}: ${why}`, fix: null };
  }

  get #wanted(): number {
    return this.#core.deps.settings.warm;
  }

  #want(kind: Kind): void {
    const isSame = this.#kind !== null && keyOf(this.#kind) === keyOf(kind);
    this.#kind = kind;
    if (!isSame) void this.drain();
  }

  /** The one that is being made now, where nobody waits for it yet: it is ready before one that is begun now would be. */
  async #next(op: Operation): Promise<Member | null> {
    const making = this.#making;
    if (making === null || this.#isMakingTaken) return null;
    this.#isMakingTaken = true;
    try {
      return await waitFor(op, making, 'a sandbox that is being made ready');
    } catch (error) {
      void making.then((member) => (member === null ? undefined : this.giveBack(member)));
      throw error;
    }
  }

  #refillIn(ms: number): void {
    if (this.#over.signal.aborted || this.#timer !== null) return;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      void this.#refill();
    }, ms);
    this.#timer.unref();
  }

  async #refill(): Promise<void> {
    const kind = this.#kind;
    if (kind === null || this.#making !== null || this.#ready.length >= this.#wanted) return;
    const quietMs = Math.min(this.#core.startGate.idleMs, performance.now() - this.#takenAtMs);
    if (quietMs < QUIET_MS) return this.#refillIn(QUIET_MS - quietMs);
    const making = this.#make(kind);
    this.#making = making;
    this.#isMakingTaken = false;
    const member = await making;
    this.#making = null;
    const isTaken = this.#isMakingTaken;
    if (member === null) return this.#refillIn(Math.min(RETRY_FIRST_MS * 2 ** this.#failures++, RETRY_MAX_MS));
    this.#failures = 0;
    if (!isTaken) this.#ready.push(member);
    this.#refillIn(0);
  }

  async #make(kind: Kind): Promise<Member | null> {
    const ask = { verb: 'daemon.warm', caller: ownCaller(this.#core), reads: false, signal: this.#over.signal } as const;
    try {
      return await this.#core.operations.run(ask, async (call) => {
        this.#trouble = await noRoom(this.#core.deps, call.op, kind.shape.memoryMiB);
        if (this.#trouble !== null) return null;
        const member = await inPlace(this.#core, call.op, () => newMember(this.#core, call, kind));
        this.#watch(member);
        return member;
      });
    } catch (cause) {
      if (this.#over.signal.aborted) return null;
      this.#trouble = cause instanceof Error ? cause.message : String(cause);
      this.#core.deps.log.warn({ err: cause }, 'a warm sandbox could not be made; it is tried again later');
      return null;
    }
  }

  /** One that dies while it waits is nobody's any more. */
  #watch(member: Member): void {
    const { run, waiting } = member;
    const op = { ...run.op, signal: AbortSignal.any([run.op.signal, waiting.signal]) };
    const ends = [run.backend.ended(op, run.plan), run.backend.networkLost?.(op, run.plan).then((lost) => (lost ? true : never))];
    Promise.race(ends.filter((end) => end !== undefined))
      .then(() => {
        if (!this.#ready.includes(member)) return; // who has it finds out
        this.#ready = this.#ready.filter((other) => other !== member);
        op.log.warn({ sandbox: run.id }, 'a warm sandbox has ended by itself');
        void this.drop(member);
        this.#refillIn(RETRY_FIRST_MS);
      })
      .catch((cause: unknown) => {
        if (!waiting.signal.aborted) op.log.warn({ sandbox: run.id, cause }, 'watching a warm sandbox failed');
      });
  }
}

const never = new Promise<never>(() => {});

/** Starts one, and has its guest do all that every sandbox does first. On failure nothing is left. */
async function newMember(core: Needs, call: Call, kind: Kind): Promise<Member> {
  const { op } = call;
  const { host, settings, store } = core.deps;
  const { backend, shape, network, boot } = kind;
  const id = newId('sbx', (count) => host.randomBytes(count));
  call.target(id);
  // Of before it is started: what changes meanwhile is found when it is taken.
  const stamp = await stampOf(op, kind);
  if (stamp === null) throw op.error('failed_precondition', 'what a warm sandbox starts from is not there');
  const intent = {
    change: 'addIntent',
    kind: 'warm',
    projectId: store.defaultProjectId,
    sandboxId: id,
    atMs: host.nowMs(),
    detail: { backend: backend.name, imageId: boot.image.id, kernelId: boot.kernelId },
  } as const;
  const { uids } = settings;
  const [{ id: intentId }, uid] =
    uids === null
      ? [(await call.commit([intent], 'relaxed'))[0], null]
      : await call.commit([intent, { change: 'allocateUid', sandboxId: id, uids }], 'relaxed');
  const spec = { name: NOBODY, backend: backend.name, shape, network, env: {}, user: null, workdir: null } satisfies Partial<SandboxSpec>;
  const run = core.runs.make(op, { id, projectId: null, spec }, boot.files, uid);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await removeUnmade(core, late, run, [intentId]).catch((cause: unknown) =>
      op.log.warn({ sandbox: id, cause }, 'a warm sandbox that could not be made left something behind'),
    );
  });
  await backend.create(op, run.plan);
  const started = await backend.start(op, run.plan);
  using limited = op.within(GUEST_MS, 'making a warm sandbox ready');
  const agent = await run.link.agent(limited);
  await agent.configure(limited, configurationOf(host, { sandbox: { id, spec, startCount: -1 }, boot, secrets: {} }, started, backend));
  await runOnce(limited, run);
  undo.move();
  return { run, started, intentId, key: keyOf(kind), stamp, waiting: new AbortController() };
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

/** All that was made for a sandbox that is none: processes first, then its record. */
export async function removeUnmade(
  core: Pick<Core, 'deps' | 'runs'>,
  op: Operation,
  run: Run,
  intentIds: readonly number[],
  logs: (dir: string) => Promise<void> = (dir) => core.deps.host.remove(op, dir),
): Promise<void> {
  const { host, places, store } = core.deps;
  core.runs.forget(run);
  const mine = placesOf(places, run.id);
  await run.backend.kill(op, run.plan, 'now');
  await run.backend.remove(op, run.plan);
  await Promise.all([host.remove(op, mine.dir), host.remove(op, mine.runDir)]);
  await logs(mine.logDir);
  await store.commit(
    op,
    [
      ...intentIds.map((id) => ({ change: 'finishIntent', id }) as const),
      { change: 'releaseUid', sandboxId: run.id },
      { change: 'releasePorts', sandboxId: run.id },
    ],
    'relaxed',
  );
}

/** Why this machine has no memory for one more; null: it has. */
async function noRoom({ host }: Pick<Deps, 'host'>, op: Operation, memoryMiB: number): Promise<string | null> {
  const text = new TextDecoder().decode(await host.readFile(op, '/proc/meminfo', MEMINFO_BYTES_MAX));
  const availableMiB = Math.floor(Number(/^MemAvailable:\s+(\d+) kB/m.exec(text)?.[1] ?? 0) / 1024);
  const neededMiB = memoryMiB + SPARE_MIB;
  if (availableMiB >= neededMiB) return null;
  return `this machine has ${availableMiB} MiB of memory to spare, and less than ${neededMiB} MiB is too little`;
}

async function stampOf(op: Operation, { backend, shape, boot, network }: Kind): Promise<string | null> {
  return (await backend.ahead?.stamp(op, { shape, boot: boot.files, network })) ?? null;
}

function keyOf({ backend, shape, network, boot }: Kind): string {
  const { cpus, memoryMiB, diskMiB } = shape;
  return JSON.stringify([backend.name, cpus, memoryMiB, diskMiB, network, boot.image.id, boot.kernelId, boot.files]);
}
