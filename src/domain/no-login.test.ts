import { expect, test } from 'vitest';
import { noLoginHint } from './no-login.ts';

test('a user whose shell lets nobody in is found by name and by uid, and told what does open a shell', () => {
  const passwd = 'root:x:0:0:root:/root:/bin/bash\nsvc:x:999:999::/srv:/usr/sbin/nologin\nshort:x:5\nno:x:7:7::/:/bin/false\n';
  const hint = (user: string, asked = false): string | null => noLoginHint(passwd, { user, asked, sandbox: 'box' });
  expect(['root', 'short', 'none', ''].map((user) => hint(user))).toEqual([null, null, null, null]);
  const said = (who: string, shell: string, as: string): string =>
    `the shell of user ${who} is ${shell}, which lets nobody in; as root: hutch shell -u root box; as ${who}: hutch exec -it ${as}box -- sh`;
  expect(hint('svc')).toBe(said('svc', '/usr/sbin/nologin', ''));
  expect(hint('999:999')).toBe(said('999', '/usr/sbin/nologin', ''));
  expect(hint('no', true)).toBe(said('no', '/bin/false', '-u no '));
});
