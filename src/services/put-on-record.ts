// The two ways in which the making of a sandbox ends: it is on record and runs, or nothing of it is left but its logs.
import { newSandbox, type Sandbox, type SnapshotSource, transition } from '../domain/sandbox.ts';
import type { BringUp, Up } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Run } from './run.ts';
import { startUp } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import { removeUnmade } from './unmade.ts';

const RELEASE_MS = 60_000;

export type Making = {
  readonly run: Run;
  readonly what: BringUp;
  readonly bare: Sandbox;
  readonly intentId: number;
  readonly attach: boolean;
  readonly undo: AsyncDisposableStack;
  /** What brought it up already, where it was started ahead. */
  readonly up?: Up;
  /** What it begins with, where that is a snapshot. */
  readonly source?: SnapshotSource;
};

export async function started(core: Core, supervisor: Supervisor, call: Call, of: Making): Promise<Sandbox> {
  const { op } = call;
  const { run, what, bare, intentId, attach, undo, up, source } = of;
  core.presenter.sandbox(bare).catch(() => {}); // the name of its image, so that it is known when it is wanted
  return await startUp(core, supervisor, call, run, what, {
    reason: source === undefined ? 'boot' : 'clone',
    attach,
    undo,
    files: bare.spec.fileSync ?? [],
    ...(up === undefined ? {} : { up }),
    async record(bareEvent) {
      const event = source === undefined ? bareEvent : { ...bareEvent, source };
      const { id, projectId, spec } = bare;
      const born = newSandbox({ id, projectId, spec, atMs: event.atMs, opId: op.id }); // one change, at one instant
      const running = transition(born, event);
      if ('illegal' in running) throw new Error('a new sandbox cannot be started');
      const changes = [...creation(intentId, born, source), { change: 'applyEvent', sandboxId: id, event }] as const;
      const [, , sandbox] = await call.conclude(changes, await core.presenter.sandbox(running, op.id));
      return sandbox;
    },
  });
}

export function creation(intentId: number, { id, projectId, spec, createdAtMs }: Sandbox, source?: SnapshotSource) {
  return [
    { change: 'finishIntent', id: intentId },
    { change: 'createSandbox', id, projectId, spec, atMs: createdAtMs, ...(source === undefined ? {} : { source }) },
  ] as const;
}

export async function rollBack(core: Core, call: Call, run: Run, intentId: number): Promise<void> {
  const { op } = call;
  using late = op.releasing(RELEASE_MS);
  try {
    await removeUnmade(core, late, run, [intentId], (logDir) => keepFailedLogs(core, call, logDir));
    await core.publisher.released(run.id);
  } catch (cause) {
    op.log.warn(
      { sandbox: run.id, cause },
      'a sandbox that could not be made left something behind; the next start of the daemon removes it',
    );
  }
}

/** Kept under the operation's id, for whoever wants to know why it failed. */
async function keepFailedLogs(core: Core, call: Call, logDir: string): Promise<void> {
  const { host, places } = core.deps;
  using late = call.op.releasing(RELEASE_MS);
  if ((await host.stat(late, logDir)) === null) return;
  if ((await host.list(late, logDir)).length === 0) return await host.remove(late, logDir);
  await host.makeDir(late, `${places.logDir}/failed`, 0o700);
  await host.rename(late, logDir, `${places.logDir}/failed/${call.op.id}`);
}
