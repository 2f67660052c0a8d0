// What was saved of a sandbox, as files: what is in them, how one is damaged and made whole again, and that nothing of them has changed.
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readdirSync, readSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';

const MIB = 2 ** 20;
/** How much of a file is looked through for what is not zeros. */
const LOOK_BYTES = 256 * MIB;
const TAIL_BYTES = 4096;

/** Of what a sandbox that is suspended goes on from. */
export const savedOf = (daemon: DaemonUnderTest, id: string): string => join(daemon.home, 'data/sandboxes', id, 'suspended');
export const snapshotOf = (daemon: DaemonUnderTest, id: string): string => join(daemon.home, 'data/snapshots', id);

/** Sandboxes first: what they stand on goes after them. */
export async function removeAll(daemon: DaemonUnderTest): Promise<void> {
  await daemon.deleteAll();
  const { snapshots } = await daemon.call('snapshot.list', { all: true });
  for (const { id, depth } of snapshots) if (depth === 0) await daemon.call('snapshot.remove', { snapshot: id, cascade: true });
}

/** All of a bundle that is checked, as whole paths. */
export function filesIn(dir: string): string[] {
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return entries.map((entry) => join(entry.parentPath, entry.name)).sort();
}

/** Of what is in a directory, holes and all; `but`: names that are left out. */
export function sumOf(dir: string, but: readonly string[] = []): string {
  const without = but.map((name) => `--exclude=${name}`);
  const argv = ['tar', '-C', dir, '-cSf', '-', '--sort=name', '--hard-dereference', '--mtime=@0', ...without, '.'];
  const { stdout, status } = spawnSync('bash', ['-c', 'set -o pipefail; "$@" | sha256sum', 'sum', ...argv], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`there is no sum of ${dir}`);
  return stdout;
}

/** Where something else than zeros lies, behind `share` of what was looked at; null: nowhere. */
function dataAt(path: string, share: number): number | null {
  const file = openSync(path, 'r');
  try {
    const bytes = Buffer.alloc(MIB);
    const found: number[] = [];
    for (let from = 0; from < Math.min(statSync(path).size, LOOK_BYTES); from += MIB) {
      const at = bytes.subarray(0, readSync(file, bytes, 0, MIB, from)).findIndex((byte) => byte !== 0);
      if (at >= 0) found.push(from + at);
    }
    return found[Math.floor(share * found.length)] ?? null;
  } finally {
    closeSync(file);
  }
}

function flip(path: string, at: number): void {
  const file = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  writeSync(file, Buffer.of((byte[0] ?? 0) ^ 8), 0, 1, at);
  closeSync(file);
}

/** Does it, and undoes it when it is disposed. Null: there is nothing in it that could be damaged so. */
export function damaged(path: string, how: 'flipped' | 'cut', share: number): Disposable | null {
  if (how === 'flipped') {
    const at = dataAt(path, share);
    if (at === null) return null;
    flip(path, at);
    return { [Symbol.dispose]: () => flip(path, at) };
  }
  const { size } = statSync(path);
  const tail = Buffer.alloc(Math.min(size, TAIL_BYTES));
  const file = openSync(path, 'r');
  readSync(file, tail, 0, tail.byteLength, size - tail.byteLength);
  closeSync(file);
  truncateSync(path, size - tail.byteLength);
  return {
    [Symbol.dispose]() {
      truncateSync(path, size);
      const again = openSync(path, 'r+');
      writeSync(again, tail, 0, tail.byteLength, size - tail.byteLength);
      closeSync(again);
    },
  };
}
