// hutch system upgrade: another release takes the place of the one in use, while sandboxes live. What is done next stands in a
// journal before it is done, so that whoever comes after a kill or a power failure either finishes or undoes it.
//
//   prepared    the new release lies beside; nothing else is changed
//   switching   the old daemon ends, its store is copied, the link and the files change, the new daemon starts
//   restoring   the new one was not well: the copy of the store is put back, and the old release with it
//   healthy     the new one is well; what is left is to tidy up
import { setTimeout as pause } from 'node:timers/promises';
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { lastWords, untilHealthy } from './health.ts';
import { stopByCommand } from './install.ts';
import { at, releaseDir } from './layout.ts';
import { asDone, type Placed, planFiles } from './place.ts';
import { type InstallRecord, type Journal, readJournal, readRecord, writeJournal, writeRecord } from './record.ts';
import { currentRelease, installedRelease, type Release, readSource, removeOthers, type Source, stage, switchTo } from './release.ts';
import {
  hold,
  type Installed,
  installedOf,
  listSandboxes,
  type OwnDaemon,
  ownDaemons,
  releasesInUse,
  runningDaemon,
  type Scene,
  serviceOf,
} from './scene.ts';
import type { Service } from './service.ts';
import { copyStore, putBack, removeCopy, schemaOf } from './store-copy.ts';

/** Rolling back has a deadline of its own, and hears nobody. */
const ROLL_BACK_MS = 300_000;
const KILL_MS = 20_000;
const LOOKS_MAX = 50;
const LOOK_EVERY_MS = 100;
/** A daemon that runs is well soon or never. */
const WELL_MS = 20_000;

export type UpgradeWish = { readonly from: string; readonly how: 'do' | 'only-tell'; readonly withinMs: number };

export type UpgradeReport = Installed & {
  readonly outcome: 'upgraded' | 'there' | 'would-upgrade';
  readonly version: string;
  readonly from: Release;
  readonly to: Release;
  readonly files: readonly Placed[];
  /** What it does, or did, in sentences. */
  readonly does: readonly string[];
  /** What an upgrade that was cut short was found to be, and what was done. */
  readonly repaired: string | null;
  readonly dryRun: boolean;
};

export async function upgrade(op: Operation, scene: Scene, wish: UpgradeWish): Promise<UpgradeReport> {
  const { host, layout } = scene;
  const found = await installedRecord(op, scene);
  const service = await serviceOf(op, scene, found.service);
  // To look at it takes nobody's turn.
  await using _held = wish.how === 'do' ? await hold(op, scene) : null;
  const repaired = wish.how === 'do' ? await repair(op, scene, service, wish.withinMs) : null;
  const record = await installedRecord(op, scene);
  const from = await releaseOfRecord(op, scene, record);
  const source = await readSource(op, host, wish.from);
  const to: Release = { id: source.id, version: source.version, schemaVersion: source.schemaVersion, node: source.node };
  const does = await whatItDoes(op, scene, record, to);
  const report = (outcome: UpgradeReport['outcome'], files: readonly Placed[], now: InstallRecord): UpgradeReport => ({
    ...installedOf(scene, now),
    ...{ outcome, version: to.version, from, to, files, does, repaired, dryRun: wish.how === 'only-tell' },
  });
  if (source.id === record.release) return report('there', [], record);
  await refuseOlder(op, scene, to);
  const needs = { host, layout, env: scene.env, programEnv: scene.programEnv, service: record.service, source };
  const { placing, apply } = await planFiles(op, needs, { record, foreign: 'refuse' });
  if (wish.how === 'only-tell') return report('would-upgrade', placing.placed, record);

  await stage(op, host, layout, source, record.release);
  const running = (await listSandboxes(op, scene))?.filter(({ state }) => state === 'running' || state === 'paused') ?? [];
  const unit = await service.state(op);
  const journal: Journal = {
    ...{ format: 1, from: from.id, to: to.id, step: 'prepared', storeCopy: null, startedAtMs: host.nowMs() },
    wasRunning: (await runningDaemon(op, scene)) !== null || (unit !== null && unit.active !== 'inactive'),
    running: running.map(({ id }) => id),
  };
  await writeJournal(op, host, layout, journal);
  try {
    await changeOver(op, scene, service, journal, { apply, withinMs: wish.withinMs });
  } catch (error) {
    throw await undone(op, scene, service, error, wish.withinMs);
  }
  const next: InstallRecord = { ...record, release: to.id, previous: from.id, made: [...placing.made] };
  await finish(op, scene, next);
  return report('upgraded', placing.placed.map(asDone), next);
}

type Change = { readonly apply: (op: Operation) => Promise<void>; readonly withinMs: number };

