import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { resolve } from 'node:path';
import { expect, test } from 'vitest';

const MAIN = resolve(import.meta.dirname, '../../bench/main.ts');
const BENCH_MS = 15 * 60_000;

type Printed = {
  readonly rows: readonly { readonly what: string; readonly candidate: { readonly median: number; readonly n: number } }[];
  readonly failed: readonly unknown[];
};

const ours = () => readdirSync(tmpdir()).filter((name) => name.startsWith('hutch-bench-'));

function bench(...argv: string[]) {
  return spawnSync(process.execPath, [MAIN, ...argv], { encoding: 'utf8', timeout: BENCH_MS, maxBuffer: 64 * 1024 * 1024 });
}

test(
  'every row of the table of benchmarks can be measured, and measuring leaves nothing behind',
  () => {
    const before = ours();
    const { stdout, stderr } = bench('--quick', '--json');
    const { rows, failed } = JSON.parse(stdout) as Printed;
    expect(failed, stderr).toEqual([]);
    for (const what of [
      'first run',
      'hutch run --rm -- true',
      'warm hand-out → first exec',
      'warm hand-out alone',
      'hutch run --rm -- true`, one warm',
      'SDK: create',
      'hutch ls',
      'p50',
      'p99',
      'stdout',
      'read a file',
      'write a file',
      'CPU loop',
      'compile',
      'small files',
      'private memory',
      'PSS of each',
      'PSS of a shim',
      'running sandboxes: start',
      'stopped sandboxes: memory',
      'stopped sandboxes: processor time',
      'event loop',
      'cold boot',
      'docker: `run --rm`',
      'docker: exec',
      'docker, inside: CPU loop',
      'docker: push a file',
      'docker: pull a file',
      'gVisor: create, start, first exec',
      'gVisor: exec',
      'gVisor, inside: small files',
      'gVisor: push a file',
      'gVisor: pull a file',
    ]) {
      const row = rows.find((each) => each.what.includes(what));
      expect(row, `a row about ${what}`).toBeDefined();
      expect(row?.candidate.n).toBeGreaterThan(0);
      expect(row?.candidate.median).toBeGreaterThanOrEqual(0);
    }
    // Somebody else's bench may end meanwhile.
    expect(ours().filter((name) => !before.includes(name))).toEqual([]);
  },
  BENCH_MS,
);

test('a benchmark that does not exist is named, with those that do', () => {
  const { status, stderr } = bench('speed');
  expect(status).toBe(2);
  expect(stderr).toContain("there is no measurement 'speed'");
  expect(stderr).toContain('exec');
});
