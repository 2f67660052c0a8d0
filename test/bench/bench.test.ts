import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { eventually } from '../support/eventually.ts';

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
      'pull + make bootable',
      'memory of the daemon while it pulls',
      'a second image',
      'import of a docker-save archive',
      'small files, gVisor',
      'first exec in an image',
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

test('Ctrl-C ends a bench with 130, without a stack, and leaves nothing', { timeout: 240_000 }, async () => {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-cut-'));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  chmodSync(dir, 0o711); // the sandboxes' users go through it
  // As on a terminal, where everything that the bench has started is told as well.
  const child = spawn(process.execPath, [MAIN, 'sdk', '--quick', '--runs', '200'], {
    env: { ...process.env, TMPDIR: dir },
    stdio: ['ignore', 'ignore', 'pipe'],
    detached: true,
  });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const ended = once(child, 'exit');
  const sandboxes = () => readdirSync(dir).flatMap((name) => readdirSync(join(dir, name, 'run/sandboxes')));
  await eventually('it measures', () => said.includes('measuring sdk') && sandboxes().length > 0, 120_000);
  process.kill(-(child.pid ?? 0), 'SIGINT');
  expect(await ended).toEqual([130, null]);
  expect(said).toContain('Interrupted: cleaning up.');
  expect(said).not.toMatch(/^ +at /m);
  expect(readdirSync(dir).filter((name) => name.startsWith('hutch-'))).toEqual([]);
  expect(spawnSync('pgrep', ['-f', `${dir}/hutch`], { encoding: 'utf8' }).stdout).toBe('');
});

test('a benchmark that does not exist is named, with those that do', () => {
  const { status, stderr } = bench('speed');
  expect(status).toBe(2);
  expect(stderr).toContain("there is no measurement 'speed'");
  expect(stderr).toContain('exec');
});
