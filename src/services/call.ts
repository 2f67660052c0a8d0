// One call of a verb, as the services see it: who asks, under which operation, and how its changes
// reach the store. Always true: what is asked with an Idempotency-Key is claimed in the first commit
// of the call, and its reply is kept in the commit that decides the outcome.
import type { KeyId, ProjectId } from '../domain/ids.ts';
import type { BorrowedFile } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { Change, ChangeResults, Durability } from '../store/contract.ts';

/** Who asks. `keyId` is null for the daemon's own work. */
export type Caller = { readonly actor: string; readonly keyId: KeyId | null; readonly projectId: ProjectId };

export type Call = {
  readonly op: Operation;
  readonly caller: Caller;
  /** The Idempotency-Key of the request, if it has one. */
  readonly idempotencyKey: string | null;
  /** Where the client can read and write files of this machine as this daemon does: told which one it may use, or null. */
  readonly lend: ((file: BorrowedFile | null) => void) | null;
  /** Where a client stands that has shown to be this daemon's own user on this machine; null: it has not. */
  readonly clientDirectory: string | null;
  /** Whether somebody cancelled the operation, rather than its client having gone. */
  wasCancelled(): boolean;
  /** Says what the call works on, once that is known. */
  target(id: string): void;
  /** Commits changes under this operation. @throws whatever the store refuses, and `Repeated`. */
  commit<const T extends readonly Change[]>(changes: T, durability?: Durability): Promise<ChangeResults<T>>;
  /** The commit that decides: the operation is done with it, and who asks the same again gets `reply`. */
  conclude<const T extends readonly Change[]>(changes: T, reply: unknown): Promise<ChangeResults<T>>;
};

/**
 * Thrown by the first commit of a call that was asked before with the same Idempotency-Key: whatever
 * this one has begun is undone, and the caller gets the first one's reply. Not an error for anybody.
 */
export class Repeated extends Error {
  readonly reply: unknown;
  readonly firstOpId: string;

  constructor(firstOpId: string, reply: unknown) {
    super(`this request was made before, as ${firstOpId}`);
    this.name = 'Repeated';
    this.firstOpId = firstOpId;
    this.reply = reply;
  }
}
