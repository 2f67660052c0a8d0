import { expect, test } from 'vitest';
import { newId } from './ids.ts';
import { useRefusal } from './volume.ts';

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
