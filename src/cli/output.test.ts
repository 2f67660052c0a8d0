import { expect, test } from 'vitest';
import { safe, safeLine } from './output.ts';

test('what came from elsewhere commands no terminal; a line keeps its columns', () => {
  const text = 'a\tb\u001b[31mred\u001b[0m\u0007\r\u009b2Jx';
  expect(safe(text)).not.toMatch(/[\u0000-\u001f\u007f-\u009f]/);
  expect(safeLine(text)).toBe(text.split('\t').map(safe).join('\t'));
  expect(safeLine('\tgo mod tidy\t')).toBe('\tgo mod tidy\t');
});
