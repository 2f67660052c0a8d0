import { createHash } from 'node:crypto';
import { getEventListeners } from 'node:events';
import { type Duplex, duplexPair } from 'node:stream';
import { expect, test } from 'vitest';
import { AgentLink } from '../../src/guest/link.ts';
import { FRAME_BYTES_MAX } from '../../src/guest/protocol.ts';
import { EXIT, FakeAgent, type FakeStream, HELLO } from './fake-agent.ts';
import { Port } from './port.ts';
import { eventually, rejection, seeded, testOperation } from './support.ts';

const MIB = 1024 * 1024;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);

/** Bytes that a place decides, so that any part of the stream can be made and checked. */
function pattern(offset: number, length: number): Uint8Array {
  const bytes = Buffer.allocUnsafe(length);
  for (let index = 0; index < length; index += 1) {
    const place = offset + index;
    bytes[index] = (place ^ (place >>> 8) ^ (place >>> 16)) & 0xff;
  }
  return bytes;
}

/** One process that writes `outputBytes` and takes input for ever, in an agent that can be reached again and again. */
class FakeProcess {
  readonly agent: FakeAgent;
  readonly outputBytes: number;
  accepted = 0;
  inputEnded = false;
  wrongInput = 0;
  readonly #sent = new WeakMap<FakeStream, number>();

  constructor(duplex: Duplex, outputBytes: number) {
    this.outputBytes = outputBytes;
    this.agent = new FakeAgent(duplex, {
      hello: (stream) => stream.answer(HELLO),
      'process.start': (stream) => {
        stream.reply({ pid: 7, startedAtMs: 1, existing: this.accepted > 0, stdoutOffset: 0, stderrOffset: 0, inputOffset: this.accepted });
        this.#sent.set(stream, 0);
        this.#pour(stream);
      },
      'process.attach': (stream) => {
        const { stdoutOffset } = stream.params as { stdoutOffset: number };
        stream.reply({ pid: 7, stdoutOffset, stderrOffset: 0, inputOffset: this.accepted, running: true });
        this.#sent.set(stream, stdoutOffset);
        this.#pour(stream);
      },
    });
    this.agent.grantsInput = false;
    this.agent.onCredit = (stream) => this.#pour(stream);
    this.agent.onInput = (stream) => this.#take(stream);
  }

  #take(stream: FakeStream): void {
    let granted = 0;
    for (const bytes of stream.input.splice(0)) {
      if (Buffer.compare(bytes, pattern(this.accepted, bytes.byteLength)) !== 0) this.wrongInput += 1;
      this.accepted += bytes.byteLength;
      granted += bytes.byteLength;
    }
    if (granted > 0) stream.grant(granted);
    this.inputEnded ||= stream.inputEnded;
    this.#pour(stream);
  }

  #pour(stream: FakeStream): void {
    let offset = this.#sent.get(stream) ?? 0;
    while (stream.credit > 0 && offset < this.outputBytes) {
      const length = Math.min(stream.credit, FRAME_BYTES_MAX, this.outputBytes - offset);
      stream.credit -= length;
      stream.data(1, pattern(offset, length));
      offset += length;
      this.#sent.set(stream, offset);
    }
    if (offset === this.outputBytes && this.inputEnded && this.agent.streams.get(stream.id) === stream) {
      stream.end(1);
      stream.end(2);
      stream.close({ ...EXIT, stdoutBytes: offset });
    }
  }
}

function fakeProcess(outputBytes: number, nextCut?: () => number): { readonly fake: FakeProcess; readonly port: Port } {
  const [agentEnd, portEnd] = duplexPair();
  return { fake: new FakeProcess(agentEnd, outputBytes), port: new Port(portEnd, nextCut) };
}

const SPEC = { id: 'p', argv: ['x'], stdin: 'pipe', whenUnread: 'block' } as const;

/** A link to a fake agent, and a process over it that has a thousand bytes of output. */
async function begin() {
  const { fake, port } = fakeProcess(1_000);
  const op = testOperation();
  using undo = new DisposableStack();
  undo.use(port);
  const link = undo.use(new AgentLink(op, { dial: () => Promise.resolve(port.dial()) }));
  const process = undo.use(await link.start(op, SPEC));
  const kept = undo.move();
  return { fake, port, op, process, [Symbol.dispose]: () => kept[Symbol.dispose]() };
}

