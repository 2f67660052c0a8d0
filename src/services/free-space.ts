// Nothing new is begun on a disk that is nearly full: what runs needs the rest, and so does the store.
import { FULL_DISK_HINT } from '../domain/full-disk.ts';
import type { Operation } from '../host/operation.ts';
import type { Deps } from './deps.ts';

const MIB = 1_048_576;

type Needs = Pick<Deps, 'host' | 'places' | 'settings'>;

/** Why nothing new is begun; null: there is room. */
export async function noSpace({ host, places, settings }: Needs, op: Operation): Promise<string | null> {
  const { freeMiBMin } = settings;
  if (freeMiBMin === null) return null;
  const { freeBytes } = await host.fileSystem(op, places.dataDir);
  if (freeBytes >= freeMiBMin * MIB) return null;
  return `only ${Math.floor(freeBytes / MIB)} MiB are free in ${places.dataDir}; nothing new is begun with less than ${freeMiBMin} MiB (limits.free)`;
}

/** @throws HutchError `resource_exhausted`, which says what shows what can go. */
export async function requireFreeSpace(op: Operation, needs: Needs): Promise<void> {
  const why = await noSpace(needs, op);
  if (why === null) return;
  throw op.error('resource_exhausted', why, { hint: FULL_DISK_HINT });
}
