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

/** What each measurement must give a row about. */
const ROWS: Readonly<Record<string, readonly string[]>> = {
  'first-run': ['first run'],
  run: ['hutch run --rm -- true'],
  sdk: ['SDK: create'],
  ls: ['hutch ls'],
  warm: ['warm hand-out → first exec', 'warm hand-out alone', 'hutch run --rm -- true`, one warm'],
  fork: ['pause of the parent', 'fork one child', 'fork 2 children', 'pages of its own', 'resume → first exec', 'second snapshot'],
  exec: ['p50', 'p99'],
  stdout: ['stdout'],
  read: ['read a file'],
  write: ['write a file'],
  work: ['CPU loop', 'compile', 'small files'],
  memory: ['private memory', 'PSS of each', 'PSS of a shim', 'running sandboxes: start'],
  stopped: ['stopped sandboxes: memory', 'stopped sandboxes: processor time'],
  loop: ['event loop'],
  boot: ['cold boot'],
  backends: ['docker: `run --rm`', 'docker: exec', 'docker, inside: CPU loop', 'docker: push a file', 'docker: pull a file'],
  gvisor: [
    'gVisor: create, start, first exec',
    'gVisor: create, start, first exec, one kept ready',
    'gVisor: exec',
    'gVisor: resume',
    'gVisor, inside: small files',
    'gVisor: push a file',
    'gVisor: pull a file',
  ],
  workspace: [
    ...['workspace: prepare', 'workspace: prepare again', 'workspace: bring'],
    ...['docker', 'gvisor', 'qemu'].flatMap((name) => [
      `published port, ${name}, 16 connections: time`,
      `published port, ${name}, 16 connections: p99`,
    ]),
  ],
  mounted: ['a mounted directory, docker', 'a mounted directory, gVisor', 'a mounted directory, QEMU'],
  scp: ['docker', 'gvisor', 'qemu'].map((name) => `sandbox, ${name}`),
  images: ['pull + make bootable', 'memory of the daemon while it pulls', 'a second image'],
  archives: ['import of a docker-save archive', 'small files, gVisor'],
  'first-exec': ['first exec in an image'],
  builds: [
    'everything cached',
    'the last one changed, gVisor',
    'the last one changed, gVisor, none kept ready',
    'the last one changed, QEMU',
  ],
};
const SAMPLES = 2;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);

/** In turn by the seed: neighbours in the table are measured in different runs. */
function chosen(): readonly string[] {
  const names = Object.keys(ROWS);
  if (process.env['HUTCH_TEST_LONG'] !== undefined) return names;
  const apart = Math.ceil(names.length / SAMPLES);
  return names.filter((_name, index) => index % apart === seed % apart);
}

test('the benchmarks are those of which rows are expected', () => {
  const { stderr } = bench('--help');
  const listed = [...stderr.matchAll(/^ {2}([a-z][a-z-]*) {2,}/gm)].map(([, name = '']) => name);
  expect([...new Set(listed)].toSorted()).toEqual(Object.keys(ROWS).toSorted());
});

test(
  `every row of the table of benchmarks can be measured, and measuring leaves nothing behind (seed ${seed})`,
  () => {
    const before = ours();
    const names = chosen();
    const { stdout, stderr, status, signal } = bench('--quick', '--json', ...names);
    expect({ status, signal }, stderr).toEqual({ status: 0, signal: null });
    const { rows, failed } = JSON.parse(stdout) as Printed;
    expect(failed, stderr).toEqual([]);
    for (const what of names.flatMap((name) => ROWS[name] ?? [])) {
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
