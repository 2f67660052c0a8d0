// What a login shell that lets nobody in leaves unsaid.
import { HutchError } from '../domain/errors.ts';
import { noLoginHint, PASSWD_BYTES_MAX } from '../domain/no-login.ts';
import { Sandbox } from '../sdk/sandbox.ts';
import { ask, type Context } from './context.ts';
import { safe } from './output.ts';

/** After a login shell that ended with 1: whether that is why, and what does open a shell. `user` null: the sandbox's own. */
export async function tellNoLogin(context: Context, ref: string, user: string | null): Promise<void> {
  try {
    const sandbox = new Sandbox(context.client, await ask(context, 'sandbox.get', { ref }), async () => {});
    const who = user ?? sandbox.info.user ?? sandbox.info.imageConfig?.user ?? '';
    if (who === '') return;
    const passwd = await sandbox.files.readText('/etc/passwd');
    const hint = passwd.length > PASSWD_BYTES_MAX ? null : noLoginHint(passwd, { user: who, asked: user !== null, sandbox: sandbox.name });
    if (hint !== null) await context.io.err(`hint: ${safe(hint)}\n`);
  } catch (error) {
    if (!(error instanceof HutchError)) throw error; // no more than a hint
  }
}
