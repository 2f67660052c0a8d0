import { join } from 'node:path';
import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

// The tests' own seed: printed by ./dev test, and settable to replay a run.
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now() % 2 ** 31);

/** What takes minutes, the longest first; of all others the size tells enough. */
const LONG = [
  'test/conformance/qemu',
  'test/conformance/docker',
  'test/conformance/gvisor',
  'test/faults/many',
  'test/faults/machines',
  'test/workspace/workspace',
  'test/docs/readme',
  'test/build/build',
  'test/conformance/reference',
  'test/faults/',
  'test/bench/',
  'test/qemu/template',
];

/**
 * In which order the files are taken: by itself vitest begins with the largest, and a suite that is one import would come last
 * and hold up the end of the run alone, while the other workers have nothing left to do.
 */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = LONG.findIndex((part) => moduleId.includes(`/${part}`));
      return at < 0 ? LONG.length : at;
    };
    return (await super.sort(files)).toSorted((left, right) => place(left) - place(right));
  }
}

export default defineConfig({
  test: {
    include: ['src/**/*.test.ts', 'test/**/*.test.ts', 'bench/**/*.test.ts'],
    exclude: ['node_modules', 'dist', 'dist.*', 'test/lab/**'],
    globalSetup: 'test/support/bundled.ts',
    testTimeout: 60_000,
    hookTimeout: 120_000,
    pool: 'forks',
    // A process for each worker, not for each file: to start it and to read the same modules again is a tenth of the whole run.
    isolate: false,
    // One more than the processors that the run is sized for: tests wait for machines a fifth of their time.
    maxWorkers: 3,
    sequence: { sequencer: LongestFirst },
    env: {
      HUTCH_TEST_SEED: String(seed),
      HUTCH_SANDBOX_WARM: '0',
      // Hundreds of daemons are started: each would compile its code again.
      NODE_COMPILE_CACHE: join(import.meta.dirname, '.tools', 'compile-cache'),
    },
  },
});
