// Where images and kernels lie, and how they get there: made in a staging directory that one process
// at a time may work in, then moved into place whole, under their digest. So a directory under
// `images/` or `kernels/` is complete and never changes, and what a crash leaves is only in `staging/`.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../domain/errors.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type ImagePaths = {
  readonly images: string;
  readonly kernels: string;
  readonly initramfs: string;
  readonly staging: string;
  /** Layers as they came, each under the hex digits of its digest. */
  readonly blobs: string;
};

/** What is made in a staging directory of its own. */
export const MADE = ['image', 'kernel'] as const;
export type Made = (typeof MADE)[number];

/** A VMM runs as a user of its own and must read images; nothing in them is secret. */
export const SHARED_DIR_MODE = 0o755;
export const SHARED_FILE_MODE = 0o444;

/** The slowest step, an image over a slow line, fits many times. */
const WAIT_FOR_OTHER_MS = 30 * 60_000;
const WAIT_POLL_MS = 200;
const RELEASE_MS = 60_000;
/** What Host.writeFileAtomic may leave beside a file. */
const TEMP_NAME = /^\.hutch-tmp-/;

export function imagePaths(dataDir: string): ImagePaths {
  return {
    images: join(dataDir, 'images'),
    kernels: join(dataDir, 'kernels'),
    initramfs: join(dataDir, 'initramfs'),
    staging: join(dataDir, 'staging'),
    blobs: join(dataDir, 'blobs'),
  };
}

/**
 * Calls `make` with the staging directory of `made`, while no other process does the same; waits for
 * one that does. `find` is asked first and again after the wait: what the other made is not made twice.
 * When `make` fails the directory stays, so that the next try goes on with what `keep` lets through.
 */
export async function alone<T>(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  made: Made,
  steps: { readonly find: () => Promise<T | null>; readonly keep: RegExp; readonly make: (stagingDir: string) => Promise<T> },
): Promise<T> {
  const before = await steps.find();
  if (before !== null) return before;
  await host.makeDir(op, paths.staging, SHARED_DIR_MODE);
  await using _ours = await waitForLock(op, host, made, lockPath(paths, made));
  // A killed process may have left a program running in the directory: it holds this one, and ends soon.
  await (await waitForLock(op, host, made, programLockPath(paths, made)))[Symbol.asyncDispose]();
  const meanwhile = await steps.find();
  if (meanwhile !== null) return meanwhile;
  const dir = join(paths.staging, made);
  await sweep(op, host, dir, steps.keep);
  await host.makeDir(op, dir, SHARED_DIR_MODE);
  try {
    const result = await steps.make(dir);
    await clear(op, host, dir, null);
    return result;
  } catch (error) {
    await clear(op, host, dir, steps.keep);
    throw error;
  }
}

/** Never throws: what made us clear matters more, and the next start clears again. */
async function clear(op: Operation, host: Host, dir: string, keep: RegExp | null): Promise<void> {
  using releasing = op.releasing(RELEASE_MS);
  try {
    if (keep === null) await host.remove(releasing, dir);
    else await sweep(releasing, host, dir, keep);
  } catch (error) {
    op.log.warn({ dir, cause: error }, 'staging directory not cleared');
  }
}

async function waitForLock(op: Operation, host: Host, made: Made, path: string): Promise<AsyncDisposable> {
  using patient = op.within(WAIT_FOR_OTHER_MS, `waiting for another process that prepares the ${made}`);
  let told = false;
  for (;;) {
    const lock = await host.lockFile(patient, path);
    if (lock !== null) return lock;
    if (!told) op.progress({ step: made, detail: 'another process prepares it; waiting for that' });
    told = true;
    try {
      await sleep(WAIT_POLL_MS, undefined, { signal: patient.signal });
    } catch (error) {
      patient.signal.throwIfAborted();
      throw error;
    }
  }
}

function lockPath(paths: ImagePaths, made: Made): string {
  return join(paths.staging, `${made}.lock`);
}

function programLockPath(paths: ImagePaths, made: Made): string {
  return join(paths.staging, `${made}.program.lock`);
}