test('a stream in both directions survives cuts anywhere: no byte is lost or doubled', async () => {
  const bytes = 8 * MIB;
  const random = seeded(seed);
  const { fake, port } = fakeProcess(bytes, () => 1 + Math.floor(random() ** 3 * 2 * MIB));
  const op = testOperation();
  using _port = port;
  using link = new AgentLink(op, { dial: () => Promise.resolve(port.dial()) });
  using process = await link.start(op, SPEC);

  const writing = (async () => {
    for (let at = 0; at < bytes; ) {
      const length = Math.min(bytes - at, 1 + Math.floor(random() * 200_000));
      await process.write(op, pattern(at, length));
      at += length;
    }
    process.endInput();
  })();
  const hash = createHash('sha256');
  let received = 0;
  const ends: string[] = [];
  for await (const item of process.items(op)) {
    if (item.type === 'output') {
      expect(item.offset, `seed ${seed}`).toBe(received);
      received += item.bytes.byteLength;
      hash.update(item.bytes);
    } else ends.push(item.type);
  }
  await writing;
  expect(received).toBe(bytes);
  expect(hash.digest('hex')).toBe(createHash('sha256').update(pattern(0, bytes)).digest('hex'));
  expect(fake.accepted).toBe(bytes);
  expect(fake.wrongInput).toBe(0);
  expect(ends).toEqual(['end', 'end', 'exit']);
  expect(port.cuts).toBeGreaterThan(3);
});

test('callers share one connection, and get a new one after it is lost', async () => {
  const { fake, port } = fakeProcess(0);
  const op = testOperation();
  let dials = 0;
  using _port = port;
  using link = new AgentLink(op, {
    dial: () => {
      dials += 1;
      return Promise.resolve(port.dial());
    },
  });
  const agents = await Promise.all([link.agent(op), link.agent(op), link.agent(op)]);
  expect(new Set(agents).size).toBe(1);
  expect(dials).toBe(1);
  port.cut();
  await eventually('the loss', () => agents[0]?.lost.aborted === true);
  expect((await (await link.agent(op)).hello(op)).pid).toBe(1);
  expect(dials).toBe(2);
  expect(fake.agent.violations).toEqual([]);
});

test('a caller who gives up while the link is dialling does not spoil it for others', async () => {
  const { port } = fakeProcess(0);
  const op = testOperation();
  using _port = port;
  let arrive = () => {};
  const opened = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  using link = new AgentLink(op, { dial: () => opened.then(() => port.dial()) });
  const impatient = new AbortController();
  const first = rejection(link.agent(testOperation(impatient.signal)));
  const second = link.agent(op);
  impatient.abort();
  expect(await first).toMatchObject({ code: 'cancelled' });
  arrive();
  expect((await (await second).hello(op)).pid).toBe(1);
});

test('a stream that arrives after the dial was given up is destroyed', async () => {
  const op = testOperation();
  let arrive: (duplex: Duplex) => void = () => {};
  using link = new AgentLink(op, { dialMs: 20, dial: () => new Promise((resolve) => (arrive = resolve)) });
  expect(await rejection(link.agent(op))).toMatchObject({ code: 'unavailable' });
  const [late] = duplexPair();
  arrive(late);
  await eventually('it to be destroyed', () => late.destroyed);
});

test('a process stream that cannot come back is unavailable within its bound, for reader and writer', async () => {
  const { port } = fakeProcess(100);
  const op = testOperation();
  using _port = port;
  let isThere = true;
  using link = new AgentLink(op, {
    resumeMs: 150,
    dial: () => (isThere ? Promise.resolve(port.dial()) : Promise.reject(op.error('unavailable', 'nobody listens'))),
  });
  using process = await link.start(op, SPEC);
  expect(await process.next(op)).toMatchObject({ type: 'output' });
  isThere = false;
  port.cut();
  expect(await rejection(process.next(op))).toMatchObject({ code: 'unavailable' });
  expect(await rejection(process.write(op, Buffer.from('x')))).toMatchObject({ code: 'unavailable' });
});

test('while the link is held nobody dials; afterwards processes go on where they were', async () => {
  const { fake, port } = fakeProcess(MIB);
  const op = testOperation();
  let dials = 0;
  using _port = port;
  using link = new AgentLink(op, {
    resumeMs: 1,
    dial: () => {
      dials += 1;
      return Promise.resolve(port.dial());
    },
  });
  using process = await link.start(op, SPEC);
  const first = await process.next(op);
  const hold = link.hold();
  const asking = link.agent(op);
  const next = process.next(op);
  const heldAtMs = performance.now();
  await eventually('a hold that is longer than a resume may take', () => performance.now() - heldAtMs > 20);
  expect(dials).toBe(1);
  hold[Symbol.dispose]();
  expect((await (await asking).hello(op)).pid).toBe(1);
  const item = await next;
  expect(first.type === 'output' && item.type === 'output' && item.offset === first.offset + first.bytes.byteLength).toBe(true);
  expect(fake.agent.violations).toEqual([]);
});

test('output that is gone after a resume is told, not hidden', async () => {
  using begun = await begin();
  const { fake, port, op, process } = begun;
  expect(await process.next(op)).toMatchObject({ type: 'output', offset: 0 });
  const attach = fake.agent.handlers['process.attach'];
  fake.agent.handlers['process.attach'] = (stream, agent) =>
    attach?.({ ...stream, params: { stdoutOffset: 5_000 }, reply: stream.reply } as FakeStream, agent);
  port.cut();
  expect(await process.next(op)).toMatchObject({ type: 'dropped', channel: 'stdout', offset: 1_000, bytes: 4_000 });
});

