// Large files of a sandbox whose processes this host sees are not carried through agent, daemon and sockets to a client
// of this machine: it is lent the file itself. The agent opens it, with the rights of the user who asks; the client reads or
// writes it where it lies.
import type { BorrowedFile, Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** A client that was told of a file opens it within this time, or asks for its bytes instead. */
const TAKEN_WITHIN_MS = 2_000;

/** Null where it is not to be had: then its bytes are carried. */
export async function borrow(
  host: Host,
  op: Operation,
  run: Run,
  descriptor: number,
  access: 'read' | 'write',
): Promise<BorrowedFile | null> {
  try {
    const path = await run.backend.descriptorPath?.(op, run.plan, descriptor);
    return path === undefined || path === null ? null : await host.borrowFile(op, path, access);
  } catch (cause) {
    if (op.signal.aborted) throw cause;
    op.log.debug({ sandbox: run.id, cause }, 'a file could not be lent');
    return null;
  }
}

/** Once the client, who has a descriptor of its own then, has had its time. */
export function closeLater(file: BorrowedFile): void {
  setTimeout(() => void file[Symbol.asyncDispose](), TAKEN_WITHIN_MS).unref();
}

export async function* nothingMore(): AsyncGenerator<Uint8Array, void, undefined> {}
