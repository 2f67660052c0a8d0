// What a name of a sandbox, a snapshot or a volume is, wherever one is claimed.
import { HutchError } from '../domain/errors.ts';
import { isName, NAME_CHARS_MAX } from '../domain/ids.ts';

/** @throws HutchError `invalid_argument` that says what a name is. */
export function requireName(name: string): void {
  if (isName(name)) return;
  throw new HutchError({
    code: 'invalid_argument',
    message: `'${name.slice(0, NAME_CHARS_MAX)}' is no name: it must be 1 to ${NAME_CHARS_MAX} lower-case letters, digits and hyphens, begin and end with a letter or digit, and not look like an id`,
  });
}
