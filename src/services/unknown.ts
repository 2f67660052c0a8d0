// What lies in a directory whose entries are on record, each by its name, and is on none.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

/** A directory that is not there has nothing of that kind. */
export async function removeUnknown(op: Operation, host: Host, dir: string, known: ReadonlySet<string>): Promise<void> {
  if ((await host.stat(op, dir)) === null) return;
  for (const name of await host.list(op, dir)) if (!known.has(name)) await host.remove(op, `${dir}/${name}`);
}
