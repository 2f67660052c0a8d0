// A user whose shell lets nobody in, as the users of many an image are: what a login says of that is no help.

/** A longer /etc/passwd is not looked at. */
export const PASSWD_BYTES_MAX = 1024 * 1024;

/** Who logged in: a name, or a uid, with a group or without; `asked`: by whoever logged in, else it is the sandbox's own user. */
export type Login = { readonly user: string; readonly asked: boolean; readonly sandbox: string };

/** Of a login shell that ended with 1, and the sandbox's /etc/passwd: why, and what does open a shell. Null: that was not why. */
export function noLoginHint(passwd: string, { user, asked, sandbox }: Login): string | null {
  const [who = ''] = user.split(':');
  const shell = shellOf(passwd, who);
  if (shell === null || !/\/(?:nologin|false)$/.test(shell)) return null;
  const as = asked ? `-u ${who} ` : '';
  return `the shell of user ${who} is ${shell}, which lets nobody in; as root: hutch shell -u root ${sandbox}; as ${who}: hutch exec -it ${as}${sandbox} -- sh`;
}

function shellOf(passwd: string, user: string): string | null {
  const fields = passwd.split('\n').map((line) => line.split(':'));
  return fields.find(([name, , uid]) => name === user || uid === user)?.[6] ?? null;
}
