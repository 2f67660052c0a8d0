import { afterAll, describe, expect, test } from 'vitest';
import { honesty } from './honesty.ts';
import { Subject } from './subject.ts';
import { conformance } from './suite.ts';

await conformance('reference');

// The same backend, saying that it cannot: then it must not be asked.
const humble = await Subject.start('reference', { HUTCH_TEST_CLAIM: 'nothing' });
describe.runIf(typeof humble !== 'string')('a backend that claims nothing', () => {
  if (typeof humble === 'string') return;
  honesty(humble);

  test('what is not claimed is not called', async () => {
    expect(await humble.violations()).toBe('');
  });

  afterAll(() => humble[Symbol.asyncDispose]());
});
