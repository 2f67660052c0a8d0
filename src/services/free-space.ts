// Nothing new is begun on a disk that is nearly full: what runs needs the rest, and so does the store.
import type { Operation } from '../host/operation.ts';
import type { Deps } from './deps.ts';

const MIB = 1_048_576;

/** @throws HutchError `resource_exhausted`, which says what shows what can go. */
export async function requireFreeSpace(
  op: Operation,
  { host, places, settings }: Pick<Deps, 'host' | 'places' | 'settings'>,
): Promise<void> {
  const { freeMiBMin } = settings;
  if (freeMiBMin === null) return;
  const { freeBytes } = await host.fileSystem(op, places.dataDir);
  if (freeBytes >= freeMiBMin * MIB) return;
  throw op.error(
    'resource_exhausted',
    `only ${Math.floor(freeBytes / MIB)} MiB are free in ${places.dataDir}; nothing new is begun with less than ${freeMiBMin} MiB (limits.free)`,
    { hint: 'what takes the room: hutch df; what can go: hutch prune --dry-run, hutch image prune, hutch assets gc --dry-run' },
  );
}