async function changeOver(op: Operation, scene: Scene, service: Service, journal: Journal, { apply, withinMs }: Change): Promise<void> {
  const { host, layout, places } = scene;
  await writeJournal(op, host, layout, { ...journal, step: 'switching' });
  op.progress({ step: 'ending the old daemon; sandboxes go on' });
  await stopDaemon(op, scene, service, null);
  const storeCopy = places === null || !journal.wasRunning ? null : await copyStore(op, host, places.storePath);
  await writeJournal(op, host, layout, { ...journal, step: 'switching', storeCopy });
  await switchTo(op, host, layout, journal.to);
  await apply(op);
  await service.reload(op);
  if (places !== null && journal.wasRunning) {
    op.progress({ step: 'starting the new daemon' });
    using limited = op.within(withinMs, `starting the daemon of ${journal.to}`);
    await service.start(limited);
    await untilHealthy(limited, scene, service, { release: journal.to, running: journal.running, withinMs });
  }
  await writeJournal(op, host, layout, { ...journal, step: 'healthy', storeCopy });
}

/** What to tell of an upgrade that failed: it is undone, or even that was not possible. */
async function undone(op: Operation, scene: Scene, service: Service, error: unknown, withinMs: number): Promise<HutchError> {
  const failure = error instanceof HutchError ? error : op.error('internal', String(error), { cause: error });
  using late = op.releasing(ROLL_BACK_MS);
  const journal = await readJournal(late, scene.host, scene.layout);
  if (journal === null) return failure;
  const said = journal.step === 'prepared' ? null : await lastWords(late, scene).catch(() => null);
  const why = said === null || failure.message.includes(said) ? failure.message : `${failure.message} (its log ends with: ${said})`;
  try {
    await rollBack(late, scene, service, journal, withinMs);
  } catch (second) {
    const also = second instanceof Error ? second.message : String(second);
    return op.error('internal', `the upgrade failed (${why}), and so did rolling it back: ${also}`, {
      hint: 'mend what is said there, then: hutch system status, which tries again',
      cause: second,
    });
  }
  if (failure.code === 'cancelled') return op.error('cancelled', `interrupted; ${journal.from} is back in its place`);
  return op.error('failed_precondition', `${journal.to} was taken back: ${why}`, {
    hint: `${journal.from} is in use again, and sandboxes went on`,
  });
}

/** Finishes or undoes what an upgrade that was cut short has left. The caller holds the lock. Null: there was none. */
export async function repair(op: Operation, scene: Scene, service: Service, withinMs: number): Promise<string | null> {
  const { host, layout } = scene;
  const journal = await readJournal(op, host, layout);
  if (journal === null) return null;
  const { step, from, to } = journal;
  const began = `an upgrade from ${from} to ${to} was cut short`;
  if (step === 'healthy' || (step === 'switching' && (await isWell(op, scene, service, journal)))) {
    const source = await readSource(op, host, at(layout, releaseDir(layout, to)));
    const record = await installedRecord(op, scene);
    const needs = { host, layout, env: scene.env, programEnv: scene.programEnv, service: record.service, source };
    const { placing, apply } = await planFiles(op, needs, { record, foreign: 'replace' });
    await apply(op);
    await service.reload(op);
    await finish(op, scene, { ...record, release: to, previous: from, made: [...placing.made] });
    return `${began}; the new release was well, and it is finished`;
  }
  await rollBack(op, scene, service, journal, withinMs);
  return `${began}; it was taken back`;
}

/** Whether the new daemon, which may have been started, runs as it should. */
async function isWell(op: Operation, scene: Scene, service: Service, { to, wasRunning, running }: Journal): Promise<boolean> {
  if (!wasRunning || (await currentRelease(op, scene.host, scene.layout)) !== to) return false;
  if ((await runningDaemon(op, scene))?.release !== to) return false;
  return await untilHealthy(op, scene, service, { release: to, running, withinMs: WELL_MS }).then(
    () => true,
    () => false,
  );
}

/** May be repeated, whatever interrupts it. */
async function rollBack(op: Operation, scene: Scene, service: Service, journal: Journal, withinMs: number): Promise<void> {
  const { host, layout, places } = scene;
  const record = await installedRecord(op, scene);
  if (journal.step !== 'prepared') {
    op.progress({ step: 'rolling back' });
    await stopDaemon(op, scene, service, journal.to);
    await takeBackStore(op, scene, journal);
    await switchTo(op, host, layout, journal.from);
    const source: Source = await readSource(op, host, at(layout, releaseDir(layout, journal.from)));
    const needs = { host, layout, env: scene.env, programEnv: scene.programEnv, service: record.service, source };
    const { apply } = await planFiles(op, needs, { record, foreign: 'replace' });
    await apply(op);
    await service.reload(op);
    if (places !== null && journal.wasRunning) {
      await service.start(op);
      await untilHealthy(op, scene, service, { release: journal.from, running: journal.running, withinMs });
    }
  }
  await finish(op, scene, { ...record, release: journal.from });
}

