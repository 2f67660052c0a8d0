import { expect, test } from 'vitest';
import { shellOf } from './no-login.ts';

test('the shell of a user is found by name and by uid', () => {
  const passwd = 'root:x:0:0:root:/root:/bin/bash\nsvc:x:999:999::/srv:/usr/sbin/nologin\nshort:x:5\n';
  expect(['root', 'svc', '999', 'short', 'none'].map((user) => shellOf(passwd, user))).toEqual([
    '/bin/bash',
    '/usr/sbin/nologin',
    '/usr/sbin/nologin',
    null,
    null,
  ]);
});
