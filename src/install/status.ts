// hutch system status: what is installed, what runs, whether it is well, and what an upgrade from here would do. An upgrade
// that was cut short is finished or undone first, by whoever may.
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { at } from './layout.ts';
import { type InstallRecord, readJournal, readRecord } from './record.ts';
import { currentRelease, installedRelease, isWhole, type Release, readSource } from './release.ts';
import { hold, type Installed, installedOf, listSandboxes, type Running, runningDaemon, type Scene, serviceOf } from './scene.ts';
import type { Service, UnitState } from './service.ts';
import { repair, whatItDoes } from './upgrade.ts';

export type StatusReport = {
  readonly installed: (Installed & { readonly version: string; readonly schemaVersion: number }) | null;
  readonly unit: UnitState | null;
  readonly daemon: Running | null;
  readonly sandboxes: { readonly all: number; readonly running: number } | null;
  readonly healthy: boolean;
  /** Each with what mends it. */
  readonly problems: readonly string[];
  readonly upgrade: { readonly from: string; readonly release: string; readonly version: string; readonly does: readonly string[] } | null;
  readonly repaired: string | null;
};

export type StatusWish = {
  /** The Hutch that asks: what an upgrade would be to. Null where it is the installed one. */
  readonly from: string | null;
  readonly withinMs: number;
};

export async function status(op: Operation, scene: Scene, wish: StatusWish): Promise<StatusReport> {
  const { host, layout } = scene;
  const first = await readRecord(op, host, layout);
  if (first === null) {
    const daemon = null;
    return { installed: null, unit: null, daemon, sandboxes: null, healthy: false, problems: [], upgrade: null, repaired: null };
  }
  const problems: string[] = [];
  const service = await serviceOf(op, scene, first.service).catch((error: unknown) => {
    if (!(error instanceof HutchError)) throw error;
    problems.push(error.message);
    return null;
  });
  const repaired = service === null ? null : await repairOrTell(op, scene, service, wish.withinMs, problems);
  const record = (await readRecord(op, host, layout)) ?? first;
  const release = await installedRelease(op, host, layout, record.release);
  const unit = (await service?.state(op)) ?? null;
  const daemon = scene.places === null ? null : await runningDaemon(op, scene);
  const listed = daemon === null ? null : await listSandboxes(op, scene);
  await tellProblems(op, scene, record, { unit, daemon }, problems);
  return {
    installed: { ...installedOf(scene, record), version: release?.version ?? 'unknown', schemaVersion: release?.schemaVersion ?? 0 },
    unit,
    daemon,
    sandboxes: listed === null ? null : { all: listed.length, running: listed.filter(({ state }) => state === 'running').length },
    healthy: problems.length === 0,
    problems,
    upgrade: wish.from === null ? null : await upgradeFrom(op, scene, record, wish.from),
    repaired,
  };
}

async function repairOrTell(op: Operation, scene: Scene, service: Service, withinMs: number, problems: string[]): Promise<string | null> {
  const { host, layout } = scene;
  if ((await readJournal(op, host, layout)) === null) return null;
  try {
    await using _held = await hold(op, scene);
    return await repair(op, scene, service, withinMs);
  } catch (error) {
    if (!(error instanceof HutchError) || op.signal.aborted) throw error;
    const isUnderWay = error.code === 'conflict';
    problems.push(isUnderWay ? 'an upgrade is under way' : `an upgrade was cut short, and cannot be mended: ${error.message}`);
    return null;
  }
}

async function tellProblems(
  op: Operation,
  scene: Scene,
  record: InstallRecord,
  { unit, daemon }: Pick<StatusReport, 'unit' | 'daemon'>,
  problems: string[],
): Promise<void> {
  const { host, layout, places } = scene;
  if (record.state === 'installing') problems.push('the installation was cut short; finish it: hutch system install');
  if (!(await isWhole(op, host, layout, record.release)))
    problems.push(`the release ${record.release} is damaged; make it anew: hutch system install`);
  if ((await currentRelease(op, host, layout)) !== record.release)
    problems.push(`${layout.current} does not name ${record.release}: hutch system install`);
  for (const { path, kind } of record.made)
    if (kind !== 'directory' && (await host.stat(op, at(layout, path))) === null)
      problems.push(`${path} is missing; make it anew: hutch system install`);
  if (places === null) return;
  if (record.service === 'systemd') {
    if (unit === null) problems.push('systemd does not know the unit; make it anew: hutch system install');
    else if (unit.active !== 'active')
      problems.push(`the unit is ${unit.active} (${unit.sub}); start it: systemctl ${userFlag(layout.whose)}start hutchd`);
    else if (!unit.enabled) problems.push(`the unit does not start with the machine: systemctl ${userFlag(layout.whose)}enable hutchd`);
    if (daemon === null && unit?.active === 'active') problems.push('the daemon does not answer; see its log: hutch daemon logs');
    if (daemon !== null && unit !== null && unit.pid !== daemon.pid)
      problems.push(
        `process ${daemon.pid} answers, which is not the unit’s: hutch daemon stop, then systemctl ${userFlag(layout.whose)}start hutchd`,
      );
  }
  if (daemon !== null && daemon.release !== record.release)
    problems.push(
      `the daemon that runs is of ${daemon.release ?? 'another place'}: hutch daemon stop lets the next command start the installed one`,
    );
}

const userFlag = (whose: 'system' | 'user'): string => (whose === 'user' ? '--user ' : '');

async function upgradeFrom(op: Operation, scene: Scene, record: InstallRecord, from: string): Promise<StatusReport['upgrade']> {
  const { host } = scene;
  let source: Release;
  try {
    source = await readSource(op, host, from);
  } catch (error) {
    if (!(error instanceof HutchError) || op.signal.aborted) throw error;
    return { from, release: '', version: '', does: [`nothing: ${error.message}`] };
  }
  const { id, version } = source;
  return { from, release: id, version, does: await whatItDoes(op, scene, record, source) };
}
