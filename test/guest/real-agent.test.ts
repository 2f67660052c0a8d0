// The host's side against the real agent. Its own tests are in rust/agent; here is what only the two
// together can show.
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type Agent, connectAgent } from '../../src/guest/agent.ts';
import type { ProcessSpec, ProcessStream } from '../../src/guest/agent-process.ts';
import { exitCode, startFailureCode } from '../../src/guest/exit-code.ts';
import { AgentLink } from '../../src/guest/link.ts';
import type { Exit } from '../../src/guest/messages.ts';
import type { Operation } from '../../src/host/operation.ts';
import { Port } from './port.ts';
import { type RealAgent, realAgent } from './real-agent.ts';
import { rejection, seeded, testOperation, text } from './support.ts';

const MIB = 1024 * 1024;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
const op = testOperation();

async function connected(): Promise<{ real: RealAgent; agent: Agent } & AsyncDisposable> {
  const real = await realAgent();
  const agent = await connectAgent(op, await real.dial());
  return {
    real,
    agent,
    async [Symbol.asyncDispose]() {
      agent.close();
      await real[Symbol.asyncDispose]();
    },
  };
}

function spec(id: string, ...argv: string[]): ProcessSpec {
  return { id, argv, stdin: 'null', whenUnread: 'block' };
}

async function collect(op: Operation, process: Pick<ProcessStream, 'items'>): Promise<{ stdout: Buffer; stderr: Buffer; exit: Exit }> {
  const parts: Record<'stdout' | 'stderr', Uint8Array[]> = { stdout: [], stderr: [] };
  for await (const item of process.items(op)) {
    if (item.type === 'output') parts[item.channel].push(item.bytes);
    if (item.type === 'exit') return { stdout: Buffer.concat(parts.stdout), stderr: Buffer.concat(parts.stderr), exit: item.exit };
  }
  throw new Error('no exit');
}

async function gather(source: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const bytes of source) parts.push(bytes);
  return Buffer.concat(parts);
}

