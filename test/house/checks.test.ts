// Each check of scripts/check.ts finds a violation that is planted in a small copy of the house, and
// passes the same copy without it.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { CHECKS } from '../../scripts/check.ts';
import { problems, testNames } from '../../scripts/check-specification.ts';

const ROOT = resolve(import.meta.dirname, '../..');
let house = '';

beforeAll(() => {
  house = mkdtempSync(join(tmpdir(), 'hutch-house-'));
  for (const file of [
    'biome.json',
    'tsconfig.json',
    '.dependency-cruiser.cjs',
    'knip.json',
    '.markdownlint.json',
    'package.json',
    'vitest.config.ts',
  ]) {
    cpSync(join(ROOT, file), join(house, file));
  }
  symlinkSync(join(ROOT, 'node_modules'), join(house, 'node_modules'));
  const files: Record<string, string> = {
    'src/domain/word.ts': "export const WORD = 'word';\n",
    'src/services/say.ts': "import { WORD } from '../domain/word.ts';\n\nexport const say = (): string => WORD;\n",
    'src/services/verbs.ts': "import { z } from 'zod';\n\nexport type Name = z.infer<typeof name>;\nexport const name = z.string();\n",
    'src/cli/main.ts': "import type { Name } from '../services/verbs.ts';\n\nexport const shown: Name = 'x';\n",
    'src/daemon/main.ts': "import { say } from '../services/say.ts';\nimport { name } from '../services/verbs.ts';\n\nname.parse(say());\n",
    'README.md': '# Title\n\nText.\n',
    tool: '#!/bin/sh\nset -eu\necho "$1"\n',
    'rust/Cargo.toml': '[workspace]\nmembers = ["one"]\nresolver = "3"\n',
    'rust/one/Cargo.toml': '[package]\nname = "one"\nversion = "0.1.0"\nedition = "2024"\n',
    'rust/one/src/lib.rs': 'pub fn one() -> u8 {\n    1\n}\n',
  };
  for (const [path, content] of Object.entries(files)) plant(path, content);
});

afterAll(() => rmSync(house, { recursive: true, force: true }));

function plant(path: string, content: string): void {
  mkdirSync(dirname(join(house, path)), { recursive: true });
  writeFileSync(join(house, path), content);
}

function run(...argv: string[]): { ok: boolean; output: string } {
  const [program = '', ...args] = argv;
  const result = spawnSync(program.startsWith('node_modules') ? join(house, program) : program, args, { cwd: house, encoding: 'utf8' });
  return { ok: result.status === 0, output: `${result.stdout}${result.stderr}` };
}

const tools: Record<string, readonly string[]> = {
  lint: ['node_modules/.bin/biome', 'check', '--error-on-warnings', '.'],
  types: ['node_modules/.bin/tsc', '-p', '.'],
  imports: ['node_modules/.bin/depcruise', '--config', '.dependency-cruiser.cjs', 'src'],
  unused: ['node_modules/.bin/knip', '--include', 'files,exports,types,dependencies,unlisted', '--exclude', 'dependencies,devDependencies'],
  markdown: ['node_modules/.bin/markdownlint-cli2', 'README.md'],
  shell: ['shellcheck', 'tool'],
  rust: commandOf('rust'),
  rustfmt: commandOf('rustfmt'),
};

function commandOf(name: string): readonly string[] {
  return CHECKS.find((check) => check.name === name)?.command() ?? [];
}

