// A process followed over as many connections as it takes: no byte of output or input is lost or
// doubled. Output goes on at the offset that the reader has been given; input at the offset that the
// agent has accepted, from what is kept for that.
//
// Always true: `#current` is the one stream that items come from and input goes to, or null while a
// new one is opened; an item that arrives from any other stream is thrown away, because its bytes are
// asked for again. A gap that cannot be avoided is an item (`dropped`), never silence.
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import type { Agent } from './agent.ts';
import type { AttachSpec, OutputChannel, ProcessItem, ProcessStream } from './agent-process.ts';
import { InputWindow } from './input-window.ts';
import type { AgentLink } from './link.ts';
import { heard } from './wait.ts';

/** What a start or an attach gave. */
export type Opening = {
  readonly agent: Agent;
  readonly process: ProcessStream;
  readonly existing: boolean;
  readonly stdoutOffset: number;
  readonly stderrOffset: number;
  readonly inputOffset: number;
};

export class LinkedProcess implements Disposable {
  readonly id: string;
  readonly pid: number;
  /** A process of this id was there already when it was started. */
  readonly existing: boolean;

  readonly #op: Operation;
  readonly #link: AgentLink;
  readonly #window: InputWindow;
  #current: Opening | null;
  #failure: unknown = null;
  /** The exit was given, or the stream was given up: nothing is followed any more. */
  #isOver = false;
  #unfollow = () => {};
  /** What the reader has been given, per channel. */
  readonly #given: Record<OutputChannel, number>;
  readonly #ended: Record<OutputChannel, boolean> = { stdout: false, stderr: false };
  /** Items that come before the next one of the stream: gaps found when it was opened. */
  readonly #notices: ProcessItem[] = [];
  #input: 'open' | 'ending' | 'taken' | 'none';
  #onInputAccepted: (inputOffset: number) => void = () => {};
  /** Called, all of them, when anything that somebody waits for may have changed. */
  #waiting = new Set<() => void>();

  /** Made by AgentLink. `op` covers the whole life of the stream. */
  constructor(op: Operation, link: AgentLink, asked: AttachSpec, opening: Opening) {
    this.id = asked.id;
    this.pid = opening.process.pid;
    this.existing = opening.existing;
    this.#op = op;
    this.#link = link;
    this.#input = asked.input ? 'open' : 'none';
    this.#window = new InputWindow(opening.inputOffset);
    this.#given = { stdout: asked.stdoutOffset ?? opening.stdoutOffset, stderr: asked.stderrOffset ?? opening.stderrOffset };
    this.#noteGaps(opening);
    this.#current = opening;
    this.#follow(opening);
  }

