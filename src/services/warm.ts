// Warm sandboxes: machines that were started before anybody asked, of the usual kind, of templates that want some, and of the kinds in
// which builds began lately. They wait without a name and without a link, and the next create that wants their kind gets one instead
// of starting its own (docs/decisions/0025-warm-sandboxes.md, 0032-templates.md, 0053-a-build-begins-in-a-warm-sandbox.md).
//
// Always true:
// 1. A member is an intent of kind `warm` in the store and no sandbox: nobody lists it, nothing bills it.
// 2. Whoever takes one is the only one that has it, and what was told whose it is never comes back.
// 3. A daemon that is told to end leaves none of the usual kind and none for builds; those of templates wait for the next one. Of what
//    a killed one leaves, the next start keeps what is on record as ready and of a template as it is, and removes the rest.
import { HutchError } from '../domain/errors.ts';
import type { ImageId, TemplateId } from '../domain/ids.ts';
import { shownWarmth, type Warmth } from '../domain/template.ts';
import type { Operation } from '../host/operation.ts';
import type { Check } from './doctor.ts';
import { waitFor } from './operations.ts';
import { inPlace } from './start-up.ts';
import { ownCaller } from './supervisor.ts';
import { removeUnmade } from './unmade.ts';
import { foundAgain, type Kind, keyOf, type Member, newMember, noRoom, readyOf, stampOf, type WarmNeeds } from './warm-member.ts';
import { WarmPool } from './warm-pool.ts';

export type Taken = {
  readonly member: Member;
  /** Whether a start would make the same now: its guest may be told nothing before. */
  readonly isCurrent: Promise<boolean>;
};

/** What a sandbox of a template starts from now; null: there is none, or it cannot. */
export type KindOfTemplate = (op: Operation, id: TemplateId) => Promise<Kind | null>;

/** A member is made only when nobody has started anything for so long. */
const QUIET_MS = 200;
/** After a build, and after a start: whoever waited for a build most likely runs what it made now. */
const AFTER_BUILD_MS = 2_000;
/** Those who build upon more images in turn begin with a cold sandbox. */
const KINDS_OF_BUILDS_MAX = 2;
const GONE_MS = 1_000;
const RELEASE_MS = 60_000;

type Making = { readonly pool: WarmPool; readonly member: Promise<Member | null>; isTaken: boolean; isOutdated: boolean };

export class WarmSandboxes {
  readonly #core: WarmNeeds;
  readonly #over = new AbortController();
  readonly #usual: WarmPool;
  readonly #templates = new Map<TemplateId, WarmPool>();
  /** By the key of their kind; the one that was asked for last comes last. */
  readonly #builds = new Map<string, WarmPool>();
  #building = 0;
  #builtAtMs = Number.NEGATIVE_INFINITY;
  #kindOf: KindOfTemplate = async () => null;
  /** Under way: one at a time. Never rejects. */
  #making: Making | null = null;
  /** Those that are being removed. */
  readonly #going = new Set<Promise<void>>();
  #timer: { readonly handle: NodeJS.Timeout; readonly atMs: number } | null = null;
  #takenAtMs = Number.NEGATIVE_INFINITY;

  constructor(core: WarmNeeds) {
    this.#core = core;
    const { warm } = core.deps.settings;
    this.#usual = new WarmPool(null, { min: warm, max: warm });
  }

  get #pools(): readonly WarmPool[] {
    return [this.#usual, ...this.#templates.values(), ...this.#builds.values()];
  }

  /** One of this kind, for the caller alone: it must become a sandbox, be given back, or be dropped. Null: there is none. */
  async take(op: Operation, kind: Kind): Promise<Taken | null> {
    const pool = kind.origin === null ? this.#usual : this.#templates.get(kind.origin.templateId);
    return pool === undefined ? null : await this.#takeFrom(op, kind, pool);
  }

