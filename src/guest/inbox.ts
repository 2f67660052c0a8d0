// What one stream has received and its reader has not taken yet, with the credit that the agent has
// left. Pure. Its memory is bounded whatever the agent sends: bytes by the credit, events by count
// and size, objects by gathering small pieces.
import type { FrameError } from './frames.ts';
import { CREDIT_PIECE_BYTES, EVENTS_QUEUED_MAX, OUTPUT_CREDIT_START_BYTES } from './protocol.ts';

/** Payload of events that wait for their reader, per stream. */
export const EVENT_BYTES_QUEUED_MAX = 8 * 1024 * 1024;
/** Payload of events that wait for their readers, over all streams of a connection. */
export const EVENT_BYTES_PER_CONNECTION_MAX = 32 * 1024 * 1024;

/** Pieces below this size are gathered. */
const SMALL_BYTES = 4_096;
const BLOCK_BYTES = 8_192;
/** A larger piece is copied out of a chunk that is more than this many times its size. */
const WASTE_MAX = 4;

export type Received =
  | { readonly kind: 'data'; readonly channel: number; readonly bytes: Uint8Array }
  | { readonly kind: 'event'; readonly payload: Uint8Array }
  | { readonly kind: 'end'; readonly channel: number }
  | { readonly kind: 'close'; readonly payload: Uint8Array };

/** `bytes` is the whole block while it is filled, `length` what of it is used. */
type Data = { kind: 'data'; channel: number; bytes: Uint8Array; length: number; isBlock: boolean };
type Queued = Data | Exclude<Received, { kind: 'data' }>;

/** Shared by the streams of a connection. */
export type EventBudget = { bytes: number };

/** The agent sent what it may not: the connection is over. */
export type Violation = { readonly violation: string; readonly cause?: FrameError };

export class Inbox {
  readonly #budget: EventBudget;
  readonly #queue: Queued[] = [];
  #head = 0;
  #credit = OUTPUT_CREDIT_START_BYTES;
  #owed = 0;
  #events = 0;
  #eventBytes = 0;
  /** The last data of each channel, while more may be added to it. */
  readonly #last: (Data | undefined)[] = [undefined, undefined, undefined];
  readonly #ended = [false, false, false];

  constructor(budget: EventBudget) {
    this.#budget = budget;
  }

  get isEmpty(): boolean {
    return this.#head === this.#queue.length;
  }

  /** Takes a DATA frame. With `dropped` its bytes are forgotten, but still counted. */
  data(channel: number, length: number, pieces: readonly Uint8Array[], dropped: boolean): Violation | null {
    if (length > this.#credit) return { violation: `sent ${length} bytes with a credit of ${this.#credit}` };
    if (this.#ended[channel] === true) return { violation: `sent data on channel ${channel} after its end` };
    this.#credit -= length;
    if (!dropped) for (const piece of pieces) this.#push(channel, piece);
    return null;
  }

  /** Takes a DATA frame whose bytes go on at once: they never wait here. */
  pass(channel: number, length: number): Violation | null {
    return this.data(channel, length, [], true);
  }

  /** False when too many events wait: the reader is too slow for them. */
  event(payload: Uint8Array): boolean {
    const bytes = payload.byteLength;
    if (this.#events >= EVENTS_QUEUED_MAX) return false;
    if (this.#eventBytes + bytes > EVENT_BYTES_QUEUED_MAX || this.#budget.bytes + bytes > EVENT_BYTES_PER_CONNECTION_MAX) return false;
    this.#events += 1;
    this.#eventBytes += bytes;
    this.#budget.bytes += bytes;
    this.#add({ kind: 'event', payload: frugal(payload) });
    return true;
  }

  end(channel: number): Violation | null {
    if (this.#ended[channel] === true) return { violation: `ended channel ${channel} twice` };
    this.#ended[channel] = true;
    this.#add({ kind: 'end', channel });
    return null;
  }

  close(payload: Uint8Array): void {
    this.#add({ kind: 'close', payload: frugal(payload) });
  }

  /** The next thing in order; null when there is nothing. Data is owed to the agent as credit from the next `takeGrant` on. */
  take(): Received | null {
    const next = this.#queue[this.#head];
    if (next === undefined) return null;
    this.#head += 1;
    if (this.#head === this.#queue.length) {
      this.#queue.length = 0;
      this.#head = 0;
    } else if (this.#head >= 1_024) {
      this.#queue.splice(0, this.#head);
      this.#head = 0;
    }
    if (next.kind === 'event') this.#eventGone(next.payload.byteLength);
    if (next.kind !== 'data') return next;
    if (this.#last[next.channel] === next) this.#last[next.channel] = undefined;
    return {
      kind: 'data',
      channel: next.channel,
      bytes: next.length === next.bytes.byteLength ? next.bytes : next.bytes.subarray(0, next.length),
    };
  }

  /** The reader is done with `bytes`. Says how much credit to grant now: 0, or a piece worth a frame. */
  taken(bytes: number): number {
    this.#owed += bytes;
    if (this.#owed < CREDIT_PIECE_BYTES) return 0;
    const grant = this.#owed;
    this.#owed = 0;
    this.#credit += grant;
    return grant;
  }

  /** Forgets what waits: nobody reads it any more. */
  clear(): void {
    for (const item of this.#queue.slice(this.#head)) if (item.kind === 'event') this.#eventGone(item.payload.byteLength);
    this.#queue.length = 0;
    this.#head = 0;
    this.#last.fill(undefined);
  }

  #eventGone(bytes: number): void {
    this.#events -= 1;
    this.#eventBytes -= bytes;
    this.#budget.bytes -= bytes;
  }

  /** An end, an event or the close: data after it is not added to data before it. */
  #add(item: Exclude<Queued, Data>): void {
    this.#last.fill(undefined);
    this.#queue.push(item);
  }

  #push(channel: number, piece: Uint8Array): void {
    const length = piece.byteLength;
    const last = this.#last[channel];
    if (length < SMALL_BYTES && last !== undefined && last.length + length <= BLOCK_BYTES) {
      if (!last.isBlock) {
        const block = Buffer.allocUnsafeSlow(BLOCK_BYTES);
        block.set(last.bytes);
        last.bytes = block;
        last.isBlock = true;
      }
      last.bytes.set(piece, last.length);
      last.length += length;
      return;
    }
    const item: Data = { kind: 'data', channel, bytes: frugal(piece), length, isBlock: false };
    this.#last[channel] = item;
    this.#queue.push(item);
  }
}

/** The bytes themselves, or a copy where they would keep a much larger chunk in memory. */
function frugal(bytes: Uint8Array): Uint8Array {
  const kept = bytes.buffer.byteLength;
  if (kept <= BLOCK_BYTES || kept <= bytes.byteLength * WASTE_MAX) return bytes;
  const copy = Buffer.allocUnsafeSlow(bytes.byteLength);
  copy.set(bytes);
  return copy;
}
