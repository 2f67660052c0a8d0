// Whether the agent still answers. While something waits for it and nothing comes, it is asked; what
// does not answer then is lost. Where nothing waits there is no timer.

/** What is asked of the agent: an answer that is awaited, or only word of what may happen some day. */
export type Waiting = 'awaited' | 'standing' | 'nothing';

export const SILENCE_MS = 10_000;
/** An idle guest is not woken for less: whoever calls it next finds out sooner. */
export const STANDING_SILENCE_MS = 300_000;
export const PONG_MS = 5_000;

export type KeepAliveOptions = {
  readonly monotonicMs: () => number;
  readonly silenceMs: number;
  readonly standingSilenceMs: number;
  readonly pongMs: number;
  readonly ping: (payload: Uint8Array) => void;
  readonly lost: () => void;
};

export class KeepAlive {
  readonly #options: KeepAliveOptions;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** When the timer fires, of the monotonic clock. */
  #dueAtMs = 0;
  #waiting: Waiting = 'nothing';
  #heardAtMs = 0;
  #pingedAtMs: number | null = null;
  #pings = 0;
  readonly #payload = new Uint8Array(8);

  constructor(options: KeepAliveOptions) {
    this.#options = options;
  }

  watch(waiting: Waiting): void {
    if (waiting === this.#waiting) return;
    const before = this.#waiting;
    this.#waiting = waiting;
    if (waiting === 'nothing') return;
    const nowMs = this.#options.monotonicMs();
    if (before === 'nothing' || waiting === 'awaited') this.#heardAtMs = nowMs; // what was silent before that owed nothing
    if (this.#pingedAtMs !== null && this.#timer !== undefined) return;
    const leftMs = Math.max(0, this.#silenceMs() - (nowMs - this.#heardAtMs));
    if (this.#timer !== undefined && this.#dueAtMs <= nowMs + leftMs) return;
    clearTimeout(this.#timer);
    this.#arm(leftMs);
  }

  /** A whole frame came. */
  heard(): void {
    this.#heardAtMs = this.#options.monotonicMs();
  }

  /** A PONG came. False when nobody asked for it. */
  pong(payload: Uint8Array): boolean {
    if (this.#pingedAtMs === null || Buffer.compare(payload, this.#payload) !== 0) return false;
    this.#pingedAtMs = null;
    return true;
  }

  stop(): void {
    this.#waiting = 'nothing';
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #silenceMs(): number {
    return this.#waiting === 'awaited' ? this.#options.silenceMs : this.#options.standingSilenceMs;
  }

  #arm(ms: number): void {
    this.#dueAtMs = this.#options.monotonicMs() + ms;
    this.#timer = setTimeout(() => {
      // The timers come first after a long stop of this process; what has arrived meanwhile is read before judging.
      this.#timer = undefined;
      setImmediate(() => setImmediate(() => this.#judge()));
    }, ms);
    this.#timer.unref();
  }

  #judge(): void {
    if (this.#timer !== undefined || this.#waiting === 'nothing') return;
    const { pongMs, monotonicMs } = this.#options;
    const silenceMs = this.#silenceMs();
    const nowMs = monotonicMs();
    if (this.#pingedAtMs !== null) {
      // Whatever came since shows life as well as the PONG does.
      const waitedMs = nowMs - Math.max(this.#pingedAtMs, this.#heardAtMs);
      if (waitedMs >= pongMs) this.#options.lost();
      else this.#arm(pongMs - waitedMs);
      return;
    }
    const silentMs = nowMs - this.#heardAtMs;
    if (silentMs < silenceMs) {
      this.#arm(silenceMs - silentMs);
      return;
    }
    this.#pings += 1;
    new DataView(this.#payload.buffer).setUint32(0, this.#pings, true);
    this.#pingedAtMs = nowMs;
    this.#options.ping(this.#payload);
    this.#arm(pongMs);
  }
}
