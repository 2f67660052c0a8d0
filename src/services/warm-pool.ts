// The ready sandboxes of one kind: those that the configuration asks for, those of one template, or those in which the next build begins.
import type { TemplateId } from '../domain/ids.ts';
import { type Warmth, warmWanted } from '../domain/template.ts';
import { type Kind, keyOf, type Member } from './warm-member.ts';

/** So long a hand-out counts for how many are wanted. */
const ASKED_LATELY_MS = 60_000;
/** Who changes a Dockerfile builds it again within minutes. */
const BUILT_LATELY_MS = 10 * 60_000;
const RETRY_FIRST_MS = 1_000;
const RETRY_MAX_MS = 5 * 60_000;

export class WarmPool {
  /** Null: the usual kind, or one of builds. */
  readonly templateId: TemplateId | null;
  warm: Warmth;
  /** What they are; null: nobody has asked for any. */
  kind: Kind | null = null;
  ready: Member[] = [];
  /** Why there are fewer than are wanted. */
  trouble: string | null = null;
  /** Nobody keeps it any more. */
  isOver = false;
  readonly isOfBuilds: boolean;
  #takenMs: number[] = [];
  #failures = 0;
  #retryAtMs = 0;

  constructor(templateId: TemplateId | null, warm: Warmth, forWhom: 'anybody' | 'builds' = 'anybody') {
    this.templateId = templateId;
    this.warm = warm;
    this.isOfBuilds = forWhom === 'builds';
  }

  /** One of a kind in which builds begin, for as long as somebody builds. */
  static ofBuilds(kind: Kind): WarmPool {
    const pool = new WarmPool(null, { min: 0, max: 1 }, 'builds');
    pool.kind = kind;
    return pool;
  }

  get wanted(): number {
    const sinceMs = performance.now() - (this.isOfBuilds ? BUILT_LATELY_MS : ASKED_LATELY_MS);
    this.#takenMs = this.#takenMs.filter((atMs) => atMs >= sinceMs);
    return warmWanted(this.warm, this.#takenMs.length);
  }

  /** How many are missing. The usual ones follow use: before that none is. */
  get missing(): number {
    if (this.isOver || (this.templateId === null && this.kind === null)) return 0;
    return Math.max(0, this.wanted - this.ready.length);
  }

  /** Until the next try; 0: now. */
  get waitMs(): number {
    return Math.max(0, this.#retryAtMs - performance.now());
  }

  taken(): void {
    this.#takenMs.push(performance.now());
  }

  made(): void {
    this.#failures = 0;
    this.#retryAtMs = 0;
  }

  failed(): void {
    this.#retryAtMs = performance.now() + Math.min(RETRY_FIRST_MS * 2 ** this.#failures++, RETRY_MAX_MS);
  }

  later(): void {
    this.#retryAtMs = performance.now() + RETRY_MAX_MS;
  }

  /** Now, though it has failed before. */
  again(): void {
    this.#retryAtMs = 0;
  }

  /** Those that are not of this kind are not its any more, and are given back. */
  become(kind: Kind): readonly Member[] {
    const isSame = this.kind !== null && keyOf(this.kind) === keyOf(kind);
    this.kind = kind;
    if (isSame) return [];
    const [others, same] = [this.ready.filter(({ key }) => key !== keyOf(kind)), this.ready.filter(({ key }) => key === keyOf(kind))];
    this.ready = same;
    return others;
  }

  /** All of them, or those beyond what is wanted. */
  emptied(down: 'to-none' | 'to-wanted'): readonly Member[] {
    const keep = down === 'to-none' ? 0 : this.wanted;
    const going = this.ready.slice(keep);
    this.ready = this.ready.slice(0, keep);
    return going;
  }
}
