// A sandbox written down that goes on: the runtime ends with what it saves, so what was saved is taken up again by another process,
// under the same id, in the same place. Whoever waits for the end of the sandbox hears nothing of that.
//
// What it goes on from lies in `still` of its data directory, and once it may run again, and so write to its disk, in `gone-on`:
// a daemon that finds the first starts it again, one that finds the second has nothing to do.
import { join } from 'node:path';
import type { SandboxId } from '../../domain/ids.ts';
import { once } from '../../domain/once.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { SnapshotTaken } from '../snapshots.ts';
import { pause } from '../wait.ts';
import { command, isWhole, type SaveParts, saveSandbox, sync } from './checkpoint.ts';
import { RELEASE_MS } from './config.ts';
import { diskMountDir, diskPath, goneOnDir, stillDir } from './paths.ts';
import { CHECKPOINT, checkpointIn, checkSaved, diskOf, programsIn, writeSaved } from './saved.ts';
import { apparentBytesOf, type DiskTools, storeDisk } from './saved-disk.ts';
import { isUnused, networkPlan, type StartParts, startSandbox } from './start.ts';

/** Until it runs again: it stands still, so nothing calls this off. */
const GO_ON_MS = 10 * 60_000;
const TRIES = 3;
const AGAIN_MS = 200;

/** Sandboxes whose process is being replaced: for those who wait for its end. */
export class Replacements {
  readonly #under = new Map<SandboxId, Promise<void>>();
  readonly #counts = new Map<SandboxId, number>();

  async during<T>(id: SandboxId, work: () => Promise<T>): Promise<T> {
    const over = Promise.withResolvers<void>();
    this.#under.set(id, over.promise);
    this.#counts.set(id, (this.#counts.get(id) ?? 0) + 1);
    try {
      return await work();
    } finally {
      this.#under.delete(id);
      over.resolve();
    }
  }

  /** `wait` for what happens to its process, again for as long as it was replaced meanwhile. */
  async beyond<T>(id: SandboxId, wait: () => Promise<T>): Promise<T> {
    for (;;) {
      const before = this.#counts.get(id);
      const wasUnder = this.#under.has(id);
      const found = await wait();
      await this.#under.get(id);
      // Forgotten: it has ended for good, and whatever has that id by now is not what was waited for.
      const now = this.#counts.get(id);
      if (!wasUnder && (now === before || now === undefined)) return found;
    }
  }

