// How a failure is told: `error: …` and `hint: …` on stderr, or the error's JSON document on stdout
// with --json. Never a stack trace.
import { HutchError } from '../domain/errors.ts';
import { exitOf, exitOfError } from './exit-codes.ts';
import type { Io } from './io.ts';
import { json, safe } from './output.ts';
import type { Flag } from './verb.ts';

export function toHutchError(error: unknown): HutchError {
  if (error instanceof HutchError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  // The user's own files and addresses: the system's word is the right one.
  if (code === 'ENOENT') return new HutchError({ code: 'not_found', message: plain(message), cause: error });
  if (code === 'EACCES' || code === 'EPERM') return new HutchError({ code: 'permission_denied', message: plain(message), cause: error });
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EMFILE')
    return new HutchError({ code: 'resource_exhausted', message: plain(message), cause: error });
  if (code === 'EEXIST' || code === 'EISDIR' || code === 'ENOTDIR' || code === 'ENOTEMPTY' || code === 'EADDRINUSE')
    return new HutchError({ code: 'conflict', message: plain(message), cause: error });
  const said = error instanceof Error ? error.message : String(error);
  return new HutchError({ code: 'internal', message: `something went wrong inside Hutch: ${said}`, cause: error });
}

/** `x: no such file or directory`, of `ENOENT: no such file or directory, open 'x'`. */
function plain(message: string): string {
  const [, why, path] = /^E[A-Z]+: ([^,]+), \w+ '(.*?)'(?: -> '.*')?$/s.exec(message) ?? [];
  return path === undefined ? message.replace(/^E[A-Z]+: /, '') : `${path}: ${why}`;
}

/** What an error of the API is about, as it was typed: `--memory (memoryMiB) must be …`, where the verb has such a flag. */
export function inFlags(message: string, flags: readonly Pick<Flag, 'name'>[]): string {
  const [field = ''] = /^[a-z]+[A-Za-z]*(?=(?: (?:must|is|are|cannot|has)\b|: ))/.exec(message) ?? [];
  const name = field.replace(/(?:MiB|Ms)$/, '').replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const flag = flags.find((one) => one.name === name || `${one.name}s` === name);
  if (field === '' || flag === undefined) return message;
  return `--${flag.name}${flag.name === field ? '' : ` (${field})`}${message.slice(field.length)}`;
}

/** Tells it, and gives the exit code. */
export async function tell(
  io: Io,
  error: HutchError,
  options: { readonly json: boolean; readonly passesExitCode: boolean; readonly about?: string; readonly flags: readonly Flag[] },
): Promise<number> {
  if (options.json) await io.out(json(error.toBody()));
  else {
    const op = error.opId === null ? '' : ` (${error.opId})`;
    const about = options.about === undefined || error.message.includes(options.about) ? '' : `${options.about}: `;
    await io.err(`error: ${safe(about + inFlags(error.message, options.flags))}${op}\n`);
    if (error.hint !== null) await io.err(`hint: ${safe(error.hint)}\n`);
  }
  if (options.passesExitCode && error.code !== 'cancelled') return exitOf('hutchFailed');
  return exitOfError(error.code);
}
