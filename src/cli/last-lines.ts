// The last lines of a log that goes by, over both of its channels. Pure; holds no more than those lines.
import type { LogPiece } from '../sdk/log-records.ts';

export class LastLines {
  readonly #lines: number;
  /** Whole lines, and last the one that has no end yet. */
  #kept: LogPiece[] = [];
  #ends = 0;

  constructor(lines: number) {
    this.#lines = lines;
  }

  push(piece: LogPiece): void {
    if (this.#lines === 0) return;
    for (let from = 0; from < piece.bytes.byteLength; ) {
      const end = piece.bytes.indexOf(10, from) + 1 || piece.bytes.byteLength;
      const bytes = Uint8Array.from(piece.bytes.subarray(from, end));
      this.#kept.push({ ...piece, bytes });
      if (bytes.at(-1) === 10) this.#ends += 1;
      from = end;
    }
    // A line without its end counts as one.
    while (this.#ends + (this.#kept.at(-1)?.bytes.at(-1) === 10 ? 0 : 1) > this.#lines) {
      const at = this.#kept.findIndex(({ bytes }) => bytes.at(-1) === 10);
      this.#kept = this.#kept.slice(at + 1);
      this.#ends -= 1;
    }
  }

  pieces(): readonly LogPiece[] {
    return this.#kept;
  }
}
