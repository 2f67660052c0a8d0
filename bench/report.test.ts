import { expect, test } from 'vitest';
import { alone } from './harness.ts';
import { type Result, report } from './report.ts';

const row = (what: string) => alone({ what, unit: 'ms', target: '–', met: null, note: `why ${what}` }, [1]);
const quiet = { noisy: false, sentence: 'quiet' };

function result(commit: string, parts: Result['parts']): Result {
  const machine = { processor: 'p', processors: 2, memoryGiB: 4, kernel: 'k', node: 'n', qemu: 'q', takenAt: 't' };
  return { facts: { ...machine, commit }, noise: { before: quiet, after: quiet }, seconds: 1, size: 'usual', rows: [], parts, failed: [] };
}

test('what is measured anew takes the place of its section, in the order of the list, and the others stay', () => {
  const names = ['one', 'two', 'two', 'three'];
  const first = report(
    '',
    names,
    result('aaa', [
      { name: 'three', rows: [row('c')] },
      { name: 'one', rows: [row('a')] },
    ]),
  );
  const second = report(
    first,
    names,
    result('bbb', [
      { name: 'two', rows: [row('b')] },
      { name: 'two', rows: [row('b2')] },
      { name: 'one', rows: [row('a new')] },
    ]),
  );
  expect([...second.matchAll(/^## (.*)$/gm)].map(([, name]) => name)).toEqual([
    'one',
    'two',
    'three',
    'How to read this',
    'What is not measured',
  ]);
  const sections = second.split(/^## /m);
  expect(sections[1]).toContain('Commit bbb');
  expect(sections[1]).not.toMatch(/\| a \|/);
  expect(sections[2]).toMatch(/\| b \|[\s\S]*\| b2 \|/);
  expect(sections[3]).toContain('Commit aaa');
  expect(report(second, names, result('ccc', []))).toBe(second);
});