/**
 * A long-running program that works in a staging directory, as a command that holds a lock as long as
 * it runs and ends when this process is killed. As root it gets namespaces of its own: what it mounts
 * is seen by nobody else, so that no mount is ever left where files are about to be removed, and all
 * that it has started dies with it.
 */
export async function leashed(
  op: Operation,
  host: Host,
  paths: ImagePaths,
  made: Made,
  argv: readonly string[],
): Promise<readonly string[]> {
  const lock = ['flock', '--exclusive', '--no-fork', programLockPath(paths, made)];
  const alone = ['unshare', '--mount', '--pid', '--fork', '--kill-child', '--mount-proc', '--'];
  const mayUnshare = host.uid === 0 && (await host.run(op, [...alone, 'true'])).exitCode === 0;
  // Without them only a request to end lets it undo its mounts.
  return [...lock, 'setpriv', '--pdeathsig', mayUnshare ? 'KILL' : 'TERM', '--', ...(mayUnshare ? alone : []), ...argv];
}

/** Removes all entries of a staging directory but those that a next try goes on with. */
async function sweep(op: Operation, host: Host, dir: string, keep: RegExp): Promise<void> {
  if ((await host.stat(op, dir)) === null) return;
  for (const name of await host.list(op, dir)) {
    if (!keep.test(name)) await host.remove(op, join(dir, name));
  }
}

/** A file of a directory in staging, where none is: on the disk once `commit` has moved that directory into place, and not before. */
export async function writeStaged(op: Operation, host: Host, path: string, content: Uint8Array): Promise<void> {
  await host.appendFile(op, path, content);
  await host.chmod(op, path, SHARED_FILE_MODE);
}

/**
 * Moves a finished directory into place for good, with all that lies directly in it, and `files`, on the disk. One that is there already
 * has the same content.
 */
export async function commit(op: Operation, host: Host, from: string, to: string, files: readonly string[]): Promise<void> {
  await Promise.all(files.map((file) => host.chmod(op, join(from, file), SHARED_FILE_MODE)));
  // At once: the file system then writes its journal once for all of them, not once for each.
  const paths = new Set([...files, ...(await host.list(op, from))].map((file) => join(from, file)));
  await Promise.all([...paths, from].map((path) => host.sync(op, path)));
  await host.makeDir(op, join(to, '..'), SHARED_DIR_MODE);
  if ((await host.stat(op, to)) !== null) await host.remove(op, to);
  await host.rename(op, from, to);
}

/**
 * What a crash left and nobody works on: temporary files anywhere, and the staging directories of
 * what is `there` already. The other staging directories stay: `alone` goes on with them.
 * Gives the paths that were removed.
 */
export async function removeLeftovers(op: Operation, host: Host, paths: ImagePaths, there: ReadonlySet<Made>): Promise<readonly string[]> {
  const removed: string[] = [];
  const drop = async (path: string) => {
    await host.remove(op, path);
    removed.push(path);
  };
  for (const dir of [paths.images, paths.kernels, paths.initramfs]) {
    for (const name of await listOr(op, host, dir)) if (TEMP_NAME.test(name)) await drop(join(dir, name));
  }
  for (const made of MADE) {
    const dir = join(paths.staging, made);
    if (!there.has(made) || (await host.stat(op, dir)) === null) continue;
    await using ours = await host.lockFile(op, lockPath(paths, made));
    await using programs = ours && (await host.lockFile(op, programLockPath(paths, made)));
    if (programs !== null) await drop(dir);
  }
  return removed;
}

/** What `look` finds; null, with a warning, where that is damaged: it is then as good as absent. */
export async function unlessDamaged<T>(op: Operation, look: () => Promise<T | null>): Promise<T | null> {
  try {
    return await look();
  } catch (error) {
    if (!(error instanceof HutchError) || error.code !== 'failed_precondition') throw error;
    op.log.warn({ cause: error.message }, 'damaged; making it anew');
    return null;
  }
}

export async function listOr(op: Operation, host: Host, dir: string): Promise<readonly string[]> {
  return (await host.stat(op, dir)) === null ? [] : host.list(op, dir);
}
