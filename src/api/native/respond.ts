// How an answer leaves: JSON, lines, bytes. Nothing is held for a client that does not read: the
// source is asked for more only when the socket has taken the last.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { ERROR_CODES, HutchError } from '../../domain/errors.ts';
import type { BorrowedFile } from '../../host/host.ts';
import { giveBack } from '../../host/large-buffers.ts';
import type { Download } from '../../services/handlers.ts';

/** A stream that is quiet says so this often, as an empty line, so that a dead client is noticed. */
export const HEARTBEAT_MS = 15_000;
/** After an early refusal the rest of an upload is read and dropped for this long, so that the client sees the answer. */
const LINGER_MS = 5_000;

export function sendJson(response: ServerResponse, status: number, body: unknown): void {
  if (response.destroyed || response.headersSent) return;
  const text = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': text.byteLength });
  response.end(text);
}

/** The error as the answer; where an answer has begun already, its end shows that it is not whole. */
export function sendError(request: IncomingMessage, response: ServerResponse, error: HutchError): void {
  if (response.headersSent) return void response.destroy();
  if (!request.complete) finishReading(request);
  if (error.code === 'unauthenticated') response.setHeader('WWW-Authenticate', 'Bearer realm="hutch"');
  sendJson(response, ERROR_CODES[error.code].httpStatus, error.toBody());
}

/** The rest of what a client still sends is read and dropped. */
export function finishReading(request: IncomingMessage): void {
  const linger = setTimeout(() => request.destroy(), LINGER_MS);
  request.once('close', () => clearTimeout(linger));
  request.resume();
}

/** Resolves when the socket has taken what it was given; rejects when the client is gone. */
export async function write(response: ServerResponse, chunk: Uint8Array | string, onSent?: () => void): Promise<void> {
  if (response.destroyed) throw gone();
  const onWritten = (error?: Error | null): void => {
    if (error === undefined || error === null) onSent?.();
  };
  if (response.write(chunk, onWritten)) return;
  await new Promise<void>((resolve, reject) => {
    const settle = (): void => {
      response.off('drain', onDrain);
      response.off('close', onClose);
    };
    const onDrain = (): void => {
      settle();
      resolve();
    };
    const onClose = (): void => {
      settle();
      reject(gone());
    };
    response.on('drain', onDrain);
    response.on('close', onClose);
  });
}

function gone(): HutchError {
  return new HutchError({ code: 'cancelled', message: 'the client went away' });
}

/** `goOn`: of an upload, which is told before its content comes; a download's answer says it. */
export function tellLent(response: ServerResponse, file: BorrowedFile | null, goOn: (() => void) | null): void {
  if (file !== null) {
    const { path, device, inode } = file;
    if (goOn === null) response.setHeader('Hutch-Lent', `${path} ${device} ${inode}`);
    else response.writeEarlyHints({ link: `<${path}>; rel=lent; device=${device}; inode=${inode}` });
  }
  goOn?.();
}

export async function sendDownload(response: ServerResponse, download: Download): Promise<void> {
  response.writeHead(200, { 'Content-Type': download.contentType, ...download.headers });
  response.flushHeaders();
  for await (const chunk of download.bytes) await write(response, chunk, () => giveBack(chunk));
  response.end();
}

/** Lines of JSON, beginning at once. Errors after that are a last line `{"error": …}`. */
export class LineWriter implements Disposable {
  readonly #response: ServerResponse;
  readonly #heartbeat: NodeJS.Timeout;

  constructor(response: ServerResponse) {
    this.#response = response;
    response.writeHead(200, { 'Content-Type': 'application/x-ndjson', 'Cache-Control': 'no-store' });
    response.flushHeaders();
    this.#heartbeat = setInterval(() => {
      if (!response.writableNeedDrain && !response.destroyed) response.write('\n');
    }, HEARTBEAT_MS);
  }

  line(value: unknown): Promise<void> {
    return write(this.#response, `${JSON.stringify(value)}\n`);
  }

  /** What may be left out when the client does not keep up: progress. */
  hint(value: unknown): void {
    if (!this.#response.writableNeedDrain && !this.#response.destroyed) this.#response.write(`${JSON.stringify(value)}\n`);
  }

  end(): void {
    if (!this.#response.destroyed) this.#response.end();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#heartbeat);
  }
}
