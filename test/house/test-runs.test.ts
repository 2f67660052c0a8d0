// The page of long test runs: each run writes what it ran, and keeps what others wrote.
import { expect, test } from 'vitest';
import { merged } from '../../scripts/test-runs.ts';

test('a long run replaces its own sections of the page, keeps the others, and leaves the lab’s the last', () => {
  const first = merged('', [
    ['checks', 'all right'],
    ['test/a.test.ts', '1 passed\n\n- one'],
  ]);
  const lab = `${first.trimEnd()}\n\n## The lab\n\n\`\`\`text\nok\n\`\`\`\n`;
  const second = merged(lab, [
    ['test/a.test.ts', '2 passed'],
    ['test/b.test.ts', '3 passed'],
  ]);
  expect(second.split(/^## /m).slice(1)).toEqual([
    'checks\n\nall right\n\n',
    'test/a.test.ts\n\n2 passed\n\n',
    'test/b.test.ts\n\n3 passed\n\n',
    'The lab\n\n```text\nok\n```\n',
  ]);
  expect(merged(second, [])).toBe(second);
});
