import fc from 'fast-check';
import { expect, test } from 'vitest';
import { belowHome, parseFileSync, showFileSync } from './file-sync.ts';

test('what people write down as files to put in is read, and what is none is refused with why', () => {
  expect(parseFileSync('~/.netrc:~/.netrc')).toEqual({ ok: true, value: { host: '~/.netrc', guest: '~/.netrc', mode: null } });
  expect(parseFileSync('/home/me/.aws:/root/.aws:0640')).toEqual({
    ok: true,
    value: { host: '/home/me/.aws', guest: '/root/.aws', mode: 0o640 },
  });
  for (const [text, why] of [
    ['.netrc', 'names no files'],
    ['~/a:~/b:rw', 'octal'],
    ['~/a:~/b:4755', 'octal'],
    ['a:~/b', 'on the host must be absolute'],
    ['~/a:b', 'in the sandbox must be absolute'],
    ['~/a:~/../b', 'without ..'],
  ] as const)
    expect(parseFileSync(text), text).toMatchObject({ ok: false, message: expect.stringContaining(why) });
});

test('what is shown of files to put in is read as the same', () => {
  const path = fc.stringMatching(/^~\/[a-z.]{1,9}$/).filter((text) => !text.split('/').includes('..'));
  const mode = fc.option(fc.integer({ min: 0, max: 0o777 }));
  fc.assert(
    fc.property(path, path, mode, (host, guest, mode) => {
      expect(parseFileSync(showFileSync({ host, guest, mode }))).toEqual({ ok: true, value: { host, guest, mode } });
    }),
  );
});

test('where something is put in lies below the home, or it is refused', () => {
  expect(belowHome('~', '/root')).toEqual([]);
  expect(belowHome('~/.config//gh/.', '/root')).toEqual(['.config', 'gh']);
  expect(belowHome('/root/.netrc', '/root/')).toEqual(['.netrc']);
  expect(belowHome('/root', '/root')).toEqual([]);
  expect(belowHome('/rooted/x', '/root')).toBeNull();
  expect(belowHome('/etc/passwd', '/home/me')).toBeNull();
});
