// Files of the user's that an image is made of: they stay where they are and are not Hutch's, so whoever starts from
// them looks first whether they are what they were. A look is cheap (size, times, inode; of a directory those of all in
// it); where it sees a difference, the content decides.
import { createHash } from 'node:crypto';
import * as z from 'zod';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

const LOOK_MS = 15 * 60_000;
const PATH_CHARS_MAX = 4_096;
const hex64 = z.string().regex(/^[0-9a-f]{64}$/);

export const GIVEN_ROLES = ['rootfs', 'kernel', 'modules', 'initrd'] as const;
export const givenFile = z.strictObject({
  role: z.enum(GIVEN_ROLES),
  path: z.string().max(PATH_CHARS_MAX),
  type: z.enum(['file', 'directory']),
  /** Of what a look sees. */
  seen: hex64,
  /** Of the content; of a directory, of the tar archive that is made of it. */
  sha256: hex64,
});
export type GivenFile = z.infer<typeof givenFile>;

/** In the same order and form for the same content; `$0` is the directory. What a name is, no option can be. */
const TAR =
  'tar --create --format=pax --pax-option=delete=atime,delete=ctime --sort=name --numeric-owner --xattrs --xattrs-include="*" --sparse --one-file-system -C "$0" .';

/** Links are followed once, here: what is kept is where they led. @throws HutchError `invalid_argument`, `not_found`. */
export async function resolved(
  op: Operation,
  host: Host,
  path: string,
): Promise<{ readonly path: string; readonly type: 'file' | 'directory' }> {
  if (!path.startsWith('/') || path.includes('\0')) {
    throw op.error('invalid_argument', `'${path.slice(0, 200)}' is no absolute path`, { hint: 'write it like /srv/images/rootfs.ext4' });
  }
  const { exitCode, stdout } = await host.run(op, ['realpath', '--canonicalize-existing', '--zero', '--', path]);
  const real = Buffer.from(stdout).toString().replace(/\0$/, '');
  const info = exitCode === 0 ? await host.stat(op, real) : null;
  if (info === null) throw op.error('not_found', `${path} is not there, or may not be looked at by the daemon`);
  if (info.type === 'file' || info.type === 'directory') return { path: real, type: info.type };
  throw op.error('failed_precondition', `${path} is neither a file nor a directory`);
}

/** What it is now. `sha256`: of its content, where that is known already. */
export async function given(
  op: Operation,
  host: Host,
  role: GivenFile['role'],
  { path, type }: { readonly path: string; readonly type: 'file' | 'directory' },
  sha256?: string,
): Promise<GivenFile> {
  // Seen first: what changes while it is read is found at the next look.
  const seen = await seenOf(op, host, path, type);
  if (seen === null) throw op.error('not_found', `${path} is not there any more`);
  return { role, path, type, seen, sha256: sha256 ?? (await contentOf(op, host, path, type)) };
}

export type Unchanged = { readonly files: readonly GivenFile[]; readonly areAsSeen: boolean };

/**
 * The same files with what is seen of them now, where their content is what it was.
 * @throws HutchError `failed_precondition` naming the first that is not.
 */
export async function unchanged(op: Operation, host: Host, files: readonly GivenFile[], what: string): Promise<Unchanged> {
  const now: GivenFile[] = [];
  for (const file of files) {
    const seen = await seenOf(op, host, file.path, file.type);
    const isSame = seen !== null && (seen === file.seen || (await contentOf(op, host, file.path, file.type)) === file.sha256);
    if (!isSame) {
      throw op.error(
        'failed_precondition',
        `${file.path} ${seen === null ? 'is gone' : 'has changed'} since ${what} was registered with it`,
        {
          hint: 'put it back, or register what it is now: hutch image register; a copy of Hutch’s own would not change: hutch image promote',
        },
      );
    }
    now.push({ ...file, seen });
  }
  return { files: now, areAsSeen: now.every(({ seen }, at) => seen === files[at]?.seen) };
}

/** A directory as a tar archive at `to`. @throws HutchError `failed_precondition` for what cannot be read. */
export async function tarOfDirectory(op: Operation, host: Host, path: string, to: string): Promise<void> {
  await shell(op, host, `exec ${TAR} > "$1"`, path, to);
}

/** Null: it is not there, or is something else by now. */
async function seenOf(op: Operation, host: Host, path: string, type: GivenFile['type']): Promise<string | null> {
  const info = await host.stat(op, path);
  if (info === null || info.type !== type) return null;
  if (type === 'directory') {
    return await shell(op, host, 'cd "$0" && find . -xdev -printf "%p\\0%y%m %U:%G %s %T@ %C@ %i\\0" | LC_ALL=C sort -z | sha256sum', path);
  }
  const { device, inode, sizeBytes, modifiedNs, changedNs } = info;
  return createHash('sha256').update([device, inode, sizeBytes, modifiedNs, changedNs].join(' ')).digest('hex');
}

async function contentOf(op: Operation, host: Host, path: string, type: GivenFile['type']): Promise<string> {
  if (type === 'file') return await host.sha256(op, path);
  return await shell(op, host, `${TAR} | sha256sum`, path);
}

/** The names are arguments of their own, never part of the command. Gives the sum that it prints, if any. */
async function shell(op: Operation, host: Host, command: string, ...args: readonly string[]): Promise<string> {
  using limited = op.within(LOOK_MS, `reading ${args[0]}`);
  const { exitCode, stdout, stderr } = await host.run(limited, ['bash', '-o', 'pipefail', '-c', command, ...args]);
  if (exitCode === 0) return Buffer.from(stdout).toString().slice(0, 64);
  const said = Buffer.from(stderr).toString().trim().split('\n')[0] ?? '';
  if (/No space left/.test(said)) throw op.error('resource_exhausted', `${args[0]} cannot be packed: the disk is full`);
  throw op.error('failed_precondition', `${args[0]} cannot be read: ${said.replace(/[^\x20-\x7e]/g, '?').slice(0, 300)}`);
}
