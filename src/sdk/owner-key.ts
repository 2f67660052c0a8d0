// The key that the daemon made at its first start, for programs of its owner on the same machine.
// Read at once: it is one line, and a promise of it would cost the CLI more than the reading.
import { readFileSync } from 'node:fs';
import { HutchError } from '../domain/errors.ts';

/** @throws HutchError `unauthenticated` when there is none that we may read. */
export function readOwnerKey(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch (cause) {
    const denied = (cause as NodeJS.ErrnoException).code !== 'ENOENT';
    throw new HutchError({
      code: 'unauthenticated',
      message: denied ? `the owner’s key in ${path} cannot be read` : `there is no owner’s key in ${path}`,
      hint: denied
        ? 'use it as the user who started the daemon, or set HUTCH_API_KEY'
        : 'start the daemon, which makes it, with: hutch daemon start; or set HUTCH_API_KEY',
      cause,
    });
  }
}