  forget(id: SandboxId): void {
    if (!this.#under.has(id)) this.#counts.delete(id);
  }
}

export type StillParts = {
  readonly save: SaveParts;
  readonly start: StartParts;
  readonly imprintPath: string;
};

/** Memory and disk of one instant, in `dir`; `since` as in `Snapshots.take`. On failure `dir` is gone, and the sandbox goes on. */
export async function takeAndGoOn(
  op: Operation,
  parts: StillParts,
  plan: SandboxPlan,
  dir: string,
  since: string | null,
): Promise<SnapshotTaken> {
  const { host } = parts.save;
  let sinceMs = host.monotonicMs();
  let stillMs = 0;
  const onStill = (): void => {
    sinceMs = host.monotonicMs();
  };
  const goOn = once(async () => {
    using late = op.releasing(GO_ON_MS);
    await insist(late, plan, () => goOnAfterwards(late, parts, plan));
    stillMs = host.monotonicMs() - sinceMs;
  });
  await host.remove(op, stillDir(plan));
  await using undo = unlessWhole(op, host, dir);
  const stored = async () => {
    try {
      await saveSandbox(op, { ...parts.save, onStill }, plan, stillDir(plan));
      const programs = await programsIn(op, host, stillDir(plan));
      await host.makeDir(op, dir, 0o700);
      // What it goes on from has one more name.
      await host.link(op, join(stillDir(plan), CHECKPOINT), join(dir, CHECKPOINT));
      return { programs, disk: await keepDisk(op, { host, imprintPath: parts.imprintPath }, plan, dir, { since, read: goOn }) };
    } finally {
      await goOn();
    }
  };
  const { programs, disk } = await stored();
  const fingerprint = { ...parts.save.fingerprint, ...programs };
  const checkpoint = await checkpointIn(op, host, dir);
  await sync(op, host, dir);
  await writeSaved(op, host, dir, { fingerprint, checkpoint, disk });
  undo.move();
  return { stillMs, apparentBytes: apparentBytesOf(disk) + (checkpoint?.bytes ?? 0) };
}

/** Of one that stands still for it, or does not run. */
export async function takeDisk(
  op: Operation,
  { save, imprintPath }: Omit<StillParts, 'start'>,
  plan: SandboxPlan,
  dir: string,
  since: string | null,
): Promise<SnapshotTaken> {
  const { host, rights, processes, fingerprint } = save;
  await using undo = unlessWhole(op, host, dir);
  await host.makeDir(op, dir, 0o700);
  const now = await processes.inspect(op, plan);
  const sinceMs = host.monotonicMs();
  let stillMs = 0;
  const isOurs = now.alive && (await command(op, save, plan, 'pause'));
  const goOn = once(async () => {
    using late = op.releasing(RELEASE_MS);
    if (isOurs) await command(late, save, plan, 'resume');
    if (now.alive) stillMs = host.monotonicMs() - sinceMs;
  });
  const stored = async () => {
    try {
      if (now.alive) {
        const enter = ['nsenter', '--target', `${now.pid}`, '--mount', '--'];
        const { exitCode, stderr } = await host.run(op, rights.argv([...enter, 'sync', '--file-system', diskMountDir(plan)]));
        if (exitCode !== 0) throw op.error('unavailable', `the disk cannot be written: ${new TextDecoder().decode(stderr).trim()}`);
      }
      return await keepDisk(op, { host, imprintPath }, plan, dir, { since, read: goOn });
    } finally {
      await goOn();
    }
  };
  const disk = await stored();
  await sync(op, host, dir);
  await writeSaved(op, host, dir, { fingerprint, checkpoint: null, disk });
  undo.move();
  return { stillMs, apparentBytes: apparentBytesOf(disk) };
}

/** Of one that is suspended. */
export async function takeSaved(
  op: Operation,
  tools: DiskTools,
  plan: SandboxPlan,
  dir: string,
  { saved, since }: { readonly saved: string; readonly since: string | null },
): Promise<SnapshotTaken> {
  const { host } = tools;
  await using undo = unlessWhole(op, host, dir);
  const { fingerprint, checkpoint } = await checkSaved(op, host, saved, { now: null, imprintPath: null });
  await host.makeDir(op, dir, 0o700);
  await host.link(op, join(saved, CHECKPOINT), join(dir, CHECKPOINT));
  const disk = await keepDisk(op, tools, plan, dir, { since, read: async () => {} });
  await sync(op, host, dir);
  await writeSaved(op, host, dir, { fingerprint, checkpoint, disk });
  undo.move();
  return { stillMs: 0, apparentBytes: apparentBytesOf(disk) + (checkpoint?.bytes ?? 0) };
}

/** Its disk, to which nobody writes until `read` is called. */
async function keepDisk(
  op: Operation,
  tools: DiskTools,
  plan: SandboxPlan,
  dir: string,
  { since, read }: { readonly since: string | null; readonly read: () => Promise<void> },
) {
  const disk = since === null ? null : await diskOf(op, tools.host, since);
  const earlier = since === null || disk === null ? null : { dir: since, disk };
  return await storeDisk(op, tools, diskPath(plan), dir, { earlier, read });
}

/** Removes `dir`, unless it is moved before that. */
function unlessWhole(op: Operation, host: Host, dir: string): AsyncDisposableStack {
  const undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, dir).catch((cause: unknown) => op.log.warn({ dir, cause }, 'a failed snapshot left something behind'));
  });
  return undo;
}

/** What fails for a moment must not cost a sandbox its memory. */
async function insist(op: Operation, plan: SandboxPlan, work: () => Promise<unknown>): Promise<void> {
  for (let triesLeft = TRIES; ; triesLeft -= 1) {
    try {
      return void (await work());
    } catch (cause) {
      if (triesLeft === 1) throw cause;
      op.log.warn({ sandbox: plan.id, cause }, 'a sandbox that stood still could not go on; it is tried again');
      await pause(op, AGAIN_MS);
    }
  }
}

/** Does nothing for one that was not ended. False: nothing of it is left to go on with. */
export async function goOnAfterwards(op: Operation, parts: Pick<StillParts, 'save' | 'start'>, plan: SandboxPlan): Promise<boolean> {
  const { host, processes } = parts.save;
  const [still, gone] = [stillDir(plan), goneOnDir(plan)];
  if ((await host.stat(op, gone)) !== null && (await isUnused(op, parts.start, plan))) await host.rename(op, gone, still);
  const whole = (await host.stat(op, still)) !== null && (await isWhole(op, parts.save, still));
  const isAlive = (await processes.inspect(op, plan)).alive;
  if (whole && !isAlive) {
    await parts.start.config.network.close(op, networkPlan(plan));
    await startSandbox(op, parts.start, plan, {
      checkpointDir: still,
      isSame: true,
      link: 'up', // it is whose it was
      async beforeRunning(late) {
        await host.remove(late, gone);
        await host.rename(late, still, gone);
      },
    });
  }
  await host.remove(op, still);
  await host.remove(op, gone);
  return isAlive || whole;
}
