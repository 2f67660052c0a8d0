import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isName, newId } from './ids.ts';
import { type Candidate, requireReference, resolveDigest, resolveReference } from './reference.ts';

const web = { id: 'sbx7k3m9p2q4r6t8v0xz', name: 'web' };
const webTwo = { id: 'sbx7k3aaaaaaaaaaaaaa', name: 'web-2' };
const db = { id: 'sbxdb000000000000000', name: 'db' };
const all: readonly Candidate[] = [web, webTwo, db];

function meaning(text: string, candidates = all): string | null | readonly string[] {
  const resolved = resolveReference(text, candidates);
  if (resolved.outcome === 'found') return resolved.value.name;
  return resolved.outcome === 'none' ? null : resolved.matches.map(({ name }) => name ?? '');
}

test.each([
  [web.id, 'web'],
  ['web', 'web'],
  ['web-', 'web-2'],
  ['db', 'db'],
  ['sbx7k3m', 'web'],
  ['7k3m', 'web'],
  ['7k3', ['web', 'web-2']],
  ['sbx7k3', ['web', 'web-2']],
  ['we', null],
  ['sbx', null],
  ['sbx7k', null],
  ['7k', null],
  ['', null],
  ['WEB', null],
  ['sbx7k3m9p2q4r6t8v0x1', null],
  ['db0', 'db'],
  ['w_b', null],
  ['%', null],
])('%j means %j', (text, expected) => expect(meaning(text)).toEqual(expected));

test('an exact name wins over prefixes of ids and of longer names', () => {
  const named = { id: 'sbxzzzzzzzzzzzzzzzzz', name: '7k3' };
  expect(meaning('7k3', [...all, named])).toBe('7k3');
});

test('what matches by its id and by its name counts once', () => {
  expect(meaning('7k3', [{ id: 'sbx7k3m9p2q4r6t8v0xz', name: '7k3m' }])).toBe('7k3m');
});

test('operations are found by the prefix of theirs', () => {
  const operation = { id: 'op-1a2b3c4d5e6f', name: null };
  for (const text of ['op-1a2', '1a2b', operation.id])
    expect(resolveReference(text, [operation])).toEqual({ outcome: 'found', value: operation });
  expect(resolveReference('op-1a', [operation])).toEqual({ outcome: 'none' });
});

test('an ambiguous reference lists what it may mean, an unknown one says where to look', () => {
  expect(() => requireReference('sandbox', '7k3', all)).toThrow(
    expect.objectContaining({ code: 'conflict', message: `'7k3' may be any of 2: web (${web.id}), web-2 (${webTwo.id})` }),
  );
  expect(() => requireReference('sandbox', 'we', all)).toThrow(
    expect.objectContaining({ code: 'not_found', hint: 'a prefix needs at least 3 characters; see what there is: hutch ls' }),
  );
  expect(() => requireReference('sandbox', 'a\u001b[2Jb', all)).toThrow("there is no sandbox 'a?[2Jb'");
});

test('the whole id and the whole name always find their own, whatever else there is', () => {
  const candidate = fc.record({
    id: fc.uint8Array({ minLength: 17, maxLength: 17 }).map((bytes) => newId('sbx', () => bytes)),
    name: fc.stringMatching(/^[a-z0-9]{1,4}$/).filter(isName),
  });
  const candidates = fc.uniqueArray(candidate, { selector: ({ name }) => name, minLength: 1 });
  fc.assert(
    fc.property(candidates, fc.nat(), (list, nth) => {
      const wanted = list[nth % list.length];
      if (wanted === undefined) return;
      expect(resolveReference(wanted.name, list)).toEqual({ outcome: 'found', value: wanted });
      expect(resolveReference(wanted.id, list)).toMatchObject({ outcome: 'found', value: { id: wanted.id } });
    }),
  );
});

test('a prefix finds exactly what a slower search finds', () => {
  const candidate = fc.record({
    id: fc.stringMatching(/^[01a]{17}$/).map((tail) => `sbx${tail}`),
    name: fc.stringMatching(/^[01a]{1,6}$/),
  });
  const lists = fc.uniqueArray(candidate, { selector: ({ name }) => name });
  fc.assert(
    fc.property(lists, fc.stringMatching(/^(sbx)?[01a]{0,5}$/), (list, text) => {
      const exact = list.filter(({ id, name }) => id === text || name === text);
      const bare = text.startsWith('sbx') ? text.slice(3) : text;
      const prefix = list.filter(({ id, name }) => bare.length >= 3 && (id.startsWith(`sbx${bare}`) || name.startsWith(text)));
      const expected = exact.length > 0 ? exact : prefix;
      const resolved = resolveReference(text, list);
      const found = resolved.outcome === 'found' ? [resolved.value] : resolved.outcome === 'none' ? [] : resolved.matches;
      expect(found).toEqual(expected);
    }),
  );
});

test('a digest is meant by its first digits, as lists show them, if by these alone', () => {
  const [first, second] = [`sha256:0123456789ab${'0'.repeat(52)}`, `sha256:01234567ffff${'1'.repeat(52)}`];
  const all = [{ digest: first }, { digest: second }, { digest: null }];
  for (const text of [first, '0123456789ab', 'sha256:0123456789a', '012345678']) expect(resolveDigest(text, all)?.digest, text).toBe(first);
  for (const text of ['012345', '01234', 'sha256:', '', 'sha512:0123456789ab', '0123456789AB', 'ab', `${first}0`])
    expect(resolveDigest(text, all), text).toBeNull();
});
