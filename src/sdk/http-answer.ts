// Answers of HTTP/1.1 as they come: the head, bounded, and the body piece by piece, no further ahead of its reader than a window.

const HEAD_BYTES_MAX = 64 * 1024;
/** Of a line that says how long a piece is, and of what may follow the last one. */
const SIZE_LINE_BYTES_MAX = 1024;
const WINDOW_BYTES = 256 * 1024;
/** How long a server keeps an idle connection that does not say. */
const KEPT_MS = 5_000;

export type AnswerHeaders = Readonly<Record<string, string | undefined>>;

type Flow = { pause(): void; resume(): void; leave(): void };

/** Its body is read once, by a loop. Leaving the loop ends the connection. */
export class HttpAnswer implements AsyncIterable<Uint8Array> {
  readonly statusCode: number;
  /** Names in lower case. */
  readonly headers: AnswerHeaders;
  readonly #flow: Flow;
  #pieces: Uint8Array[] = [];
  #bytes = 0;
  #state: 'open' | 'whole' | 'unwanted' = 'open';
  #failure: Error | null = null;
  #wake: (() => void) | null = null;

  constructor(statusCode: number, headers: AnswerHeaders, flow: Flow) {
    this.statusCode = statusCode;
    this.headers = headers;
    this.#flow = flow;
  }

