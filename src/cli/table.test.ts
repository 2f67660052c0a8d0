// What must hold of the table of verbs, and of all that is made from it.
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempDisposableSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { cliDocs } from '../../scripts/generate-cli-docs.ts';
import { readArgs } from './args.ts';
import { bashCompletion, fishCompletion, zshCompletion } from './completions.ts';
import { EXIT_CODES, exitOfError, worstExit } from './exit-codes.ts';
import { allLeaves, branchHelp, branchJson, leafHelp, leafJson, overview, overviewJson } from './help.ts';
import { isBranch } from './verb.ts';
import { alsoCalled, firstWords, LISTED, listedUnder, VERBS } from './verbs.ts';

test('there are at most 30 verbs, and each first word means one thing', () => {
  expect(LISTED.length).toBeLessThanOrEqual(30);
  for (const { under } of VERBS) if (under !== undefined) expect(VERBS.some((verb) => verb.name === under && isBranch(verb))).toBe(true);
  const also = allLeaves().flatMap(({ leaf }) => leaf.also ?? []);
  expect(also).toEqual(expect.arrayContaining(['backends', 'completion']));
  const words = [...VERBS.map(({ name }) => name), ...also];
  expect(new Set(words).size).toBe(words.length);
  for (const word of also) expect(alsoCalled(word)?.leaf.also).toBe(word);
});

test('the overview lists every verb under its group', () => {
  const text = overview();
  for (const { name, summary, group } of LISTED) {
    expect(text).toContain(`\n  ${name}`);
    expect(text).toContain(summary);
    expect(text).toContain(`${group}\n`);
  }
});

