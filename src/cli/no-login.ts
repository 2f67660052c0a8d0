// A user whose shell lets nobody in, as the users of many an image are: what a login says of that is no help.
import { HutchError } from '../domain/errors.ts';
import { Sandbox } from '../sdk/sandbox.ts';
import { ask, type Context } from './context.ts';
import { safe } from './output.ts';

const PASSWD_BYTES_MAX = 1024 * 1024;

/** Of the file /etc/passwd: the shell of `user`, a name or a uid; null: it has no line. */
export function shellOf(passwd: string, user: string): string | null {
  const fields = passwd.split('\n').map((line) => line.split(':'));
  return fields.find(([name, , uid]) => name === user || uid === user)?.[6] ?? null;
}

/** After a login shell that ended with 1: whether that is why, and what does open a shell. `user` null: the sandbox's own. */
export async function tellNoLogin(context: Context, ref: string, user: string | null): Promise<void> {
  try {
    const sandbox = new Sandbox(context.client, await ask(context, 'sandbox.get', { ref }), async () => {});
    const [who = ''] = (user ?? sandbox.info.user ?? sandbox.info.imageConfig?.user ?? '').split(':');
    if (who === '') return;
    const passwd = await sandbox.files.readText('/etc/passwd');
    const shell = passwd.length > PASSWD_BYTES_MAX ? null : shellOf(passwd, who);
    if (shell === null || !/\/(?:nologin|false)$/.test(shell)) return;
    const { name } = sandbox;
    await context.io.err(
      `hint: ${safe(`the shell of user ${who} is ${shell}, which lets nobody in; as root: hutch shell -u root ${name}; as ${who}: hutch exec -it ${name} -- sh`)}\n`,
    );
  } catch (error) {
    if (!(error instanceof HutchError)) throw error; // no more than a hint
  }
}
