// One answer of the daemon over its unix socket, as a short command asks for it: a JSON text whose length is said before it. Node's client of
// HTTP takes longer to load and to begin than such an answer takes to come. Always true: what is not exactly such an answer is refused,
// and no more is kept than `bytesMax`.
import { HutchError } from '../domain/errors.ts';
import type { Address } from './address.ts';
import { cancelled, errorFromBody, lostMidway, unreachable } from './errors.ts';
import { connectForBodies } from './reading.ts';

/** Most answers come in one. */
const READ_BYTES = 16 * 1024;
const HEAD_BYTES_MAX = 16 * 1024;
const HEAD_END = '\r\n\r\n';
/** Of a header, or of a path: what needs no thought about how it is sent. */
const PLAIN = /^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/;
const PLAIN_PATH = /^\/[\x21-\x7e]*$/;

export type Question = {
  readonly method: string;
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string | Uint8Array | null;
  readonly signal?: AbortSignal | undefined;
  /** Ends it only while there is no connection. */
  readonly unsentSignal?: AbortSignal | undefined;
  /** Called with the operation's id as soon as it is known. */
  readonly onOpId?: ((opId: string) => void) | undefined;
};

/** Whether it can be asked in this way: nothing in it could be taken for the end of a line. */
export function isPlain({ method, path, headers }: Question): boolean {
  return (
    /^[A-Z]+$/.test(method) && PLAIN_PATH.test(path) && Object.entries(headers).every((pair) => pair.every((text) => PLAIN.test(text)))
  );
}

/** @throws ConnectionError when the daemon cannot be reached or is lost, HutchError as it says, `cancelled`. */
export async function answerTo(question: Question, address: Address & { readonly type: 'unix' }, bytesMax: number): Promise<unknown> {
  const { signal, unsentSignal } = question;
  for (const asked of [signal, unsentSignal]) if (asked?.aborted) throw cancelled(asked);
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  const reader = new AnswerReader(bytesMax, question.onOpId);
  const socket = connectForBodies(address.path, READ_BYTES);
  const giveUp = (): void => {
    if (signal?.aborted) reject(cancelled(signal));
    else if (unsentSignal?.aborted && socket.connecting) reject(cancelled(unsentSignal));
  };
  signal?.addEventListener('abort', giveUp, { once: true });
  unsentSignal?.addEventListener('abort', giveUp, { once: true });
  socket.on('data', (bytes: Uint8Array) => {
    try {
      const answer = reader.push(bytes);
      if (answer !== null) resolve(answer);
    } catch (error) {
      reject(error);
    }
  });
  socket.on('error', (cause) => reject(reader.hasBegun ? lostMidway(cause, reader.opId) : unreachable(address, cause)));
  socket.on('end', () => reject(reader.hasBegun ? lostMidway(undefined, reader.opId) : unreachable(address, new Error('it ended'))));
  socket.cork();
  socket.write(headOf(question), 'latin1');
  if (question.body !== null) socket.write(question.body);
  socket.uncork();
  try {
    const { status, opId, text } = (await promise) as Answer;
    const body = parsed(text, status);
    if (status >= 200 && status < 300) return body;
    throw errorFromBody(body, { status, opId });
  } finally {
    signal?.removeEventListener('abort', giveUp);
    unsentSignal?.removeEventListener('abort', giveUp);
    socket.destroy();
  }
}

function headOf({ method, path, headers }: Question): string {
  const said = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${said.join('')}\r\n`;
}

function parsed(text: string, status: number): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    if (status < 200 || status >= 300) return null;
    throw new HutchError({ code: 'unavailable', message: 'the answer did not come from a Hutch daemon: it is no JSON', cause });
  }
}

type Answer = { readonly status: number; readonly opId: string | null; readonly text: string };
type Head = { readonly status: number; readonly opId: string | null; readonly bytes: number };

/** Puts an answer together, whatever the pieces. */
export class AnswerReader {
  readonly #bytesMax: number;
  readonly #onOpId: ((opId: string) => void) | undefined;
  #head: Head | null = null;
  #pieces: Uint8Array[] = [];
  #bytes = 0;

  constructor(bytesMax: number, onOpId?: (opId: string) => void) {
    this.#bytesMax = bytesMax;
    this.#onOpId = onOpId;
  }

  /** Whether anything has come. */
  get hasBegun(): boolean {
    return this.#head !== null || this.#bytes > 0;
  }

  get opId(): string | null {
    return this.#head?.opId ?? null;
  }

  /** `bytes`: valid during the call. Null: it is not whole yet. @throws HutchError for what is no such answer. */
  push(bytes: Uint8Array): Answer | null {
    this.#pieces.push(Buffer.from(bytes));
    this.#bytes += bytes.byteLength;
    this.#head ??= this.#headOf();
    if (this.#head === null || this.#bytes < this.#head.bytes) return null;
    if (this.#bytes > this.#head.bytes) throw notOurs('it is longer than it says');
    const { status, opId } = this.#head;
    return { status, opId, text: Buffer.concat(this.#pieces).toString('utf8') };
  }

  #headOf(): Head | null {
    const all = Buffer.concat(this.#pieces);
    const end = all.indexOf(HEAD_END);
    if ((end < 0 ? all.byteLength : end) > HEAD_BYTES_MAX) throw notOurs('its head is too long');
    if (end < 0) return null;
    const head = headIn(all.toString('latin1', 0, end));
    if (head.bytes > this.#bytesMax)
      throw new HutchError({ code: 'internal', message: `the answer is longer than ${this.#bytesMax} bytes` });
    const rest = all.subarray(end + HEAD_END.length);
    this.#pieces = [rest];
    this.#bytes = rest.byteLength;
    if (head.opId !== null) this.#onOpId?.(head.opId);
    return head;
  }
}

function headIn(text: string): Head {
  const [first = '', ...lines] = text.split('\r\n');
  const status = /^HTTP\/1\.1 ([2-5]\d\d)(?: |$)/.exec(first)?.[1];
  if (status === undefined) throw notOurs('it is no HTTP');
  let length: string | null = null;
  let opId: string | null = null;
  for (const line of lines) {
    const [, name = '', value = ''] = /^([!-9;-~]+):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
    switch (name.toLowerCase()) {
      case '':
      case 'transfer-encoding':
        throw notOurs(`its head has a line that is not understood (HTTP ${status})`);
      case 'content-length':
        if (length !== null || !/^\d{1,15}$/.test(value)) throw notOurs('its length is none');
        length = value;
        break;
      case 'hutch-op-id':
        opId = value;
        break;
      default:
    }
  }
  if (length === null) throw notOurs(`it has no length (HTTP ${status})`);
  return { status: Number(status), opId, bytes: Number(length) };
}

function notOurs(why: string): HutchError {
  return new HutchError({ code: 'unavailable', message: `the answer did not come from a Hutch daemon: ${why}` });
}
