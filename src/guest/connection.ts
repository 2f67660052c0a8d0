// One connection to the agent in a sandbox: frames in, frames out, and the table of streams.
//
// Always true: the agent is hostile. What breaks the protocol ends the connection and nothing else;
// what is held for it has a bound; one chunk of its bytes never keeps the event loop for long. When
// the connection is lost, everything that waits on it ends at once with `unavailable`.
import { setMaxListeners } from 'node:events';
import type { Duplex } from 'node:stream';
import type { Operation } from '../host/operation.ts';
import { type Failure, failureError } from './failure.ts';
import { type Frame, FrameDecoder, FrameError } from './frames.ts';
import type { EventBudget, Violation } from './inbox.ts';
import { KeepAlive, PONG_MS, SILENCE_MS, STANDING_SILENCE_MS } from './keepalive.ts';
import { encodeMessage, MessageError } from './messagepack.ts';
import { greet, markOf, newNonce, preambleOf } from './preamble.ts';
import { FRAME, STREAM_ID_MAX, STREAMS_MAX } from './protocol.ts';
import { Sender } from './sender.ts';
import { AgentStream, type Wire } from './stream.ts';
import { reasonOf } from './wait.ts';

/** The agent answers the preamble within this time, unless the operation has less. */
export const GREETING_MS = 30_000;
/** Frames that are handled in one turn of the event loop. */
const FRAMES_PER_TURN = 512;

export type ConnectOptions = {
  readonly randomBytes?: (count: number) => Uint8Array;
  readonly monotonicMs?: () => number;
  readonly greetingMs?: number;
  readonly silenceMs?: number;
  readonly standingSilenceMs?: number;
  readonly pongMs?: number;
};

/**
 * Greets the agent at the other end of a byte stream. The stream belongs to the connection from here
 * on, also when this fails: then it is destroyed.
 * @throws HutchError `deadline_exceeded` when nobody answers, `unavailable` when the stream ends,
 * `failed_precondition` when the agent speaks another version.
 */
export async function connect(op: Operation, duplex: Duplex, options: ConnectOptions = {}): Promise<AgentConnection> {
  const { randomBytes = strongRandomBytes, greetingMs = GREETING_MS } = options;
  // A destroyed stream may still say why; without a listener that would end the process.
  duplex.on('error', () => {});
  try {
    using greeting = op.within(greetingMs, 'the agent of the sandbox: answering');
    const { nonce, rest, repeats } = await greet(greeting, duplex, newNonce(randomBytes));
    return new AgentConnection(op, duplex, nonce, rest, repeats, options);
  } catch (error) {
    duplex.destroy();
    throw error;
  }
}

function strongRandomBytes(count: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(count));
}

export class AgentConnection implements Disposable {
  readonly #log: Operation['log'];
  readonly #duplex: Duplex;
  readonly #decoder: FrameDecoder;
  readonly #sender: Sender;
  readonly #keepAlive: KeepAlive;
  readonly #wire: Wire;
  readonly #streams = new Map<number, AgentStream>();
  /** Of these, those whose next item nobody awaits: they are open for as long as the guest runs. */
  readonly #standing = new Set<number>();
  readonly #lost = new AbortController();
  #nextStream = 1;
  #failure: Failure | null = null;