test.each([
  ['another process', { pid: 8 }],
  ['an older place', { stdoutOffset: 0 }],
  ['input that did not come from here', { inputOffset: 10_000_000 }],
])('a resume that finds %s is unavailable, never a wrong stream', async (_, lie) => {
  using begun = await begin();
  const { fake, port, op, process } = begun;
  expect(await process.next(op)).toMatchObject({ type: 'output', offset: 0 });
  fake.agent.handlers['process.attach'] = (stream) =>
    stream.reply({ pid: 7, stdoutOffset: 1_000, stderrOffset: 0, inputOffset: 0, running: true, ...lie });
  port.cut();
  expect(await rejection(process.next(op))).toMatchObject({ code: 'unavailable' });
});

test('a process that its agent no longer knows is unavailable, and no exit is made up', async () => {
  using begun = await begin();
  const { fake, port, op, process } = begun;
  await process.next(op);
  fake.agent.handlers['process.attach'] = (stream) => stream.refuse('not_found', 'no such process');
  port.cut();
  const error = await rejection(process.next(op));
  expect(error).toMatchObject({ code: 'unavailable' });
  expect(String(error)).toContain('not known');
});

test('when another client takes the input, writers are told and output goes on', async () => {
  using begun = await begin();
  const { fake, op, process } = begun;
  await process.next(op);
  for (const stream of fake.agent.streams.values()) stream.event({ e: 'inputTaken' });
  expect(await process.next(op)).toMatchObject({ type: 'inputTaken' });
  expect(await rejection(process.write(op, Buffer.from('x')))).toMatchObject({ code: 'conflict' });
});

test('a closed link refuses, and everything over it ends', async () => {
  const { port } = fakeProcess(0);
  const op = testOperation();
  using _port = port;
  const link = new AgentLink(op, { dial: () => Promise.resolve(port.dial()) });
  using process = await link.start(op, SPEC);
  const waiting = rejection(process.next(op));
  link.close();
  expect(await waiting).toMatchObject({ code: 'unavailable' });
  expect(await rejection(link.agent(op))).toMatchObject({ code: 'unavailable' });
});

test('who waits for a sandbox that ends meanwhile hears that it cannot be reached, not that it was cancelled', async () => {
  const over = new AbortController();
  const dialled = Promise.withResolvers<void>();
  const link = new AgentLink(testOperation(over.signal), {
    dial: () => {
      dialled.resolve();
      return new Promise(() => {});
    },
  });
  const agent = rejection(link.agent(testOperation()));
  const process = rejection(link.start(testOperation(), SPEC));
  await dialled.promise;
  over.abort();
  link.close();
  expect(await agent).toMatchObject({ code: 'unavailable' });
  expect(await process).toMatchObject({ code: 'unavailable' });
});

test('once its sandbox is dead a link dials no more, and whoever waits for it hears so; what has come is still read', async () => {
  const { port } = fakeProcess(MIB);
  const op = testOperation();
  using _port = port;
  let dials = 0;
  using link = new AgentLink(op, {
    dial: () => {
      dials += 1;
      return dials === 1 ? Promise.resolve(port.dial()) : new Promise(() => {});
    },
  });
  using process = await link.start(op, SPEC);
  const agent = await link.agent(op);
  link.end();
  let bytes = 0;
  while (bytes < MIB) {
    const item = await process.next(op);
    if (item.type === 'output') bytes += item.bytes.byteLength;
  }
  port.cut();
  await eventually('the loss', () => agent.lost.aborted);
  expect(await rejection(link.agent(op))).toMatchObject({ code: 'unavailable', message: 'the sandbox has ended' });
  expect(dials).toBe(1);

  using dialling = new AgentLink(op, { dial: () => new Promise(() => {}) });
  const waiting = rejection(dialling.agent(op));
  using held = new AgentLink(op, { dial: () => new Promise(() => {}) });
  using _hold = held.hold();
  const holding = rejection(held.agent(op));
  for (const each of [dialling, held]) each.end();
  expect(await waiting).toMatchObject({ code: 'unavailable', message: 'the sandbox has ended' });
  expect(await holding).toMatchObject({ code: 'unavailable', message: 'the sandbox has ended' });
});

test('processes that are over, or were given up, leave nothing with the connection', async () => {
  const { fake, port } = fakeProcess(10);
  const op = testOperation();
  using _port = port;
  using link = new AgentLink(op, { dial: () => Promise.resolve(port.dial()) });
  const agent = await link.agent(op);
  for (let count = 0; count < 20; count += 1) {
    const process = await link.start(op, SPEC);
    await process.write(op, pattern(fake.accepted, 10));
    if (count % 2 === 0) process.endInput();
    for await (const item of process.items(op)) if (count % 2 === 1 && item.type === 'output') break;
    await eventually('its stream to be over', () => fake.agent.streams.size === 0);
    fake.inputEnded = false;
  }
  expect(getEventListeners(agent.lost, 'abort')).toHaveLength(0);
  expect(getEventListeners(op.signal, 'abort')).toHaveLength(0);
});
