// Writes what the streams of a connection have to send: control frames first, then data in turns, one
// frame per stream and round. It keeps no queue of its own: when the pipe is full nothing is taken
// from the streams, so that their writers wait.
import type { Duplex } from 'node:stream';
import { whenWritten } from '../host/large-buffers.ts';
import { encodeFrame, writeHeader, writeU32 } from './frames.ts';
import { Gather } from './gather.ts';
import type { Outgoing } from './outbox.ts';
import { CHANNEL, FRAME, FRAME_OVERHEAD_BYTES, HEADER_BYTES, MARK_BYTES } from './protocol.ts';
import type { AgentStream } from './stream.ts';

/** Data given to the pipe at once. More would only make others wait longer. */
const BATCH_BYTES = 256 * 1024;
/** Smaller payloads are gathered with their headers: one write instead of three for each. */
const COPY_BYTES_MAX = 4_096;
const NOTHING = new Uint8Array(0);
/** Answers to PING that wait to be sent; more come only from an agent that floods. */
const PONGS_MAX = 16;

export class Sender {
  readonly #duplex: Duplex;
  readonly #mark: number;
  readonly #connectionFrames: Uint8Array[] = [];
  readonly #control = new Set<AgentStream>();
  /** In the order of their turns. */
  readonly #ready = new Set<AgentStream>();
  readonly #gather: Gather;
  /** `soon`: scheduled for the end of this turn of the event loop. */
  #state: 'idle' | 'soon' | 'scheduled' | 'full' | 'stopped' = 'idle';

  constructor(duplex: Duplex, mark: number) {
    this.#duplex = duplex;
    this.#mark = mark;
    this.#gather = new Gather(duplex, mark);
  }

  wake(stream: AgentStream): void {
    if (this.#state === 'stopped') return;
    this.#control.add(stream);
    if (stream.canSend) this.#ready.add(stream);
    this.#schedule();
  }

  /** As `wake`, once everything that came in this turn of the event loop was seen: what many have to send goes out together. */
  wakeSoon(stream: AgentStream): void {
    if (this.#state === 'stopped') return;
    if (stream.canSend) this.#ready.add(stream);
    if (this.#state !== 'idle') return;
    this.#state = 'soon';
    setImmediate(() => {
      if (this.#state === 'soon') this.#sendNow();
    });
  }

  forget(stream: AgentStream): void {
    this.#control.delete(stream);
    this.#ready.delete(stream);
  }

  /** PING, or PONG. False when too many wait. */
  onConnection(type: typeof FRAME.ping | typeof FRAME.pong, payload: Uint8Array): boolean {
    if (this.#connectionFrames.length >= PONGS_MAX) return false;
    this.#connectionFrames.push(encodeFrame(this.#mark, type, 0, 0, payload));
    this.#schedule();
    return true;
  }

  stop(): void {
    this.#state = 'stopped';
    this.#connectionFrames.length = 0;
    this.#control.clear();
    this.#ready.clear();
  }

  /** The pipe has room again. */
  readonly drained = (): void => {
    if (this.#state !== 'full') return;
    this.#state = 'idle';
    if (this.#hasWork) this.#schedule();
  };

  get #hasWork(): boolean {
    return this.#connectionFrames.length > 0 || this.#control.size > 0 || this.#ready.size > 0;
  }

  /** Later in this turn of the event loop, so that what is woken together is sent together. */
  #schedule(): void {
    if (this.#state !== 'idle' && this.#state !== 'soon') return;
    this.#state = 'scheduled';
    queueMicrotask(() => {
      if (this.#state === 'scheduled') this.#sendNow();
    });
  }

  #sendNow(): void {
    this.#state = 'idle';
    this.#send();
  }

  #send(): void {
    const duplex = this.#duplex;
    let accepted = true;
    duplex.cork();
    try {
      for (const frame of this.#connectionFrames.splice(0)) accepted = duplex.write(frame);
      for (const stream of this.#control) {
        this.#control.delete(stream);
        for (const frame of stream.takeControl()) accepted = duplex.write(frame);
        // A call may have megabytes: the next one is made into frames when there is room.
        if (!accepted) break;
      }
      let batchBytes = 0;
      for (const stream of this.#ready) {
        if (this.#control.size > 0) break; // no data before the call that it belongs to
        this.#ready.delete(stream);
        const outgoing = stream.takeOutgoing();
        if (outgoing === null) continue;
        if (outgoing.kind === 'end') {
          accepted = this.#gather.add(FRAME.end, CHANNEL.content, stream.id, NOTHING) && accepted;
        } else {
          accepted = this.#writeData(stream.id, outgoing) && accepted;
          batchBytes += outgoing.bytes.byteLength;
        }
        // At the end of the set again: everybody else has a turn before. The loop reaches it, too.
        if (stream.canSend) this.#ready.add(stream);
        if (batchBytes >= BATCH_BYTES) break;
      }
      accepted = this.#gather.flush() && accepted;
    } finally {
      duplex.uncork();
    }
    if (!accepted) this.#state = 'full';
    else if (this.#hasWork) this.#schedule();
  }

  #writeData(stream: number, { bytes, isLast }: Outgoing & { readonly kind: 'data' }): boolean {
    const letGo = isLast ? whenWritten(bytes) : null;
    if (bytes.byteLength <= COPY_BYTES_MAX) {
      const accepted = this.#gather.add(FRAME.data, CHANNEL.content, stream, bytes);
      // These are copied, but what lies before them may still wait for the pipe.
      return letGo === null ? accepted : this.#gather.flush(ifWritten(letGo));
    }
    this.#gather.flush();
    const around = Buffer.allocUnsafe(FRAME_OVERHEAD_BYTES);
    writeHeader(around, 0, FRAME.data, CHANNEL.content, stream, bytes.byteLength);
    writeU32(around, HEADER_BYTES, this.#mark);
    this.#duplex.write(around.subarray(0, HEADER_BYTES));
    this.#duplex.write(bytes);
    const mark = around.subarray(HEADER_BYTES, HEADER_BYTES + MARK_BYTES);
    return letGo === null ? this.#duplex.write(mark) : this.#duplex.write(mark, ifWritten(letGo));
  }
}

/** Where it failed, the pipe may still look at it. */
function ifWritten(done: () => void): (error?: Error | null) => void {
  return (error) => {
    if (error === undefined || error === null) done();
  };
}
