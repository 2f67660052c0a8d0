// Our own client of HTTP over a unix socket: against Node's server, and against servers that say anything.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import { createServer as listenBare, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { bodyBytes, type Exchange, HttpClient, jsonBody } from './http.ts';
import { type AnswerHeaders, HttpAnswer, HttpAnswerReader } from './http-answer.ts';

const dir = mkdtempSync(join(tmpdir(), 'hutch-plain-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
let count = 0;
function nextPath(): string {
  count += 1;
  return join(dir, `${count}.sock`);
}
const GET = { method: 'GET', path: '/', headers: {} } as const;

async function withServer(listener: RequestListener, use: (client: HttpClient, connections: () => number) => Promise<void>): Promise<void> {
  const server = createServer(listener);
  let connections = 0;
  server.on('connection', () => (connections += 1));
  const path = nextPath();
  await once(server.listen(path), 'listening');
  using client = new HttpClient({ type: 'unix', path });
  try {
    await use(client, () => connections);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

/** A server that says that, whatever it is asked, and hangs up. */
async function saying(text: string, exchange: Exchange = GET): Promise<string> {
  const server = listenBare((socket: Socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.end(text));
  });
  const path = nextPath();
  await once(server.listen(path), 'listening');
  using client = new HttpClient({ type: 'unix', path });
  try {
    return await all(client, exchange);
  } finally {
    server.close();
  }
}

async function all(client: HttpClient, exchange: Exchange): Promise<string> {
  const pieces: Uint8Array[] = [];
  for await (const piece of bodyBytes(await client.send(exchange), exchange.signal)) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

test('requests of every kind arrive at Node’s server, one after the other on one connection', async () => {
  const echo: RequestListener = async (request, response) => {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const { method, url, headers } = request;
    response.end(JSON.stringify({ method, url, own: headers['own'], body: Buffer.concat(pieces).toString() }));
  };
  await withServer(echo, async (client, connections) => {
    const large = Array.from({ length: 60_000 }, (_, at) => at.toString(36)).join('-'); // no two places alike
    for (const body of [
      null,
      'naïve',
      Buffer.from('bytes'),
      (async function* () {
        yield Buffer.from('a');
        yield Buffer.alloc(0);
        yield Buffer.from(large);
      })(),
    ]) {
      const answer = await client.send({ method: 'POST', path: '/v1/x?a=%20', headers: { own: 'é' }, body });
      const whole = body === null ? '' : typeof body === 'string' ? body : body instanceof Uint8Array ? 'bytes' : `a${large}`;
      expect(await jsonBody(answer)).toEqual({ method: 'POST', url: '/v1/x?a=%20', own: 'é', body: whole });
    }
    for (let at = 0; at < 20; at += 1) await all(client, GET);
    expect(connections()).toBe(1);
    await Promise.all([1, 2, 3].map(() => all(client, GET)));
    expect(connections()).toBe(3);
  });
});

test('what would be another header, or another request, is refused before anything is sent', async () => {
  await withServer(
    (_, response) => response.end(),
    async (client, connections) => {
      for (const bad of [{ headers: { a: 'b\r\nc: d' } }, { headers: { 'a\n': 'b' } }, { headers: { a: 'ł' } }, { path: '/ HTTP/1.1\r\n' }])
        await expect(client.send({ ...GET, ...bad })).rejects.toThrow();
      expect(connections()).toBe(0);
    },
  );
});

/** As it came out of whatever pieces: status, headers, body, whether it was whole, and whether the connection may be used again. */
function read(bytes: Buffer, sizes: readonly number[]): unknown {
  const pieces: string[] = [];
  let head: { statusCode: number; headers: AnswerHeaders } | null = null;
  const flow = { pause: () => {}, resume: () => {}, leave: () => {} };
  const reader = new HttpAnswerReader(false, {
    onHead: (statusCode, headers) => {
      head = { statusCode, headers: { ...headers } };
      const answer = new HttpAnswer(statusCode, headers, flow);
      answer.push = (piece) => void pieces.push(Buffer.from(piece).toString('latin1'));
      return answer;
    },
    onEnd: () => {},
  });
  try {
    for (let at = 0, nth = 0; at < bytes.length; nth += 1) {
      const size = sizes[nth % sizes.length] ?? 1;
      reader.push(bytes.subarray(at, at + size));
      at += size;
    }
  } catch (error) {
    return (error as Error).message;
  }
  const { mayGoOn } = reader;
  return { head, body: pieces.join(''), mayGoOn, isWhole: reader.end() };
}

test('an answer is the same however it is cut; what is none is refused', () => {
  const answers = [
    'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\na: c\r\n\r\nabc',
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nt: u\r\n\r\n',
    'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end',
    'HTTP/1.1 204 No\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nabc',
  ].map((text) => Buffer.from(text, 'latin1'));
  const once = answers.map((bytes) => read(bytes, [bytes.length]));
  expect(once).toEqual([
    { head: { statusCode: 200, headers: { 'content-length': '3', a: 'b, c' } }, body: 'abc', mayGoOn: true, isWhole: true },
    { head: { statusCode: 200, headers: { 'transfer-encoding': 'chunked' } }, body: 'abc0123456789', mayGoOn: true, isWhole: true },
    { head: { statusCode: 200, headers: { connection: 'close' } }, body: 'to the end', mayGoOn: false, isWhole: true },
    { head: { statusCode: 204, headers: {} }, body: '', mayGoOn: true, isWhole: true },
    { head: { statusCode: 200, headers: { 'content-length': '3' } }, body: 'abc', mayGoOn: false, isWhole: true },
    { head: { statusCode: 200, headers: { 'content-length': '30' } }, body: 'abc', mayGoOn: false, isWhole: false },
  ]);
  fc.assert(
    fc.property(fc.nat(answers.length - 1), fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }), (at, sizes) => {
      expect(read(answers[at] as Buffer, sizes)).toEqual(once[at]);
    }),
  );
  fc.assert(
    fc.property(
      fc.nat(answers.length - 1),
      fc.nat(200),
      fc.nat(255),
      fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }),
      (at, where, byte, sizes) => {
        const changed = Buffer.from(answers[at] as Buffer);
        changed[where % changed.length] = byte;
        expect(read(changed, sizes)).toEqual(read(changed, [changed.length])); // an answer or a refusal, the same one
      },
    ),
  );
});

