import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { secretsOf } from './secrets.ts';

test('a secret of a build comes from a file or a variable by the rules of docker build, and one that is not there is named', () => {
  const dir = mkdtempSync(join(tmpdir(), 'hutch-secrets-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const file = join(dir, 'a,b');
  writeFileSync(file, 'of the file\n');
  const env = { TOKEN: 'of TOKEN', OTHER: 'of OTHER', EMPTY: '' };
  const value = (text: string) => [...secretsOf(env, [text])].map(([id, content]) => `${id}: ${content}`)[0];
  expect(value(`id=a,"src=${file}"`)).toBe('a: of the file\n');
  expect(value(`type=file,id=a,"source=${file}"`)).toBe('a: of the file\n');
  expect(value('id=a,env=OTHER')).toBe('a: of OTHER');
  expect(value('id=a,type=env,src=OTHER')).toBe('a: of OTHER');
  expect(value('id=a,type=env,env=EMPTY')).toBe('a: ');
  expect(value('id=TOKEN')).toBe('TOKEN: of TOKEN');
  expect(value('type=env,id=TOKEN')).toBe('TOKEN: of TOKEN');
  expect(value('id=package.json')).toMatch(/^package.json: {/); // no such variable: the file
  expect([...secretsOf(env, ['id=TOKEN', 'id=b,env=OTHER']).keys()]).toEqual(['TOKEN', 'b']);
  for (const [text, said] of [
    ['src=x', /id is missing/],
    ['id=a/b,src=x', /an id has/],
    ['id=a,type=ssh', /type is file or env, not ssh/],
    ['id=a,file=x', /"file=x" is none of id=/],
    ['token', /"token" is none of id=/],
    ['id=nothing-here', /neither a variable nothing-here nor a file nothing-here/],
    ['id=nothing,type=env', /the variable nothing is not set/],
    ['id=a,env=NOTHING', /the variable NOTHING is not set/],
    ['id=a,src=/nowhere/x', /\/nowhere\/x cannot be read/],
    ['id=TOKEN,type=file', /there is no file TOKEN here/],
  ] as const)
    expect(() => secretsOf(env, [text]), text).toThrow(said);
});
