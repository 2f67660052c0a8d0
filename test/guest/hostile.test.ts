// An agent that lies. Whatever it sends, what is asked of it ends with an error, its connection ends at
// most, and the memory of the daemon stays flat.
import { duplexPair } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { encode } from '@msgpack/msgpack';
import { expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { agentOn } from '../../src/guest/agent.ts';
import { connect } from '../../src/guest/connection.ts';
import { FRAME, type FrameType, OUTPUT_CREDIT_START_BYTES } from '../../src/guest/protocol.ts';
import { EXIT, FakeAgent, type FakeStream, fakeAgent, HELLO } from './fake-agent.ts';
import { eventually, keptBytes as kept, rejection, seeded, testOperation } from './support.ts';

const MIB = 1024 * 1024;

type Attack = (agent: FakeAgent, stream: FakeStream) => void;

const credit = (bytes: number) => {
  const payload = Buffer.alloc(4);
  payload.writeUInt32LE(bytes);
  return payload;
};

/** Each of them ends the connection. */
const VIOLATIONS: Record<string, Attack> = {
  'a frame of 4 GiB': (agent) => agent.raw(Buffer.from([0xff, 0xff, 0xff, 0xff, FRAME.data, 0, 0, 0, 1, 0, 0, 0])),
  rubbish: (agent) => agent.raw(Buffer.from('GET / HTTP/1.1\r\n\r\n')),
  'a wrong mark': (agent) => {
    agent.mark += 1;
    agent.frame(FRAME.ping, 0, 0, Buffer.alloc(8));
  },
  'a frame on a stream that was never opened': (agent) => agent.frame(FRAME.data, 0, 4_000_000_000, Buffer.from('x')),
  'a reply to a stream that was never opened': (agent) => agent.frame(FRAME.reply, 0, 99, encode(null)),
  'a frame that only the host may send': (agent) => agent.frame(FRAME.open, 0, 5, encode({ m: 'x' })),
  'data before the reply': (_, stream) => stream.data(0, Buffer.from('x')),
  'an event before the reply': (_, stream) => stream.event({ e: 'x' }),
  'a close before the reply': (_, stream) => stream.close(),
  'a reply twice': (_, stream) => {
    stream.reply();
    stream.reply();
  },
  'data after the close': (_, stream) => {
    stream.reply();
    stream.close();
    stream.data(0, Buffer.from('x'));
  },
  'data after its end': (_, stream) => {
    stream.reply();
    stream.end(0);
    stream.data(0, Buffer.from('x'));
  },
  'the same end twice': (_, stream) => {
    stream.reply();
    stream.end(1);
    stream.end(1);
  },
  'data beyond the credit': (_, stream) => {
    stream.reply();
    for (let sent = 0; sent <= OUTPUT_CREDIT_START_BYTES; sent += 65_536) stream.data(0, Buffer.alloc(65_536));
  },
  'credit of nothing': (agent, stream) => {
    stream.reply();
    agent.frame(FRAME.credit, 0, stream.id, credit(0));
  },
  'credit without end': (agent, stream) => {
    stream.reply();
    for (let count = 0; count < 300; count += 1) agent.frame(FRAME.credit, 0, stream.id, credit(0xffff_ffff));
  },
  'a PONG that nobody asked for': (agent) => agent.frame(FRAME.pong, 0, 0, Buffer.alloc(8)),
  'an error that is none': (agent, stream) => agent.frame(FRAME.reply, 1, stream.id, encode({ no: 'code' })),
  'an error that is no message': (agent, stream) => agent.frame(FRAME.reply, 1, stream.id, Buffer.from([0xc1])),
};

test.each(Object.entries(VIOLATIONS))('%s ends the connection, and every call with unavailable', async (_, attack) => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent({ victim: (stream) => attack(agent, stream), hangs: () => {} });
  const connection = await connect(op, duplex);
  const bystander = rejection(connection.call(op, 'hangs', null));
  const victim = (async () => {
    const { stream } = await connection.open(op, 'victim', null);
    while ((await stream.next(op)).kind !== 'close');
    await stream.next(op);
  })().catch((error: unknown) => error);
  expect(await bystander).toMatchObject({ code: 'unavailable' });
  const outcome = await victim;
  if (outcome !== undefined) expect(outcome).toMatchObject({ code: 'unavailable' });
  expect(op.logged.filter(({ level }) => level === 'warn')).toHaveLength(1);
  expect(duplex.destroyed).toBe(true);
});

