// A program of ours in a guest: what cannot be run, or fails, is in the log, as a guest without it has, as a rule, nothing that it
// is for.
import type { Operation } from '../host/operation.ts';
import { OWN_PROCESS } from './bring-up.ts';
import type { Run } from './run.ts';

const SAID_CHARS_MAX = 400;

/** `what` is its id: it runs once. */
export async function inGuest(op: Operation, run: Run, what: string, argv: readonly string[]): Promise<void> {
  try {
    const id = `${OWN_PROCESS}${what}`;
    using process = await run.link.start(op, { id, argv: [...argv], user: 'root', stdin: 'null', whenUnread: 'drop' });
    let said = '';
    for await (const item of process.items(op)) {
      if (item.type === 'output') said = `${said}${new TextDecoder().decode(item.bytes)}`.slice(0, SAID_CHARS_MAX);
      if (item.type !== 'exit') continue;
      if (said !== '') op.log.warn({ sandbox: run.id, what, said }, 'a program of ours in a guest had something to say');
      return;
    }
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.warn({ sandbox: run.id, what, cause }, 'a program of ours did not run in a guest');
  }
}
