// Command lines, as docker's users type them.
import { expect, test } from 'vitest';
import { type Args, readArgs } from './args.ts';
import type { Leaf } from './verb.ts';

const leaf: Leaf = {
  name: 'try',
  summary: '',
  examples: [],
  flags: [
    { name: 'rm', about: '' },
    { name: 'tty', short: 't', about: '' },
    { name: 'interactive', short: 'i', about: '' },
    { name: 'env', short: 'e', value: 'K=V', repeats: true, about: '' },
    { name: 'name', value: 'NAME', about: '' },
  ],
  positionals: [],
  command: 'optional',
  load: async () => async () => 0,
};
const withSandbox: Leaf = { ...leaf, positionals: [{ name: 'SANDBOX', takes: 'one' }], command: 'required' };

function read(of: Leaf, line: string): Args {
  return readArgs('try', of, line.split(' '));
}

test('the command begins at --, or at the first word that is no flag, and is left as it is', () => {
  for (const line of ['--rm -it -- ls -l --rm', '--rm -it ls -l --rm']) {
    const args = read(leaf, line);
    expect([args.has('rm'), args.has('tty'), args.has('interactive')]).toEqual([true, true, true]);
    expect(args.command).toEqual(['ls', '-l', '--rm']);
  }
  expect(read(leaf, '-- -x').command).toEqual(['-x']);
  expect(read(leaf, '-- -- x').command).toEqual(['--', 'x']);
});

test('a lone word where a name is made is not taken for a command, and both ways to say it are told', () => {
  const makes: Leaf = { ...leaf, loneWord: 'name' };
  for (const line of ['dev', 'dev --name x', '-t dev -e A=1', '--rm dev --env=A=1', 'dev -- ls'])
    expect(() => read(makes, line), line).toThrow(expect.objectContaining({ code: 'invalid_argument' }));
  expect(() => read(makes, '--rm dev -t')).toThrow(
    expect.objectContaining({ hint: 'like: hutch try --name dev --rm -t; to run it: hutch try --rm -- dev -t' }),
  );
  for (const line of ['-- dev', 'sleep 1000', '/bin/dev', 'top -b', '--rm -- dev --name x', '--rm'])
    expect(() => read(makes, line), line).not.toThrow();
  expect(read(leaf, 'dev').command).toEqual(['dev']);
});

test('a flag of ours that went to the command is known, so that it can be told when there is no such program', () => {
  const swallowed = (line: string): string | null => read(leaf, line).swallowed;
  expect(swallowed('nosuch --name dev')).toBe('--name');
  expect(swallowed('nosuch -x -t')).toBe('-t');
  for (const line of ['-- nosuch --name dev', 'ls -l', '--name dev ls']) expect(swallowed(line), line).toBeNull();
});

test('values are given by =, by the next word, or behind a short flag', () => {
  const args = read(leaf, '--name=a -e A=1 -eB=2 --env C=3 --env=D=4=5 x');
  expect(args.value('name')).toBe('a');
  expect(args.values('env')).toEqual(['A=1', 'B=2', 'C=3', 'D=4=5']);
  expect(args.command).toEqual(['x']);
});

test('after the sandbox comes the command, with -- or without', () => {
  for (const line of ['-it box -- sh -c x', '-it box sh -c x', '-it -- box sh -c x']) {
    const args = read(withSandbox, line);
    expect(args.positionals).toEqual(['box']);
    expect(args.command).toEqual(['sh', '-c', 'x']);
  }
});

test('what is wrong is named', () => {
  expect(() => read(leaf, '--nmae x')).toThrow('hutch try has no flag --nmae');
  expect(() => read(leaf, '--name')).toThrow('--name needs a value: --name NAME');
  expect(() => read(leaf, '--rm=maybe')).toThrow('--rm takes no value');
  expect(() => read(withSandbox, 'box')).toThrow('needs a command');
  expect(() => readArgs('try', withSandbox, [])).toThrow('needs SANDBOX');
  expect(() => read({ ...leaf, command: undefined as never }, 'extra')).toThrow("does not take 'extra'");
});

test('a switch can be turned off again', () => {
  expect(read(leaf, '--rm --rm=false x').has('rm')).toBe(false);
});
