// hutch shell: a login shell of the user's own in a sandbox.
import { LOGIN_SHELL } from '../../domain/shells.ts';
import type { ExecRequest } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { stdinKind } from '../io.ts';
import { tellNoLogin } from '../no-login.ts';
import { environment } from '../spec.ts';
import { ourTerminal } from '../stdio.ts';
import { parseDetachKeys } from '../terminal.ts';
import { carryExec } from './exec.ts';

export async function run(context: Context, args: Args): Promise<number> {
  if (context.json) throw usage('hutch shell is for people and has no --json', `a program runs: hutch exec --json ${args.first()} -- CMD`);
  const kind = stdinKind();
  const tty = kind === 'terminal';
  const env = await environment(context, args);
  const workdir = args.value('workdir');
  const user = args.value('user');
  const request: ExecRequest = {
    argv: [...LOGIN_SHELL],
    stdin: kind === 'nothing' ? 'null' : 'open',
    ...(tty ? { terminal: ourTerminal(context) } : {}),
    ...(Object.keys(env).length === 0 ? {} : { env }),
    ...(workdir === undefined ? {} : { cwd: workdir }),
    ...(user === undefined ? {} : { user }),
  };
  const input = kind === 'nothing' ? 'none' : kind;
  const stdio = { tty, input, terminal: tty ? ourTerminal(context) : null } as const;
  const detachKeys = parseDetachKeys(args.value('detach-keys'));
  const code = await carryExec(context, args.first(), request, stdio, { detachKeys, detach: false });
  if (code === 1) await tellNoLogin(context, args.first(), user ?? null);
  return code;
}
