// One stream of a connection: a call that waits for its reply, then whatever the method sends both
// ways. It is over after its last frame, after `cancel`, or with the connection, and then every wait
// on it has ended. Credit is granted when the reader asks for the next thing: it has taken the last.
import type { Operation } from '../host/operation.ts';
import { type Failure, failureError, readFailure } from './failure.ts';
import { encodeFrame, type Frame, readU32, writeU32 } from './frames.ts';
import { type EventBudget, Inbox, type Received, type Violation } from './inbox.ts';
import { MessageError } from './messagepack.ts';
import { Outbox, type Outgoing } from './outbox.ts';
import { FRAME, FRAME_BYTES_MAX, OUTCOME } from './protocol.ts';
import { heard } from './wait.ts';

/** The agent answers a CANCEL with CLOSE within this time, or the connection is given up. */
export const CANCEL_ANSWER_MS = 30_000;

/** What a stream needs of its connection. */
export type Wire = {
  readonly mark: number;
  readonly events: EventBudget;
  /** The stream has something to send. */
  wake(stream: AgentStream): void;
  /** The same, for what can wait until everything that has come in this turn of the event loop was seen. */
  wakeSoon(stream: AgentStream): void;
  /** The stream's number is free of frames from now on. */
  over(stream: AgentStream): void;
  /** The agent broke the protocol. */
  broken(violation: Violation): void;
};

/** Takes what a stream sends in the turn in which it comes. None of these may throw. */
export type Sink = {
  /** The method was accepted. */
  opened(): void;
  /** False: no more for now, until `flowed`. */
  data(bytes: Uint8Array): boolean;
  /** Of the other side: ours stays open. */
  ended(): void;
  /** Nothing comes any more. Null: the agent closed it in order. Not called after `cancel`. */
  closed(failure: Failure | null): void;
};

type Waiter<T> = { resolve(value: T): void; reject(error: unknown): void; readonly op: Operation };

export class AgentStream implements Disposable {
  readonly id: number;
  readonly method: string;
  readonly #kind: 'unary' | 'streaming';
  readonly #wire: Wire;
  readonly #inbox: Inbox;
  readonly #outbox = new Outbox();

  /** `opening` until the REPLY; `over` when no more frames of it may come. */
  #phase: 'opening' | 'open' | 'over' = 'opening';
  #open: Uint8Array | null;
  #grant = 0;
  #cancel: 'no' | 'wanted' | 'sent' = 'no';
  #cancelTimer: ReturnType<typeof setTimeout> | undefined;

  #failure: Failure | null = null;
  #reply: Uint8Array | null = null;
  #closed: Uint8Array | null = null;
  #replyWaiter: Waiter<Uint8Array> | null = null;
  #reader: Waiter<Received> | null = null;
  readonly #writers = new Set<Waiter<void>>();
  /** Bytes that the reader was given and has not shown to be done with. */
  #handedBytes = 0;
  #onCredit: (() => void) | null = null;
  #sink: Sink | null = null;
  /** Bytes that the sink was given and has no room behind. */
  #sunkBytes = 0;

  constructor(wire: Wire, id: number, method: string, kind: 'unary' | 'streaming', open: Uint8Array) {
    this.#wire = wire;
    this.id = id;
    this.method = method;
    this.#kind = kind;
    this.#open = open;
    this.#inbox = new Inbox(wire.events);
  }

  // For callers

