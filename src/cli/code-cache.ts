// The code that V8 compiled of the command line: a file for each verb of each bundle. It is a hint: what cannot be read, or is not
// whole, is not there, and what cannot be written is not kept.
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** The files that stay, of all bundles: the newest. One has a megabyte. */
export const CODE_FILES_MAX = 24;
/** With which a bundle begins: code of another is never taken for its own, whatever the time and the size of a file. */
const DIGEST = /^\/\*([0-9a-f]{16})\*\//;
const OURS = /^cli-[0-9a-f]{16}-/;
const VERB = /^[a-z][a-z-]{0,31}$/;

/** Where the code is that this program has, or will have, of a bundle and a verb. Null where nothing is kept. */
export function codePath(dir: string, source: string, verb: string | undefined): string | null {
  const digest = DIGEST.exec(source)?.[1];
  if (digest === undefined || verb === undefined || !VERB.test(verb)) return null;
  return join(dir, `cli-${digest}-${process.version}-${process.arch}-${verb}.code`);
}

/**
 * Each file has the code twice. V8 looks at its length and at the version and flags that it was made under, and believes the rest:
 * a wrong bit ends the process. To compare the halves takes 0.1 ms and to read the second 0.3; Node's checksums, with the modules
 * that have them, 2.
 */
export function readCode(path: string): Buffer | null {
  let content: Buffer;
  try {
    content = readFileSync(path);
  } catch {
    return null;
  }
  const half = content.length / 2;
  if (half === 0 || !Number.isInteger(half)) return null;
  const code = content.subarray(0, half);
  return code.equals(content.subarray(half)) ? code : null;
}

/** In one step. Not synced: what a loss of power leaves of it has no equal halves. */
export function writeCode(path: string, dir: string, code: Buffer): void {
  const fresh = `${path}.${process.pid}`;
  try {
    mkdirSync(dir, { recursive: true });
    writeFileSync(fresh, Buffer.concat([code, code]), { mode: 0o644 }); // for the other users of a release, too: there is nothing in it but our code
    renameSync(fresh, path);
    removeOld(dir);
  } catch {
    removeQuietly(fresh);
  }
}

/** Also what a command left that was killed while it wrote. */
function removeOld(dir: string): void {
  const ours = readdirSync(dir).filter((name) => OURS.test(name));
  if (ours.length <= CODE_FILES_MAX) return;
  const times = new Map(ours.map((name) => [name, statSync(join(dir, name), { throwIfNoEntry: false })?.mtimeMs ?? 0]));
  const newestFirst = ours.toSorted((left, right) => (times.get(right) ?? 0) - (times.get(left) ?? 0));
  for (const name of newestFirst.slice(CODE_FILES_MAX)) removeQuietly(join(dir, name));
}

/** Where nothing can be written nothing can be removed. */
function removeQuietly(path: string): void {
  try {
    rmSync(path, { force: true });
  } catch {
    // It stays, and is in nobody's way.
  }
}
