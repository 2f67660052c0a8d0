// The rules of one table, as this process knows them. They must stand whenever a sandbox is let in, and
// somebody else may flush them at any time; to install them takes a program and some 10 ms. The kernel
// counts every change of any rule: where that count is what it was when we had installed ours, plus the
// changes that we made since, nobody else has touched anything, and there is nothing to do.
//
// Always true: what is not known for sure is installed again.
import { heed } from '../host/errors.ts';
import type { Operation } from '../host/operation.ts';
import { lanScript } from './firewall.ts';
import type { SeenRules, WiredAt } from './network.ts';

/** Carries out one transaction; gives what was wrong with it, empty when it was done. */
export type Transact = (op: Operation, script: string) => Promise<string>;
/** The users that are let into private ranges now. */
export type ListLan = (op: Operation) => Promise<readonly number[]>;

type Queued = { readonly into: Set<number>; readonly outOf: Set<number>; readonly done: Promise<string> };

const GENERATIONS = 2 ** 32;

export class Rules {
  readonly #table: string;
  readonly #transact: Transact;
  readonly #listLan: ListLan;
  /** Transactions of ours: those that were begun, and those that are over. */
  #begun = 0;
  #over = 0;
  /** Transactions of one table follow each other. */
  #turn: Promise<unknown> = Promise.resolve();
  /** What was installed last, and nothing has failed since. */
  #installed: string | null = null;
  /** A generation that was read when so many of our transactions were over and none was under way. */
  #known: { readonly generation: number; readonly over: number } | null = null;
  /** Users in the set of private ranges; null: an earlier daemon may have left some. */
  #lan: Set<number> | null = null;
  /** An installation that has not begun: whoever needs one joins it. */
  #queued: Queued | null = null;

  constructor(table: string, transact: Transact, listLan: ListLan) {
    this.#table = table;
    this.#transact = transact;
    this.#listLan = listLan;
  }

  get now(): WiredAt {
    return this.#over as WiredAt;
  }

  /** The rules of `script` stand, and for this user. Gives what was wrong. */
  async admit(op: Operation, script: string, user: number, reach: 'internet' | 'lan', seen: SeenRules | null): Promise<string> {
    if (this.#stands(script, seen) && this.#lan?.has(user) === (reach === 'lan')) return '';
    const queued = this.#queue(op, script);
    (reach === 'lan' ? queued.into : queued.outOf).add(user);
    (reach === 'lan' ? queued.outOf : queued.into).delete(user);
    return await heed(op, 'install the rules of the network', () => queued.done);
  }

  /** This user has no entry of its own any more. */
  async dismiss(op: Operation, user: number, reach: 'internet' | 'lan'): Promise<string> {
    if (reach === 'internet' && this.#lan?.has(user) !== true) return '';
    return await this.#inTurn(async () => {
      const refused = await this.#change(op, lanScript(this.#table, { into: [], outOf: [user] }));
      if (refused === '') this.#lan?.delete(user);
      return refused;
    });
  }

  /** For what concerns no user: counted like the rest. */
  other(op: Operation, script: string): Promise<string> {
    return this.#inTurn(() => this.#change(op, script));
  }

  /** After its table was removed. */
  forget(): void {
    this.#installed = null;
    this.#known = null;
    this.#lan = null;
  }

  #stands(script: string, seen: SeenRules | null): boolean {
    // With a transaction of ours in the meantime it is not known which of them the reading had seen.
    if (seen === null || seen.wiredAt !== this.#begun) return false;
    const known = this.#known;
    this.#known = { generation: seen.generation, over: this.#over };
    if (this.#installed !== script || known === null) return false;
    if (seen.generation === (known.generation + this.#over - known.over) % GENERATIONS) return true;
    this.#installed = null;
    return false;
  }

  #queue(op: Operation, script: string): Queued {
    if (this.#queued !== null) return this.#queued;
    const into = new Set<number>();
    const outOf = new Set<number>();
    const done = this.#inTurn(() => {
      this.#queued = null;
      return this.#install(op, script, into, outOf);
    });
    this.#queued = { into, outOf, done };
    return this.#queued;
  }

  async #install(op: Operation, script: string, into: ReadonlySet<number>, outOf: ReadonlySet<number>): Promise<string> {
    const refused = await this.#change(op, script + lanScript(this.#table, { into, outOf }));
    if (refused !== '') return refused;
    this.#installed = script;
    if (this.#lan === null) this.#lan = new Set(await this.#listLan(op));
    for (const user of into) this.#lan.add(user);
    for (const user of outOf) this.#lan.delete(user);
    return '';
  }

  async #change(op: Operation, script: string): Promise<string> {
    this.#begun += 1;
    try {
      const refused = await this.#transact(op, script);
      if (refused !== '') this.forget(); // nothing has changed, so the count is off
      return refused;
    } catch (error) {
      this.forget(); // it may have changed something or not
      throw error;
    } finally {
      this.#over += 1;
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => {}); // its caller hears it
    return mine;
  }
}
