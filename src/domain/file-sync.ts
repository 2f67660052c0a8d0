// Files of its owner's that a sandbox gets when it is made, such as keys and settings, and how people write them down.
import type { ParsedText } from './size.ts';

export type FileSync = {
  /** Of the machine of the daemon: absolute, or below the owner's home, which is `~`. */
  readonly host: string;
  /** In the sandbox: `~`, below it, or an absolute path below the user's home. */
  readonly guest: string;
  /** Of files, and of directories with `x` wherever there is an `r`; null: 0600 and 0755. */
  readonly mode: number | null;
};

/** Of one sandbox, those of the configuration apart. */
export const FILE_SYNC_MAX = 64;
const PATH_CHARS_MAX = 4_096;

const MODE = /^0?[0-7]{3}$/;
const FORM = /^(?<host>[^\0:]+):(?<guest>[^\0:]+)(?::(?<mode>[^:]*))?$/;

/** `HOST:GUEST[:MODE]`, the mode in octal. */
export function parseFileSync(text: string): ParsedText<FileSync> {
  const hint = 'write it HOST:GUEST, like ~/.netrc:~/.netrc, or HOST:GUEST:MODE with a mode like 0644';
  const found = FORM.exec(text)?.groups;
  const shown = text.slice(0, 200);
  if (found === undefined) return { ok: false, message: `'${shown}' names no files to put in`, hint };
  const { host = '', guest = '', mode } = found;
  const parsed = mode === undefined ? null : parseMode(mode);
  if (parsed === undefined) return { ok: false, message: `'${shown}': ${MODE_MUST}`, hint };
  const why = hostRefusal(host) ?? guestRefusal(guest);
  if (why !== null) return { ok: false, message: `'${shown}': ${why}`, hint };
  return { ok: true, value: { host, guest, mode: parsed } };
}

export const MODE_MUST = 'a mode is three octal digits, like 0644';

/** Undefined: it is none. */
export function parseMode(text: string): number | undefined {
  return MODE.test(text) ? Number.parseInt(text, 8) : undefined;
}

/** Why nothing there can be taken, wherever it leads; null: that is found out when it is. */
export function hostRefusal(host: string): string | null {
  if (host.length > PATH_CHARS_MAX || host.includes('\0')) return 'the path on the host is no path';
  return /^(?:~$|~\/|\/)/.test(host) ? null : 'the path on the host must be absolute, or begin with ~/';
}

/** Why nothing can be put there, whoever the user is; null: it can, if it lies in the home. */
export function guestRefusal(guest: string): string | null {
  if (guest.length > PATH_CHARS_MAX || guest.includes('\0')) return 'the path in the sandbox is no path';
  if (!/^(?:~$|~\/|\/)/.test(guest)) return 'the path in the sandbox must be absolute, or begin with ~/';
  return guest.split('/').includes('..') ? "the path in the sandbox must lie below the user's home, without .." : null;
}

/** `~/.netrc:~/.netrc:0600`, as people write it. */
export function showFileSync({ host, guest, mode }: FileSync): string {
  return `${host}:${guest}${mode === null ? '' : `:${showMode(mode)}`}`;
}

export function showMode(mode: number): string {
  return mode.toString(8).padStart(4, '0');
}

/** The names below the home; null: it does not lie there. `home` is what `~` is in the sandbox. */
export function belowHome(guest: string, home: string): readonly string[] | null {
  const names = (path: string): readonly string[] => path.split('/').filter((part) => part !== '' && part !== '.');
  if (!guest.startsWith('/')) return names(guest).slice(1);
  const [above, all] = [names(home), names(guest)];
  return above.every((name, at) => all[at] === name) ? all.slice(above.length) : null;
}
