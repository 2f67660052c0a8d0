// Input of one process that the agent may not have accepted yet: kept, so that it can be sent again on
// a new connection. Pure. Numbered by byte offset since the process began; never more than the window.
import { CREDIT_START_BYTES, FRAME_BYTES_MAX } from './protocol.ts';

export class InputWindow {
  readonly #chunks: Uint8Array[] = [];
  /** Offset of the first byte that is kept. */
  #from: number;
  #keptBytes = 0;

  constructor(from: number) {
    this.#from = from;
  }

  /** Everything before it has been accepted. */
  get from(): number {
    return this.#from;
  }

  get to(): number {
    return this.#from + this.#keptBytes;
  }

  get roomBytes(): number {
    return CREDIT_START_BYTES - this.#keptBytes;
  }

  /** Takes what there is room for, at most one frame; gives its length. The bytes must not change afterwards. */
  add(bytes: Uint8Array): number {
    const length = Math.min(bytes.byteLength, this.roomBytes, FRAME_BYTES_MAX);
    if (length === 0) return 0;
    this.#chunks.push(bytes.subarray(0, length));
    this.#keptBytes += length;
    return length;
  }

  /** The agent has accepted everything before `offset`, which may lie before what is kept. */
  accepted(offset: number): void {
    for (;;) {
      const first = this.#chunks[0];
      if (first === undefined || offset <= this.#from) return;
      const gone = Math.min(first.byteLength, offset - this.#from);
      if (gone === first.byteLength) this.#chunks.shift();
      else this.#chunks[0] = first.subarray(gone);
      this.#from += gone;
      this.#keptBytes -= gone;
    }
  }

  /** The bytes at `offset`, as far as they lie in one piece; null at the end. */
  at(offset: number): Uint8Array | null {
    let start = this.#from;
    for (const chunk of this.#chunks) {
      if (offset < start + chunk.byteLength) return offset < start ? null : chunk.subarray(offset - start);
      start += chunk.byteLength;
    }
    return null;
  }
}
