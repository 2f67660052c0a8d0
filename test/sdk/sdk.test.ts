// The SDK against a real daemon: streams, lost connections, files, ports, cancellation.
import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import { breakingProxy } from '../support/breaking-proxy.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
let hutch: Hutch;
let sandbox: Sandbox;

beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
  hutch = connect();
  sandbox = await hutch.create({ name: 'box' });
});
afterAll(async () => {
  await sandbox[Symbol.asyncDispose]();
  hutch[Symbol.dispose]();
  await daemon[Symbol.asyncDispose]();
});

function connect(): Hutch {
  return Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key, retryForMs: 20_000 });
}

async function textOf(stream: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

test('exec gives both streams and the exit; its input can be given', async () => {
  const result = await sandbox.exec(['sh', '-c', 'cat; echo err >&2; exit 4'], { input: 'in' });
  expect(result).toMatchObject({ stdout: 'in', stderr: 'err\n', exitCode: 4, reason: 'exited' });
});

test('exec tells its output as it comes, and each piece waits for the one before', async () => {
  const heard: string[] = [];
  const { stdout } = await sandbox.exec(['sh', '-c', 'echo one; sleep 0.2; echo err >&2; sleep 0.2; echo two'], {
    async onStdout(chunk) {
      await new Promise((done) => setTimeout(done, 50));
      heard.push(Buffer.from(chunk).toString('utf8'));
    },
    onStderr: (chunk) => void heard.push(`2:${Buffer.from(chunk).toString('utf8')}`),
  });
  expect([heard, stdout]).toEqual([['one\n', '2:err\n', 'two\n'], 'one\ntwo\n']);
});

test('a command that cannot be started has an exit, and the reason', async () => {
  expect(await sandbox.exec(['no-such-program'])).toMatchObject({ exitCode: 127, reason: 'not-started', error: { code: 'not_found' } });
});

test('more output than allowed is an error, not a cut', async () => {
  await expect(sandbox.exec(['sh', '-c', 'yes | head -c 100000'], { outputBytesMax: 1_000 })).rejects.toMatchObject({
    code: 'resource_exhausted',
  });
});

test('a process goes on over the death of the daemon, output and input alike', async () => {
  const process = await sandbox.spawn(['sha256sum'], { stdin: 'open' });
  const output = textOf(process.stdout);
  const hash = createHash('sha256');
  for (let at = 0; at < 64; at += 1) {
    const chunk = randomBytes(256 * 1024);
    hash.update(chunk);
    if (!process.stdin.write(chunk)) await once(process.stdin, 'drain');
    if (at === 20 || at === 40) {
      await daemon.kill9();
      await daemon.startAgain();
    }
  }
  process.stdin.end();
  expect((await process.exit).exitCode).toBe(0);
  expect(await output).toBe(`${hash.digest('hex')}  -\n`);
});

test('output of many megabytes over lost connections is whole and in order', async () => {
  const process = await sandbox.spawn(['seq', '0', '1999999']);
  let killed = 0;
  let bytes = 0;
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdout) {
    chunks.push(chunk as Buffer);
    bytes += (chunk as Buffer).byteLength;
    if (killed < 2 && bytes > 4_000_000 * (killed + 1)) {
      killed += 1;
      await daemon.kill9();
      await daemon.startAgain();
    }
  }
  const lines = Buffer.concat(chunks).toString('utf8').split('\n');
  expect(killed).toBe(2);
  expect(lines.length).toBe(2_000_001);
  expect(lines.slice(0, -1).every((line, at) => line === String(at))).toBe(true);
  expect((await process.exit).exitCode).toBe(0);
});

test('whoever loses its connection in the middle of much output misses none of it, also where as much is sent', async () => {
  const { host = '', port = 0 } = daemon.ready.address ?? {};
  await using proxy = await breakingProxy(`${host}:${port}`);
  using far = Hutch.connect({ url: `http://${proxy.name}`, apiKey: daemon.key, retryForMs: 20_000 });
  const box = await far.sandbox('box');
  const heard = async (stream: AsyncIterable<Uint8Array>): Promise<string> => {
    const hash = createHash('sha256');
    let chunks = 0;
    for await (const chunk of stream) {
      hash.update(chunk);
      chunks += 1;
      if (chunks % 50 === 0) await new Promise((done) => setTimeout(done, 20)); // a reader that is slow at times
    }
    return hash.digest('hex');
  };
  const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
  for (const megabytes of [2, 5, 7, 9]) proxy.breaks.push({ way: 'down', afterBytes: megabytes * 1_000_000 });
  const counts = await box.spawn(['seq', '1', '4000000']);
  expect(await heard(counts.stdout)).toBe(sha256(execFileSync('seq', ['1', '4000000'], { maxBuffer: 64 << 20 })));
  expect([(await counts.exit).exitCode, proxy.broken()]).toEqual([0, 4]);

  for (const way of ['down', 'up', 'down', 'up'] as const) proxy.breaks.push({ way, afterBytes: 3_000_000 });
  const echo = await box.spawn(['cat'], { stdin: 'open' });
  const content = randomBytes(24_000_000);
  const back = heard(echo.stdout);
  await pipeline(Readable.from([content]), echo.stdin);
  expect(await back).toBe(sha256(content));
  expect([(await echo.exit).exitCode, proxy.broken()]).toEqual([0, 8]);
});