  /** Waits for the REPLY and gives its payload. @throws HutchError what the agent answered, or `unavailable`. */
  reply(op: Operation): Promise<Uint8Array> {
    if (this.#reply !== null) return Promise.resolve(this.#reply);
    if (this.#failure !== null) return Promise.reject(failureError(op, this.#failure));
    return heard<Uint8Array>(
      op,
      (resolve, reject) => {
        this.#replyWaiter = { resolve, reject, op };
      },
      () => {
        this.#replyWaiter = null;
      },
    );
  }

  /**
   * The next thing in the order in which the agent sent it. To ask for it says that the last one's
   * bytes are done with. After `close` there is nothing more. One reader at a time.
   * @throws HutchError what the agent closed the stream with, `resource_exhausted` when events came
   * faster than they were read, or `unavailable` when the connection was lost.
   */
  next(op: Operation): Promise<Received> {
    if (this.#reader !== null) throw new Error(`two readers on a ${this.method} stream`);
    this.#giveBack();
    const item = this.#inbox.take();
    if (item !== null) return Promise.resolve(this.#handOut(item));
    if (this.#failure !== null) return Promise.reject(failureError(op, this.#failure));
    if (this.#closed !== null) return Promise.resolve({ kind: 'close', payload: this.#closed });
    return heard<Received>(
      op,
      (resolve, reject) => {
        this.#reader = { resolve, reject, op };
      },
      () => {
        this.#reader = null;
      },
    );
  }

  /**
   * Sends bytes on the content channel; resolves when there is room for more. They must not change
   * afterwards. When it rejects, a part of them may have been sent.
   */
  write(op: Operation, bytes: Uint8Array): Promise<void> {
    const refusal = this.#refusal(op);
    if (refusal !== null) return Promise.reject(refusal);
    if (!this.#outbox.mustWait(bytes.byteLength)) {
      this.#outbox.offer(bytes, () => {});
      this.#wire.wake(this);
      return Promise.resolve();
    }
    let takeBack = () => {};
    let waiter: Waiter<void> | null = null;
    const forget = () => {
      if (waiter !== null) this.#writers.delete(waiter);
    };
    return heard<void>(
      op,
      (resolve, reject) => {
        waiter = { resolve, reject, op };
        this.#writers.add(waiter);
        takeBack = this.#outbox.offer(bytes, () => {
          forget();
          resolve();
        });
        this.#wire.wake(this);
      },
      () => {
        forget();
        takeBack();
      },
    );
  }

  /**
   * From here on what comes goes to `sink` in the turn in which it comes, and nothing is asked for by `reply` and `next`. To
   * be called in the turn in which the stream was begun: bytes may be pushed at once, they go out behind the call itself.
   */
  flow(sink: Sink): void {
    this.#sink = sink;
  }

  /** The sink has room again. */
  flowed(): void {
    const bytes = this.#sunkBytes;
    this.#sunkBytes = 0;
    if (bytes > 0) this.#grantFor(bytes);
  }

  /**
   * As `write`, without a promise: false when the next bytes should wait for `onRoom`. What is pushed on a stream that is over
   * goes nowhere: the sink hears of its end.
   */
  push(bytes: Uint8Array, onRoom: () => void): boolean {
    if (this.#phase === 'over' || this.#cancel !== 'no' || this.#outbox.isEnded) return true;
    const room = this.#outbox.push(bytes, onRoom);
    this.#wire.wakeSoon(this);
    return room;
  }

  /** No more is written. Harmless when the stream is over. */
  end(): void {
    if (this.#phase === 'over' || this.#cancel !== 'no') return;
    this.#outbox.end();
    this.#wire.wake(this);
  }

  /** Bytes of credit granted beyond the start: for process input, what the agent has surely accepted. */
  get creditedBytes(): number {
    return this.#outbox.grantedBytes;
  }

  /** Called whenever credit comes. */
  onCredit(listener: () => void): void {
    this.#onCredit = listener;
  }

  /** Gives the stream up; every wait on it ends. What it held in the agent is released there. */
  cancel(): void {
    this.#abandon({ code: 'cancelled', message: `${this.method} was given up` });
  }

  [Symbol.dispose](): void {
    this.cancel();
  }

  get isOver(): boolean {
    return this.#phase === 'over';
  }

  // For the connection

  /** Takes a frame of this stream. */
  receive(frame: Frame): Violation | null {
    if (frame.type === FRAME.reply) return this.#onReply(frame);
    if (frame.type === FRAME.close) return this.#onClose(frame);
    if (this.#phase !== 'open') return { violation: `sent a frame of type ${frame.type} before its reply to ${this.method}` };
    const abandoned = this.#cancel !== 'no';
    switch (frame.type) {
      case FRAME.data: {
        if (this.#sink !== null) return this.#pour(frame, abandoned);
        const violation = this.#inbox.data(frame.flag, frame.length, [frame.payload], abandoned);
        if (violation !== null) return violation;
        break;
      }
      case FRAME.event:
        if (abandoned) break;
        if (!this.#inbox.event(frame.payload)) {
          this.#abandon({ code: 'resource_exhausted', message: `${this.method}: events came faster than they were read` });
        }
        break;
      case FRAME.end: {
        const violation = this.#inbox.end(frame.flag);
        if (violation !== null) return violation;
        if (!abandoned) this.#sink?.ended();
        break;
      }
      case FRAME.credit:
        if (!this.#outbox.credit(readU32(frame.payload, 0))) return { violation: 'granted credit that makes no sense' };
        this.#onCredit?.();
        if (this.#outbox.canSend) this.#wire.wake(this);
        break;
      default:
        return { violation: `sent a frame of type ${frame.type} on a stream` };
    }
    this.#wakeReader();
    return null;
  }

  /** Frames that need no credit, in the order in which they must go. */
  takeControl(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    if (this.#phase === 'over') return frames;
    const { mark } = this.#wire;
    if (this.#open !== null) {
      frames.push(...openFrames(mark, this.id, this.#open));
      this.#open = null;
    }
    if (this.#grant > 0 && this.#cancel === 'no') {
      const bytes = new Uint8Array(4);
      writeU32(bytes, 0, this.#grant);
      frames.push(encodeFrame(mark, FRAME.credit, 0, this.id, bytes));
      this.#grant = 0;
    }
    if (this.#cancel === 'wanted') {
      frames.push(encodeFrame(mark, FRAME.cancel, 0, this.id));
      this.#cancel = 'sent';
    }
    return frames;
  }

  get canSend(): boolean {
    return this.#phase !== 'over' && this.#cancel === 'no' && this.#outbox.canSend;
  }

  takeOutgoing(): Outgoing | null {
    return this.canSend ? this.#outbox.take() : null;
  }

  /** The connection is lost, or the stream broke. What was received before can still be read. */
  fail(failure: Failure): void {
    this.#finish();
    this.#end(failure);
  }

  // Inside

  #onReply(frame: Frame): Violation | null {
    if (this.#phase !== 'opening' || this.#open !== null) return { violation: `replied twice to ${this.method}` };
    if (frame.flag === OUTCOME.error) {
      const failure = this.#failureOf(frame);
      if ('violation' in failure) return failure;
      this.#finish();
      this.#wire.over(this);
      this.#end(failure);
      return null;
    }
    this.#phase = 'open';
    if (this.#kind === 'unary') {
      this.#finish();
      this.#wire.over(this);
    }
    if (this.#cancel !== 'no') return null;
    this.#reply = frame.payload;
    this.#sink?.opened();
    const waiter = this.#replyWaiter;
    this.#replyWaiter = null;
    waiter?.resolve(this.#reply);
    return null;
  }

  #onClose(frame: Frame): Violation | null {
    // Before its reply, CLOSE is only the answer to CANCEL.
    if (this.#phase === 'opening' && this.#cancel === 'no') return { violation: `closed ${this.method} without a reply` };
    const failure = frame.flag === OUTCOME.error ? this.#failureOf(frame) : null;
    if (failure !== null && 'violation' in failure) return failure;
    this.#finish();
    this.#wire.over(this);
    if (this.#cancel !== 'no') return null;
    if (failure !== null) {
      this.#end(failure);
      return null;
    }
    this.#inbox.close(frame.payload);
    for (const writer of this.#writers)
      writer.reject(writer.op.error('failed_precondition', `the agent has closed this ${this.method} stream`));
    this.#writers.clear();
    this.#outbox.clear();
    this.#wakeReader();
    this.#drained(null);
    return null;
  }

  #pour(frame: Frame, abandoned: boolean): Violation | null {
    const violation = this.#inbox.pass(frame.flag, frame.length);
    if (violation !== null || abandoned) return violation;
    if (this.#sink?.data(frame.payload) === false) this.#sunkBytes += frame.length;
    else this.#grantFor(frame.length);
    return null;
  }

  #drained(failure: Failure | null): void {
    const sink = this.#sink;
    this.#sink = null;
    sink?.closed(failure);
  }

  #failureOf(frame: Frame): Failure | Violation {
    try {
      return readFailure(frame.payload);
    } catch (error) {
      if (error instanceof MessageError) return { violation: `sent an error that cannot be read: ${error.message}` };
      throw error;
    }
  }

  #refusal(op: Operation): unknown {
    if (this.#failure !== null) return failureError(op, this.#failure);
    if (this.#phase === 'over') return op.error('failed_precondition', `the agent has closed this ${this.method} stream`);
    if (this.#outbox.isEnded) throw new Error(`write after the end of a ${this.method} stream`);
    return null;
  }

  /** The last item's bytes are done with. */
  #giveBack(): void {
    if (this.#handedBytes === 0) return;
    const bytes = this.#handedBytes;
    this.#handedBytes = 0;
    this.#grantFor(bytes);
  }

  #grantFor(bytes: number): void {
    const grant = this.#inbox.taken(bytes);
    if (grant === 0 || this.#phase !== 'open') return;
    this.#grant += grant;
    this.#wire.wake(this);
  }

  #handOut(item: Received): Received {
    if (item.kind === 'data') this.#handedBytes = item.bytes.byteLength;
    if (item.kind === 'close') this.#closed = item.payload;
    return item;
  }

  #wakeReader(): void {
    const reader = this.#reader;
    if (reader === null) return;
    const item = this.#inbox.take();
    if (item === null) return;
    this.#reader = null;
    reader.resolve(this.#handOut(item));
  }

  #abandon(failure: Failure): void {
    if (this.#phase === 'over' || this.#cancel !== 'no') {
      // Nothing will be read any more.
      if (failure.code === 'cancelled') this.#inbox.clear();
      return;
    }
    const { code } = failure;
    if (this.#open !== null) {
      // The agent has never heard of it.
      this.#finish();
      this.#wire.over(this);
    } else {
      this.#cancel = 'wanted';
      this.#cancelTimer = setTimeout(
        () => this.#wire.broken({ violation: `has not closed a cancelled ${this.method} stream` }),
        CANCEL_ANSWER_MS,
      );
      this.#wire.wake(this);
    }
    if (code === 'cancelled') {
      this.#inbox.clear();
      this.#sink = null;
    }
    this.#end(failure);
  }

  /** No more frames of this stream come or go. */
  #finish(): void {
    this.#phase = 'over';
    clearTimeout(this.#cancelTimer);
  }

  /** Every wait ends with the failure; a reader first gets what was received. */
  #end(failure: Failure): void {
    this.#failure ??= failure;
    const ended = this.#failure;
    this.#outbox.clear();
    for (const writer of this.#writers) writer.reject(failureError(writer.op, ended));
    this.#writers.clear();
    const waiting = this.#replyWaiter;
    this.#replyWaiter = null;
    waiting?.reject(failureError(waiting.op, ended));
    const reader = this.#reader;
    this.#reader = null;
    reader?.reject(failureError(reader.op, ended));
    this.#drained(ended);
    this.#onCredit?.();
  }
}

/** PARTs and the OPEN. They go out together: the agent takes the parts of one call at a time. */
function openFrames(mark: number, stream: number, payload: Uint8Array): Uint8Array[] {
  const frames: Uint8Array[] = [];
  let at = 0;
  for (; payload.byteLength - at > FRAME_BYTES_MAX; at += FRAME_BYTES_MAX) {
    frames.push(encodeFrame(mark, FRAME.part, 0, stream, payload.subarray(at, at + FRAME_BYTES_MAX)));
  }
  frames.push(encodeFrame(mark, FRAME.open, 0, stream, payload.subarray(at)));
  return frames;
}
