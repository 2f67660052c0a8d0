// The daemon's hold on its data directory. Who removes that directory, or puts another in its place, takes the
// store and every disk away: the sandboxes could be found by nobody again, and a second daemon could start there
// and answer for the same sockets. So they are ended, and the daemon with them.
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';

const END_MS = 20_000;

/** Looks whether the lock file is still the one that this daemon holds. The first look remembers it. */
export function newPlaceWatch(core: Core): (op: Operation) => Promise<void> {
  const { host, places } = core.deps;
  let held: string | null = null;
  let lost = false;
  return async (op) => {
    if (lost) return;
    const found = await host.stat(op, places.lockPath);
    const now = found === null ? null : `${found.device}:${found.inode}`;
    held ??= now;
    if (now === held) return;
    lost = true;
    await endAll(core, op);
    core.deps.abandon();
  };
}

async function endAll(core: Core, op: Operation): Promise<void> {
  const runs = core.runs.all();
  op.log.error(
    { dataDir: core.deps.places.dataDir, sandboxes: runs.length },
    'the data directory was removed: its sandboxes end, and this daemon with them',
  );
  using late = op.releasing(END_MS);
  // Nobody is to record their ends: there is no store any more.
  for (const run of runs) core.runs.forget(run);
  await Promise.all(
    runs.map(async (run) => {
      try {
        await run.backend.kill(late, run.plan, 'now');
        await run.backend.remove(late, run.plan);
      } catch (err) {
        op.log.warn({ sandbox: run.id, err }, 'a sandbox of a removed data directory could not be ended');
      }
    }),
  );
  for (const backend of core.deps.backends)
    await backend.end?.(late).catch((err: unknown) => op.log.warn({ backend: backend.name, err }, 'a backend left something behind'));
}
