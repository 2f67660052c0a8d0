// Files of which the sandbox's git says nothing: those with a filter, as LFS has, and those of submodules. They do not come back as
// commits, so what they were when they were copied is noted beside its git, and what the sandbox has changed of them is told.
import { HutchError } from '../../domain/errors.ts';
import type { Sandbox } from '../sandbox.ts';
import { inSandbox, lastLine } from './inside.ts';
import type { Contents } from './source.ts';

/** In the sandbox's `.git`: size, time and path of each; of several lines about one file, any may be what it is. */
const NOTES = '.git/hutch-unseen';

/** Whether anything was noted in the directory that it is run in: mostly not, and then no program need be started for it. */
export const HAS_UNSEEN = `[ -s ${NOTES} ]`;

/** Prints each path that is not as it was noted, or gone, of the directory that it is run in. */
export const UNSEEN = `
unseen() {
  names=$(mktemp)
  cut -d' ' -f3- ${NOTES} | LC_ALL=C sort -u > "$names"
  tr '\\n' '\\0' < "$names" | xargs -0 stat -c '%s %Y %n' -- > "$names.now" 2>/dev/null || :
  LC_ALL=C grep -vxFf ${NOTES} "$names.now" | cut -d' ' -f3- || :
  cut -d' ' -f3- "$names.now" | LC_ALL=C grep -vxFf - "$names" || :
  rm -f "$names" "$names.now"
}`;

/** Of those that are copied. A name with a newline is not noted. */
export function unseenOf({ files, filtered, submodules }: Contents): readonly Buffer[] {
  if (filtered.length === 0 && submodules.length === 0) return [];
  const names = new Set(filtered.map((path) => path.toString('latin1')));
  const below = submodules.map((path) => `${Buffer.from(path).toString('latin1')}/`);
  return files
    .map(({ path }) => path)
    .filter((path) => {
      const name = path.toString('latin1');
      return !name.includes('\n') && (names.has(name) || below.some((one) => name.startsWith(one)));
    });
}

/** `anew`: nothing that was noted before holds. */
export async function noteUnseen(
  sandbox: Sandbox,
  { guestPath, paths, anew }: { readonly guestPath: string; readonly paths: readonly Buffer[]; readonly anew: boolean },
  as: { readonly user?: string; readonly signal?: AbortSignal },
): Promise<void> {
  const script = `cd -- "$1" && { [ "$2" != anew ] || rm -f ${NOTES}; } && xargs -0 stat -c '%s %Y %n' -- >> ${NOTES}`;
  const input = Buffer.concat(paths.flatMap((path) => [Buffer.from('./'), path, Buffer.of(0)]));
  const noting = paths.length > 0 ? script : `cd -- "$1" && rm -f ${NOTES}`;
  const result = await sandbox.exec(['sh', '-c', noting, 'sh', guestPath, anew ? 'anew' : 'more'], { ...inSandbox(as), input });
  if (result.exitCode !== 0)
    throw new HutchError({ code: 'failed_precondition', message: `.git in ${guestPath} cannot be written: ${lastLine(result.stderr)}` });
}

/** Of what `unseen` has printed. */
export function unseenName(line: string): string {
  return line.replace(/^\.\//, '');
}