async function* chunks(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

test('hello and metrics are what was agreed', async () => {
  await using it = await connected();
  expect(await it.agent.hello(op)).toMatchObject({ isInit: false, configured: false, generation: null });
  const metrics = await it.agent.metrics(op);
  expect(metrics.memory.totalBytes).toBeGreaterThan(metrics.memory.usedBytes);
});

test('a program gives its output apart, and its code', async () => {
  await using it = await connected();
  const { process } = await it.agent.process.start(op, spec('a', 'sh', '-c', 'echo out; echo err >&2; exit 3'));
  const { stdout, stderr, exit } = await collect(op, process);
  expect([text(stdout), text(stderr), exitCode(exit)]).toEqual(['out\n', 'err\n', 3]);
});

test('a program that a signal ends has 128 and the signal as its code', async () => {
  await using it = await connected();
  const { process } = await it.agent.process.start(op, spec('a', 'sleep', '1000'));
  await it.agent.process.signal(op, 'a', 'TERM', 'group');
  expect(exitCode((await collect(op, process)).exit)).toBe(143);
});

test('a program that is not there is 127, one that may not run 126', async () => {
  await using it = await connected();
  await writeFile(join(it.real.dir, 'plain'), 'x', { mode: 0o644 });
  expect(startFailureCode(await rejection(it.agent.process.start(op, spec('a', '/no/such/program'))))).toBe(127);
  expect(startFailureCode(await rejection(it.agent.process.start(op, spec('b', join(it.real.dir, 'plain')))))).toBe(126);
});

test('input of any size reaches the program, and its end closes it', async () => {
  await using it = await connected();
  const input = randomBytes(20 * MIB);
  const { process } = await it.agent.process.start(op, { ...spec('a', 'sha256sum'), stdin: 'pipe' });
  const collecting = collect(op, process);
  for await (const chunk of chunks(input, 300_000)) await process.write(op, chunk);
  process.endInput();
  expect(text((await collecting).stdout).split(' ')[0]).toBe(createHash('sha256').update(input).digest('hex'));
});

test('a started process whose start is repeated runs once', async () => {
  await using it = await connected();
  const marker = join(it.real.dir, 'ran');
  const command = spec('same', 'sh', '-c', `echo x >> ${marker}; echo ready; sleep 1000`);
  const first = await it.agent.process.start(op, command);
  const second = await it.agent.process.start(op, command);
  expect([first.started.existing, second.started.existing]).toEqual([false, true]);
  expect(first.process.pid).toBe(second.process.pid);
  expect(await second.process.next(op)).toMatchObject({ type: 'output', offset: 0 });
  await it.agent.process.signal(op, 'same', 'KILL', 'group');
  await collect(op, second.process);
  expect(await readFile(marker, 'utf8')).toBe('x\n');
});

test('a program that is quicker than its start, or than its reader, loses nothing', async () => {
  await using it = await connected();
  const bytes = 900_000; // more than the agent keeps
  const run = async (id: string) => {
    const { process, started } = await it.agent.process.start(op, spec(id, 'head', '-c', String(bytes), '/dev/zero'));
    expect(started.stdoutOffset, id).toBe(0);
    expect((await collect(op, process)).stdout.byteLength, id).toBe(bytes);
  };
  for (let round = 0; round < 8; round += 1) await Promise.all([0, 1, 2, 3].map((which) => run(`p${round}.${which}`)));
});

test('a reader that is stuck stops its program only', async () => {
  await using it = await connected();
  const { process: stuck } = await it.agent.process.start(op, spec('stuck', 'sh', '-c', 'cat /dev/zero'));
  using _stuck = stuck;
  await stuck.next(op);
  for (let count = 0; count < 5; count += 1) {
    const { process } = await it.agent.process.start(op, spec(`p${count}`, 'echo', 'hi'));
    expect(text((await collect(op, process)).stdout)).toBe('hi\n');
  }
  await it.agent.process.signal(op, 'stuck', 'KILL', 'group');
});

test('files are written whole, read in part, listed and removed, whatever their names', async () => {
  await using it = await connected();
  const { file } = it.agent;
  const path = Buffer.concat([Buffer.from(`${it.real.dir}/na\nme"`), Buffer.from([0xff])]);
  const content = randomBytes(3 * MIB);
  expect(await file.write(op, { path, mode: 0o640 }, chunks(content, 100_000))).toMatchObject({ size: content.byteLength, type: 'file' });
  const read = await file.read(op, { path, offset: 1_000, length: 2 * MIB });
  expect(read.entry.mode & 0o777).toBe(0o640);
  expect((await gather(read.bytes)).equals(content.subarray(1_000, 1_000 + 2 * MIB))).toBe(true);
  const entries = (await Array.fromAsync(file.list(op, { path: it.real.dir, depth: 1 }))).flat();
  expect(entries.map((entry) => (typeof entry.path === 'string' ? entry.path : Buffer.from(entry.path).toString('latin1')))).toContain(
    path.toString('latin1'),
  );
  await file.remove(op, { path, recursive: false });
  expect(await rejection(file.stat(op, { path, follow: true }))).toMatchObject({ code: 'not_found' });
});

test('a tree goes out as an archive and comes back the same', async () => {
  await using it = await connected();
  const from = join(it.real.dir, 'from');
  await mkdir(join(from, 'deep/er'), { recursive: true });
  await writeFile(join(from, 'deep/er/file'), randomBytes(300_000), { mode: 0o751 });
  const archive = await gather(await it.agent.tar.pack(op, { path: from }));
  const to = join(it.real.dir, 'to');
  const done = await it.agent.tar.unpack(op, { path: to, mkdirs: true }, chunks(archive, 70_000));
  expect(done.entries).toBeGreaterThan(0);
  expect(await readFile(join(to, 'deep/er/file'))).toEqual(await readFile(join(from, 'deep/er/file')));
  expect((await it.agent.file.stat(op, { path: join(to, 'deep/er/file'), follow: false })).mode & 0o777).toBe(0o751);
});

test('a connection into the sandbox carries bytes both ways and half-closes', async () => {
  await using it = await connected();
  const path = join(it.real.dir, 'echo.sock');
  const server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const sent = randomBytes(5 * MIB);
  const socket = await it.agent.connect(op, { unix: path });
  const receiving = gather(socket.bytes(op));
  for await (const chunk of chunks(sent, 200_000)) await socket.write(op, chunk);
  socket.end();
  expect((await receiving).equals(sent)).toBe(true);
  server.close();
  expect(await rejection(it.agent.connect(op, { tcp: { port: 1 } }))).toMatchObject({ code: 'unavailable' });
});

test('an agent that is killed is unavailable at once', async () => {
  await using it = await connected();
  const { process } = await it.agent.process.start(op, spec('a', 'sleep', '1000'));
  const waiting = rejection(collect(op, process));
  it.real.child.kill('SIGKILL');
  globalThis.process.kill(process.pid, 'SIGKILL'); // nobody else is left to do it
  expect(await waiting).toMatchObject({ code: 'unavailable' });
});

test('an agent that is stopped is unavailable within the keep-alive', async () => {
  await using real = await realAgent();
  using agent = await connectAgent(op, await real.dial(), { silenceMs: 50, pongMs: 50 });
  await agent.hello(op);
  real.child.kill('SIGSTOP');
  expect(await rejection(agent.metrics(op))).toMatchObject({ code: 'unavailable' });
});

test('50 MB in both directions survive cuts at random moments, with stale bytes in the pipe both ways', async () => {
  await using real = await realAgent();
  const random = seeded(seed);
  using port = new Port(await real.dial(), () => 1 + Math.floor(random() ** 2 * 8 * MIB));
  using link = new AgentLink(op, { dial: () => Promise.resolve(port.dial()) });
  const bytes = 50_000_000;
  using process = await link.start(op, { ...spec('both', 'cat'), stdin: 'pipe' });
  const sent = createHash('sha256');
  const writing = (async () => {
    for (let left = bytes; left > 0; ) {
      const chunk = randomBytes(Math.min(left, 1 + Math.floor(random() * 200_000)));
      sent.update(chunk);
      left -= chunk.byteLength;
      await process.write(op, chunk);
    }
    process.endInput();
  })();
  const received = createHash('sha256');
  let count = 0;
  for await (const item of process.items(op)) {
    expect(item.type, `seed ${seed}, after ${port.cuts} cuts`).not.toBe('dropped');
    if (item.type === 'output') {
      expect(item.offset).toBe(count);
      count += item.bytes.byteLength;
      received.update(item.bytes);
    }
    if (item.type === 'exit') expect(item.exit).toMatchObject({ code: 0, stdoutBytes: bytes });
  }
  await writing;
  expect(count).toBe(bytes);
  expect(received.digest('hex')).toBe(sent.digest('hex'));
  expect(port.cuts).toBeGreaterThan(5);
});

test('a daemon that is started anew goes on with a process where the last one was: nothing is missed', async () => {
  await using real = await realAgent();
  const bytes = 3_000_000; // far more than is kept for nobody
  const dial = () => real.dial();
  const received = createHash('sha256');
  let offset = 0;
  {
    using first = new AgentLink(op, { dial });
    using process = await first.start(op, spec('main', 'sh', '-c', `yes 0123456789abcde | head -c ${bytes}`));
    while (offset < 300_000) {
      const item = await process.next(op);
      if (item.type !== 'output') continue;
      received.update(item.bytes);
      offset += item.bytes.byteLength;
    }
    first.close(); // as if it were killed: the streams are not given up one by one
  }
  using second = new AgentLink(op, { dial });
  using process = await second.attach(op, { id: 'main', stdoutOffset: offset, stderrOffset: 0, input: false });
  for await (const item of process.items(op)) {
    expect(item.type).not.toBe('dropped');
    if (item.type !== 'output') continue;
    expect(item.offset).toBe(offset);
    received.update(item.bytes);
    offset += item.bytes.byteLength;
  }
  expect(offset).toBe(bytes);
  expect(received.digest('hex')).toBe(
    createHash('sha256')
      .update('0123456789abcde\n'.repeat(bytes / 16))
      .digest('hex'),
  );
});