  /** Made by `connect` alone. */
  constructor(op: Operation, duplex: Duplex, nonce: Uint8Array, rest: Uint8Array, repeats: number, options: ConnectOptions) {
    const mark = markOf(nonce);
    this.#log = op.log;
    this.#duplex = duplex;
    this.#decoder = new FrameDecoder({ mark, from: 'agent', repeated: { answer: preambleOf(nonce), times: repeats } });
    this.#sender = new Sender(duplex, mark);
    this.#keepAlive = new KeepAlive({
      monotonicMs: options.monotonicMs ?? (() => performance.now()),
      silenceMs: options.silenceMs ?? SILENCE_MS,
      standingSilenceMs: options.standingSilenceMs ?? STANDING_SILENCE_MS,
      pongMs: options.pongMs ?? PONG_MS,
      ping: (payload) => void this.#sender.onConnection(FRAME.ping, payload),
      lost: () => this.#lose({ code: 'unavailable', message: 'the agent of the sandbox does not answer' }),
    });
    setMaxListeners(0, this.#lost.signal); // every process that is followed listens
    const events: EventBudget = { bytes: 0 };
    this.#wire = {
      mark,
      events,
      wake: (stream) => this.#sender.wake(stream),
      wakeSoon: (stream) => this.#sender.wakeSoon(stream),
      over: (stream) => this.#over(stream),
      broken: (violation) => this.#broken(violation),
    };
    duplex.on('data', this.#onData).on('drain', this.#sender.drained);
    duplex.on('error', this.#onError).on('end', this.#onEnd).on('close', this.#onEnd);
    if (duplex.destroyed) this.#onEnd();
    else if (rest.byteLength > 0) this.#onData(rest);
    else duplex.resume();
  }

  /** Aborted once the connection is over. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  /** Calls a unary method; gives the payload of its reply. */
  async call(op: Operation, method: string, params: object | null): Promise<Uint8Array> {
    const stream = this.#start(op, method, 'unary', params);
    try {
      return await stream.reply(op);
    } finally {
      stream.cancel(); // nothing, when it is over
    }
  }

  /** Opens a streaming method; gives the stream once it is accepted, with the payload of its reply. */
  async open(op: Operation, method: string, params: object | null): Promise<{ readonly stream: AgentStream; readonly reply: Uint8Array }> {
    const stream = this.#start(op, method, 'streaming', params);
    try {
      return { stream, reply: await stream.reply(op) };
    } catch (error) {
      stream.cancel();
      throw error;
    }
  }

  /** As `open`, without waiting for its answer: what is sent behind the call is kept by the agent until the method has begun. */
  begin(op: Operation, method: string, params: object | null): AgentStream {
    return this.#start(op, method, 'streaming', params);
  }

  /** From here on the stream only tells what happens, if anything does: an agent that is silent meanwhile is as it should be. */
  stands(stream: AgentStream): void {
    if (!this.#streams.has(stream.id)) return;
    this.#standing.add(stream.id);
    this.#watch();
  }

  /** Ends the connection; whatever waits on it gets `unavailable`. */
  close(): void {
    this.#lose({ code: 'unavailable', message: 'the connection to the agent was closed' });
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The agent sent what can be no answer to what was asked. */
  violated(sentence: string, cause?: unknown): void {
    this.#broken({ violation: sentence, ...(cause instanceof FrameError ? { cause } : {}) });
  }

  #start(op: Operation, method: string, kind: 'unary' | 'streaming', params: object | null): AgentStream {
    if (op.signal.aborted) throw reasonOf(op);
    if (this.#failure !== null) throw failureError(op, this.#failure);
    if (this.#streams.size >= STREAMS_MAX) {
      throw op.error('resource_exhausted', `${STREAMS_MAX} streams to the agent of this sandbox are open; no more are allowed`, {
        hint: 'wait for some of them to end',
      });
    }
    if (this.#nextStream > STREAM_ID_MAX) {
      this.#lose({ code: 'unavailable', message: 'the connection to the agent is used up' });
      throw op.error('unavailable', 'the connection to the agent is used up');
    }
    const stream = new AgentStream(this.#wire, this.#nextStream, method, kind, openPayload(op, method, params));
    this.#nextStream += 1;
    this.#streams.set(stream.id, stream);
    this.#watch();
    this.#sender.wake(stream);
    return stream;
  }

  #over(stream: AgentStream): void {
    this.#streams.delete(stream.id);
    this.#standing.delete(stream.id);
    this.#sender.forget(stream);
    this.#watch();
  }

  #watch(): void {
    const standing = this.#standing.size;
    this.#keepAlive.watch(this.#streams.size > standing ? 'awaited' : standing > 0 ? 'standing' : 'nothing');
  }

  readonly #onData = (chunk: Uint8Array): void => {
    if (this.#failure !== null) return;
    this.#decoder.push(chunk);
    this.#decode();
  };

  /** Handles the frames of the chunk; the rest in a later turn when there are many of them. */
  #decode(): void {
    switch (this.#decodeSome()) {
      case 'used-up':
        this.#duplex.resume();
        break;
      case 'more':
        this.#duplex.pause();
        setImmediate(() => {
          if (this.#failure === null) this.#decode();
        });
        break;
      case 'over':
        break;
    }
  }

  #decodeSome(): 'used-up' | 'more' | 'over' {
    try {
      for (let count = 0; count < FRAMES_PER_TURN; count += 1) {
        const frame = this.#decoder.next();
        if (frame === null) return 'used-up';
        const violation = this.#receive(frame);
        if (violation !== null) this.#broken(violation);
        if (this.#failure !== null) return 'over';
      }
      return 'more';
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      this.#broken({ violation: error.message, cause: error });
      return 'over';
    }
  }

  #receive(frame: Frame): Violation | null {
    this.#keepAlive.heard();
    if (frame.type === FRAME.ping) {
      return this.#sender.onConnection(FRAME.pong, frame.payload) ? null : { violation: 'sent PING faster than it reads the answers' };
    }
    if (frame.type === FRAME.pong) {
      return this.#keepAlive.pong(frame.payload) ? null : { violation: 'sent a PONG that nobody asked for' };
    }
    const stream = this.#streams.get(frame.stream);
    if (stream === undefined) return { violation: `sent a frame of type ${frame.type} on stream ${frame.stream}, which is not open` };
    return stream.receive(frame);
  }

  readonly #onError = (cause: Error): void => this.#lose({ code: 'unavailable', message: 'the connection to the agent failed', cause });
  readonly #onEnd = (): void => this.#lose({ code: 'unavailable', message: 'the connection to the agent ended' });

  #broken(violation: Violation): void {
    if (this.#failure !== null) return;
    this.#log.warn({ violation: violation.violation }, 'the agent broke the protocol; its connection is closed');
    this.#lose({ code: 'unavailable', message: `the agent broke the protocol: it ${violation.violation}`, cause: violation.cause });
  }

  #lose(failure: Failure): void {
    if (this.#failure !== null) return;
    this.#failure = failure;
    this.#keepAlive.stop();
    this.#sender.stop();
    const duplex = this.#duplex;
    duplex.off('data', this.#onData).off('drain', this.#sender.drained);
    duplex.off('error', this.#onError).off('end', this.#onEnd).off('close', this.#onEnd);
    duplex.destroy();
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    this.#standing.clear();
    for (const stream of streams) stream.fail(failure);
    this.#lost.abort(failure);
  }
}

function openPayload(op: Operation, method: string, params: object | null): Uint8Array {
  try {
    return encodeMessage(params === null ? { m: method } : { m: method, p: params });
  } catch (error) {
    if (error instanceof MessageError)
      throw op.error('invalid_argument', `${method}: what is asked for ${error.message}`, { cause: error });
    throw error;
  }
}
