// What one stream still has to send, and the credit that the agent has granted for it. Pure.
// Bytes are not copied: whoever offers them must leave them unchanged.
import { CREDIT_START_BYTES, FRAME_BYTES_MAX } from './protocol.ts';

/** More credit than this is nonsense, and could not be counted for ever. */
const CREDIT_MAX = 2 ** 40;

/** So much may wait here before a writer has to: enough for the pipe to be filled in one go. */
export const WAITING_BYTES_MAX = 256 * 1024;

type Offered = { bytes: Uint8Array };
type Waiting = { readonly goOn: () => void };

/** `isLast`: nothing is left of what was offered together. */
export type Outgoing = { readonly kind: 'data'; readonly bytes: Uint8Array; readonly isLast: boolean } | { readonly kind: 'end' };

export class Outbox {
  readonly #offered: Offered[] = [];
  #waitingBytes = 0;
  readonly #waiting: Waiting[] = [];
  /** For who pushes, where there was no room. */
  #onRoom: (() => void) | null = null;
  #credit = CREDIT_START_BYTES;
  #end: 'no' | 'wanted' | 'sent' = 'no';
  #granted = 0;

  /** Credit granted beyond the start, in bytes: where the agent grants what it has taken, that is what it took. */
  get grantedBytes(): number {
    return this.#granted;
  }

  /** False when the agent grants nonsense. */
  credit(bytes: number): boolean {
    this.#credit += bytes;
    this.#granted += bytes;
    return bytes > 0 && this.#credit <= CREDIT_MAX;
  }

  /** Whether bytes offered now make their writer wait. */
  mustWait(bytes: number): boolean {
    return this.#waitingBytes + bytes > WAITING_BYTES_MAX;
  }

  /** `goOn` is called when there is room for more, once. Gives a function that takes back what is not sent yet. */
  offer(bytes: Uint8Array, goOn: () => void): () => void {
    const offered = { bytes };
    if (bytes.byteLength > 0) this.#offered.push(offered);
    this.#waitingBytes += bytes.byteLength;
    const waiting = { goOn };
    this.#waiting.push(waiting);
    this.#letGoOn();
    return () => {
      const index = this.#offered.indexOf(offered);
      if (index !== -1) {
        this.#offered.splice(index, 1);
        this.#waitingBytes -= offered.bytes.byteLength;
      }
      const place = this.#waiting.indexOf(waiting);
      if (place !== -1) this.#waiting.splice(place, 1);
      this.#letGoOn();
    };
  }

  /** As `offer`, for who takes nothing back. False: there is no room for more until `onRoom` is called, once. */
  push(bytes: Uint8Array, onRoom: () => void): boolean {
    if (bytes.byteLength > 0) this.#offered.push({ bytes });
    this.#waitingBytes += bytes.byteLength;
    if (this.#waitingBytes <= WAITING_BYTES_MAX) return true;
    this.#onRoom = onRoom;
    return false;
  }

  /** No more comes after what has been offered. */
  end(): void {
    if (this.#end === 'no') this.#end = 'wanted';
  }

  get isEnded(): boolean {
    return this.#end !== 'no';
  }

  get canSend(): boolean {
    return this.#offered.length > 0 ? this.#credit > 0 : this.#end === 'wanted';
  }

  /** The next frame's content; null when there is nothing or no credit. */
  take(): Outgoing | null {
    const first = this.#offered[0];
    if (first === undefined) {
      if (this.#end !== 'wanted') return null;
      this.#end = 'sent';
      return { kind: 'end' };
    }
    const length = Math.min(first.bytes.byteLength, this.#credit, FRAME_BYTES_MAX);
    if (length === 0) return null;
    this.#credit -= length;
    this.#waitingBytes -= length;
    const bytes = first.bytes.subarray(0, length);
    const isLast = length === first.bytes.byteLength;
    if (isLast) this.#offered.shift();
    else first.bytes = first.bytes.subarray(length);
    this.#letGoOn();
    return { kind: 'data', bytes, isLast };
  }

  clear(): void {
    this.#offered.length = 0;
    this.#waiting.length = 0;
    this.#onRoom = null;
    this.#waitingBytes = 0;
  }

  #letGoOn(): void {
    while (this.#waiting.length > 0 && this.#waitingBytes <= WAITING_BYTES_MAX) this.#waiting.shift()?.goOn();
    if (this.#onRoom === null || this.#waitingBytes > WAITING_BYTES_MAX) return;
    const onRoom = this.#onRoom;
    this.#onRoom = null;
    onRoom();
  }
}
