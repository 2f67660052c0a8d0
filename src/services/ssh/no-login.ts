// What a session of SSH says where its user's shell lets nobody in: such a shell says nothing of use, or nothing at all.
import { HutchError } from '../../domain/errors.ts';
import { noLoginHint, PASSWD_BYTES_MAX } from '../../domain/no-login.ts';
import type { Operation } from '../../host/operation.ts';
import type { Served } from './served.ts';

const LOOK_MS = 5_000;

/** After a shell that ended with 1. `user` null: the sandbox's own. Null: that was not why, or it cannot be told in time. */
export async function whyNoLogin(op: Operation, { agent, name, ownUser }: Served, user: string | null): Promise<string | null> {
  using look = op.within(LOOK_MS, 'a look at /etc/passwd');
  try {
    const who = user ?? (await ownUser());
    if (who === null) return null;
    const { bytes } = await agent.file.read(look, { path: '/etc/passwd', length: PASSWD_BYTES_MAX });
    const parts: Buffer[] = [];
    for await (const part of bytes) parts.push(Buffer.from(part)); // a copy: what comes next may lie in the same memory
    return noLoginHint(Buffer.concat(parts).toString(), { user: who, asked: user !== null, sandbox: name });
  } catch (cause) {
    if (!(cause instanceof HutchError)) throw cause;
    op.log.debug({ cause }, 'why a shell ended at once is not known');
    return null;
  }
}
