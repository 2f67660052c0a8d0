// What a build says, line by line: numbered, kept in a file beside its record, and told to whoever follows.
import { StringDecoder } from 'node:string_decoder';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type LogLine = {
  /** From 1; where a reader goes on. */
  readonly cursor: number;
  readonly atMs: number;
  readonly type: 'step' | 'note' | 'output';
  /** The stage, as people call it. */
  readonly stage: string;
  readonly text: string;
  /** Of a step: its line in the Dockerfile. */
  readonly line?: number;
  readonly number?: number;
  readonly count?: number;
  readonly channel?: 'stdout' | 'stderr';
};

/** What a build says beyond it is counted and not kept. */
const LOG_BYTES_MAX = 32 * 1024 * 1024;
const LINE_CHARS_MAX = 16 * 1024;
const TAIL_LINES = 20;
const FLUSH_MS = 50;
const RELEASE_MS = 30_000;

export class BuildLog {
  readonly op: Operation;
  readonly #host: Host;
  readonly #path: string;
  #cursor = 0;
  #bytes = 0;
  #waiting: string[] = [];
  #writing: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | null = null;
  #news = Promise.withResolvers<void>();
  #isOver = false;
  #tail: string[] = [];

  constructor(op: Operation, host: Host, path: string) {
    this.op = op;
    this.#host = host;
    this.#path = path;
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** The last lines of output. */
  get tail(): readonly string[] {
    return this.#tail;
  }

  /** Settles at the next line that is in the file, and at the end. */
  get news(): Promise<void> {
    return this.#news.promise;
  }

  /** `line`: in the Dockerfile; null: it is in none. `keepsTail`: what was said before may still be why it fails. */
  step(
    stage: string,
    text: string,
    line: number | null,
    { keepsTail, ...place }: { readonly number?: number; readonly count?: number; readonly keepsTail?: boolean } = {},
  ): void {
    if (keepsTail !== true) this.#tail = [];
    this.#add({ type: 'step', stage, text: text.split('\n', 1)[0] ?? '', ...(line === null ? {} : { line }), ...place });
  }

  note(stage: string, text: string): void {
    this.#add({ type: 'note', stage, text });
  }

  /** Output in pieces, out of which lines are made. What is `hidden` is shown as stars. */
  output(stage: string, hidden: readonly string[], onLine: (line: string) => void) {
    const decoders = { stdout: new StringDecoder('utf8'), stderr: new StringDecoder('utf8') };
    const rests = { stdout: '', stderr: '' };
    const line = (channel: 'stdout' | 'stderr', text: string): void => {
      const shown = hidden.reduce((now, secret) => now.replaceAll(secret, '***'), rewritten(text)).slice(0, LINE_CHARS_MAX);
      onLine(shown);
      this.#add({ type: 'output', stage, text: shown, channel });
    };
    return {
      write: (channel: 'stdout' | 'stderr', bytes: Uint8Array): void => {
        const lines = (rests[channel] + decoders[channel].write(Buffer.from(bytes))).split('\n');
        rests[channel] = lines.pop() ?? '';
        for (const each of lines) line(channel, each);
        if (rests[channel].length <= LINE_CHARS_MAX) return;
        line(channel, rests[channel]);
        rests[channel] = '';
      },
      end: (): void => {
        for (const channel of ['stdout', 'stderr'] as const) if (rests[channel] !== '') line(channel, rests[channel]);
      },
    };
  }

  /** Everything is in the file. */
  async flush(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    const text = this.#waiting.join('');
    this.#waiting = [];
    if (text !== '') {
      this.#writing = this.#writing.then(async () => {
        using late = this.op.releasing(RELEASE_MS);
        await this.#host
          .appendFile(late, this.#path, Buffer.from(text))
          .catch((cause: unknown) => late.log.warn({ cause }, 'the log of a build cannot be written'));
      });
    }
    await this.#writing;
    const news = this.#news;
    this.#news = Promise.withResolvers();
    news.resolve();
  }

  async end(): Promise<void> {
    this.#isOver = true;
    await this.flush();
  }

  #add(line: Omit<LogLine, 'cursor' | 'atMs'>): void {
    if (line.type === 'output') this.#tail = [...this.#tail.slice(1 - TAIL_LINES), line.text];
    if (this.#bytes > LOG_BYTES_MAX) return;
    this.#cursor += 1;
    const text = `${JSON.stringify({ cursor: this.#cursor, atMs: this.#host.nowMs(), ...line })}\n`;
    this.#bytes += Buffer.byteLength(text);
    this.#waiting.push(text);
    if (this.#bytes > LOG_BYTES_MAX) {
      const cut = {
        cursor: this.#cursor + 1,
        atMs: this.#host.nowMs(),
        type: 'note',
        stage: line.stage,
        text: `more than ${LOG_BYTES_MAX} bytes of output: the rest is not kept`,
      };
      this.#waiting.push(`${JSON.stringify(cut)}\n`);
    }
    this.#timer ??= setTimeout(() => void this.flush(), FLUSH_MS);
  }
}

/** A line as a terminal shows it in the end: what a bar of progress wrote over itself is gone. */
function rewritten(text: string): string {
  const line = text.replace(/\r+$/, '');
  return line.slice(line.lastIndexOf('\r') + 1);
}
