// What of an image that was made of a sandbox's disk lies in a backend's own store.
import type { Image } from '../domain/image.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';

/** In the record of an image: the backend that made it. */
export const COMMITTED_BY = 'committedBy';

/** Of an image that is on record no more. */
export async function dropCommitted(core: Core, op: Operation, image: Image): Promise<void> {
  const backend = core.deps.backends.find(({ name }) => name === image.detail[COMMITTED_BY]);
  await backend?.dropCommitted?.(op, image.digest);
}