test('a process that cannot be reached any more fails as unavailable, and has no exit', async () => {
  const other = Hutch.connect({ url: `unix:${daemon.ready.socketPath}`, apiKey: daemon.key, retryForMs: 100 });
  const handle = await other.sandbox('box');
  const process = await handle.spawn(['sleep', '600'], { reconnectForMs: 100 });
  await daemon.kill9();
  await expect(process.exit).rejects.toMatchObject({ code: 'unavailable' });
  await daemon.startAgain();
  await sandbox.signal(process.execId, 'KILL');
});

test('a retried start runs once', async () => {
  const execId = 'only-once';
  for (let time = 0; time < 3; time += 1) {
    await using process = await sandbox.spawn(['sh', '-c', 'echo ran >> /root/ran; sleep 600'], { execId });
    expect(process.info.existing).toBe(time > 0);
  }
  await eventually('the file', async () => (await sandbox.exec(['cat', '/root/ran'])).stdout !== '');
  expect((await sandbox.exec(['cat', '/root/ran'])).stdout).toBe('ran\n');
  await sandbox.signal(execId, 'KILL');
});

test('a call that is cancelled says so, and a signal that has a time says deadline', async () => {
  await expect(sandbox.wait({ signal: AbortSignal.timeout(50) })).rejects.toMatchObject({ code: 'deadline_exceeded' });
  const controller = new AbortController();
  const waiting = sandbox.wait({ signal: controller.signal });
  controller.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'cancelled' });
  await expect(sandbox.spawn(['true'], { signal: controller.signal })).rejects.toMatchObject({ code: 'cancelled' });
});

test('detaching leaves a process running', async () => {
  const process = await sandbox.spawn(['sleep', '601']);
  process.detach();
  await expect(process.exit).rejects.toMatchObject({ code: 'cancelled' });
  expect((await sandbox.execs()).find(({ execId }) => execId === process.execId)?.running).toBe(true);
  await sandbox.signal(process.execId, 'KILL');
});

test('files are written, read in part, listed, changed and removed', async () => {
  const { files } = sandbox;
  const bytes = randomBytes(700_000);
  expect((await files.write('/root/d/data', bytes, { mkdirs: true, mode: 0o640 })).mode & 0o777).toBe(0o640);
  expect((await files.read('/root/d/data')).equals(bytes)).toBe(true);
  expect((await files.read('/root/d/data', { offset: 5, length: 10 })).equals(bytes.subarray(5, 15))).toBe(true);
  await files.write('/root/d/streamed', pieces(bytes));
  expect((await files.read('/root/d/streamed')).equals(bytes)).toBe(true);
  await files.symlink('/root/d/link', 'data');
  await files.rename('/root/d/streamed', '/root/d/moved');
  await files.truncate('/root/d/moved', 3);
  await files.chmod('/root/d/moved', 0o600);
  const names: string[] = [];
  for await (const { name } of files.list('/root/d')) names.push(name);
  expect(names.sort()).toEqual(['data', 'link', 'moved']);
  expect(await files.stat('/root/d/moved')).toMatchObject({ size: 3, type: 'file' });
  await files.remove('/root/d', { recursive: true });
  await expect(files.stat('/root/d')).rejects.toMatchObject({ code: 'not_found' });
});

async function* pieces(bytes: Buffer): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 33_333) yield bytes.subarray(at, at + 33_333);
}

test('a port inside is a byte stream, both ways, to its half-closed end', async () => {
  await using _ = await sandbox.spawn(['busybox', 'nc', '-ll', '-p', '7001', '-e', 'cat']);
  await eventually('the server', async () => (await sandbox.ports()).some(({ port }) => port === 7001));
  const stream = await sandbox.connect(7001);
  const text = 'there and back '.repeat(40_000);
  stream.end(text);
  expect(await textOf(stream as AsyncIterable<Uint8Array>)).toBe(text);
  await expect(sandbox.connect(7002)).rejects.toMatchObject({ code: expect.stringMatching(/unavailable|not_found|failed_precondition/) });
});

test('logs and events are streams', async () => {
  await using job = await hutch.create({ main: { argv: ['sh', '-c', 'echo out; echo err >&2'] } });
  await job.wait();
  const said: string[] = [];
  for await (const { channel, bytes } of job.logs()) said.push(`${channel}: ${Buffer.from(bytes).toString()}`);
  expect(said.sort()).toEqual(['stderr: err\n', 'stdout: out\n']);
  const types: string[] = [];
  for await (const event of hutch.events({ sandbox: job.id })) types.push(event.type);
  expect(types[0]).toBe('sandbox.created');
});

test('the same idempotency key makes one sandbox', async () => {
  const options = { name: 'keyed', idempotencyKey: 'key-of-a-test', start: false };
  const [one, two] = [await hutch.create(options), await hutch.create(options)];
  expect(two.id).toBe(one.id);
  await one.delete();
});
