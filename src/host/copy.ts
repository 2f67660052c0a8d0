// Copies of big sparse files: by reflink where the file system shares blocks, else only the data.
// The copy appears under its name when it is whole; it is durable only after `sync`.
import { constants } from 'node:fs';
import * as fs from 'node:fs/promises';
import { errnoOf, heed } from './errors.ts';
import { throughTemp } from './files.ts';
import type { Operation } from './operation.ts';
import type { RunProgram } from './run.ts';

/** The copy is its owner's, whatever the mode of a read-only original. */
const COPY_MODE = 0o600;

/** What the kernel answers where blocks cannot be shared: other device, other file system, no support. */
const NO_REFLINK: ReadonlySet<string | null> = new Set(['ENOTSUP', 'EOPNOTSUPP', 'EXDEV', 'EINVAL', 'ENOSYS', 'ENOTTY']);

export async function cloneFile(op: Operation, run: RunProgram, from: string, to: string): Promise<'reflink' | 'copy'> {
  let how: 'reflink' | 'copy' = 'reflink';
  await heed(op, `copy ${from} to ${to}`, () =>
    throughTemp(op, to, async (temp) => {
      how = await share(from, temp);
      // Node has no SEEK_DATA; cp reads the holes' places from the file system and skips them.
      if (how === 'copy') await sparseCopy(op, run, from, temp);
      await fs.chmod(temp, COPY_MODE);
    }),
  );
  return how;
}

async function share(from: string, temp: string): Promise<'reflink' | 'copy'> {
  try {
    await fs.copyFile(from, temp, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE);
    return 'reflink';
  } catch (error) {
    if (!NO_REFLINK.has(errnoOf(error))) throw error;
    await fs.rm(temp, { force: true });
    return 'copy';
  }
}

async function sparseCopy(op: Operation, run: RunProgram, from: string, temp: string): Promise<void> {
  const result = await run(op, ['cp', '--sparse=auto', '--reflink=never', '--', from, temp]);
  if (result.exitCode === 0) return;
  const said = new TextDecoder().decode(result.stderr).trim();
  const code = said.includes('No space left') || said.includes('quota exceeded') ? 'resource_exhausted' : 'internal';
  throw op.error(code, `cannot copy ${from}: ${said}`);
}
