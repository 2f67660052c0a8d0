// The store as it was before an upgrade: copied while no daemon has it, put back when the old release must be able to read
// it again. A store has a log beside it (`-wal`) when its daemon was killed; the two belong together.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const WAL = '-wal';

export function copyPathOf(storePath: string): string {
  return `${storePath}.before-upgrade`;
}

/** Null where there is no store yet. The caller has made sure that no daemon has it. */
export async function copyStore(op: Operation, host: Host, storePath: string): Promise<string | null> {
  const copy = copyPathOf(storePath);
  await removeCopy(op, host, storePath);
  if ((await host.stat(op, storePath)) === null) return null;
  if ((await host.stat(op, `${storePath}${WAL}`)) !== null) await cloned(op, host, `${storePath}${WAL}`, `${copy}${WAL}`);
  // The store last: a copy of that name is whole.
  await cloned(op, host, storePath, copy);
  return copy;
}

/** May be repeated from the beginning, whatever interrupted it. */
export async function putBack(op: Operation, host: Host, storePath: string, copy: string): Promise<void> {
  const beside = `${storePath}.put-back`;
  await cloned(op, host, copy, beside);
  // A log of the newer store must not meet the older one.
  await host.remove(op, `${storePath}${WAL}`);
  await host.rename(op, beside, storePath);
  if ((await host.stat(op, `${copy}${WAL}`)) !== null) await cloned(op, host, `${copy}${WAL}`, `${storePath}${WAL}`);
}

export async function removeCopy(op: Operation, host: Host, storePath: string): Promise<void> {
  for (const path of [copyPathOf(storePath), `${copyPathOf(storePath)}${WAL}`, `${storePath}.put-back`]) await host.remove(op, path);
}

/** The schema that the file's header names; null where there is none. The log may have a newer one, never an older. */
export async function schemaOf(op: Operation, host: Host, storePath: string): Promise<number | null> {
  if ((await host.stat(op, storePath)) === null) return null;
  const header = await host.readRange(op, storePath, 60, 4); // sqlite.org/fileformat.html: user_version
  return header.byteLength < 4 ? null : new DataView(header.buffer, header.byteOffset, 4).getUint32(0);
}

async function cloned(op: Operation, host: Host, from: string, to: string): Promise<void> {
  await host.cloneFile(op, from, to);
  await host.sync(op, to);
}
