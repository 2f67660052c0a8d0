// The file that a flag names for what a command gives. Always true: a file is replaced by a whole one, and what is none (/dev/null, a pipe)
// is written to: nobody means to have a device replaced.
import { constants } from 'node:fs';
import { access, realpath, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { usage } from './args.ts';
import { safe } from './output.ts';

/** `path`: where it lies, behind links. */
export type OutputFile = { readonly path: string; readonly way: 'replace' | 'write-to' };

/** @throws HutchError for a place where none can be, before anything is made for it. */
export async function outputFile(path: string): Promise<OutputFile> {
  const shown = path === '' ? "''" : safe(path);
  const info = await stat(path).catch(() => null);
  if (info?.isDirectory() === true || path === '' || path.endsWith('/')) throw usage(`${shown} is no file`, 'name a file, like out.tar');
  if (info !== null && !info.isFile()) return { path, way: 'write-to' };
  const real = info === null ? path : await realpath(path);
  const dir = dirname(real);
  const place = await stat(dir).catch(() => null);
  if (place?.isDirectory() !== true) throw usage(`${shown} cannot be written: there is no directory ${safe(dir)}`);
  await access(dir, constants.W_OK).catch(() => Promise.reject(usage(`${shown} cannot be written: ${safe(dir)} takes no files from you`)));
  return { path: real, way: 'replace' };
}