test('a server that lies or breaks off is told as a connection that was lost, and nothing hangs', async () => {
  const head = 'HTTP/1.1 200 OK\r\n';
  for (const text of [
    '',
    'SSH-2.0-x\r\n\r\n',
    `${head}Content-Length: 5\r\n\r\nabc`,
    `${head}Content-Length: -5\r\n\r\nabc`,
    `${head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n`,
    `${head}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n`,
    `${head}Transfer-Encoding: gzip\r\n\r\n`,
    `${head}${'x: y\r\n'.repeat(20_000)}`,
    'HTTP/1.1 101 Other\r\n\r\n',
  ])
    await expect(saying(text), text.slice(0, 60)).rejects.toMatchObject({ code: 'unavailable', sent: true });
});

test('who leaves an answer, or gives up, ends its connection; a signal has no listeners left of what is over', async () => {
  const closed: Promise<unknown>[] = [];
  const endless: RequestListener = (request, response) => {
    if (request.url === '/short') return void response.end('x');
    closed.push(once(request.socket, 'close'));
    response.write('first');
  };
  await withServer(endless, async (client) => {
    for await (const _ of await client.send(GET)) break;
    await closed[0];
    const controller = new AbortController();
    const { signal } = controller;
    for (let at = 0; at < 30; at += 1) await all(client, { ...GET, path: '/short', signal }); // Node warns of a leak from 11 on
    const answer = bodyBytes(await client.send({ ...GET, signal }), signal);
    expect(Buffer.from((await answer.next()).value ?? []).toString()).toBe('first');
    controller.abort();
    await expect(answer.next()).rejects.toMatchObject({ code: 'cancelled' });
    await closed.at(-1);
    await expect(client.send({ ...GET, signal })).rejects.toMatchObject({ code: 'cancelled' });
  });
});

test('a server may refuse before it has taken all, and nobody reads ahead more than a window', async () => {
  let written = 0;
  const listener: RequestListener = (request, response) => {
    if (request.method === 'PUT')
      return void response.writeHead(429, { Connection: 'close' }).end('{"code":"resource_exhausted","message":"no"}');
    const write = (): void => {
      while (written < 64 * 1024 * 1024) {
        written += 65_536;
        if (!response.write(Buffer.alloc(65_536))) return void response.once('drain', write);
      }
      response.end();
    };
    write();
  };
  await withServer(listener, async (client) => {
    let isLeft = false;
    const endless = async function* () {
      try {
        for (;;) {
          yield Buffer.alloc(65_536);
          await new Promise((turn) => setImmediate(turn));
        }
      } finally {
        isLeft = true;
      }
    };
    const refusal: unknown = await client.send({ ...GET, method: 'PUT', body: endless() }).catch((error: unknown) => error);
    expect(['resource_exhausted', 'unavailable']).toContain((refusal as { code: string }).code); // the pipe may break before the answer is read
    await expect.poll(() => isLeft).toBe(true);
    const answer = bodyBytes(await client.send(GET));
    let taken = (await answer.next()).value?.byteLength ?? 0;
    for (let before = -1; before !== written; await new Promise((later) => setTimeout(later, 100))) before = written;
    expect(written).toBeLessThan(4 * 1024 * 1024);
    for await (const piece of answer) taken += piece.byteLength;
    expect(taken).toBe(64 * 1024 * 1024);
  });
});
