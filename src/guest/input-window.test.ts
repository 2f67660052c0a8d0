import fc from 'fast-check';
import { expect, test } from 'vitest';
import { InputWindow } from './input-window.ts';
import { CREDIT_START_BYTES } from './protocol.ts';

test('whatever is accepted and whenever, the window gives every byte from there on', () => {
  const step = fc.oneof(
    fc.record({ add: fc.integer({ min: 1, max: 100_000 }) }),
    fc.record({ accept: fc.integer({ min: -10, max: 120_000 }) }),
  );
  fc.assert(
    fc.property(fc.nat(1_000), fc.array(step, { maxLength: 40 }), (start, steps) => {
      const subject = new InputWindow(start);
      let to = start;
      for (const next of steps) {
        if ('add' in next) {
          const bytes = Uint8Array.from({ length: next.add }, (_, index) => to + index);
          to += subject.add(bytes);
        } else {
          subject.accepted(Math.min(to, subject.from + next.accept));
        }
        expect(subject.to).toBe(to);
        expect(subject.to - subject.from).toBeLessThanOrEqual(CREDIT_START_BYTES);
        let at = subject.from;
        for (let piece = subject.at(at); piece !== null; piece = subject.at(at)) {
          expect(piece[0]).toBe(at & 0xff);
          expect(piece.at(-1)).toBe((at + piece.byteLength - 1) & 0xff);
          at += piece.byteLength;
        }
        expect(at).toBe(to);
      }
    }),
  );
});
