import { Duplex } from 'node:stream';
import { expect, test } from 'vitest';
import { takeToWrite } from '../host/large-buffers.ts';
import { FrameDecoder } from './frames.ts';
import type { Outgoing } from './outbox.ts';
import { FRAME } from './protocol.ts';
import { Sender } from './sender.ts';
import type { AgentStream } from './stream.ts';

const MARK = 0x0a0b_0c0d;

/** A stream that has these to send, and nothing to say. */
function streamOf(id: number, outgoing: Outgoing[]): AgentStream {
  const stub = {
    id,
    takeControl: () => [],
    takeOutgoing: () => outgoing.shift() ?? null,
    get canSend() {
      return outgoing.length > 0;
    },
  };
  return stub as unknown as AgentStream;
}

test('what many streams have to send in one turn goes out in one write, in turns, whatever its size', async () => {
  const written: Uint8Array[] = [];
  const duplex = new Duplex({
    highWaterMark: 10_000_000,
    read() {},
    write(chunk: Uint8Array, _, done) {
      written.push(chunk);
      done();
    },
  });
  const sender = new Sender(duplex, MARK);
  const small = (id: number, n: number): Outgoing => ({ kind: 'data', bytes: Buffer.from(`${id}.${n}`), isLast: true });
  const streams = [1, 2, 3, 4, 5].map((id) => streamOf(id, [small(id, 0), small(id, 1), { kind: 'end' }]));
  for (const stream of streams) sender.wakeSoon(stream);
  expect(written).toEqual([]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(written).toHaveLength(1);

  const large = Buffer.alloc(60_000, 'x');
  sender.wakeSoon(streamOf(6, [small(6, 0), { kind: 'data', bytes: large, isLast: true }, small(6, 1)]));
  await new Promise((resolve) => setImmediate(resolve));
  const decoder = new FrameDecoder({ mark: MARK, from: 'host' });
  decoder.push(Buffer.concat(written));
  const frames = [];
  for (let frame = decoder.next(); frame !== null; frame = decoder.next()) {
    frames.push(
      frame.type === FRAME.end ? `${frame.stream} end` : frame.length < 10 ? Buffer.from(frame.payload).toString() : frame.length,
    );
  }
  const turn = (what: (id: number) => string) => [1, 2, 3, 4, 5].map(what);
  expect(frames).toEqual([...turn((id) => `${id}.0`), ...turn((id) => `${id}.1`), ...turn((id) => `${id} end`), '6.0', 60_000, '6.1']);
});

test('frames that are more than one place holds are all written, and a full pipe stops them', async () => {
  const written: Uint8Array[] = [];
  const pending: (() => void)[] = [];
  const duplex = new Duplex({
    highWaterMark: 1,
    read() {},
    write(chunk: Uint8Array, _, done) {
      written.push(chunk);
      pending.push(done);
    },
  });
  const sender = new Sender(duplex, MARK);
  duplex.on('drain', sender.drained);
  const payload = Buffer.alloc(4_000, 'y');
  const outgoing: Outgoing[] = Array.from({ length: 200 }, () => ({ kind: 'data', bytes: payload, isLast: true }));
  sender.wakeSoon(streamOf(1, outgoing));
  await new Promise((resolve) => setImmediate(resolve));
  expect(outgoing.length).toBeGreaterThan(100); // a batch, and no more until the pipe has taken it
  while (outgoing.length > 0 || pending.length > 0) {
    pending.shift()?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const bytes = written.reduce((sum, { byteLength }) => sum + byteLength, 0);
  expect(bytes).toBe(200 * (4_000 + 16));
});

test('memory that is the writer’s is let go of when all that was offered together is in the pipe, and not before', async () => {
  const going: { readonly chunks: readonly Uint8Array[]; readonly done: (error?: Error | null) => void }[] = [];
  const duplex = new Duplex({
    highWaterMark: 10_000_000,
    read() {},
    writev(chunks, done) {
      going.push({ chunks: chunks.map(({ chunk }) => chunk as Uint8Array), done });
    },
  });
  const sender = new Sender(duplex, MARK);
  const own = takeToWrite(66_000).fill('x');
  sender.wakeSoon(
    streamOf(1, [
      { kind: 'data', bytes: own.subarray(0, 65_000), isLast: false },
      { kind: 'data', bytes: own.subarray(65_000), isLast: true },
    ]),
  );
  await new Promise((resolve) => setImmediate(resolve));
  expect(Buffer.concat(going.flatMap(({ chunks }) => chunks)).filter((byte) => byte === 0x78)).toHaveLength(66_000);
  expect(own.byteLength).toBe(66_000);
  for (const { done } of going) done();
  await new Promise((resolve) => setImmediate(resolve));
  expect(own.byteLength).toBe(0);
});
