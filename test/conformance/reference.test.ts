import { describe, expect, test } from 'vitest';
import { files } from './files.ts';
import { honesty } from './honesty.ts';
import { lifecycle } from './lifecycle.ts';
import { processes } from './processes.ts';
import { Subject } from './subject.ts';
import { conformance, endWith } from './suite.ts';

await conformance('reference');

// The same backend, saying that it cannot: then it must not be asked.
const humble = await Subject.start('reference', { HUTCH_TEST_CLAIM: 'nothing' });
describe.runIf(typeof humble !== 'string')('a backend that claims nothing', () => {
  if (typeof humble === 'string') return;
  honesty(humble);

  test('what is not claimed is not called', async () => {
    expect(await humble.violations()).toBe('');
  });
});
if (typeof humble !== 'string') endWith(humble);

// The same behaviours when the sandboxes are another daemon's: clients must not be able to tell.
const behind = await Subject.start('reference');
const front = typeof behind === 'string' ? behind : await behind.through();
describe.runIf(typeof front !== 'string')('through a daemon of another role', () => {
  if (typeof front === 'string') return;
  lifecycle(front);
  processes(front);
  files(front);
});
if (typeof front !== 'string') endWith(front);
