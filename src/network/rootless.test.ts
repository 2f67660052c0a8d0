import { expect, test } from 'vitest';
import { namespaceRules, parseLocalAddresses } from './rootless.ts';

const FIB_TRIE = `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 198.51.100.0/24 2 0 2
        |-- 198.51.100.0
           /24 link UNICAST
        |-- 198.51.100.2
           /32 host LOCAL
        |-- 198.51.100.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 10.0.0.1
        /24 link UNICAST
        /32 host LOCAL
Local:
  +-- 198.51.100.0/24 2 0 2
        |-- 198.51.100.2
           /32 host LOCAL
`;

test("the host's addresses are read from the kernel's table of routes", () => {
  expect(parseLocalAddresses(FIB_TRIE)).toEqual(['198.51.100.2', '127.0.0.1', '10.0.0.1']);
  expect(parseLocalAddresses('')).toEqual([]);
});

test("names may be asked for, then the host's own addresses are refused, then all else", () => {
  const rules = (reach: 'internet' | 'lan'): string[] => {
    const lines = namespaceRules(reach, ['198.51.100.2']).split('\n');
    return lines.flatMap((line) =>
      line.startsWith('add rule inet hutch output ') ? [line.slice('add rule inet hutch output '.length)] : [],
    );
  };
  expect(rules('internet')[0]).toMatch(/^ip daddr \{ 192\.0\.0\.9 \} .* dport 53 accept$/);
  // A refusal, which reaches nobody but the namespace itself.
  expect(rules('internet')[1]).toBe('oif lo tcp flags & rst == rst accept');
  expect(rules('internet')[2]).toBe('ip daddr { 198.51.100.2 } goto refuse');
  expect(rules('internet').filter((rule) => rule.endsWith('accept'))).toHaveLength(2);
  // Private ranges are refused after whoever may reach them was let through, and the host before that.
  const lan = rules('lan');
  const opened = lan.findLastIndex((rule) => rule.endsWith('accept'));
  expect(lan.slice(opened + 1).every((rule) => /^ip6? daddr \{ (10\.|fc00::)/.test(rule))).toBe(true);
  expect(opened).toBeGreaterThan(2);
});
