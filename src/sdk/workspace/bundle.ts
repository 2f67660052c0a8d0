// A bundle that a sandbox sent: a short header of refs, then a pack. Git's own `fetch` of a bundle does not check objects in every
// version, so the header is read here, with bounds, and the pack is given to `index-pack --strict`, which checks each object and
// that everything it names is there.
// Format: gitformat-bundle(5).
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { HutchError } from '../../domain/errors.ts';
import { git } from './git.ts';

export type BundleRef = { readonly ref: string; readonly commit: string };

const HEADER_BYTES_MAX = 4 * 1024 * 1024;
const REFS_MAX = 1_000;
const REF_CHARS_MAX = 1_024;

/** Pure. @throws HutchError when it is no header of a bundle, or has no end within its bounds. */
export function readHeader(bytes: Buffer): { readonly refs: readonly BundleRef[]; readonly packAt: number } {
  const end = bytes.indexOf('\n\n');
  if (end < 0 || !/^# v[23] git bundle\n/.test(bytes.subarray(0, 32).toString('latin1'))) throw refused('it is no bundle of git');
  const refs: BundleRef[] = [];
  for (const line of bytes.subarray(0, end).toString('utf8').split('\n').slice(1)) {
    if (line.startsWith('-') || line.startsWith('@')) continue; // what it builds upon, and its format: the pack itself shows
    const [, commit = '', ref = ''] = /^([0-9a-f]{40}|[0-9a-f]{64}) (.+)$/.exec(line) ?? [];
    if (commit === '') throw refused('a line of its header is no ref');
    if (ref.length > REF_CHARS_MAX || refs.length >= REFS_MAX)
      throw refused(`it has more than ${REFS_MAX} refs, or one of more than ${REF_CHARS_MAX} characters`);
    if (/^(?:HEAD|refs\/(?:hutch\/(?:work|base|head|stash-\d{1,4})|heads\/.+|tags\/.+|stash))$/.test(ref)) refs.push({ ref, commit });
  }
  return { refs, packAt: end + 2 };
}

/** Takes the objects into the repository at `dir`, if git finds nothing wrong with any. */
export async function unbundle(
  file: string,
  { dir, signal, env }: { readonly dir: string; readonly signal: AbortSignal | undefined; readonly env: Readonly<Record<string, string>> },
): Promise<readonly BundleRef[]> {
  const head = await firstBytes(file);
  const { refs, packAt } = readHeader(head);
  const checks = ['-c', 'core.protectHFS=true', '-c', 'core.protectNTFS=true'];
  await git([...checks, 'index-pack', '--stdin', '--fix-thin', '--strict'], {
    cwd: dir,
    signal,
    env,
    input: createReadStream(file, { start: packAt }),
  });
  return refs;
}

async function firstBytes(file: string): Promise<Buffer> {
  await using handle = await open(file, 'r');
  const bytes = Buffer.alloc(HEADER_BYTES_MAX);
  const { bytesRead } = await handle.read(bytes, 0, bytes.byteLength, 0);
  return bytes.subarray(0, bytesRead);
}

function refused(message: string): HutchError {
  return new HutchError({ code: 'failed_precondition', message });
}
