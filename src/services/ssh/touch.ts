// When a file was changed, over SSH: a program of the sandbox's sets it, as the agent has no word for it. It is no command of the
// user's: it is in no list of them, and nothing is kept to undo it.
import { startFailureCode } from '../../guest/exit-code.ts';
import type { Operation } from '../../host/operation.ts';
import { OWN_PROCESS } from '../bring-up.ts';
import type { Served } from './served.ts';

type Touched = { readonly user: string | null; readonly path: string; readonly seconds: number };

/** @throws HutchError `failed_precondition` where it cannot be set. */
export async function touch(op: Operation, served: Pick<Served, 'agent' | 'processId'>, what: Touched): Promise<void> {
  if ((await codeOf(op, served, what)) === 0) return;
  throw op.error('failed_precondition', `the time of ${what.path} cannot be set`, { hint: 'the sandbox needs the program touch' });
}

/** Null: a signal ended it. */
async function codeOf(
  op: Operation,
  { agent, processId }: Pick<Served, 'agent' | 'processId'>,
  { user, path, seconds }: Touched,
): Promise<number | null> {
  const spec = {
    id: `${OWN_PROCESS}${processId()}`,
    argv: ['touch', '-c', '-m', '-d', `@${seconds}`, '--', path],
    stdin: 'null',
    whenUnread: 'drop',
    ...(user === null ? {} : { user }),
  } as const;
  const started = await agent.process.start(op, spec).catch((cause: unknown) => {
    const code = startFailureCode(cause);
    if (code === null) throw cause;
    return code;
  });
  if (typeof started === 'number') return started;
  using process = started.process;
  for await (const item of process.items(op)) if (item.type === 'exit') return item.exit.code;
  return null;
}