test.each([
  ['no message at all', Buffer.from([0xc1])],
  ['nested arrays', Buffer.concat(Array.from({ length: 20_000 }, () => Buffer.from([0xdc, 0x10, 0x00])))],
])('an answer that is %s ends the connection', async (_, payload) => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent({ hello: (stream) => agent.frame(FRAME.reply, 0, stream.id, payload) });
  const connection = await connect(op, duplex);
  expect(await rejection(agentOn(connection).hello(op))).toMatchObject({ code: 'unavailable' });
  expect(connection.lost.aborted).toBe(true);
});

test.each([
  ['a field of another type', { ...HELLO, pid: 'one' }, 'pid'],
  ['a field that is missing', { ...HELLO, kernel: undefined }, 'kernel'],
  ['a text beyond its bound', { ...HELLO, agentVersion: 'x'.repeat(5_000) }, 'agentVersion'],
  ['too many entries', { ...HELLO, features: Array.from({ length: 300 }, () => 'x') }, 'features'],
  ['nil', null, 'the answer'],
])('an answer with %s fails its call by name, and the connection goes on', async (_, answer, where) => {
  const op = testOperation();
  const { duplex } = fakeAgent({ hello: (stream) => stream.answer(answer) });
  using connection = await connect(op, duplex);
  const error = await rejection(agentOn(connection).hello(op));
  expect(error).toMatchObject({ code: 'internal' });
  expect(String(error)).toContain(where);
  expect(connection.lost.aborted).toBe(false);
});

test('an error code that does not exist is internal, and its sentence cannot move the cursor', async () => {
  const op = testOperation();
  const { duplex } = fakeAgent({ hello: (stream) => stream.refuse('constructor', `a\u001b]0;b\u0007\n${'x'.repeat(10_000)}`) });
  using connection = await connect(op, duplex);
  const error = await rejection(agentOn(connection).hello(op));
  expect(error).toMatchObject({ code: 'internal' });
  expect(error instanceof HutchError && error.message).toMatch(/^a \]0;b x+$/);
  expect(error instanceof HutchError && error.message.length).toBeLessThanOrEqual(4_096);
});

test('an exit that is no exit is never a success', async () => {
  const op = testOperation();
  const { duplex } = fakeAgent({
    'process.wait': (stream) => {
      stream.reply();
      stream.close({ ...EXIT, code: 256 });
    },
  });
  using connection = await connect(op, duplex);
  expect(await rejection(agentOn(connection).process.wait(op, 'p'))).toMatchObject({ code: 'internal' });
});

test('a flood of events ends its stream, with what came before it, and takes bounded memory', async () => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent({
    watch: (stream) => stream.reply(),
    hello: (stream) => stream.answer(HELLO),
  });
  agent.onCancel = () => {}; // goes on all the same
  using connection = await connect(op, duplex);
  const { stream } = await connection.open(op, 'watch', null);
  const before = await kept();
  const fake = [...agent.streams.values()][0];
  const payload = { e: 'x', text: 'y'.repeat(60_000) };
  for (let sent = 0; sent < 64 * MIB; sent += 60_000) {
    fake?.event(payload);
    if (sent % 600_000 === 0) await turn();
  }
  // The connection is as good as ever.
  expect((await agentOn(connection).hello(op)).pid).toBe(1);
  expect((await kept()) - before).toBeLessThan(32 * MIB);
  let events = 0;
  const ended = await (async () => {
    for (;;) {
      await stream.next(op);
      events += 1;
    }
  })().catch((error: unknown) => error);
  expect(ended).toMatchObject({ code: 'resource_exhausted' });
  expect(events).toBeGreaterThan(100);
});

test('an agent that floods with PING and never reads loses its connection', async () => {
  const op = testOperation();
  const [ours, theirs] = duplexPair({ highWaterMark: 1_024 });
  const agent = new FakeAgent(theirs);
  const connection = await connect(op, ours);
  theirs.pause();
  const ping = Buffer.alloc(8);
  for (let count = 0; count < 5_000 && !connection.lost.aborted; count += 1) {
    agent.frame(FRAME.ping, 0, 0, ping);
    if (count % 50 === 0) await turn();
  }
  await eventually('the loss', () => connection.lost.aborted);
});

