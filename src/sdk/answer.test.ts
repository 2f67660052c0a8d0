// Answers as a daemon gives them, in any pieces, and what is none; over a real socket.
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AnswerReader, answerTo, isPlain, type Question } from './answer.ts';

const BYTES_MAX = 1_000;
const OP_ID = 'op-0123456789ab';
const GET: Question = { method: 'GET', path: '/v1/x?a=%20', headers: { Authorization: 'Bearer key' }, body: null };

function answer(body: string, { status = '200 OK', more = '', length = String(Buffer.byteLength(body)) } = {}): Buffer {
  return Buffer.from(`HTTP/1.1 ${status}\r\nHutch-Op-Id: ${OP_ID}\r\n${more}Content-Length: ${length}\r\n\r\n${body}`);
}

/** A server that reads a whole question before it says this, in these pieces, and then ends. */
async function server(say: (socket: Socket, question: string) => void): Promise<AsyncDisposable & { readonly path: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-answer-'));
  const path = join(dir, 's');
  const sockets = new Set<Socket>();
  const listening = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    let text = '';
    socket.on('data', (bytes: Buffer) => {
      const isFirst = text === '';
      text += bytes.toString();
      if (isFirst) setImmediate(() => say(socket, text));
    });
  });
  await new Promise<void>((resolve) => {
    listening.listen(path, resolve);
  });
  return {
    path,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => {
        listening.close(resolve);
      });
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function asked(question: Question, say: (socket: Socket, text: string) => void): Promise<unknown> {
  await using other = await server(say);
  return await answerTo(question, { type: 'unix', path: other.path }, BYTES_MAX);
}

test('an answer comes out whole, however it is cut', () => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.integer({ min: 1, max: 40 }), (value, size) => {
      const text = JSON.stringify(value);
      const bytes = answer(text);
      const ids: string[] = [];
      const reader = new AnswerReader(1_000_000, (id) => ids.push(id));
      const one = Buffer.alloc(size); // as a socket reads: into the same memory
      let given: ReturnType<AnswerReader['push']> = null;
      for (let at = 0; at < bytes.byteLength; at += size) {
        expect(given).toBeNull();
        given = reader.push(one.subarray(0, bytes.copy(one, 0, at, at + size)));
      }
      expect(given).toEqual({ status: 200, opId: OP_ID, text });
      expect(ids).toEqual([OP_ID]);
    }),
    { numRuns: 200 },
  );
});

test('any bytes are an answer, a part of one, or refused', () => {
  const near = fc.array(
    fc.constantFrom(
      'HTTP/1.1 200 OK',
      '\r\n',
      '\r\n\r\n',
      'Content-Length: 2',
      'Content-Length: -1',
      ': ',
      '{}',
      'Transfer-Encoding: chunked',
      '\0',
    ),
    { maxLength: 12 },
  );
  fc.assert(
    fc.property(
      fc.oneof(
        near.map((words) => Buffer.from(words.join(''))),
        fc.uint8Array({ maxLength: 400 }),
      ),
      (bytes) => {
        try {
          expect(new AnswerReader(BYTES_MAX).push(bytes)).toSatisfy(
            (given) => given === null || typeof (given as { text: string }).text === 'string',
          );
        } catch (error) {
          expect((error as { code?: string }).code).toMatch(/^(unavailable|internal)$/);
        }
      },
    ),
    { numRuns: 500 },
  );
});

test('the question travels whole, on a connection that ends with its answer', async () => {
  const body = Buffer.from([0, 1, 2, 250]);
  let said = '';
  const put: Question = { ...GET, method: 'PUT', headers: { ...GET.headers, 'Content-Length': '4' }, body };
  const given = await asked(put, (socket, text) => {
    said = text;
    socket.write(answer('{"ok":true}'));
  });
  expect(given).toEqual({ ok: true });
  expect(said).toBe(
    `PUT /v1/x?a=%20 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer key\r\nContent-Length: 4\r\n\r\n${body.toString()}`,
  );
});

