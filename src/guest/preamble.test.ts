import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AnswerFinder, markOf, newNonce, preambleOf } from './preamble.ts';

const nonce = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);

test('the answer is found in any rubbish, however it is cut, and what follows is kept', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 100 }),
      fc.uint8Array({ maxLength: 30 }),
      fc.array(fc.nat(200), { maxLength: 10 }),
      (rubbish, after, places) => {
        const bytes = Buffer.concat([
          rubbish,
          preambleOf(Uint8Array.of(9, 9, 9, 9, 9, 9, 9, 9)),
          preambleOf(nonce).subarray(0, 9),
          preambleOf(nonce),
          after,
        ]);
        const finder = new AnswerFinder(nonce);
        let found: ReturnType<AnswerFinder['push']> = null;
        const rest: Uint8Array[] = [];
        let from = 0;
        for (const place of [...places.map((at) => at % bytes.byteLength).sort((a, b) => a - b), bytes.byteLength]) {
          const chunk = bytes.subarray(from, place);
          from = place;
          if (found !== null) rest.push(chunk);
          else {
            found = finder.push(chunk);
            if (found !== null) rest.push(found.rest);
          }
        }
        expect(found?.version).toBe(1);
        expect(Buffer.concat(rest)).toEqual(Buffer.from(after));
      },
    ),
  );
});

test('an agent of another version is recognised', () => {
  const answer = preambleOf(nonce);
  answer[5] = 2;
  expect(new AnswerFinder(nonce).push(answer)?.version).toBe(2);
});

test('the answer to another nonce is no answer', () => {
  expect(new AnswerFinder(nonce).push(preambleOf(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 9)))).toBeNull();
});

test('a mark is never zero', () => {
  expect(markOf(newNonce((count) => new Uint8Array(count)))).not.toBe(0);
});
