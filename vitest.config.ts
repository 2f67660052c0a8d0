import { join } from 'node:path';
import { defineConfig } from 'vitest/config';
import { LongestFirst } from './scripts/vitest-order.ts';

// The tests' own seed: printed by ./dev test, and settable to replay a run.
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now() % 2 ** 31);

export default defineConfig({
  test: {
    include: ['src/**/*.test.ts', 'test/**/*.test.ts', 'bench/**/*.test.ts'],
    exclude: ['node_modules', 'dist', 'dist.*', 'test/lab/**'],
    globalSetup: 'test/support/bundled.ts',
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    env: {
      HUTCH_TEST_SEED: String(seed),
      HUTCH_SANDBOX_WARM: '0',
      // Hundreds of daemons are started: each would compile its code again.
      NODE_COMPILE_CACHE: join(import.meta.dirname, '.tools', 'compile-cache'),
    },
  },
});
