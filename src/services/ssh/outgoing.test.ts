import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Outgoing } from './outgoing.ts';

const MIB = 1024 * 1024;
const PIECE_BYTES_MAX = 120 * 1024;

async function all(outgoing: Outgoing): Promise<Uint8Array[]> {
  const pieces: Uint8Array[] = [];
  for await (const piece of outgoing.pieces()) pieces.push(piece);
  return pieces;
}

test('what is put comes out whole and in order, in pieces that are not too large', async () => {
  const parts = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 40 });
  await fc.assert(
    fc.asyncProperty(parts, fc.array(fc.nat(40)), async (some, turnsAt) => {
      const outgoing = new Outgoing();
      const taken = all(outgoing);
      for (const [at, part] of some.entries()) {
        outgoing.put(part);
        if (turnsAt.includes(at)) await new Promise((resolve) => setImmediate(resolve));
      }
      outgoing.end();
      expect(Buffer.concat(await taken)).toEqual(Buffer.concat(some));
    }),
    { numRuns: 100 },
  );
  const outgoing = new Outgoing();
  for (let nth = 0; nth < 100; nth += 1) outgoing.put(Buffer.alloc(32 * 1024, nth));
  outgoing.end();
  const pieces = await all(outgoing);
  expect(Math.max(...pieces.map(({ byteLength }) => byteLength))).toBeLessThanOrEqual(PIECE_BYTES_MAX);
  expect(Buffer.concat(pieces).byteLength).toBe(100 * 32 * 1024);
});

test('what is put in one turn of the event loop is one piece', async () => {
  const outgoing = new Outgoing();
  const pieces = outgoing.pieces();
  const first = pieces.next();
  for (const word of ['a', 'b', 'c']) outgoing.put(Buffer.from(word));
  expect(String((await first).value)).toBe('abc');
});

test('a client that reads nothing is not listened to any more, until it reads or is gone', async () => {
  const outgoing = new Outgoing();
  await outgoing.room();
  for (let nth = 0; nth < 40; nth += 1) outgoing.put(Buffer.alloc(32 * 1024));
  let goesOn = false;
  const room = outgoing.room().then(() => {
    goesOn = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  expect(goesOn).toBe(false);
  const pieces = outgoing.pieces();
  let left = 40 * 32 * 1024;
  while (left > MIB) left -= (await pieces.next()).value?.byteLength ?? 0;
  await room;
  expect(goesOn).toBe(true);
  for (let nth = 0; nth < 40; nth += 1) outgoing.put(Buffer.alloc(32 * 1024));
  const gone = outgoing.room();
  outgoing.end(new Error('it is over'));
  await gone;
  await expect(pieces.next()).rejects.toThrow('it is over');
});
