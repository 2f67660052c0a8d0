import { expect, test } from 'vitest';
import { notNeeded } from './doctor.ts';

test('where sandboxes run one way, what another way lacks is a warning; what all of them need stays missing', () => {
  const status = (name: string, status: 'ok' | 'warning' | 'missing') => notNeeded({ name, status, detail: '', fix: null }).status;
  expect([status('backend docker', 'missing'), status('QEMU', 'missing'), status('mkfs', 'missing')]).toEqual([
    'warning',
    'warning',
    'warning',
  ]);
  expect([status('disk space', 'missing'), status('backend qemu', 'ok'), status('passt', 'warning')]).toEqual(['missing', 'ok', 'warning']);
});
