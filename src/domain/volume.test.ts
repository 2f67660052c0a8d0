import fc from 'fast-check';
import { expect, test } from 'vitest';
import { newId, newOpId } from './ids.ts';
import { useRefusal, type Volume, volumeEntries } from './volume.ts';

const volumeId = newId('vol', (count) => new Uint8Array(count));
const user = (sandbox: string, readOnly: boolean, alive = true) => ({ volumeId, sandbox, readOnly, alive });

test('who writes a volume is alone with it; several read where each has a mount of this machine’s', () => {
  const [reads, writes] = [user('reads', true), user('writes', false)];
  const may = (readOnly: boolean, shares: boolean, ...others: (typeof reads)[]) => useRefusal({ readOnly, shares }, others) === null;
  expect(may(false, true)).toBe(true);
  expect(may(false, true, user('gone', false, false))).toBe(true);
  expect(may(true, true, reads, user('also', true))).toBe(true);
  expect(may(true, false, reads)).toBe(false);
  expect(may(true, true, writes)).toBe(false);
  expect(may(false, true, reads)).toBe(false);
  expect(may(false, true, writes)).toBe(false);
  expect(useRefusal({ readOnly: false, shares: true }, [reads, writes])).toBe('it is in use by sandboxes reads, writes');
});

test('whatever becomes of a volume, one interval of its size is open as long as it is there', () => {
  const opId = newOpId(() => new Uint8Array(6));
  const made: Volume = {
    ...{ id: volumeId, projectId: newId('prj', (count) => new Uint8Array(count)), name: 'v', sizeMiB: 16 },
    ...{ createdAtMs: 1_000, guestWritten: false },
  };
  const history = fc.array(fc.record({ sizeMiB: fc.integer({ min: 16, max: 64 }), atMs: fc.integer({ min: 0, max: 9_000 }) }));
  fc.assert(
    fc.property(history, (growths) => {
      let open: number | null = null;
      let now = null as Volume | null;
      for (const next of [made, ...growths, null]) {
        const before: Volume | null = now;
        now = next === null ? null : { ...made, sizeMiB: Math.max(before?.sizeMiB ?? 0, next.sizeMiB) };
        for (const { kind, shape, atMs, volumeId: of, sandboxId } of volumeEntries(
          before,
          now,
          next !== null && 'atMs' in next ? next.atMs : 0,
          opId,
        )) {
          expect([of, sandboxId, atMs >= made.createdAtMs]).toEqual([volumeId, null, true]);
          if (kind === 'volume.storage.stop') expect(shape.storageBytes).toBe(open);
          else expect(open).toBeNull();
          open = kind === 'volume.storage.start' ? (shape.storageBytes ?? 0) : null;
        }
        expect(open).toBe(now === null ? null : now.sizeMiB * 2 ** 20);
      }
    }),
  );
});
