// `--iidfile` of `hutch build`: the digest of the image in a file, for scripts. Always true: the file has the digest of the build that made
// it, whole, or is not there.
import { randomBytes } from 'node:crypto';
import { rename, rm, writeFile } from 'node:fs/promises';
import { usage } from '../args.ts';
import { safe } from '../output.ts';
import { type OutputFile, outputFile } from '../output-file.ts';

/** Takes away what an earlier build left there. @throws HutchError where none could be written, before anything is built. */
export async function clearedDigestFile(path: string): Promise<OutputFile> {
  const file = await outputFile(path);
  if (file.way === 'replace') await rm(file.path, { force: true });
  return file;
}

/** As Docker writes it: without an end of line. */
export async function writeDigestFile({ path, way }: OutputFile, digest: string): Promise<void> {
  const beside = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    if (way === 'write-to') return await writeFile(path, digest);
    await writeFile(beside, digest, { flag: 'wx' });
    await rename(beside, path);
  } catch (error) {
    await rm(beside, { force: true });
    throw usage(`${safe(path)} cannot be written: ${(error as NodeJS.ErrnoException).code}`, `the image is there: ${digest}`);
  }
}
