// What was begun and became no sandbox is taken away.
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import type { Run } from './run.ts';

/** All that was made for a sandbox that is none: processes first, then its record. */
export async function removeUnmade(
  core: Pick<Core, 'deps' | 'runs'>,
  op: Operation,
  run: Run,
  intentIds: readonly number[],
  logs: (dir: string) => Promise<void> = (dir) => core.deps.host.remove(op, dir),
): Promise<void> {
  const { host, places, store } = core.deps;
  core.runs.forget(run);
  const mine = placesOf(places, run.id);
  await run.backend.kill(op, run.plan, 'now');
  await run.backend.remove(op, run.plan);
  await Promise.all([host.remove(op, mine.dir), host.remove(op, mine.runDir)]);
  await logs(mine.logDir);
  await store.commit(
    op,
    [
      ...intentIds.map((id) => ({ change: 'finishIntent', id }) as const),
      { change: 'releaseUid', sandboxId: run.id },
      { change: 'releasePorts', sandboxId: run.id },
    ],
    'relaxed',
  );
}
