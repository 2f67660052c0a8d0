// What the SDK does with a file that a daemon says it lends, when it is not what was said: it asks for the bytes.
import { closeSync, openSync } from 'node:fs';
import { appendFile, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import { eventually } from '../support/eventually.ts';

const MIB = 2 ** 20;
const content = Buffer.alloc(3 * MIB + 17, 'what is in it ');
const sandbox = { id: 'sbx00000000000000000', name: 'box', state: 'running' };
let dir: string;
let server: Server | undefined;
let hutch: Hutch | undefined;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-lent-'));
});
afterEach(async () => {
  hutch?.[Symbol.dispose]();
  server?.closeAllConnections();
  server?.close();
  await rm(dir, { recursive: true, force: true });
});

async function files(listener: RequestListener) {
  const ours = createServer();
  server = ours;
  for (const event of ['request', 'checkContinue'] as const) {
    ours.on(event, (request, response) => {
      if (request.url?.includes('/files') === true) return listener(request, response);
      response.setHeader('Content-Type', 'application/json').end(JSON.stringify(sandbox));
    });
  }
  await new Promise<void>((listening) => ours.listen(join(dir, 'sock'), listening));
  hutch = Hutch.connect({ url: `unix:${join(dir, 'sock')}`, apiKey: 'hk_test' });
  return (await hutch.sandbox('box')).files;
}

test('a file that is lent is read where it lies, in part or whole; another one in its place is not', async () => {
  await writeFile(join(dir, 'file'), content);
  const fd = openSync(join(dir, 'file'), 'r');
  const { dev, ino } = await stat(join(dir, 'file'));
  let asked: (string | undefined)[] = [];
  let device = dev;
  const lent = await files((request, response) => {
    asked.push(request.headers['hutch-lend'] as string | undefined);
    if (request.headers['hutch-lend'] === undefined) return void response.end('as bytes');
    response.setHeader('Hutch-Lent', `/proc/${process.pid}/fd/${fd} ${device} ${ino}`).end();
  });
  expect((await lent.read('/file')).equals(content)).toBe(true);
  expect((await lent.read('/file', { offset: 2 * MIB, length: MIB + 5 })).equals(content.subarray(2 * MIB, 3 * MIB + 5))).toBe(true);
  // What is written behind its end while it is read comes in its place, once.
  const grown: Buffer[] = [];
  for await (const piece of await lent.readStream('/file')) {
    grown.push(Buffer.from(piece));
    if (grown.length <= 5) await appendFile(join(dir, 'file'), content.subarray(0, 100_003));
  }
  expect(Buffer.concat(grown).equals(await readFile(join(dir, 'file')))).toBe(true);
  expect(asked).toEqual(['1', '1', '1']);
  asked = [];
  device += 1;
  expect(await lent.readText('/file')).toBe('as bytes');
  closeSync(fd);
  device = dev;
  expect(await lent.readText('/file')).toBe('as bytes');
  expect(asked).toEqual(['1', undefined, '1', undefined]);
});

test('what is written goes into the file that is lent, else to the daemon, also to one that knows nothing of it', async () => {
  const fd = openSync(join(dir, 'file'), 'w');
  const { dev, ino } = await stat(join(dir, 'file'));
  let said: 'lent' | 'another' | 'nothing' = 'lent';
  let sent = 0;
  const lent = await files((request, response) => {
    const inode = said === 'lent' ? ino : ino + 1;
    if (said !== 'nothing') response.writeEarlyHints({ link: `</proc/${process.pid}/fd/${fd}>; rel=lent; device=${dev}; inode=${inode}` });
    response.writeContinue();
    sent = 0;
    request.on('data', (chunk: Buffer) => {
      sent += chunk.byteLength;
    });
    request.on('end', () => response.setHeader('Content-Type', 'application/json').end('{}'));
  });
  async function* pieces() {
    for (let at = 0; at < content.byteLength; at += 100_000) yield content.subarray(at, at + 100_000);
  }
  await lent.write('/file', pieces());
  expect(sent).toBe(0);
  expect((await readFile(join(dir, 'file'))).equals(content)).toBe(true);
  for (said of ['another', 'nothing'] as const) {
    await lent.write('/file', pieces());
    expect(sent).toBe(content.byteLength);
    await lent.write('/file', content);
    expect(sent).toBe(content.byteLength);
  }
  await lent.write('/file', 'small');
  expect(sent).toBe(5);
  said = 'lent';
  await expect(lent.write('/file', failing())).rejects.toThrow('the source is gone');
  closeSync(fd);
});

async function* failing() {
  yield content;
  throw new Error('the source is gone');
}

test('a refusal before any content is told, and leaves no connection open', async (here) => {
  if (process.getuid?.() !== 0) return here.skip('only root is lent files');
  const lent = await files((request, response) => {
    if (request.headers['expect'] === undefined)
      return void request.resume().on('end', () => response.setHeader('Content-Type', 'application/json').end('{}'));
    response.writeHead(404, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify({ code: 'not_found', message: 'there is no such directory' }));
  });
  for (let times = 0; times < 3; times += 1)
    await expect(lent.write('/none/file', content)).rejects.toMatchObject({ code: 'not_found', message: 'there is no such directory' });
  await lent.write('/file', 'small');
  const open = () => new Promise<number>((resolve) => server?.getConnections((_, count) => resolve(count)));
  await eventually('only the one that is kept is open', async () => (await open()) <= 1);
});
