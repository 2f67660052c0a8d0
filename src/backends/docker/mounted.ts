// Whether a container has the directories that were meant. The Engine follows symlinks, and somebody may have put one on the way
// since the path was looked at; so it is compared afterwards, when nothing runs in the container but the agent.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Mount } from '../../domain/mount.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { INSIDE } from './container.ts';

const TABLE_BYTES_MAX = 16 * 2 ** 20;
const COMMAND_BYTES_MAX = 4096;
const ELSEWHERE = 'run the daemon where the Engine runs, in the same mount namespace, or mount a directory: -v ./DIR:PATH';

/**
 * `volumes`: as they are mounted here just now.
 * @throws HutchError `failed_precondition` that names the one that is another by now, or that the Engine does not see.
 */
export async function requireMounted(
  op: Operation,
  host: Host,
  pid: number,
  { mounts, volumes }: { readonly mounts: readonly Mount[]; readonly volumes: readonly Mount[] },
): Promise<void> {
  if (mounts.length + volumes.length === 0) return;
  if (!(await isOurs(op, host, pid))) {
    if (volumes.length === 0) return;
    throw op.error('failed_precondition', 'the Docker Engine does not see what is mounted on this machine: volumes', { hint: ELSEWHERE });
  }
  const own = parseMounts(await host.readFile(op, '/proc/self/mountinfo', TABLE_BYTES_MAX));
  const its = new Set(parseMounts(await host.readFile(op, `/proc/${pid}/mountinfo`, TABLE_BYTES_MAX)).map(placeOf));
  for (const { source, target } of volumes) {
    const meant = placeIn(own, source);
    if (meant !== null && its.has(meant)) continue;
    throw op.error('failed_precondition', `the Docker Engine does not see the volume at ${target}: volumes`, { hint: ELSEWHERE });
  }
  for (const { source, target } of mounts) {
    const meant = placeIn(own, source);
    if (meant === null || its.has(meant)) continue;
    throw op.error(
      'failed_precondition',
      `${source} was replaced while it was mounted at ${target}: what it leads to by now is not shown`,
      {
        hint: 'put the directory back, and start the sandbox again',
      },
    );
  }
}

/** An Engine of another machine, or beside our container, has pids of its own. */
async function isOurs(op: Operation, host: Host, pid: number): Promise<boolean> {
  try {
    const command = new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX));
    return command.startsWith(`${INSIDE.agent}\0`);
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return false;
    throw error;
  }
}

type Mounted = { readonly device: string; readonly root: string; readonly at: string };

/** Of /proc/PID/mountinfo, in the order in which they lie over each other. */
export function parseMounts(table: Uint8Array): readonly Mounted[] {
  const plain = (text: string): string =>
    text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
  return Buffer.from(table)
    .toString('latin1')
    .split('\n')
    .flatMap((line) => {
      const [, , device, root, at] = line.split(' ');
      return device === undefined || root === undefined || at === undefined ? [] : [{ device, root: plain(root), at: plain(at) }];
    });
}

const placeOf = ({ device, root }: Mounted): string => `${device} ${root}`;

/** Where on which file system the path lies, with no symlink in it; null: nowhere that the table knows. */
export function placeIn(table: readonly Mounted[], path: string): string | null {
  const bytes = Buffer.from(path).toString('latin1');
  let found: Mounted | null = null;
  for (const mounted of table) {
    const isIn = bytes === mounted.at || bytes.startsWith(mounted.at === '/' ? '/' : `${mounted.at}/`);
    if (isIn && mounted.at.length >= (found?.at.length ?? 0)) found = mounted;
  }
  if (found === null) return null;
  const root = join(found.root, bytes.slice(found.at.length));
  return placeOf({ ...found, root: root === '/' ? root : root.replace(/\/$/, '') });
}
