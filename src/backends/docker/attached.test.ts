import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Records } from './attached.ts';

test('the records of an attached container are cut at any place, and only its stdout is ours', () => {
  const record = fc.record({ stream: fc.constantFrom(1, 2), data: fc.uint8Array({ maxLength: 40 }) });
  fc.assert(
    fc.property(fc.array(record, { maxLength: 12 }), fc.array(fc.nat(400), { maxLength: 12 }), (records, cuts) => {
      const wire = Buffer.concat(
        records.map(({ stream, data }) => {
          const header = Buffer.alloc(8);
          header[0] = stream;
          header.writeUInt32BE(data.byteLength, 4);
          return Buffer.concat([header, data]);
        }),
      );
      const places = [...cuts.map((cut) => Math.min(cut, wire.byteLength)), wire.byteLength].sort((a, b) => a - b);
      const parser = new Records();
      const out: Buffer[] = [];
      let from = 0;
      for (const place of places) {
        out.push(...parser.feed(wire.subarray(from, place)));
        from = place;
      }
      const wanted = records.filter(({ stream }) => stream === 1).map(({ data }) => Buffer.from(data));
      expect(Buffer.concat(out)).toEqual(Buffer.concat(wanted));
    }),
  );
});
