// The places of clients in the output of their commands, which stay theirs for a while when their connections break.
// Always true: such a place holds back its command, which goes on writing only as far as the guest keeps it, until the
// client comes again or its time is up.
import type { LinkedProcess } from '../guest/linked-process.ts';

/** As long as an agent keeps the place of a daemon that was lost. */
const KEPT_MS = 30_000;

export type Place = {
  /** Its client was lost, and may come again. */
  keep(): void;
  /** Nobody reads there any more. */
  leave(): void;
};

/** `timer`: its client is lost. `isTaken`: somebody reads on from there, who came before we heard of the loss. */
type Entry = { readonly process: LinkedProcess; timer: NodeJS.Timeout | null; isTaken: boolean };

export class KeptPlaces implements Disposable {
  readonly #entries = new Set<Entry>();

  /** Where a client reads. */
  enter(process: LinkedProcess): Place {
    const entry: Entry = { process, timer: null, isTaken: false };
    this.#entries.add(entry);
    return {
      keep: () => {
        if (entry.isTaken) return this.#leave(entry);
        entry.timer = setTimeout(() => this.#leave(entry), KEPT_MS);
        entry.timer.unref();
      },
      leave: () => this.#leave(entry),
    };
  }

  /** Somebody reads a command's output from these offsets on: that is whoever was lost there, or will prove to be. */
  resumed(execId: string, from: { readonly stdout: number; readonly stderr: number }): void {
    for (const entry of this.#entries) {
      const { id, offsets } = entry.process;
      if (id !== execId || from.stdout > offsets.stdout || from.stderr > offsets.stderr) continue;
      entry.isTaken = true;
      if (entry.timer !== null) this.#leave(entry);
    }
  }

  #leave(entry: Entry): void {
    clearTimeout(entry.timer ?? undefined);
    this.#entries.delete(entry);
    entry.process[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    for (const entry of this.#entries) if (entry.timer !== null) this.#leave(entry);
  }
}