  /** As `take`, for the RUNs of a build. The next one of its kind is made once no build is under way. */
  async takeForBuild(op: Operation, kind: Kind): Promise<Taken | null> {
    if (this.#usual.warm.max === 0 || this.#over.signal.aborted || kind.backend.ahead === undefined) return null;
    const key = keyOf(kind);
    const pool = this.#builds.get(key) ?? WarmPool.ofBuilds(kind);
    this.#builds.delete(key);
    this.#builds.set(key, pool);
    for (const [oldest] of this.#builds) if (this.#builds.size > KINDS_OF_BUILDS_MAX) void this.#forgetBuilds(oldest);
    return await this.#takeFrom(op, kind, pool);
  }

  /** A build is under way for as long as it is not disposed. */
  building(): Disposable {
    this.#building += 1;
    return {
      [Symbol.dispose]: () => {
        this.#building -= 1;
        this.#builtAtMs = performance.now();
        if (this.#building === 0 && this.#builds.size > 0) this.#refillIn(AFTER_BUILD_MS);
      },
    };
  }

  /** It is off the record: nothing stands on it any more that nobody asked for. */
  async imageGone(id: ImageId): Promise<void> {
    const keys = [...this.#builds].filter(([, { kind }]) => kind?.boot.image.id === id).map(([key]) => key);
    await Promise.all(keys.map((key) => this.#forgetBuilds(key)));
  }

  #forgetBuilds(key: string): Promise<void> {
    const pool = this.#builds.get(key);
    if (pool === undefined) return Promise.resolve();
    this.#builds.delete(key);
    pool.isOver = true;
    return this.#drain(pool);
  }

  async #takeFrom(op: Operation, kind: Kind, pool: WarmPool): Promise<Taken | null> {
    if (this.#over.signal.aborted || kind.backend.ahead === undefined || pool.warm.max === 0) return null;
    for (const other of pool.become(kind)) void this.drop(other);
    this.#takenAtMs = performance.now();
    pool.taken();
    const member = pool.ready.shift() ?? (await this.#next(op, pool));
    this.#refillIn(QUIET_MS);
    return member === null ? null : { member, isCurrent: this.#isCurrent(op, kind, pool, member) };
  }

  /** Looked at while it is claimed. Never rejects: what cannot be told is not current. */
  async #isCurrent(op: Operation, kind: Kind, pool: WarmPool, member: Member): Promise<boolean> {
    try {
      if ((await stampOf(op, kind)) === member.stamp && member.key === keyOf(kind)) return true;
    } catch (cause) {
      if (op.signal.aborted) return false;
      op.log.warn({ sandbox: member.run.id, cause }, 'whether a warm sandbox is what a start would make now cannot be told');
    }
    void this.#drain(pool); // what waits beside it is as old
    return false;
  }

  /** It is somebody's from here on: nobody here looks after it any more. */
  handOver({ waiting }: Member): void {
    waiting.abort();
  }

  /** Nobody has told it anything yet: the next one may have it. */
  giveBack(member: Member): void {
    const pool = this.#pools.find(({ kind }) => kind !== null && keyOf(kind) === member.key);
    if (this.#over.signal.aborted || pool === undefined) void this.drop(member);
    else pool.ready.unshift(member);
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

  /** So many of that template are kept from now on. Those that are too many go. */
  async keep(id: TemplateId, warm: Warmth): Promise<void> {
    if (warm.max === 0) return await this.forget(id);
    const pool = this.#templates.get(id) ?? new WarmPool(id, warm);
    this.#templates.set(id, pool);
    pool.warm = warm;
    pool.again();
    this.#refillIn(0);
    await this.#drain(pool, 'to-wanted');
  }

  /** The template is another now: what was made of it as it was goes. */
  async renew(id: TemplateId): Promise<void> {
    const pool = this.#templates.get(id);
    if (pool === undefined) return;
    pool.kind = null;
    pool.again();
    await this.#drain(pool);
    this.#refillIn(0);
  }

  async forget(id: TemplateId): Promise<void> {
    const pool = this.#templates.get(id);
    if (pool === undefined) return;
    this.#templates.delete(id);
    pool.isOver = true;
    await this.#drain(pool);
  }

  /** What the usual ones start from has been made: it was not there when it was looked for. */
  lookAgain(): void {
    if (this.#making?.pool === this.#usual) this.#making.isOutdated = true;
    this.#usual.again();
    this.#refillIn(QUIET_MS);
  }

  /** Resolves when none of that template is being made; the next one is begun later than who waits here goes on. */
  async underWay(id: TemplateId): Promise<void> {
    if (this.#making?.pool.templateId === id) await this.#making.member;
  }

  /** Of one template: how many wait, and why they are fewer than they should be. */
  stateOf(id: TemplateId): { readonly ready: number; readonly why: string | null } {
    const pool = this.#templates.get(id);
    return { ready: pool?.ready.length ?? 0, why: pool?.trouble ?? null };
  }

  /** At the start of a daemon: how many templates want, and those that an earlier daemon has left, ready and told nothing. */
  async begin(op: Operation, kindOf: KindOfTemplate): Promise<void> {
    const { store } = this.#core.deps;
    this.#kindOf = kindOf;
    for (const { id, warm } of await store.query('templates', {})) if (warm.max > 0) this.#templates.set(id, new WarmPool(id, warm));
    for (const intent of await store.query('intents', {})) {
      const ready = readyOf(intent);
      if (ready === null || intent.sandboxId === null) continue;
      const pool = this.#templates.get(ready.templateId);
      const kind = pool === undefined ? null : await kindOf(op, ready.templateId).catch(() => null);
      const member = await foundAgain(this.#core, op, intent.sandboxId, intent.id, ready, kind);
      if (member === null || pool === undefined || kind === null) continue;
      for (const other of pool.become(kind)) void this.drop(other);
      pool.ready.push(member);
      this.#watch(pool, member);
    }
    for (const pool of this.#templates.values()) await this.#drain(pool, 'to-wanted');
    this.#refillIn(QUIET_MS);
  }

  /** From time to time: those that nobody has asked for lately go, and a machine that has run short of memory gets it back. */
  async tend(op: Operation): Promise<void> {
    for (const [key, pool] of this.#builds) if (pool.wanted === 0) await this.#forgetBuilds(key);
    const pools = this.#pools.filter(({ ready }) => ready.length > 0);
    for (const pool of pools.filter(({ templateId }) => templateId !== null)) await this.#drain(pool, 'to-wanted');
    if (pools.length === 0) return;
    const trouble = await noRoom(this.#core.deps, op, 0);
    for (const pool of pools) pool.trouble = trouble;
    if (trouble === null) return;
    op.log.info({ why: trouble }, 'warm sandboxes are given up');
    for (const pool of pools) {
      pool.later();
      await this.#drain(pool);
    }
    this.#refillIn(QUIET_MS);
  }

  /** The daemon ends: none is made or handed out any more. */
  stop(): void {
    this.#over.abort(new HutchError({ code: 'unavailable', message: 'the daemon is shutting down' }));
    this.#unset();
  }

  /** After `stop`, and when nobody can have taken one who may give it back: only those of templates are left, and how many. */
  async close(): Promise<number> {
    await this.#making?.member;
    await this.#drain(this.#usual);
    for (const pool of this.#builds.values()) await this.#drain(pool);
    await Promise.all(this.#going);
    const waiting = [...this.#templates.values()].flatMap(({ ready }) => ready);
    for (const { run, waiting: watched } of waiting) {
      watched.abort();
      run[Symbol.dispose]();
    }
    return waiting.length;
  }

  check(): Check {
    const { status, detail } = this.#usually();
    const of = [...this.#templates].map(([id, pool]) => {
      const ids = pool.ready.map(({ run }) => run.id).join(', ');
      const why = pool.trouble === null ? '' : `: ${pool.trouble}`;
      return `${id}: ${pool.ready.length} of ${shownWarmth(pool.warm)} ready${ids === '' ? '' : ` (${ids})`}${why}`;
    });
    const forBuilds = [...this.#builds.values()].map(({ kind, ready, trouble }) => {
      const ids = ready.map(({ run }) => run.id).join(', ');
      return `${kind?.boot.image.id}: ${ready.length} ready${ids === '' ? '' : ` (${ids})`}${trouble === null ? '' : `: ${trouble}`}`;
    });
    const isShort = [...this.#templates.values()].some(({ trouble }) => trouble !== null);
    return {
      name: 'warm sandboxes',
      status: isShort ? 'warning' : status,
      detail: [[detail, ...of].join('; of template '), ...forBuilds].join('; for builds upon '),
      fix: null,
    };
  }

  #usually(): Pick<Check, 'status' | 'detail'> {
    const { kind, ready, trouble, warm } = this.#usual;
    if (warm.max === 0) return { status: 'ok', detail: 'none are kept: sandbox.warm is 0' };
    if (!this.#core.deps.backends.some(({ ahead }) => ahead !== undefined))
      return { status: 'ok', detail: 'none: no backend here keeps any' };
    const count = `${ready.length} of ${warm.max} ready`;
    if (trouble !== null) return { status: 'warning', detail: `${count}: ${trouble}` };
    const ids = ready.map(({ run }) => run.id);
    if (ids.length > 0) return { status: 'ok', detail: `${count} (${ids.join(', ')})` };
    const why = kind === null ? 'the first sandbox of the default kind brings them' : 'one is made when this machine is quiet';
    return { status: 'ok', detail: `${count}: ${why}` };
  }

  async #drain(pool: WarmPool, down: 'to-none' | 'to-wanted' = 'to-none'): Promise<void> {
    await Promise.all(pool.emptied(down).map((member) => this.drop(member)));
  }

  /** The one that is being made now, where nobody waits for it yet: it is ready before one that is begun now would be. */
  async #next(op: Operation, pool: WarmPool): Promise<Member | null> {
    const making = this.#making;
    if (making === null || making.pool !== pool || making.isTaken) return null;
    making.isTaken = true;
    try {
      return await waitFor(op, making.member, 'a sandbox that is being made ready');
    } catch (error) {
      void making.member.then((member) => (member === null ? undefined : this.giveBack(member)));
      throw error;
    }
  }

  #refillIn(ms: number): void {
    const atMs = performance.now() + ms;
    if (this.#over.signal.aborted || (this.#timer !== null && this.#timer.atMs <= atMs)) return;
    this.#unset();
    const handle = setTimeout(() => {
      this.#timer = null;
      void this.#refill();
    }, ms);
    handle.unref();
    this.#timer = { handle, atMs };
  }

  #unset(): void {
    if (this.#timer !== null) clearTimeout(this.#timer.handle);
    this.#timer = null;
  }

  async #refill(): Promise<void> {
    if (this.#making !== null) return;
    // One that is made beside a build takes from it, and from who runs what was built.
    const restMs = AFTER_BUILD_MS - Math.min(this.#core.startGate.idleMs, performance.now() - this.#builtAtMs);
    const isResting = this.#building > 0 || restMs > 0;
    const missing = this.#pools.filter((pool) => pool.missing > 0);
    const short = missing.filter(({ isOfBuilds }) => !(isResting && isOfBuilds));
    // While one is under way its end looks again.
    if (short.length < missing.length && this.#building === 0) this.#refillIn(restMs);
    const [pool] = short.filter(({ waitMs }) => waitMs === 0).sort((one, other) => other.missing - one.missing);
    if (pool === undefined) {
      if (short.length > 0) this.#refillIn(Math.min(...short.map(({ waitMs }) => waitMs)));
      return;
    }
    const quietMs = Math.min(this.#core.startGate.idleMs, performance.now() - this.#takenAtMs);
    if (quietMs < QUIET_MS) return this.#refillIn(QUIET_MS - quietMs);
    const making: Making = { pool, member: this.#make(pool), isTaken: false, isOutdated: false };
    this.#making = making;
    const member = await making.member;
    this.#making = null;
    if (member === null && making.isOutdated) pool.again();
    else if (member === null) pool.failed();
    else {
      pool.made();
      const isWanted = !pool.isOver && pool.kind !== null && keyOf(pool.kind) === member.key;
      if (!making.isTaken && isWanted) pool.ready.push(member);
      else if (!making.isTaken) void this.drop(member);
    }
    this.#refillIn(0);
  }

  async #make(pool: WarmPool): Promise<Member | null> {
    const ask = { verb: 'daemon.warm', caller: ownCaller(this.#core), reads: false, signal: this.#over.signal } as const;
    try {
      return await this.#core.operations.run(ask, async (call) => {
        const kind = pool.templateId === null ? pool.kind : await this.#kindOf(call.op, pool.templateId);
        if (kind === null) throw new Error('what they start from is not there now');
        pool.trouble = await noRoom(this.#core.deps, call.op, kind.shape.memoryMiB);
        if (pool.trouble !== null) return null;
        // The first of its kind did without a template, which is made behind it (`lookAgain`).
        if (kind.origin === null && (await stampOf(call.op, kind)) === null) return null;
        for (const other of pool.become(kind)) void this.drop(other);
        const member = await inPlace(this.#core, call.op, () => newMember(this.#core, call, kind));
        this.#watch(pool, member);
        return member;
      });
    } catch (cause) {
      if (this.#over.signal.aborted) return null;
      pool.trouble = cause instanceof Error ? cause.message : String(cause);
      this.#core.deps.log.warn({ err: cause }, 'a warm sandbox could not be made; it is tried again later');
      return null;
    }
  }

  /** One that dies while it waits is nobody's any more. */
  #watch(pool: WarmPool, member: Member): void {
    const { run, waiting } = member;
    const op = { ...run.op, signal: AbortSignal.any([run.op.signal, waiting.signal]) };
    const ends = [run.backend.ended(op, run.plan), run.backend.networkLost?.(op, run.plan).then((lost) => (lost ? true : never))];
    Promise.race(ends.filter((end) => end !== undefined))
      .then(() => {
        if (!pool.ready.includes(member)) return; // who has it finds out
        pool.ready = pool.ready.filter((other) => other !== member);
        op.log.warn({ sandbox: run.id }, 'a warm sandbox has ended by itself');
        void this.drop(member);
        this.#refillIn(GONE_MS);
      })
      .catch((cause: unknown) => {
        if (!waiting.signal.aborted) op.log.warn({ sandbox: run.id, cause }, 'watching a warm sandbox failed');
      });
  }
}

const never = new Promise<never>(() => {});
