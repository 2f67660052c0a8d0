import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Outbox, WAITING_BYTES_MAX } from './outbox.ts';
import { CREDIT_START_BYTES, FRAME_BYTES_MAX } from './protocol.ts';

function pattern(offset: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => offset + index);
}

test('what is offered comes out in order, in frames, and never beyond the credit', () => {
  const step = fc.oneof(
    fc.record({ offer: fc.nat(100_000) }),
    fc.record({ take: fc.nat(5) }),
    fc.record({ credit: fc.integer({ min: 1, max: 100_000 }) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const outbox = new Outbox();
      let offered = 0;
      let sent = 0;
      let credit = CREDIT_START_BYTES;
      let writersWaiting = 0;
      for (const next of steps) {
        if ('offer' in next) {
          writersWaiting += 1;
          outbox.offer(pattern(offered, next.offer), () => {
            writersWaiting -= 1;
          });
          offered += next.offer;
        } else if ('credit' in next) {
          expect(outbox.credit(next.credit)).toBe(true);
          credit += next.credit;
        } else {
          for (let count = 0; count < next.take; count += 1) {
            const outgoing = outbox.take();
            if (outgoing === null) break;
            if (outgoing.kind !== 'data') throw new Error('an end that nobody asked for');
            const { bytes } = outgoing;
            expect(bytes.byteLength).toBeLessThanOrEqual(FRAME_BYTES_MAX);
            expect(bytes[0]).toBe(sent & 0xff);
            expect(bytes.at(-1)).toBe((sent + bytes.byteLength - 1) & 0xff);
            sent += bytes.byteLength;
          }
        }
        expect(sent).toBeLessThanOrEqual(Math.min(offered, credit));
        expect(writersWaiting > 0).toBe(offered - sent > WAITING_BYTES_MAX);
        expect(outbox.canSend).toBe(offered > sent && credit > sent);
      }
    }),
  );
});

test('the end comes after everything that was offered, once', () => {
  const outbox = new Outbox();
  outbox.offer(Uint8Array.of(1), () => {});
  outbox.end();
  outbox.end();
  expect([outbox.take()?.kind, outbox.take()?.kind, outbox.take()]).toEqual(['data', 'end', null]);
});

test('what is taken back is not sent, and lets others go on', () => {
  const outbox = new Outbox();
  let wentOn = false;
  const takeBack = outbox.offer(new Uint8Array(2 * WAITING_BYTES_MAX), () => {});
  outbox.offer(Uint8Array.of(7), () => {
    wentOn = true;
  });
  expect(wentOn).toBe(false);
  takeBack();
  expect(wentOn).toBe(true);
  const outgoing = outbox.take();
  expect(outgoing?.kind === 'data' && [...outgoing.bytes]).toEqual([7]);
});
