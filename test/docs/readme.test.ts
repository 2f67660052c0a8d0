// What the README shows is typed in as it stands, and must come out as it stands.
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { buildSdk } from '../../scripts/build-sdk.ts';
import { examples, matches } from './examples.ts';

const ROOT = resolve(import.meta.dirname, '../..');
/** The first command prepares kernel, image and template. */
const COMMAND_MS_MAX = 600_000;
let dir = '';

const environment = () => ({
  ...process.env,
  HUTCH_HOME: join(dir, 'h'),
  HUTCH_DAEMON_LISTEN: 'off',
  HUTCH_SANDBOX_BACKEND: 'qemu',
});

function type(command: string): { output: string; errors: string } {
  const env = environment();
  const run = spawnSync('sh', ['-c', command.replaceAll('./hutch', join(ROOT, 'hutch'))], {
    cwd: dir,
    env,
    encoding: 'utf8',
    timeout: COMMAND_MS_MAX,
  });
  return { output: run.stdout, errors: run.stderr };
}

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'hutch-readme-'));
  chmodSync(dir, 0o755); // machines run as users of their own
});

afterAll(() => {
  type('./hutch rm -f $(./hutch ls -q) 2>/dev/null; ./hutch daemon stop');
  rmSync(dir, { recursive: true, force: true });
});

test(
  'the README’s examples, typed as written, print what it shows',
  () => {
    const blocks = examples(readFileSync(join(ROOT, 'README.md'), 'utf8'));
    expect(blocks.length).toBeGreaterThan(3);
    for (const { command, output } of blocks.flat()) {
      const actual = type(command);
      expect(matches(output, actual.output), `$ ${command}\n${actual.output}${actual.errors}--- expected\n${output.join('\n')}`).toBe(true);
    }
  },
  COMMAND_MS_MAX * 2,
);

test(
  'the README’s commands for a repository work as written',
  () => {
    const [, block = ''] = /### Your repository\n\n```sh\n([\s\S]*?)```/.exec(readFileSync(join(ROOT, 'README.md'), 'utf8')) ?? [];
    const git = 'git -c init.defaultBranch=main';
    const repository = `${git} init -q repo && cd repo && git config user.name reader && git config user.email reader@example.com
      echo 'print(1)' >one.py && git add one.py && git commit -qm 'One file'`;
    const { output, errors } = type(`set -e; ${repository}; ${block}git show --stat --format=%an:%s hutch/dev; git status --short`);
    expect(block).toContain('bring');
    expect(output, errors).toMatch(/ today +\| +1 \+\n[\s\S]*reader:From inside\n\n today \| 1 \+\n[^\n]*\n$/);
  },
  COMMAND_MS_MAX,
);

test(
  'the programs that the README and the SDK’s page show print what they say that they print',
  async () => {
    const modules = join(dir, 'node_modules');
    mkdirSync(modules);
    await buildSdk(join(modules, 'hutch-sdk'));
    symlinkSync(join(ROOT, 'node_modules', 'zod'), join(modules, 'zod'));
    type('./hutch daemon start');
    const pages = ['README.md', 'docs/sdk.md'].map((page) => readFileSync(join(ROOT, page), 'utf8')).join('\n');
    const programs = [...pages.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map(([, program = '']) => program);
    expect(programs.length).toBeGreaterThan(3);
    for (const program of programs) {
      const expected = [...program.matchAll(/\/\/ prints: (.*)$/gm)].map(([, line]) => `${line}\n`).join('');
      expect(expected, program).not.toBe('');
      const file = join(dir, 'program.mts');
      writeFileSync(file, program);
      const run = spawnSync(process.execPath, [file], { cwd: dir, env: environment(), encoding: 'utf8', timeout: COMMAND_MS_MAX });
      expect(run.stdout, `${program}\n${run.stderr}`).toBe(expected);
    }
  },
  COMMAND_MS_MAX,
);
