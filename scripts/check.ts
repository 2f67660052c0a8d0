// The checks of the house, each one command: format and lint, types, the direction of imports, what
// is unused, Markdown, shell, Rust. `./dev check` runs them all; `./dev check NAME` runs one.
// Every one has a planted violation in test/house/checks.test.ts.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const bin = (name: string) => join('node_modules', '.bin', name);

/** Files that git knows, or would know: what is ignored is nobody's concern. */
function tracked(...patterns: string[]): string[] {
  const list = spawnSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard', '--', ...patterns], { encoding: 'utf8' });
  return list.stdout.split('\0').filter((path) => path !== '' && existsSync(path));
}

function shellScripts(): string[] {
  return tracked()
    .filter((path) => !/\.\w+$|^prebuilt\//.test(path) || path.endsWith('.sh'))
    .filter((path) => {
      const head = readFileSync(path).subarray(0, 64).toString('latin1');
      return /^#!.*\b(sh|bash)\b/.test(head);
    });
}

type Check = { readonly name: string; readonly what: string; readonly command: () => readonly string[] | null };

export const CHECKS: readonly Check[] = [
  { name: 'lint', what: 'format and lint', command: () => [bin('biome'), 'check', '--error-on-warnings', '.'] },
  { name: 'types', what: 'types', command: () => [bin('tsc'), '-p', '.'] },
  {
    name: 'imports',
    what: 'direction of imports',
    command: () => [bin('depcruise'), '--config', '.dependency-cruiser.cjs', 'src', 'test'],
  },
  { name: 'unused', what: 'unused code and dependencies', command: () => [bin('knip')] },
  { name: 'markdown', what: 'Markdown', command: () => [bin('markdownlint-cli2'), ...tracked('*.md')] },
  { name: 'shell', what: 'shell scripts', command: () => ['shellcheck', ...shellScripts()] },
  {
    name: 'specification',
    what: 'specification: each sentence names a test that exists',
    command: () => [process.execPath, 'scripts/check-specification.ts'],
  },
  {
    name: 'rust',
    what: 'Rust lint',
    command: () =>
      spawnSync('cargo', ['clippy', '--version']).status === 0
        ? ['cargo', 'clippy', '--quiet', '--manifest-path', 'rust/Cargo.toml', '--workspace', '--all-targets', '--', '-D', 'warnings']
        : null,
  },
  {
    name: 'rustfmt',
    what: 'Rust format',
    command: () =>
      spawnSync('cargo', ['fmt', '--version']).status === 0
        ? ['cargo', 'fmt', '--manifest-path', 'rust/Cargo.toml', '--all', '--check']
        : null,
  },
];

/** Runs one check; true when it found nothing. Its output is printed only when it did. */
function runCheck(check: Check): boolean {
  const started = performance.now();
  const command = check.command();
  const seconds = () => ((performance.now() - started) / 1000).toFixed(1);
  if (command === null) {
    console.log(`${check.name}: not run, its program is not on this machine (${check.what})`);
    return true;
  }
  const [program = '', ...args] = command;
  const result = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 64 * 1024 * 1024 });
  const ok = result.status === 0;
  console.log(`${ok ? 'ok    ' : 'FAILED'} ${check.what} (${seconds()} s)`);
  if (!ok) console.log(`${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`);
  return ok;
}

if (import.meta.main) {
  const wanted = process.argv.slice(2);
  const unknown = wanted.filter((name) => !CHECKS.some((check) => check.name === name));
  if (unknown.length > 0) {
    console.error(`error: no check named ${unknown.join(', ')}; there are ${CHECKS.map((check) => check.name).join(', ')}`);
    process.exit(2);
  }
  const results = CHECKS.filter((check) => wanted.length === 0 || wanted.includes(check.name)).map(runCheck);
  const passed = results.filter(Boolean).length;
  console.log(`checks: ${passed} passed, ${results.length - passed} failed`);
  process.exit(passed === results.length ? 0 : 1);
}
