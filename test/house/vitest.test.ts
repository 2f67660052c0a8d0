// The runner of the tests ends, whatever a test file does, and says which one it was.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { VitestRun } from '../../scripts/vitest.ts';

const ROOT = resolve(import.meta.dirname, '../..');
/** Of a program that a test file leaves running: its argument names it. */
const MARK = String(1_000_000 + (process.pid % 100_000));
const FILES = {
  'good.test.ts': `import { test } from 'vitest'; test('works', () => {}); test('does not', () => { throw new Error('no'); });`,
  'load.test.ts': `setInterval(() => {}, 1000); await new Promise(() => {});`,
  'throws.test.ts': `throw new Error('does not load');`,
  // What a file that fails half-way has started holds the worker's output, as a daemon does.
  'child.test.ts': `import { spawn } from 'node:child_process';
    spawn('sleep', ['${MARK}'], { stdio: ['ignore', 'inherit', 'ignore'] }); throw new Error('does not load');`,
};
let house = '';

beforeAll(() => {
  house = mkdtempSync(join(tmpdir(), 'hutch-runner-'));
  symlinkSync(join(ROOT, 'node_modules'), join(house, 'node_modules'));
  writeFileSync(join(house, 'package.json'), '{ "type": "module" }');
  mkdirSync(join(house, 'test'));
});

afterAll(() => rmSync(house, { recursive: true, force: true }));

function run(names: readonly (keyof typeof FILES)[], silentMs: number): VitestRun {
  rmSync(join(house, 'test'), { recursive: true });
  mkdirSync(join(house, 'test'));
  for (const name of names) writeFileSync(join(house, 'test', name), FILES[name]);
  const script = `import { vitest } from '${join(ROOT, 'scripts/vitest.ts')}';
    const ran = await vitest(['--pool=forks', '--maxWorkers=1', '--teardownTimeout=1000'], process.env, { silentMs: ${silentMs}, endMs: 5000 });
    console.log('\\nRESULT ' + JSON.stringify(ran));`;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { cwd: house, encoding: 'utf8' });
  const result = /^RESULT (.*)$/m.exec(stdout)?.[1];
  if (result === undefined) throw new Error(`no result: ${stdout}${stderr}`);
  return JSON.parse(result) as VitestRun;
}

const tests = (ran: VitestRun) => ran.files.flatMap((file) => file.tests.map(({ title, status }) => `${title}: ${status}`)).sort();

test('a test file that never loads is named, and the others are run', { timeout: 120_000 }, () => {
  const ran = run(['good.test.ts', 'load.test.ts', 'throws.test.ts'], 6_000);
  expect(ran.hung).toEqual([{ file: join(house, 'test/load.test.ts'), where: 'nothing of it was heard for 6 s' }]);
  expect(tests(ran)).toEqual(['does not: failed', 'works: passed']);
  expect(ran.files.find(({ name }) => name.endsWith('throws.test.ts'))).toMatchObject({ status: 'failed', message: 'does not load' });
});

test('a worker that does not end is named, and what it had started is killed', { timeout: 120_000 }, () => {
  const ran = run(['good.test.ts', 'child.test.ts'], 60_000);
  expect(ran.hung).toEqual([
    { file: join(house, 'test/child.test.ts'), where: expect.stringContaining('not its process within 5 s') as string },
  ]);
  expect(tests(ran)).toEqual(['does not: failed', 'works: passed']);
  expect(spawnSync('pgrep', ['-f', `^sleep ${MARK}$`], { encoding: 'utf8' }).stdout).toBe('');
});
