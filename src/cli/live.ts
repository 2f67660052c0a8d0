// Lines on a terminal that are written again while something goes on, such as the rows of a table. Where there is no
// terminal only what stays is written.
import type { Io } from './io.ts';
import { cut } from './output.ts';
import { terminalSize } from './terminal.ts';

const EVERY_MS = 80;

export class LiveLines {
  readonly #io: Io;
  readonly #isTerminal: boolean;
  #shown = 0;
  #lastMs = Number.NEGATIVE_INFINITY;

  /** `stream` is where the lines go. */
  constructor(io: Io, stream: 'stdout' | 'stderr') {
    this.#io = { ...io, out: stream === 'stdout' ? io.out : io.err };
    this.#isTerminal = io.isTerminal[stream];
  }

  /** Puts `text` in the place of what was shown last. Not more often than can be read. */
  async show(text: string): Promise<void> {
    const now = performance.now();
    if (!this.#isTerminal || now - this.#lastMs < EVERY_MS) return;
    this.#lastMs = now;
    const { cols, rows } = terminalSize();
    // A line that wraps, or a table that scrolls, could not be taken back.
    const lines = text
      .trimEnd()
      .split('\n')
      .slice(0, rows - 1)
      .map((line) => cut(line, cols - 1));
    const back = this.#back();
    this.#shown = lines.length;
    await this.#io.out(`${back}${lines.join('\n')}\n`);
  }

  /** Wipes what was shown, and writes `text` to stay. */
  async settle(text: string): Promise<void> {
    const back = this.#back();
    this.#shown = 0;
    this.#lastMs = Number.NEGATIVE_INFINITY;
    await this.#io.out(`${back}${text}`);
  }

  #back(): string {
    return this.#shown === 0 ? '' : `\u001b[${this.#shown}A\r\u001b[J`;
  }
}
