// `--iidfile` of `hutch build`: the digest of the image in a file, for scripts. Always true: the file has the digest of the build that made
// it, whole, or is not there.
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { access, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { usage } from '../args.ts';
import { safe } from '../output.ts';

/** Takes away what an earlier build left there. @throws HutchError where none could be written, before anything is built. */
export async function clearDigestFile(path: string): Promise<void> {
  const dir = dirname(path);
  const isDirectory = async (place: string) => (await stat(place).catch(() => null))?.isDirectory() === true;
  if (path === '' || (await isDirectory(path)))
    throw usage(`--iidfile: ${safe(path) || "''"} is no file`, 'write it like --iidfile image.txt');
  if (!(await isDirectory(dir))) throw usage(`--iidfile: there is no directory ${safe(dir)}`);
  await access(dir, constants.W_OK).catch(() => Promise.reject(usage(`--iidfile: ${safe(dir)} cannot be written to`)));
  await rm(path, { force: true });
}

/** As Docker writes it: without an end of line. */
export async function writeDigestFile(path: string, digest: string): Promise<void> {
  const beside = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    await writeFile(beside, digest, { flag: 'wx' });
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw usage(`--iidfile: ${safe(path)} cannot be written: ${(error as NodeJS.ErrnoException).code}`, `the image is there: ${digest}`);
  }
}
