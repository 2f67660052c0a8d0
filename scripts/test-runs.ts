// docs/test-runs.md: the last long run of each part, a section each. A run writes the sections of what it ran and leaves
// the others as they are, so that the parts can be run one at a time. The lab's own section is the last.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';

export const TEST_RUNS = 'docs/test-runs.md';
const LAST = 'The lab';
/** A test file that took no longer is not named by itself. */
const FILE_SECONDS_MIN = 60;

const PREFACE = `# Long test runs

\`./dev test --long\` tries everything of which \`./dev test\` tries a sample. Each section is the last long run of one part;
\`./dev test --long FILE\` runs one. Failures stand where they happened, mended or not.
`;

export type FileRun = {
  /** Below the checkout. */
  readonly file: string;
  readonly tests: readonly { readonly title: string; readonly outcome: 'passed' | 'failed' | 'not run'; readonly seconds: number }[];
};
export type PartRun = { readonly name: string; readonly passed: number; readonly failures: readonly string[]; readonly seconds: number };

/** `unsteady`: of the tests that failed, those that passed when they ran alone. */
export function recordRun(run: { parts: readonly PartRun[]; files: readonly FileRun[]; unsteady: readonly string[]; seed: number }): void {
  const where = `Commit ${commit()}, ${new Date().toISOString().slice(0, 16)}Z, seed ${run.seed}, ${availableParallelism()} processors, ${Math.round(totalmem() / 2 ** 30)} GiB.`;
  const long = run.files.filter(({ tests }) => run.parts.length === 0 || sum(tests) >= FILE_SECONDS_MIN);
  const others = run.files.filter((file) => !long.includes(file));
  write([
    ...run.parts.map(({ name, passed, failures, seconds }) => [name, partText(passed, failures, seconds, where)] as const),
    ...long.map((file) => [file.file, fileText(file, where, run.unsteady)] as const),
    ...(others.length === 0 ? [] : [['All other tests', othersText(others, where, run.unsteady)] as const]),
  ]);
}

function partText(passed: number, failures: readonly string[], seconds: number, where: string): string {
  return [
    `${passed} passed, ${failures.length} failed in ${took(seconds)}. ${where}`,
    ...list(failures.map((name) => `failed: ${name}`)),
  ].join('\n');
}

function fileText({ tests }: FileRun, where: string, unsteady: readonly string[]): string {
  return [
    `${counts(tests)} in ${took(sum(tests))}. ${where}`,
    ...list(tests.map(({ title, outcome, seconds }) => `${said(title, outcome, unsteady)}${plain(title)} (${took(seconds)})`)),
  ].join('\n');
}

function othersText(files: readonly FileRun[], where: string, unsteady: readonly string[]): string {
  const tests = files.flatMap((file) => file.tests);
  const lines = tests
    .filter(({ outcome }) => outcome !== 'passed')
    .map(({ title, outcome }) => `${said(title, outcome, unsteady)}${plain(title)}`);
  return [`${counts(tests)} in ${files.length} files and ${took(sum(tests))}. ${where}`, ...list(lines)].join('\n');
}

function said(title: string, outcome: FileRun['tests'][number]['outcome'], unsteady: readonly string[]): string {
  if (outcome === 'passed') return '';
  return outcome === 'failed' && unsteady.some((name) => name.endsWith(title)) ? 'failed among the others, passed alone: ' : `${outcome}: `;
}

/** A title may have what Markdown would read. */
const plain = (title: string): string => title.replaceAll(/[\\`*_<[\]]/g, '\\$&').replaceAll('\n', ' ');
const sum = (tests: FileRun['tests']): number => tests.reduce((all, { seconds }) => all + seconds, 0);
const took = (seconds: number): string => (seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} minutes`);
const list = (lines: readonly string[]): string[] => (lines.length === 0 ? [] : ['', ...lines.map((line) => `- ${line}`)]);

function counts(tests: FileRun['tests']): string {
  const of = (outcome: string): number => tests.filter((test) => test.outcome === outcome).length;
  return `${of('passed')} passed, ${of('failed')} failed${of('not run') === 0 ? '' : `, ${of('not run')} not run`}`;
}

function commit(): string {
  return spawnSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).stdout.trim();
}

function write(sections: readonly (readonly [title: string, text: string])[]): void {
  writeFileSync(TEST_RUNS, merged(existsSync(TEST_RUNS) ? readFileSync(TEST_RUNS, 'utf8') : '', sections));
}

/** The page with these sections in place of those of the same title. */
export function merged(page: string, sections: readonly (readonly [title: string, text: string])[]): string {
  const kept = page
    .split(/^## /m)
    .slice(1)
    .map((section) => {
      const end = section.indexOf('\n');
      return [section.slice(0, end), section.slice(end).trim()] as const;
    });
  const all = new Map([...kept, ...sections]);
  const last = all.get(LAST);
  all.delete(LAST);
  const ordered = [...all, ...(last === undefined ? [] : [[LAST, last] as const])];
  return [PREFACE, ...ordered.map(([title, text]) => `## ${title}\n\n${text}\n`)].join('\n');
}
