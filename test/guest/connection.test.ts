import { setImmediate as turn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { agentOn, connectAgent } from '../../src/guest/agent.ts';
import { type AgentConnection, connect } from '../../src/guest/connection.ts';
import { preambleOf } from '../../src/guest/preamble.ts';
import { CREDIT_START_BYTES, OUTPUT_CREDIT_START_BYTES, STREAMS_MAX } from '../../src/guest/protocol.ts';
import { EXIT, type FakeAgent, type FakeStream, fakeAgent, type Handler, HELLO } from './fake-agent.ts';
import { eventually, rejection, testOperation, text } from './support.ts';

const op = testOperation();

async function connected(handlers: Record<string, Handler> = {}, options = {}): Promise<{ agent: FakeAgent; connection: AgentConnection }> {
  const { agent, duplex } = fakeAgent(handlers);
  return { agent, connection: await connect(op, duplex, options) };
}

function code(error: unknown): string {
  return error instanceof HutchError ? error.code : String(error);
}

// Greeting

test('the preamble is repeated until a late agent answers, after whatever lay in the pipe', async () => {
  const { agent, duplex } = fakeAgent({ hello: (stream) => stream.answer(HELLO) });
  agent.raw(Buffer.concat([Buffer.alloc(70_000, 0x48), preambleOf(Buffer.alloc(8, 3)), Buffer.from('HUTCH')]));
  agent.answersPreamble = false;
  const connecting = connectAgent(op, duplex);
  await eventually('a repeated preamble', () => agent.greetings > 1);
  agent.answersPreamble = true;
  using client = await connecting;
  expect((await client.hello(op)).pid).toBe(1);
  expect(agent.violations).toEqual([]);
});

test('answers to repeated preambles that come late are skipped', async () => {
  const { agent, duplex } = fakeAgent({ hello: (stream) => stream.answer(HELLO) });
  agent.answersPreamble = false;
  const connecting = connectAgent(op, duplex);
  await eventually('two repeated preambles', () => agent.greetings > 2);
  agent.answersPreamble = true;
  using client = await connecting;
  agent.raw(preambleOf(agent.nonce));
  agent.raw(preambleOf(agent.nonce));
  expect((await client.hello(op)).pid).toBe(1);
});

test('an agent that never answers is given up at the deadline, and its stream is destroyed', async () => {
  const { agent, duplex } = fakeAgent();
  agent.answersPreamble = false;
  expect(code(await rejection(connect(op, duplex, { greetingMs: 30 })))).toBe('deadline_exceeded');
  expect(duplex.destroyed).toBe(true);
});

test('a stream that ends before the answer is unavailable', async () => {
  const { agent, duplex } = fakeAgent();
  agent.answersPreamble = false;
  const connecting = connect(op, duplex);
  agent.duplex.end();
  expect(code(await rejection(connecting))).toBe('unavailable');
});

test('an agent of another protocol version is refused by name', async () => {
  const { agent, duplex } = fakeAgent();
  agent.answersPreamble = false;
  const connecting = connect(op, duplex);
  await eventually('the preamble', () => agent.greetings > 0);
  const answer = preambleOf(agent.nonce);
  answer[5] = 9;
  agent.raw(answer);
  const error = await rejection(connecting);
  expect(code(error)).toBe('failed_precondition');
  expect(String(error)).toContain('version 9');
});

test('cancelling while connecting ends it at once', async () => {
  const { agent, duplex } = fakeAgent();
  agent.answersPreamble = false;
  const aborting = new AbortController();
  const connecting = connect(testOperation(aborting.signal), duplex);
  aborting.abort();
  expect(code(await rejection(connecting))).toBe('cancelled');
});

// Calls

test('what the agent refuses arrives with its code, its sentence and the op id', async () => {
  const { connection } = await connected({ 'file.stat': (stream) => stream.refuse('not_found', '/nope: no\u001b[2J such file', 'ENOENT') });
  const error = await rejection(agentOn(connection).file.stat(op, { path: '/nope', follow: true }));
  expect(error).toMatchObject({ code: 'not_found', opId: op.id });
  expect(String(error)).toContain('/nope: no [2J such file');
  connection.close();
});

test('an unanswered call ends at its deadline, and its stream is cancelled', async () => {
  const { agent, connection } = await connected({ hello: () => {} });
  using limited = op.within(20, 'this test');
  expect(code(await rejection(connection.call(limited, 'hello', null)))).toBe('deadline_exceeded');
  await eventually('CANCEL', () => agent.streams.size === 0);
  expect(agent.violations).toEqual([]);
  expect(connection.lost.aborted).toBe(false);
});

test('an aborted operation ends every kind of wait', async () => {
  const aborting = new AbortController();
  const mine = testOperation(aborting.signal);
  const { agent, connection } = await connected({ opens: (stream) => stream.reply(), hangs: () => {} });
  agent.grantsInput = false;
  const { stream } = await connection.open(mine, 'opens', null);
  const waits = [
    stream.next(mine),
    stream.write(mine, Buffer.alloc(3 * CREDIT_START_BYTES)),
    connection.call(mine, 'hangs', null),
    connection.open(mine, 'hangs', null),
  ].map((wait) => rejection(wait));
  await turn();
  aborting.abort();
  expect((await Promise.all(waits)).map(code)).toEqual(['cancelled', 'cancelled', 'cancelled', 'cancelled']);
  connection.close();
});

test('a lost connection ends every kind of wait, and what is called after it', async () => {
  const { agent, connection } = await connected({ opens: (stream) => stream.reply(), hangs: () => {} });
  agent.grantsInput = false;
  const { stream } = await connection.open(op, 'opens', null);
  const waits = [
    stream.next(op),
    stream.write(op, Buffer.alloc(3 * CREDIT_START_BYTES)),
    connection.call(op, 'hangs', null),
    connection.open(op, 'hangs', null),
  ].map((wait) => rejection(wait));
  await turn();
  agent.duplex.end();
  expect((await Promise.all(waits)).map(code)).toEqual(['unavailable', 'unavailable', 'unavailable', 'unavailable']);
  expect(connection.lost.aborted).toBe(true);
  expect(code(await rejection(connection.call(op, 'hello', null)))).toBe('unavailable');
  expect(code(await rejection(stream.next(op)))).toBe('unavailable');
});

test('what was received before the loss can still be read', async () => {
  const { agent, connection } = await connected({
    opens: (stream) => {
      stream.reply();
      stream.data(0, Buffer.from('last words'));
    },
  });
  const { stream } = await connection.open(op, 'opens', null);
  await turn();
  await turn();
  agent.duplex.end();
  await eventually('the loss', () => connection.lost.aborted);
  expect(await stream.next(op)).toMatchObject({ kind: 'data' });
  expect(code(await rejection(stream.next(op)))).toBe('unavailable');
});

test('an agent that falls silent is lost, one that answers PING is not', async () => {
  const timing = { silenceMs: 20, pongMs: 20 };
  const silent = await connected({ hangs: () => {} }, timing);
  silent.agent.answersPing = false;
  expect(code(await rejection(silent.connection.call(op, 'hangs', null)))).toBe('unavailable');

  const waiting: FakeStream[] = [];
  const alive = await connected({ slow: (stream) => void waiting.push(stream) }, timing);
  const call = alive.connection.call(op, 'slow', null);
  let pings = 0;
  alive.agent.duplex.on('data', () => (pings += 1));
  await eventually('several PINGs', () => pings > 3);
  waiting[0]?.answer();
  await call;
  alive.connection.close();
});

test('an idle agent is not asked whether it is there, until somebody waits for it', async () => {
  const { agent, connection } = await connected(
    { watchEvents: (stream) => stream.reply(null), hangs: () => {} },
    { silenceMs: 20, pongMs: 20, standingSilenceMs: 60_000 },
  );
  await agentOn(connection).watchEvents(op);
  agent.answersPing = false;
  const before = agent.pings;
  for (let i = 0; i < 3; i += 1) {
    // As long as three agents take that are asked.
    const asked = await connected({ hangs: () => {} }, { silenceMs: 20, pongMs: 20 });
    asked.agent.answersPing = false;
    await rejection(asked.connection.call(op, 'hangs', null));
  }
  expect(agent.pings).toBe(before);
  expect(connection.lost.aborted).toBe(false);
  expect(code(await rejection(connection.call(op, 'hangs', null)))).toBe('unavailable');
  expect(agent.pings).toBe(before + 1);
});

test('an agent from which only events are awaited is asked too, but seldom', async () => {
  const { agent, connection } = await connected(
    { watchEvents: (stream) => stream.reply(null) },
    { silenceMs: 20, pongMs: 20, standingSilenceMs: 30 },
  );
  await agentOn(connection).watchEvents(op);
  agent.answersPing = false;
  await eventually('the connection to be lost', () => connection.lost.aborted);
});

test('the host answers PING', async () => {
  const { agent, connection } = await connected();
  agent.frame(9, 0, 0, Buffer.from('12345678'));
  await eventually('PONG', () => agent.pongs === 1);
  connection.close();
});

test('no more streams are opened than the protocol allows', async () => {
  const { agent, connection } = await connected({ hangs: () => {} });
  const calls = Array.from({ length: STREAMS_MAX }, () => rejection(connection.call(op, 'hangs', null)));
  expect(code(await rejection(connection.call(op, 'hangs', null)))).toBe('resource_exhausted');
  await eventually('all to be open', () => agent.streams.size === STREAMS_MAX);
  connection.close();
  await Promise.all(calls);
  expect(agent.violations).toEqual([]);
});

// Flow

test('a reader that is stuck stops its own stream only', async () => {
  let left = 4 * OUTPUT_CREDIT_START_BYTES;
  const pour = (stream: FakeStream) => {
    while (left > 0 && stream.credit > 0) {
      const bytes = Math.min(left, stream.credit, 65_536);
      stream.credit -= bytes;
      left -= bytes;
      stream.data(0, Buffer.alloc(bytes));
    }
  };
  const { agent, connection } = await connected({
    pour: (stream) => {
      stream.reply();
      pour(stream);
    },
    hello: (stream) => stream.answer(HELLO),
  });
  const { stream } = await connection.open(op, 'pour', null);
  for (let count = 0; count < 20; count += 1) expect((await agentOn(connection).hello(op)).pid).toBe(1);
  expect(left).toBe(3 * OUTPUT_CREDIT_START_BYTES);
  let received = 0;
  while (received < 4 * OUTPUT_CREDIT_START_BYTES) {
    const item = await stream.next(op);
    if (item.kind === 'data') received += item.bytes.byteLength;
    await turn();
    for (const open of agent.streams.values()) pour(open);
  }
  expect(agent.violations).toEqual([]);
  connection.close();
});

test('writers wait for credit and take turns', async () => {
  const order: number[] = [];
  const { agent, connection } = await connected({ sink: (stream) => stream.reply() });
  agent.grantsInput = false;
  agent.onInput = (stream) => order.push(stream.id);
  const one = await connection.open(op, 'sink', null);
  const two = await connection.open(op, 'sink', null);
  const writes = [one, two].map(({ stream }) => stream.write(op, Buffer.alloc(2 * CREDIT_START_BYTES)));
  await eventually('both to use up their credit', () => order.length === 8);
  expect(order).toEqual([1, 2, 1, 2, 1, 2, 1, 2]);
  for (const stream of agent.streams.values()) stream.grant(CREDIT_START_BYTES);
  await Promise.all(writes);
  expect(agent.violations).toEqual([]);
  connection.close();
});

test('nothing is sent on a stream after its cancel, and its end comes after its data', async () => {
  const { agent, connection } = await connected({ sink: (stream) => stream.reply() });
  const { stream } = await connection.open(op, 'sink', null);
  void stream.write(op, Buffer.from('abc'));
  stream.end();
  await eventually('the end', () => [...agent.streams.values()].some((open) => open.inputEnded));
  expect(text(Buffer.concat([...agent.streams.values()][0]?.input ?? []))).toBe('abc');
  stream.cancel();
  stream.cancel();
  await eventually('the close', () => stream.isOver);
  expect(agent.violations).toEqual([]);
  connection.close();
});

// Uploads

async function* chunks(...parts: (string | Error)[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    if (part instanceof Error) throw part;
    yield Buffer.from(part);
  }
}

const ENTRY = { path: '/f', name: 'f', type: 'file', size: 6, mode: 0o100644, uid: 0, gid: 0, mtimeMs: 1, inode: 2n ** 63n, nlink: 1 };

test("an upload sends the source and gives the agent's result", async () => {
  const { agent, connection } = await connected({ 'file.write': (stream) => stream.reply() });
  agent.onInput = (stream) => {
    if (stream.inputEnded) stream.close(ENTRY);
  };
  const entry = await agentOn(connection).file.write(op, { path: '/f' }, chunks('abc', 'def'));
  expect(entry).toMatchObject({ size: 6, inode: 2n ** 63n, user: null });
  connection.close();
});

test('when the agent refuses an upload, a source that is waited for is let go', async () => {
  const { agent, connection } = await connected({ 'file.write': (stream) => stream.reply() });
  agent.onInput = (stream) => stream.fail('resource_exhausted', 'the disk is full');
  let wasReturned = false;
  const source = {
    [Symbol.asyncIterator]: () => {
      let count = 0;
      return {
        next: (): Promise<IteratorResult<Uint8Array>> =>
          count++ === 0 ? Promise.resolve({ done: false, value: Buffer.from('x') }) : new Promise(() => {}),
        return: (): Promise<IteratorResult<Uint8Array>> => {
          wasReturned = true;
          return Promise.resolve({ done: true, value: undefined });
        },
      };
    },
  };
  const error = await rejection(agentOn(connection).file.write(op, { path: '/f' }, source));
  expect(error).toMatchObject({ code: 'resource_exhausted', message: 'the disk is full' });
  expect(wasReturned).toBe(true);
  connection.close();
});

test('when the source of an upload fails, the agent is told to forget it', async () => {
  const { agent, connection } = await connected({ 'file.write': (stream) => stream.reply() });
  const error = await rejection(agentOn(connection).file.write(op, { path: '/f' }, chunks('abc', new Error('client gone'))));
  expect(String(error)).toContain('client gone');
  await eventually('CANCEL', () => agent.streams.size === 0);
  connection.close();
});

test('leaving a loop over output gives the stream up, and the process is not touched', async () => {
  const { agent, connection } = await connected({
    'process.attach': (stream) => {
      stream.reply({ pid: 7, stdoutOffset: 5, stderrOffset: 0, inputOffset: 0, running: true });
      stream.data(1, Buffer.from('abc'));
    },
  });
  const { process } = await agentOn(connection).process.attach(op, { id: 'p', stdoutOffset: 5, input: false });
  for await (const item of process.items(op)) {
    expect(item).toMatchObject({ type: 'output', offset: 5 });
    break;
  }
  await eventually('CANCEL', () => agent.streams.size === 0);
  expect(agent.violations).toEqual([]);
  connection.close();
});

test('a file whose bytes nobody begins to read is given up when it is left', async () => {
  const { agent, connection } = await connected({ 'file.read': (stream) => stream.reply(ENTRY) });
  const { bytes } = await agentOn(connection).file.read(op, { path: '/f' });
  await bytes.return({ bytes: 0 });
  await eventually('CANCEL', () => agent.streams.size === 0);
  connection.close();
});

test('dropped output is told with its place', async () => {
  const { connection } = await connected({
    'process.attach': (stream) => {
      stream.reply({ pid: 7, stdoutOffset: 0, stderrOffset: 0, inputOffset: 0, running: true });
      stream.data(1, Buffer.from('ab'));
      stream.event({ e: 'dropped', channel: 1, fromOffset: 2, bytes: 98 });
      stream.event({ e: 'somethingNew', what: 1 });
      stream.data(1, Buffer.from('c'));
      stream.end(1);
      stream.end(2);
      stream.close({ ...EXIT, code: null, signal: 'KILL', reason: 'signalled' });
    },
  });
  const { process } = await agentOn(connection).process.attach(op, { id: 'p', input: false });
  const seen: unknown[] = [];
  for await (const item of process.items(op))
    seen.push(
      item.type === 'output' ? `${item.offset}:${text(item.bytes)}` : item.type === 'dropped' ? `${item.offset}+${item.bytes}` : item.type,
    );
  expect(seen).toEqual(['0:ab', '2+98', '100:c', 'end', 'end', 'exit']);
  connection.close();
});