  /** What is left of the body is not wanted. */
  resume(): void {
    if (this.#state === 'open') this.#state = 'unwanted';
    this.#pieces = [];
    this.#flow.resume();
  }

  /** Copies it: the memory that bytes come in is used again for others. */
  push(piece: Uint8Array): void {
    if (this.#state === 'unwanted') return;
    this.#pieces.push(Buffer.from(piece));
    this.#bytes += piece.byteLength;
    if (this.#bytes > WINDOW_BYTES) this.#flow.pause();
    this.#wake?.();
  }

  end(): void {
    this.#state = 'whole';
    this.#wake?.();
  }

  fail(error: Error): void {
    if (this.#state !== 'open') return;
    this.#failure = error;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece !== undefined) {
          const wasFull = this.#bytes > WINDOW_BYTES;
          this.#bytes -= piece.byteLength;
          if (wasFull && this.#bytes <= WINDOW_BYTES && this.#state === 'open') this.#flow.resume();
          yield piece;
        } else if (this.#failure !== null) throw this.#failure;
        else if (this.#state === 'whole') return;
        else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
          this.#wake = null;
        }
      }
    } finally {
      if (this.#state === 'open' && this.#failure === null) this.#flow.leave();
    }
  }
}

type Heard = {
  onHead(statusCode: number, headers: AnswerHeaders): HttpAnswer;
  /** The answer is whole, and what came with its end has been looked at. */
  onEnd(): void;
};

/** What comes next: `until-close` is a body that ends with the connection. */
type Next = 'head' | 'body' | 'size' | 'chunk' | 'chunk-end' | 'trailer' | 'until-close' | 'nothing';

export class HttpAnswerReader {
  readonly #isBodiless: boolean;
  readonly #heard: Heard;
  #next: Next = 'head';
  /** Of a head or a line that is not whole. */
  #begun: Uint8Array = Buffer.alloc(0);
  #left = 0;
  #answer: HttpAnswer | null = null;
  #keeps = false;
  #keptForMs = KEPT_MS;

  constructor(isBodiless: boolean, heard: Heard) {
    this.#isBodiless = isBodiless;
    this.#heard = heard;
  }

  /** Whether the connection may be used again: the answer is whole, nothing follows it, and the server keeps it. */
  get mayGoOn(): boolean {
    return this.#next === 'nothing' && this.#keeps;
  }

  /** Milliseconds for which the server keeps the connection when it is idle. */
  get keptForMs(): number {
    return this.#keptForMs;
  }

  /** The connection is over: false when the answer is not whole. */
  end(): boolean {
    if (this.#next === 'until-close') {
      this.#over();
      this.#heard.onEnd();
    }
    return this.#next === 'nothing';
  }

  /** @throws Error for what is no answer. */
  push(bytes: Uint8Array): void {
    const wasWhole = this.#next === 'nothing';
    this.#read(bytes);
    if (this.#next === 'nothing' && !wasWhole) this.#heard.onEnd();
  }

  #read(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.byteLength) {
      switch (this.#next) {
        case 'head': {
          const [head, rest] = this.#until('\r\n\r\n', bytes.subarray(at), HEAD_BYTES_MAX);
          if (head === null) return;
          at = bytes.byteLength - rest;
          this.#head(head);
          break;
        }
        case 'size': {
          const [line, rest] = this.#until('\r\n', bytes.subarray(at), SIZE_LINE_BYTES_MAX);
          if (line === null) return;
          at = bytes.byteLength - rest;
          const size = /^([0-9a-fA-F]{1,12})(?:[ \t]*;.*)?$/.exec(line)?.[1];
          if (size === undefined) throw new Error('the answer has a piece without a size');
          this.#left = Number.parseInt(size, 16);
          this.#next = this.#left === 0 ? 'trailer' : 'chunk';
          break;
        }
        case 'chunk-end':
        case 'trailer': {
          const [line, rest] = this.#until('\r\n', bytes.subarray(at), SIZE_LINE_BYTES_MAX);
          if (line === null) return;
          at = bytes.byteLength - rest;
          if (this.#next === 'trailer') {
            if (line === '') this.#over();
          } else if (line === '') this.#next = 'size';
          else throw new Error('the answer has a piece that is longer than it says');
          break;
        }
        case 'body':
        case 'chunk': {
          const piece = bytes.subarray(at, at + this.#left);
          at += piece.byteLength;
          this.#left -= piece.byteLength;
          this.#answer?.push(piece);
          if (this.#left > 0) return;
          if (this.#next === 'chunk') this.#next = 'chunk-end';
          else this.#over();
          break;
        }
        case 'until-close':
          this.#answer?.push(bytes.subarray(at));
          return;
        case 'nothing':
          this.#keeps = false; // nothing was asked for: it is no connection to ask on again
          return;
      }
    }
  }

  /** What stands before `mark`, and how many bytes follow that; null while it has not come. */
  #until(mark: string, bytes: Uint8Array, bytesMax: number): [text: string | null, rest: number] {
    const known = this.#begun.byteLength;
    const all = known === 0 ? Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength) : Buffer.concat([this.#begun, bytes]);
    const end = all.indexOf(mark, Math.max(0, known - mark.length));
    if (end > bytesMax || (end < 0 && all.byteLength > bytesMax))
      throw new Error(`the answer has a line, or a head, of more than ${bytesMax} bytes`);
    // A copy, as of pieces.
    this.#begun = end < 0 ? Buffer.from(all) : Buffer.alloc(0);
    return end < 0 ? [null, 0] : [all.toString('latin1', 0, end), all.byteLength - end - mark.length];
  }

  #head(text: string): void {
    const [first = '', ...lines] = text.split('\r\n');
    const status = /^HTTP\/1\.([01]) (\d{3})(?: |$)/.exec(first);
    if (status === null) throw new Error('what answers does not speak HTTP/1');
    const statusCode = Number(status[2]);
    if (statusCode === 101) throw new Error('the answer changes the protocol, which nobody asked for');
    if (statusCode < 200) return; // another one follows
    const headers: Record<string, string> = Object.create(null) as Record<string, string>;
    for (const line of lines) {
      const colon = line.indexOf(':');
      if (colon <= 0 || /\s/.test(line.slice(0, colon))) throw new Error('the answer has a header without a name');
      const name = line.slice(0, colon).toLowerCase();
      const value = line.slice(colon + 1).trim();
      headers[name] = headers[name] === undefined ? value : `${headers[name]}, ${value}`;
    }
    this.#keeps = status[1] === '1' && !/\bclose\b/i.test(headers['connection'] ?? '');
    const kept = /\btimeout=(\d{1,6})\b/.exec(headers['keep-alive'] ?? '')?.[1];
    if (kept !== undefined) this.#keptForMs = Number(kept) * 1_000;
    this.#answer = this.#heard.onHead(statusCode, headers);
    this.#body(statusCode, headers);
  }

  #body(statusCode: number, headers: AnswerHeaders): void {
    const { 'transfer-encoding': encoding, 'content-length': length } = headers;
    if (this.#isBodiless || statusCode === 204 || statusCode === 304) this.#over();
    else if (encoding !== undefined) {
      if (encoding.toLowerCase() !== 'chunked') throw new Error(`the answer comes in a form that is not known: ${encoding.slice(0, 64)}`);
      this.#next = 'size';
    } else if (length === undefined) {
      this.#keeps = false;
      this.#next = 'until-close';
    } else {
      if (!/^\d{1,15}$/.test(length)) throw new Error('the answer has a length that is no number');
      this.#left = Number(length);
      if (this.#left === 0) this.#over();
      else this.#next = 'body';
    }
  }

  #over(): void {
    this.#next = 'nothing';
    this.#answer?.end();
  }
}
