import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isWithin, parseMount, showMount, targetRefusal, targetsRefusal } from './mount.ts';

test('a mount is written HOST:GUEST, with ro or rw behind it', () => {
  const value = (source: string, target: string, readOnly = false) => ({ ok: true, value: { source, target, readOnly } });
  expect(parseMount('./a:/b')).toEqual(value('./a', '/b'));
  expect(parseMount('/a:/b:ro')).toEqual(value('/a', '/b', true));
  expect(parseMount('/a:/b/:rw')).toEqual(value('/a', '/b'));
  expect(parseMount('/with:colon:/b')).toEqual(value('/with:colon', '/b'));
  for (const wrong of ['', '/a', '/a:', ':/b', '/a:b', '/a:/b:z', '/a:/b:ro:rw', `/${'a'.repeat(9_000)}:/b`])
    expect(parseMount(wrong), wrong.slice(0, 40)).toMatchObject({ ok: false, message: expect.stringContaining(wrong.slice(0, 100)) });
});

test('what is shown of a mount is what it is read from', () => {
  const path = fc.array(fc.stringMatching(/^[a-z.]{1,4}$/), { minLength: 1, maxLength: 4 }).map((parts) => `/${parts.join('/')}`);
  fc.assert(
    fc.property(path, path, fc.boolean(), (source, target, readOnly) => {
      expect(parseMount(showMount({ source, target, readOnly }))).toEqual({ ok: true, value: { source, target, readOnly } });
    }),
  );
});

test('nothing is mounted over what is the sandbox’s own, nor two things in one another', () => {
  for (const good of ['/data', '/srv/a.b/..c', '/etc/app', '/run/app', '/tmp', '/home/user']) expect(targetRefusal(good), good).toBeNull();
  for (const bad of ['data', '/', '/etc', '/run', '/proc', '/proc/1', '/dev/shm', '/run/hutch', '/.hutch/x', '/a/../etc', '/a//b', '/a/'])
    expect(targetRefusal(bad), bad).toMatch(/^must /);
  expect(targetsRefusal(['/a', '/b', '/ab'])).toBeNull();
  expect(targetsRefusal(['/a', '/b', '/a'])).toBe('/a is mounted twice');
  expect(targetsRefusal(['/a/b', '/a'])).toBe('/a and /a/b lie in one another');
  expect([isWithin('/a/b', '/a'), isWithin('/ab', '/a'), isWithin('/a', '/a'), isWithin('/x', '/')]).toEqual([true, false, true, true]);
});