test('what the daemon refuses is its error; what is no answer of its is none', async () => {
  const refused = JSON.stringify({ code: 'not_found', message: 'there is no x', hint: null, opId: OP_ID });
  const cases: readonly (readonly [string | Buffer, object])[] = [
    [answer(refused, { status: '404 Not Found' }), { code: 'not_found', message: 'there is no x', opId: OP_ID }],
    [answer('no JSON', { status: '502 Bad Gateway' }), { code: 'unavailable', message: expect.stringContaining('502') }],
    [answer('no JSON'), { code: 'unavailable', message: expect.stringContaining('no JSON') }],
    [answer('{}', { length: '1' }), { code: 'unavailable' }],
    [answer('{}', { length: '2, 2' }), { code: 'unavailable' }],
    [answer('{}', { more: 'Content-Length: 2\r\n' }), { code: 'unavailable' }],
    [answer('{}', { more: 'Transfer-Encoding: chunked\r\n' }), { code: 'unavailable' }],
    [answer('{}', { more: ' folded\r\n' }), { code: 'unavailable' }],
    [answer('{}', { length: String(BYTES_MAX + 1) }), { code: 'internal', message: expect.stringContaining(String(BYTES_MAX)) }],
    ['HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n', { code: 'unavailable', message: expect.stringContaining('400') }],
    [`HTTP/1.1 200 OK\r\nX: ${'x'.repeat(20_000)}`, { code: 'unavailable' }],
    ['SSH-2.0-OpenSSH_9.2\r\n\r\n', { code: 'unavailable' }],
  ];
  for (const [bytes, error] of cases)
    await expect(
      asked(GET, (socket) => socket.write(bytes)),
      bytes.toString().slice(0, 80),
    ).rejects.toMatchObject(error);
});

test('a daemon that is not there was not asked; one that is lost may have been', async () => {
  const nowhere = join(tmpdir(), 'hutch-answer-nowhere', 's');
  await expect(answerTo(GET, { type: 'unix', path: nowhere }, BYTES_MAX)).rejects.toMatchObject({ code: 'unavailable', sent: false });
  await expect(asked(GET, (socket) => socket.end())).rejects.toMatchObject({ code: 'unavailable', sent: true, opId: null });
  await expect(asked(GET, (socket) => socket.end(answer('{"a":1}').subarray(0, -2)))).rejects.toMatchObject({
    ...{ code: 'unavailable', sent: true, opId: OP_ID },
    message: expect.stringContaining('before its answer was whole'),
  });
});

test('who gives up hears no answer; a signal that counts until it is sent does not count then', async () => {
  const [early, late, unsent] = [new AbortController(), new AbortController(), new AbortController()];
  early.abort();
  await expect(asked({ ...GET, signal: early.signal }, () => {})).rejects.toMatchObject({ code: 'cancelled' });
  await expect(asked({ ...GET, unsentSignal: early.signal }, () => {})).rejects.toMatchObject({ code: 'cancelled' });
  await expect(asked({ ...GET, signal: late.signal }, () => late.abort())).rejects.toMatchObject({ code: 'cancelled' });
  const given = await asked({ ...GET, unsentSignal: unsent.signal }, (socket) => {
    unsent.abort();
    socket.write(answer('1'));
  });
  expect(given).toBe(1);
});

test('what could end a line is left to a client that knows what to do with it', () => {
  expect(isPlain(GET)).toBe(true);
  for (const text of ['a\r\nb: c', 'ü', '', ' a', 'a\0'])
    expect(isPlain({ ...GET, headers: { a: text } }), JSON.stringify(text)).toBe(false);
  for (const path of ['/a b', '/a\n', 'x', '/ü']) expect(isPlain({ ...GET, path }), JSON.stringify(path)).toBe(false);
});