test('all that may be typed first, and all that the manual has, is in the overview', () => {
  const words = new Set(overview().match(/[a-z-]+/g));
  const manual = [...readFileSync('docs/cli.md', 'utf8').matchAll(/^### ([a-z-]+)$/gm)].map(([, verb]) => verb ?? '');
  expect(manual.length).toBeGreaterThan(30);
  expect([...manual, ...firstWords()].filter((word) => !words.has(word))).toEqual([]);
  expect(overview()).toMatch(/^ {2}also +bring, diff, .*ssh/m);
  for (const line of overview().split('\n')) if (line.startsWith('  also')) expect(line.length).toBeLessThanOrEqual(80);
  const { verbs, also } = JSON.parse(overviewJson());
  expect([...verbs, ...also].map(({ name }) => name).sort()).toEqual([...firstWords()].sort());
});

test('a verb that a group lists is in its help, and has no line of its own in the overview', () => {
  for (const verb of VERBS) {
    if (verb.under === undefined) continue;
    expect(overview()).not.toContain(`\n  ${verb.name} `);
    const group = VERBS.find(({ name }) => name === verb.under);
    if (group === undefined || !isBranch(group)) throw new Error(`${verb.under} is no group`);
    expect(branchHelp(group)).toContain(`(also: hutch ${verb.name})`);
    expect(bashCompletion()).toMatch(new RegExp(`    ${group.name}\\) subs='[^']*\\b${verb.name}\\b`));
  }
  expect(listedUnder('admin').map(({ name }) => name)).toEqual(expect.arrayContaining(['keys', 'ledger']));
});

test('the help of every verb shows an example before the flags', () => {
  for (const { path, leaf } of allLeaves()) {
    const text = leafHelp(path, leaf);
    const example = text.indexOf(`  ${leaf.examples[0]?.line}`);
    expect(example, path).toBeGreaterThan(0);
    expect(example, path).toBeLessThan(text.indexOf('\nFlags'));
  }
  for (const verb of VERBS) if (isBranch(verb)) expect(branchHelp(verb)).toContain(`hutch ${verb.name} `);
});

test('with --json help is one document that says the same', () => {
  expect(JSON.parse(overviewJson()).verbs).toEqual(LISTED.map(({ name, group, summary }) => ({ name, group, summary })));
  for (const { path, leaf } of allLeaves()) {
    const told = JSON.parse(leafJson(path, leaf));
    const text = leafHelp(path, leaf);
    expect(text).toContain(`Usage: ${told.usage}\n`);
    for (const { name, about } of told.flags)
      expect(
        text.split('\n').some((line) => line.includes(`--${name}`) && line.endsWith(about)),
        `${path} --${name}`,
      ).toBe(true);
    expect(told.examples).toEqual(leaf.examples);
  }
  for (const verb of VERBS.filter(isBranch))
    for (const { name, summary } of JSON.parse(branchJson(verb)).verbs)
      expect(
        branchHelp(verb)
          .split('\n')
          .some((line) => line.startsWith(`  ${name} `) && line.includes(summary)),
        name,
      ).toBe(true);
});

/** In a shell line the words of the `hutch` that is this verb. */
function ownWords(line: string, path: string): string[] {
  const words: readonly string[] =
    line
      .replace(/ > \S+$/, '')
      .replace(/(\bhutch .*?) \| .*$/, '$1')
      .match(/'[^']*'|"[^"]*"|[^\s()|<>$]+/g) ?? [];
  const verb = path.split(' ')[0];
  const own = words.slice(words.findIndex((word, at) => word === 'hutch' && words[at + 1] === verb) + 1);
  const inner = own.indexOf('hutch');
  return (inner < 0 ? own : [...own.slice(0, inner), 'what-it-prints']).map((word) => word.replaceAll(/^['"]|['"]$/g, ''));
}

test('every example can be read, and its verb exists', () => {
  const takesWords = new Set(
    VERBS.filter(isBranch).flatMap(({ name, fallback, fallbackTakes }) => (fallbackTakes === 'words' ? [`${name} ${fallback}`] : [])),
  );
  for (const { path, leaf } of allLeaves()) {
    for (const { line } of leaf.examples) {
      const words = ownWords(line, leaf.also ?? path);
      // Of a group that takes words for its first leaf: `hutch ports web`.
      const [group = ''] = path.split(' ');
      const isShort = takesWords.has(path) && words[0] === group && words[1] !== path.split(' ')[1];
      const typed = isShort ? group : (leaf.also ?? path);
      const given = words.slice(typed.split(' ').length);
      expect(words.slice(0, typed.split(' ').length).join(' '), line).toBe(typed);
      expect(() => readArgs(path, leaf, given), line).not.toThrow();
    }
  }
});

test('flags of a verb have one meaning', () => {
  for (const { path, leaf } of allLeaves()) {
    const names = leaf.flags.flatMap(({ name, short }) => [name, ...(short === undefined ? [] : [short])]);
    expect(new Set(names).size, path).toBe(names.length);
    expect(names, path).not.toContain('json');
  }
});

test('exit codes are distinct, and every error has one', () => {
  const codes = Object.values(EXIT_CODES).map(({ code }) => code);
  expect(new Set(codes).size).toBe(codes.length);
  expect(exitOfError('not_found')).toBe(3);
  expect(exitOfError('cancelled')).toBe(130);
  expect(worstExit([0, 3, 0])).toBe(3);
  expect(worstExit([3, 7, 4])).toBe(7);
  expect(worstExit([])).toBe(0);
});

test('completions are understood by their shells', () => {
  using dir = mkdtempDisposableSync(join(tmpdir(), 'hutch-completion-'));
  // As a file: fish takes no program from its input that it is not to run.
  const check = (shell: string, script: string) => {
    writeFileSync(join(dir.path, 'script'), script);
    return spawnSync(shell, ['-n', join(dir.path, 'script')], { encoding: 'utf8' });
  };
  expect(check('bash', bashCompletion()).stderr).toBe('');
  for (const [shell, script] of [
    ['zsh', zshCompletion()],
    ['fish', fishCompletion()],
  ] as const) {
    const result = check(shell, script);
    if (result.error === undefined) expect(result.stderr).toBe(''); // where there is such a shell
  }
});

test('bash completes verbs, flags, their values, files, and names by the program that was typed', () => {
  using dir = mkdtempDisposableSync(join(tmpdir(), 'hutch-completion-'));
  writeFileSync(join(dir.path, 'my env'), '');
  mkdirSync(join(dir.path, 'my dir'));
  writeFileSync(
    join(dir.path, 'hutch'),
    '#!/bin/sh\necho "$1-$2-two"; echo two; echo three; case $2 in image) echo web:1; echo web:2 ;; esac\n',
    { mode: 0o755 },
  );
  /** Bash makes words of "=" and ":" before it asks. */
  const complete = (line: string) => {
    const words = ['./hutch', ...line.split(/ |(?<==)|(?==)|(?<=:)|(?=:)/)];
    const script = `${bashCompletion()}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _hutch; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout, stderr } = spawnSync('bash', ['--norc', '-c', script, 'bash', ...words], { encoding: 'utf8', cwd: dir.path });
    expect(stderr).toBe('');
    return stdout.split('\n').filter((word) => word !== '');
  };
  expect(complete('ins')).toEqual(['inspect']);
  expect(complete('back')).toEqual(['backends']);
  expect(complete('config completion f')).toEqual(['fish']);
  expect(complete('ops c')).toEqual(['cancel']);
  expect(complete('run --mem')).toEqual(['--memory']);
  expect(complete('ledger export --for')).toEqual(['--format']);
  expect(complete('ledger export --format ')).toEqual(['hutch', 'cocoon']);
  expect(complete('run --backend=g')).toEqual(['gvisor']);
  expect(complete('completion f')).toEqual(['fish']);
  expect(complete('run --env-file my')).toEqual(['my dir', 'my env']);
  expect(complete('run --secret-file TOKEN=my')).toEqual(['my dir', 'my env']);
  expect(complete('stop tw')).toEqual(['two']);
  expect(complete('stop two th')).toEqual(['three']);
  expect(complete('stop __')).toEqual(['__complete-sandbox-two']);
  expect(complete('ops cancel __')).toEqual(['__complete-operation-two']);
  expect(complete('keys revoke __')).toEqual(['__complete-key-two']);
  expect(complete('image inspect __')).toEqual(['__complete-image-two']);
  expect(complete('run --image tw')).toEqual(['two']);
  expect(complete('image rm web:1 we')).toEqual(['web:1', 'web:2']);
  // What stands before the colon is a word of its own, and stays.
  expect(complete('image history web:')).toEqual(['1', '2']);
  expect(complete('image history web:2')).toEqual(['2']);
  expect(complete('image history web:2 we')).toEqual([]);
  expect(complete('logs -n 3 tw')).toEqual(['two']);
  expect(complete('cp my')).toEqual(['my dir', 'my env']);
  expect(complete('cp tw')).toEqual(['two:']);
  // Nothing of ours stands in a sandbox's own command, in its file system, or behind what takes one name.
  expect(complete('cp two:my')).toEqual([]);
  expect(complete('exec two tw')).toEqual([]);
  expect(complete('run -- tw')).toEqual([]);
  expect(complete('run --name tw')).toEqual([]);
});

/** A program of our name that knows one sandbox; and what the shells themselves make of a line. */
const ASKED = [
  ['hutch imag', 'image'],
  ['hutch ledger ver', 'verify'],
  ['hutch run --back', '--backend'],
  ['hutch run --backend gv', 'gvisor'],
  ['hutch exec tw', 'two-of-sandbox'],
] as const;

function binOf(dir: string, completion: string): NodeJS.ProcessEnv {
  writeFileSync(join(dir, 'hutch'), '#!/bin/sh\necho "two-of-$2"\n', { mode: 0o755 });
  writeFileSync(join(dir, 'completion'), completion);
  return { ...process.env, PATH: `${dir}:${process.env['PATH']}`, HOME: dir };
}

test('fish completes verbs, their parts, flags, values and names', (here) => {
  using dir = mkdtempDisposableSync(join(tmpdir(), 'hutch-completion-'));
  const env = binOf(dir.path, fishCompletion());
  for (const [line, whole] of ASKED) {
    const script = `source ${dir.path}/completion; complete -C '${line}'`;
    const { stdout, error } = spawnSync('fish', ['--no-config', '-c', script], { encoding: 'utf8', env });
    if (error !== undefined) here.skip('there is no fish');
    expect(stdout.split('\n').map((row) => row.split('\t')[0])).toContain(whole);
  }
});

test('zsh completes verbs, their parts, flags, values and names, at its own prompt', { timeout: 60_000 }, (here) => {
  using dir = mkdtempDisposableSync(join(tmpdir(), 'hutch-completion-'));
  const env = binOf(dir.path, zshCompletion());
  // A terminal of zsh's own; what is written there is waited for.
  const script = [
    'zmodload zsh/zpty; zpty z zsh -f -i',
    `zpty -w z "PS1='> '; autoload -Uz compinit; compinit -u -D; source ${dir.path}/completion; bindkey '^I' expand-or-complete; echo rea''dy"`,
    "zpty -r z out '*ready*'",
    ...ASKED.flatMap(([line, whole]) => [
      `zpty -w -n z '${line}'$'\t'`,
      `zpty -r z out '*${whole}*' && print got:${whole}; zpty -w -n z $'\x15'`,
    ]),
    'zpty -d z',
  ].join('\n');
  const { stdout, error } = spawnSync('zsh', ['-f', '-c', script], { encoding: 'utf8', env, timeout: 50_000, killSignal: 'SIGKILL' });
  if (error !== undefined && 'code' in error && error.code === 'ENOENT') here.skip('there is no zsh');
  expect(stdout.split('\n').filter((row) => row.startsWith('got:'))).toEqual(ASKED.map(([, whole]) => `got:${whole}`));
});

test('completions for zsh use no variable that means something to it', () => {
  const locals = /^ {2}local (.*)$/m.exec(zshCompletion())?.[1]?.split(' ') ?? [];
  expect(locals).toContain('cur');
  // `local path` empties PATH there; the others are read-only or tied as well.
  for (const tied of ['path', 'fpath', 'status', 'argv', 'options', 'words', 'commands', 'functions']) expect(locals).not.toContain(tied);
});

test('docs/cli.md is what the table says', () => {
  expect(readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8')).toBe(cliDocs());
});