  /** Offsets of the next bytes: where another attach would go on. */
  get offsets(): Readonly<Record<OutputChannel, number>> {
    return { ...this.#given };
  }

  /** Input before this offset has surely reached the agent. */
  get inputOffset(): number {
    return this.#window.from;
  }

  /** Called when `inputOffset` may have grown. */
  onInputAccepted(listener: (inputOffset: number) => void): void {
    this.#onInputAccepted = listener;
  }

  /** Output, in order per channel, up to the exit. To ask for the next says that the last one's bytes are done with. */
  async *items(op: Operation): AsyncGenerator<ProcessItem, void, undefined> {
    try {
      for (;;) {
        const item = await this.next(op);
        yield item;
        if (item.type === 'exit') return;
      }
    } finally {
      this[Symbol.dispose]();
    }
  }

  /** The next item. @throws HutchError `unavailable` when the agent could not be reached again in time. */
  async next(op: Operation): Promise<ProcessItem> {
    for (;;) {
      const notice = this.#notices.shift();
      if (notice !== undefined) return notice;
      if (this.#failure !== null) throw this.#failure;
      const opening = this.#current;
      if (opening === null) {
        await this.#change(op);
        continue;
      }
      let item: ProcessItem | null;
      try {
        item = await opening.process.next(op);
      } catch (error) {
        if (op.signal.aborted) throw error;
        if (this.#current !== opening) continue;
        if (!opening.agent.lost.aborted) throw error;
        await this.#change(op);
        continue;
      }
      if (this.#current === opening && item !== null && this.#accept(item)) return item;
    }
  }

  /**
   * Takes input; resolves when all of it is in the window, and waits while the process does not read.
   * The bytes must not change afterwards.
   * @throws HutchError `failed_precondition` when the process has ended; `conflict` when another stream has the input.
   */
  async write(op: Operation, bytes: Uint8Array): Promise<void> {
    let at = 0;
    for (;;) {
      if (this.#failure !== null) throw this.#failure;
      if (this.#isOver) throw op.error('failed_precondition', `process ${this.id} has ended; it takes no more input`);
      if (this.#input === 'taken') throw op.error('conflict', `another client has taken over the input of process ${this.id}`);
      if (this.#input === 'none') throw op.error('failed_precondition', `process ${this.id} was opened without input`);
      if (this.#input === 'ending') throw new Error('write after endInput');
      at += this.#window.add(bytes.subarray(at));
      this.#changed();
      if (at === bytes.byteLength) return;
      if (this.#window.roomBytes === 0) await this.#change(op);
    }
  }

  /** Closes the process's input after what has been written. */
  endInput(): void {
    if (this.#input !== 'open') return;
    this.#input = 'ending';
    this.#changed();
  }

  /** Gives the stream up; the process goes on. */
  [Symbol.dispose](): void {
    const { process } = this.#current ?? {};
    this.#current = null;
    process?.[Symbol.dispose]();
    this.#failure ??= this.#op.error('cancelled', `the stream of process ${this.id} was given up`);
    this.#over();
  }

  /** Whether the item is news; notes where the reader is. */
  #accept(item: ProcessItem): boolean {
    switch (item.type) {
      case 'output':
        this.#given[item.channel] = item.offset + item.bytes.byteLength;
        return true;
      case 'dropped':
        this.#given[item.channel] = item.offset + item.bytes;
        return true;
      case 'end': {
        const isNews = !this.#ended[item.channel];
        this.#ended[item.channel] = true;
        return isNews;
      }
      case 'inputTaken':
        this.#input = 'taken';
        this.#changed();
        return true;
      case 'exit':
        this.#over();
        return true;
    }
  }

  /** Sends input on a new stream, and opens the next one when its connection is lost. */
  #follow(opening: Opening): void {
    const { process, agent } = opening;
    process.onAccepted(() => {
      this.#window.accepted(opening.inputOffset + process.acceptedBytes);
      this.#onInputAccepted(this.#window.from);
      this.#changed();
    });
    if (this.#input === 'open' || this.#input === 'ending') void this.#pump(opening);
    const onLost = () => {
      this.#unfollow();
      void this.#resume(opening);
    };
    // The connection outlives most processes: nothing of them may stay with it.
    this.#unfollow = () => agent.lost.removeEventListener('abort', onLost);
    if (agent.lost.aborted) onLost();
    else agent.lost.addEventListener('abort', onLost);
  }

  #over(): void {
    this.#isOver = true;
    this.#unfollow();
    this.#changed();
  }

  async #pump(opening: Opening): Promise<void> {
    const { process } = opening;
    let at = opening.inputOffset;
    try {
      while (this.#current === opening && !this.#isOver && (this.#input === 'open' || this.#input === 'ending')) {
        const piece = this.#window.at(at);
        if (piece !== null) {
          await process.write(this.#op, piece);
          at += piece.byteLength;
        } else if (this.#input === 'ending') {
          return process.endInput();
        } else {
          await this.#change(this.#op);
        }
      }
    } catch (error) {
      if (!(error instanceof HutchError)) throw error;
      // A lost connection: the next stream sends it again. An end of the process: the reader learns it,
      // and whoever writes must not wait for room for ever.
      if (this.#current === opening && !opening.agent.lost.aborted) {
        this.#input = this.#input === 'open' || this.#input === 'ending' ? 'none' : this.#input;
        this.#changed();
      }
    }
  }

  async #resume(before: Opening): Promise<void> {
    if (this.#current !== before || this.#isOver) return;
    this.#current = null;
    const op = this.#op;
    try {
      const opening = await this.#link.persist(op, (agent) => this.#reopen(agent));
      if (this.#failure !== null) return opening.process[Symbol.dispose]();
      this.#check(opening);
      this.#current = opening;
      this.#follow(opening);
    } catch (error) {
      this.#failure ??= error;
    } finally {
      this.#changed();
    }
  }

  async #reopen(agent: Agent): Promise<Opening> {
    const input = this.#input === 'open' || this.#input === 'ending';
    const { stdout, stderr } = this.#given;
    try {
      const { process, attached } = await agent.process.attach(this.#op, {
        id: this.id,
        stdoutOffset: stdout,
        stderrOffset: stderr,
        input,
      });
      return {
        agent,
        process,
        existing: true,
        stdoutOffset: attached.stdoutOffset,
        stderrOffset: attached.stderrOffset,
        inputOffset: attached.inputOffset,
      };
    } catch (error) {
      if (error instanceof HutchError && error.code === 'not_found') {
        throw this.#op.error(
          'unavailable',
          `the sandbox no longer knows process ${this.id}: its agent was started anew, and how the process ended is not known`,
          { cause: error },
        );
      }
      throw error;
    }
  }

  /** Whether the new stream goes on where the last one was. */
  #check(opening: Opening): void {
    const refuse = (why: string) => {
      opening.process[Symbol.dispose]();
      throw this.#op.error('unavailable', `the stream of process ${this.id} cannot go on: ${why}`);
    };
    if (opening.process.pid !== this.pid) refuse('another process has its id now');
    if (opening.stdoutOffset < this.#given.stdout || opening.stderrOffset < this.#given.stderr) {
      refuse('the agent goes on at an older place than was asked for');
    }
    this.#noteGaps(opening);
    if (this.#input !== 'open' && this.#input !== 'ending') return;
    if (opening.inputOffset < this.#window.from || opening.inputOffset > this.#window.to)
      refuse('input was accepted that did not come from here');
    this.#window.accepted(opening.inputOffset);
    this.#onInputAccepted(this.#window.from);
  }

  /** What lies between where the reader is and where the stream begins is gone. */
  #noteGaps(opening: Opening): void {
    for (const channel of ['stdout', 'stderr'] as const) {
      const offset = channel === 'stdout' ? opening.stdoutOffset : opening.stderrOffset;
      const given = this.#given[channel];
      if (offset <= given) continue;
      this.#notices.push({ type: 'dropped', channel, offset: given, bytes: offset - given });
      this.#given[channel] = offset;
    }
  }

  #changed(): void {
    const waiting = this.#waiting;
    this.#waiting = new Set();
    for (const wake of waiting) wake();
  }

  /** Waits until something has changed. */
  #change(op: Operation): Promise<void> {
    let wake = () => {};
    return heard<void>(
      op,
      (resolve) => {
        wake = resolve;
        this.#waiting.add(wake);
      },
      () => void this.#waiting.delete(wake),
    );
  }
}