test('a flood of tiny frames does not keep the event loop: others have their turns in between', async () => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent({ pour: (stream) => stream.reply() });
  using connection = await connect(op, duplex);
  const { stream } = await connection.open(op, 'pour', null);
  const fake = [...agent.streams.values()][0];
  const one = Buffer.from('x');
  const frames: Uint8Array[] = [];
  const raw = agent.raw.bind(agent);
  agent.raw = (bytes) => void frames.push(bytes);
  for (let count = 0; count < 20_000; count += 1) fake?.data(1, one);
  raw(Buffer.concat(frames));
  let turns = 0;
  let received = 0;
  while (received < 20_000) {
    const item = await stream.next(op);
    if (item.kind === 'data') received += item.bytes.byteLength;
    await turn();
    turns += 1;
  }
  expect(turns).toBeGreaterThan(10);
});

test('rubbish without end before the preamble is answered takes no memory', async () => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent();
  agent.answersPreamble = false;
  const connecting = rejection(connect(op, duplex, { greetingMs: 60_000 }));
  const before = await kept();
  const rubbish = Buffer.alloc(MIB, 'HUTCH\x01\r\n');
  for (let count = 0; count < 64; count += 1) {
    agent.raw(rubbish);
    await turn();
  }
  await eventually('all of it to be read', () => agent.duplex.writableLength === 0);
  expect((await kept()) - before).toBeLessThan(16 * MIB);
  agent.duplex.destroy();
  expect(await connecting).toMatchObject({ code: 'unavailable' });
});

test('a cancelled stream that goes on sending is heard no more, but its credit still counts', async () => {
  const op = testOperation();
  const { agent, duplex } = fakeAgent({ pour: (stream) => stream.reply(), hello: (stream) => stream.answer(HELLO) });
  agent.onCancel = () => {};
  const connection = await connect(op, duplex);
  const { stream } = await connection.open(op, 'pour', null);
  const fake = [...agent.streams.values()][0];
  stream.cancel();
  fake?.data(1, Buffer.alloc(65_536));
  fake?.event({ e: 'x' });
  fake?.end(1);
  expect((await agentOn(connection).hello(op)).pid).toBe(1);
  for (let sent = 0; sent < OUTPUT_CREDIT_START_BYTES; sent += 65_536) fake?.data(2, Buffer.alloc(65_536));
  await eventually('the loss', () => connection.lost.aborted);
});

/** Types that an agent may send, and some that it may not. */
const TYPES: readonly FrameType[] = Object.values(FRAME);

test('whatever frames come, in whatever order, the connection works or is lost', async () => {
  const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
  const random = seeded(seed);
  const pick = (count: number) => Math.floor(random() * count);
  for (let round = 0; round < 200; round += 1) {
    const op = testOperation();
    const { agent, duplex } = fakeAgent({ pour: (stream) => stream.reply(), hangs: () => {} });
    const connection = await connect(op, duplex);
    const pending = connection.call(op, 'hangs', null).catch((error: unknown) => error);
    const { stream } = await connection.open(op, 'pour', null);
    const reading = (async () => {
      while ((await stream.next(op)).kind !== 'close');
    })().catch((error: unknown) => error);
    for (let count = 0; count < 30; count += 1) {
      const type = TYPES[pick(TYPES.length)] ?? FRAME.ping;
      const lengths: Partial<Record<FrameType, number>> = { [FRAME.credit]: 4, [FRAME.ping]: 8, [FRAME.pong]: 8, [FRAME.end]: 0 };
      const payload = Buffer.from(Array.from({ length: lengths[type] ?? pick(20) }, () => pick(256)));
      agent.frame(type, pick(3), pick(4), payload);
    }
    await turn();
    connection.close();
    const answer = await pending; // by chance, it was answered
    if (!(answer instanceof Uint8Array)) expect(answer, `seed ${seed}`).toBeInstanceOf(HutchError);
    const outcome = await reading;
    if (outcome !== undefined) expect(outcome, `seed ${seed}`).toBeInstanceOf(HutchError);
  }
});