/** Only where the old release could not read what is there now: else what was recorded meanwhile stays. */
async function takeBackStore(op: Operation, scene: Scene, journal: Journal): Promise<void> {
  const { host, layout, places } = scene;
  if (places === null || journal.storeCopy === null) return;
  const from = await installedRelease(op, host, layout, journal.from);
  const to = await installedRelease(op, host, layout, journal.to);
  const schema = await schemaOf(op, host, places.storePath);
  const known = from?.schemaVersion ?? 0;
  const isNewer = schema === null || schema > known || (to?.schemaVersion ?? 0) > known;
  if (journal.step !== 'restoring' && !isNewer) return;
  await writeJournal(op, host, layout, { ...journal, step: 'restoring' });
  await putBack(op, host, places.storePath, journal.storeCopy);
}

async function finish(op: Operation, scene: Scene, record: InstallRecord): Promise<void> {
  const { host, layout, places } = scene;
  await writeRecord(op, host, layout, record);
  await host.remove(op, at(layout, layout.journal));
  if (places !== null) await removeCopy(op, host, places.storePath);
  await removeOthers(op, host, layout, [record.release, record.previous, ...(await releasesInUse(op, scene))]);
}

/** The unit's, or whichever has the data directory, and all of a release that failed. Who does not end is killed: sandboxes are not its children. */
async function stopDaemon(op: Operation, scene: Scene, service: Service, failed: string | null): Promise<void> {
  if (scene.places === null) return;
  if (service.kind === 'systemd') await service.stop(op);
  const running = await runningDaemon(op, scene);
  if (running !== null) await stopByCommand(op, scene);
  const { host, places } = scene;
  const holder =
    (await host.stat(op, places.lockPath)) === null ? 0 : Number(new TextDecoder().decode(await host.readFile(op, places.lockPath, 64)));
  await killDaemons(op, scene, ({ ref, release }) => ref.pid === holder || release === failed);
}

/** Whatever is left of them: one that hangs before it has the data directory, too. */
async function killDaemons(op: Operation, scene: Scene, wanted: (daemon: OwnDaemon) => boolean): Promise<void> {
  using limited = op.within(KILL_MS, 'ending daemons that do not end by themselves');
  for (const { ref } of (await ownDaemons(op, scene)).filter(wanted)) {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      await scene.host.kill(limited, ref, signal);
      for (let looks = 0; looks < LOOKS_MAX && (await scene.host.isAlive(limited, ref)); looks += 1)
        await pause(LOOK_EVERY_MS, undefined, { signal: limited.signal });
    }
  }
}

/** What an upgrade to a release does, in sentences: also that it would be refused. */
export async function whatItDoes(op: Operation, scene: Scene, record: InstallRecord, to: Release): Promise<readonly string[]> {
  const { host, layout, places } = scene;
  if (to.id === record.release) return ['nothing: it is installed'];
  const old = await installedRelease(op, host, layout, record.release);
  const schema = places === null ? null : await schemaOf(op, host, places.storePath);
  if (schema !== null && schema > to.schemaVersion) return [`nothing: the store has schema ${schema}, and it knows ${to.schemaVersion}`];
  const does = [`put ${to.id} in the place of ${record.release}, which stays beside`];
  if (places !== null) does.push('start the daemon anew; sandboxes go on');
  if (schema !== null && schema < to.schemaVersion)
    does.push(
      `bring the store from schema ${schema} to ${to.schemaVersion}; it is copied before, and put back if the new daemon is not well`,
    );
  if (to.node !== old?.node) does.push(`run on Node.js ${to.node}, not ${old?.node ?? 'unknown'}`);
  return does;
}

async function refuseOlder(op: Operation, { host, places }: Scene, to: Release): Promise<void> {
  const schema = places === null ? null : await schemaOf(op, host, places.storePath);
  if (schema === null || schema <= to.schemaVersion) return;
  throw op.error('failed_precondition', `the store has schema ${schema}, and ${to.id} knows schemas up to ${to.schemaVersion}`, {
    hint: 'take a newer release, or go back with a backup: hutch system restore FILE',
  });
}

export async function installedRecord(op: Operation, { host, layout }: Scene): Promise<InstallRecord> {
  const record = await readRecord(op, host, layout);
  if (record !== null && record.state === 'installed') return record;
  const what = record === null ? `nothing is installed in ${at(layout, layout.lib)}` : 'an installation was cut short';
  throw op.error('not_found', what, { hint: record === null ? 'install it: hutch system install' : 'finish it: hutch system install' });
}

async function releaseOfRecord(op: Operation, { host, layout }: Scene, record: InstallRecord): Promise<Release> {
  const release = await installedRelease(op, host, layout, record.release);
  if (release !== null) return release;
  throw op.error('failed_precondition', `the release ${record.release} is not in its place`, {
    hint: 'make it anew: hutch system install',
  });
}