const planted: readonly { check: string; what: string; path: string; content: string; says: RegExp }[] = [
  { check: 'lint', what: 'a file that is not formatted', path: 'src/domain/bad.ts', content: 'export  const a = "x"\n', says: /format/i },
  { check: 'lint', what: 'any', path: 'src/domain/bad.ts', content: 'export const a = (x: any): unknown => x;\n', says: /noExplicitAny/ },
  { check: 'lint', what: 'a default export', path: 'src/domain/bad.ts', content: 'export default 1;\n', says: /noDefaultExport/ },
  {
    check: 'lint',
    what: 'a non-null assertion',
    path: 'src/domain/bad.ts',
    content: 'export const a = (x: string | null): string => x!;\n',
    says: /noNonNullAssertion/,
  },
  {
    check: 'lint',
    what: 'a promise nobody waits for',
    path: 'src/domain/bad.ts',
    content: 'async function f(): Promise<void> {}\n\nexport function g(): void {\n  f();\n}\n',
    says: /noFloatingPromises/,
  },
  {
    check: 'types',
    what: 'an index that may be undefined',
    path: 'src/domain/bad.ts',
    content: 'export const a = (x: string[]): string => x[0];\n',
    says: /not assignable/,
  },
  { check: 'types', what: 'an enum', path: 'src/domain/bad.ts', content: 'export enum A {\n  B,\n}\n', says: /erasableSyntaxOnly/ },
  {
    check: 'types',
    what: 'undefined for an optional field',
    path: 'src/domain/bad.ts',
    content: 'export const a: { b?: string } = { b: undefined };\n',
    says: /exactOptionalPropertyTypes/,
  },
  {
    check: 'imports',
    what: 'domain importing a service',
    path: 'src/domain/bad.ts',
    content: "export { say } from '../services/say.ts';\n",
    says: /domain-imports-only/,
  },
  {
    check: 'imports',
    what: 'domain doing I/O',
    path: 'src/domain/bad.ts',
    content: "import { connect } from 'node:net';\n\nexport const a = connect;\n",
    says: /domain-is-pure/,
  },
  {
    check: 'imports',
    what: 'a service opening files itself',
    path: 'src/services/bad.ts',
    content: "import { readFileSync } from 'node:fs';\n\nexport const a = readFileSync;\n",
    says: /files-only-through-the-host/,
  },
  {
    check: 'imports',
    what: 'a service starting a process itself',
    path: 'src/services/bad.ts',
    content: "import { spawn } from 'node:child_process';\n\nexport const a = spawn;\n",
    says: /processes-only-through-the-host/,
  },
  {
    check: 'imports',
    what: 'SQLite outside the store',
    path: 'src/services/bad.ts',
    content: "import { DatabaseSync } from 'node:sqlite';\n\nexport const a = DatabaseSync;\n",
    says: /sqlite-only-in-the-store/,
  },
  {
    check: 'imports',
    what: 'the CLI loading the schemas',
    path: 'src/cli/bad.ts',
    content: "import { name } from '../services/verbs.ts';\n\nexport const a = name;\n",
    says: /only-type-imports-of-the-contract/,
  },
  {
    check: 'imports',
    what: 'a service knowing a backend',
    path: 'src/services/bad.ts',
    content: "export { q } from '../backends/qemu/q.ts';\n",
    says: /services-know-no-backend|not-unresolvable/,
  },
  { check: 'imports', what: 'a circle', path: 'src/domain/bad.ts', content: "export { c } from './bad2.ts';\n", says: /no-circle/ },
  { check: 'unused', what: 'a file nobody imports', path: 'src/domain/bad.ts', content: 'export const lonely = 1;\n', says: /bad\.ts/ },
  {
    check: 'markdown',
    what: 'a heading without a blank line',
    path: 'README.md',
    content: '# Title\nText\n## Next\nText\n',
    says: /MD022/,
  },
  { check: 'shell', what: 'an unquoted variable', path: 'tool', content: '#!/bin/sh\nrm $1\n', says: /SC2086/ },
  {
    check: 'rust',
    what: 'a needless return',
    path: 'rust/one/src/lib.rs',
    content: 'pub fn one() -> u8 {\n    return 1;\n}\n',
    says: /needless_return/,
  },
  {
    check: 'rustfmt',
    what: 'a line that is not formatted',
    path: 'rust/one/src/lib.rs',
    content: 'pub fn one()->u8 {1}\n',
    says: /Diff in/,
  },
];

/** Rust's own tools are no part of a compiler that a distribution packs. */
const isAbsent = (check: string): boolean => tools[check]?.length === 0;

describe('the checks', () => {
  for (const name of Object.keys(tools)) {
    test(`the ${name} check passes a clean house`, { skip: isAbsent(name) }, () => {
      const result = run(...(tools[name] ?? []));
      expect(result.ok, result.output).toBe(true);
    });
  }

  for (const { check, what, path, content, says } of planted) {
    test(`the ${check} check finds ${what}`, { skip: isAbsent(check) }, () => {
      if (what === 'a circle') plant('src/domain/bad2.ts', "import { c as d } from './bad.ts';\n\nexport const c = (): unknown => d;\n");
      if (content.includes('qemu/q')) plant('src/backends/qemu/q.ts', 'export const q = 1;\n');
      const before =
        path === 'README.md' || path === 'tool' || path.endsWith('.rs')
          ? spawnSync('cat', [join(house, path)], { encoding: 'utf8' }).stdout
          : null;
      plant(path, content);
      try {
        const result = run(...(tools[check] ?? []));
        expect(result.ok, `nothing found: ${result.output}`).toBe(false);
        expect(result.output).toMatch(says);
      } finally {
        if (before === null) rmSync(join(house, path));
        else plant(path, before);
        rmSync(join(house, 'src/domain/bad2.ts'), { force: true });
        rmSync(join(house, 'src/backends'), { recursive: true, force: true });
      }
    });
  }

  test('every check but that of the specification is tested with a planted violation', () => {
    const tested = new Set(planted.map((violation) => violation.check));
    expect(CHECKS.map((check) => check.name).filter((name) => !tested.has(name))).toEqual(['specification']);
  });

  test('the specification check finds a sentence without a test, and one whose test does not exist', () => {
    const names = testNames(ROOT);
    expect(problems('# S\n\n- A sentence. Proof: `the lint check passes a clean house`\n', names)).toEqual([]);
    expect(problems('# S\n\n- A sentence.\n', names)).toEqual(['no proof: - A sentence.']);
    expect(problems('# S\n\n- A sentence. Proof: `there is no such test`\n', names)).toHaveLength(1);
    expect(problems('# S\n\n- A sentence. Proof: `there: is no such test`\n', names), 'a name of placeholders alone is none').toHaveLength(
      1,
    );
    expect(problems('# S\n', names)).toHaveLength(1);
  });
});
