import { expect, test } from 'vitest';
import { examples, matches } from './examples.ts';

test('a page’s examples are found, with their output', () => {
  const page = '# T\n\n```console\n$ a b\nout 1\nout 2\n$ c\n```\n\n```sh\n$ not this\n```\n';
  expect(examples(page)).toEqual([
    [
      { command: 'a b', output: ['out 1', 'out 2'] },
      { command: 'c', output: [] },
    ],
  ]);
});

test('shown output matches the real one where … stands for what differs, and nowhere else', () => {
  expect(matches(['Linux … x86_64 GNU/Linux'], 'Linux box 6.1 x86_64 GNU/Linux\n')).toBe(true);
  expect(matches(['NAME   STATE', '…'], 'NAME STATE\na running\nb stopped\n')).toBe(true);
  expect(matches(['NAME   STATE'], 'NAME STATE\na running\n')).toBe(false);
  expect(matches(['1267'], '1268\n')).toBe(false);
  expect(matches([], 'surprise\n')).toBe(false);
  expect(matches([], '\n')).toBe(true);
});
