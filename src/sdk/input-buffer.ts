// Input that was sent and not yet acknowledged: after a lost connection it is sent again from where
// the process's agent is. Bounded: when it is full the writer waits.

export const INPUT_WINDOW_BYTES = 1024 * 1024;

export class InputBuffer {
  #chunks: Uint8Array[] = [];
  #bytes = 0;
  #acked = 0;
  #ended = false;

  /** Offset up to which the agent has taken it. */
  get acked(): number {
    return this.#acked;
  }

  get isFull(): boolean {
    return this.#bytes >= INPUT_WINDOW_BYTES;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Where the numbering begins: another client may have written before. */
  startAt(offset: number): void {
    this.#acked = offset;
  }

  /** Keeps the chunk itself: nobody may change it any more. */
  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#bytes += chunk.byteLength;
  }

  end(): void {
    this.#ended = true;
  }

  ack(offset: number): void {
    let taken = Math.min(offset - this.#acked, this.#bytes);
    if (!(taken > 0)) return;
    this.#acked += taken;
    this.#bytes -= taken;
    while (taken > 0) {
      const [first] = this.#chunks;
      if (first === undefined) return;
      if (first.byteLength > taken) {
        this.#chunks[0] = first.subarray(taken);
        return;
      }
      taken -= first.byteLength;
      this.#chunks.shift();
    }
  }

  unacked(): readonly Uint8Array[] {
    return [...this.#chunks];
  }
}
