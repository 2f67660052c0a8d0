// Where the tests of repositories have their sandbox. What they try is git on both sides, the same on every backend: the two
// files of them take turns by the seed, and `--long` has them all in machines.
import type { WorldBackend } from '../cli/world.ts';

const SEED = Number(process.env['HUTCH_TEST_SEED'] ?? 0);
const BACKENDS: readonly WorldBackend[] = ['qemu', 'gvisor'];

/** Which one the file has that is the `nth` of them. */
export function backendOfRun(nth: number): WorldBackend {
  return process.env['HUTCH_TEST_LONG'] === undefined ? (BACKENDS[(SEED + nth) % BACKENDS.length] ?? 'qemu') : 'qemu';
}
