// Whose turn it is on a sandbox, or a volume: what changes one happens one after the other, in the order in which
// it was asked for; different sandboxes do not know of each other. A turn that hangs holds up nobody
// for longer than their own deadline.
import type { OpId, SandboxId, VolumeId } from '../domain/ids.ts';
import type { Operation } from '../host/operation.ts';
import { waitFor } from './operations.ts';

type Line = { last: Promise<void>; waiting: number; holder: OpId | null };

/** Turns that may wait on one sandbox. */
const WAITING_MAX = 256;

export class Turns {
  readonly #lines = new Map<SandboxId | VolumeId, Line>();

  /** Runs `work` when everything that was asked before on this sandbox is over. */
  async take<T>(op: Operation, id: SandboxId | VolumeId, work: () => Promise<T>): Promise<T> {
    const line = this.#lines.get(id) ?? { last: Promise.resolve(), waiting: 0, holder: null };
    this.#lines.set(id, line);
    if (line.waiting >= WAITING_MAX) throw op.error('resource_exhausted', `${WAITING_MAX} calls are waiting for ${what(id)} already`);
    const before = line.last;
    const over = Promise.withResolvers<void>();
    // Who gives up before its turn still stands in line: the next one must wait for those before it.
    line.last = before.then(() => over.promise);
    line.waiting += 1;
    try {
      await waitFor(op, before, `what is under way on ${what(id)}${line.holder === null ? '' : ` (${line.holder})`}`);
      line.holder = op.id;
      return await work();
    } finally {
      if (line.holder === op.id) line.holder = null;
      line.waiting -= 1;
      over.resolve();
      if (line.waiting === 0) this.#lines.delete(id);
    }
  }

  /** The operation that has its turn on the sandbox now. */
  holder(id: SandboxId): OpId | null {
    return this.#lines.get(id)?.holder ?? null;
  }
}

function what(id: SandboxId | VolumeId): string {
  return `${id.startsWith('vol') ? 'volume' : 'sandbox'} ${id}`;
}
