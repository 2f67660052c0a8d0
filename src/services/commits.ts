// How the changes of one call reach the store: the first commit brings the record of its operation and
// the claim of its Idempotency-Key, the deciding one the end of both.
import type { HutchError } from '../domain/errors.ts';
import type { OperationState } from '../domain/records.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Change, ChangeResults, Durability, Store } from '../store/contract.ts';
import { type Call, Repeated } from './call.ts';
import type { Ask, Running } from './operations.ts';

/** How the changes of one call reach the store. */
export class Commits {
  readonly #store: Store;
  readonly #nowMs: () => number;
  readonly #op: Operation;
  readonly #running: Running;
  readonly #ask: Ask;
  /** Whether the record and the claim are in the store. */
  #begun = false;
  /** The commit that brings them, while it is under way: two at once would both bring them. */
  #first: Promise<void> | null = null;
  #claimed = false;
  #concluded = false;

  constructor(deps: { readonly store: Store; readonly host: Pick<Host, 'nowMs'> }, op: Operation, running: Running, ask: Ask) {
    this.#store = deps.store;
    this.#nowMs = () => deps.host.nowMs();
    this.#op = op;
    this.#running = running;
    this.#ask = ask;
  }

  call(op: Operation): Call {
    return {
      op,
      caller: this.#ask.caller,
      target: (id) => {
        this.#running.record = { ...this.#running.record, targetId: id };
        this.#running.onTarget(id);
      },
      lend: this.#ask.onLend ?? null,
      clientDirectory: this.#ask.clientDirectory ?? null,
      wasCancelled: () => this.#running.cancelled,
      idempotencyKey: this.#ask.idempotency?.key ?? null,
      commit: (changes, durability) => this.#commit(changes, [], durability),
      conclude: async (changes, reply) => {
        const results = await this.#commit(changes, this.#conclusion(reply));
        this.#concluded = true;
        return results;
      },
    };
  }

  get begun(): boolean {
    return this.#begun;
  }

  /** Brings the record of the operation alone, where nothing has been committed yet. The store takes commits in their order. */
  begin(): void {
    if (this.#begun || this.#first !== null) return;
    this.#begun = true;
    this.#store.commit(this.#op, [this.#beginning()], 'relaxed').catch((cause: unknown) => {
      this.#begun = false;
      this.#op.log.warn({ cause }, 'the beginning of an operation was not recorded');
    });
  }

  /** What the store keeps of the end. Nobody waits for it: it is in the store before any later question. */
  end(state: Exclude<OperationState, 'running'>, endedAtMs: number, error: HutchError | null): void {
    const { id, targetId } = this.#running.record;
    const changes: Change[] = this.#concluded
      ? []
      : [
          ...(this.#begun ? [] : [this.#beginning()]),
          ...(targetId === null ? [] : [{ change: 'updateOperation', id, targetId } as const]),
          { change: 'endOperation', id, state, endedAtMs, ...(error === null ? {} : { error: error.toBody() }) },
        ];
    const { idempotency, caller } = this.#ask;
    if (this.#claimed && !this.#concluded && caller.keyId !== null && idempotency !== undefined) {
      const { outcome } = this.#running;
      const reply = outcome !== null && 'value' in outcome ? (outcome.value ?? {}) : null;
      const request = { apiKeyId: caller.keyId, key: idempotency.key } as const;
      changes.push(reply === null ? { change: 'releaseRequest', ...request } : { change: 'finishRequest', ...request, reply });
    }
    if (changes.length === 0) return;
    this.#store
      .commit(this.#op, changes, 'relaxed')
      .catch((cause: unknown) => this.#op.log.warn({ cause }, 'the end of an operation was not recorded'));
  }

  async #commit<const T extends readonly Change[]>(
    changes: T,
    more: readonly Change[],
    durability: Durability = 'durable',
  ): Promise<ChangeResults<T>> {
    while (this.#first !== null) await this.#first;
    if (this.#begun) return await this.#commitNow(changes, more, durability);
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#first = promise;
    try {
      return await this.#commitNow(changes, more, durability);
    } finally {
      this.#first = null;
      resolve();
    }
  }

  async #commitNow<const T extends readonly Change[]>(
    changes: T,
    more: readonly Change[],
    durability: Durability,
  ): Promise<ChangeResults<T>> {
    const head: readonly Change[] = this.#begun ? [] : [this.#beginning()];
    const all = [...head, ...changes, ...more];
    const { idempotency, caller } = this.#ask;
    let results: readonly unknown[];
    if (idempotency !== undefined && caller.keyId !== null && !this.#claimed) {
      const claim = { apiKeyId: caller.keyId, key: idempotency.key, requestHash: idempotency.requestHash };
      // A claim that a power loss takes is gone with all that was done under it: then the request is as good as new.
      const claimed = await this.#store.claim(this.#op, claim, all, durability);
      if (claimed.outcome !== 'claimed') throw new Repeated(claimed.request.opId, claimed.request.reply);
      this.#claimed = true;
      results = claimed.results;
    } else results = await this.#store.commit(this.#op, all, durability);
    this.#begun = true;
    return results.slice(head.length, head.length + changes.length) as unknown as ChangeResults<T>;
  }

  #beginning(): Change {
    const { verb, startedAtMs, projectId, targetId, traceparent } = this.#running.record;
    return {
      change: 'beginOperation',
      verb,
      startedAtMs,
      ...(projectId === null ? {} : { projectId }),
      ...(targetId === null ? {} : { targetId }),
      ...(traceparent === null ? {} : { traceparent }),
    };
  }

  #conclusion(reply: unknown): readonly Change[] {
    const { id, targetId } = this.#running.record;
    const { idempotency, caller } = this.#ask;
    return [
      ...(targetId === null ? [] : [{ change: 'updateOperation', id, targetId } as const]),
      { change: 'endOperation', id, state: 'done', endedAtMs: this.#nowMs() },
      ...(idempotency === undefined || caller.keyId === null
        ? []
        : [{ change: 'finishRequest', apiKeyId: caller.keyId, key: idempotency.key, reply } as const]),
    ];
  }
}
