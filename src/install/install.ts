// hutch system install: a release beside, then the files, then the daemon. Everything is looked at before anything is made,
// what is made is written down first, and every step finds what an interruption has left of it: it may be run again at
// any time, and makes what is missing.
import type { Operation } from '../host/operation.ts';
import { findsLocalNames, NAMES_FIX } from '../network/local-names.ts';
import { untilHealthy } from './health.ts';
import { at, stateDirs } from './layout.ts';
import { type MachinePart, madeByDaemon } from './machine.ts';
import { asDone, missingParents, type Placed, planFiles } from './place.ts';
import { type InstallRecord, readRecord, writeRecord } from './record.ts';
import { currentRelease, isWhole, readSource, type Source, stage, switchTo } from './release.ts';
import { hold, type Installed, installedOf, runningDaemon, type Scene, serviceOf } from './scene.ts';
import { lingerOf, type Service } from './service.ts';

export type InstallWish = {
  /** A checkout that is built, or a release. */
  readonly from: string;
  readonly service: 'systemd' | 'none';
  readonly how: 'do' | 'only-tell';
  /** What somebody else has put in our place. */
  readonly foreign: 'refuse' | 'replace';
  readonly linger: boolean;
  readonly withinMs: number;
};

export type InstallReport = Installed & {
  readonly version: string;
  readonly schemaVersion: number;
  readonly dryRun: boolean;
  readonly files: readonly Placed[];
  /** What the daemon makes while it runs. */
  readonly daemon: readonly MachinePart[];
  readonly notes: readonly string[];
};

export async function install(op: Operation, scene: Scene, wish: InstallWish): Promise<InstallReport> {
  const { host, layout, env } = scene;
  if (wish.service === 'systemd' && scene.places !== null && env['HUTCH_HOME'] !== undefined && env['HUTCH_HOME'] !== '')
    throw op.error('failed_precondition', 'HUTCH_HOME is set, and a unit has its own environment: its daemon would have another home', {
      hint: 'unset HUTCH_HOME, or: hutch system install --no-service',
    });
  // Not to be had is found out before anything is made.
  const service = await serviceOf(op, scene, wish.service);
  const before = await readRecord(op, host, layout);
  const source = await readSource(op, host, wish.from);
  if (before?.state === 'installed' && before.release !== source.id)
    throw op.error('failed_precondition', `${before.release} is installed, and this is ${source.id}`, {
      hint: 'change to it with: hutch system upgrade',
    });
  if (before !== null && before.service !== wish.service)
    throw op.error('failed_precondition', `it is installed ${before.service === 'none' ? 'without' : 'with'} a unit`, {
      hint: 'take that away first (what sandboxes have is kept): hutch system uninstall',
    });
  const needs = { host, layout, env, programEnv: scene.programEnv, service: wish.service, source };
  const { placing, apply } = await planFiles(op, needs, { record: before, foreign: wish.foreign });
  const record: InstallRecord = {
    format: 1,
    state: before?.state ?? 'installing',
    service: wish.service,
    release: source.id,
    previous: before?.previous ?? null,
    made: [...placing.made],
    linger: before?.linger ?? false,
  };
  const report = async (files: readonly Placed[]): Promise<InstallReport> => ({
    ...installedOf(scene, record),
    version: source.version,
    schemaVersion: source.schemaVersion,
    dryRun: wish.how === 'only-tell',
    files,
    daemon: scene.places === null ? [] : madeByDaemon(host.uid, scene.places),
    notes: await notesOf(op, scene, wish, record),
  });
  const own = await ownPlaces(op, scene, source);
  if (wish.how === 'only-tell') return await report([...own, ...placing.placed]);

  const above = (await parents(op, scene, before)).filter(({ path }) => !record.made.some((one) => one.path === path));
  const withOwn = { ...record, made: [...above, ...record.made] };
  await host.makeDir(op, at(layout, layout.releases), 0o755);
  await using _held = await hold(op, scene);
  await writeRecord(op, host, layout, withOwn);
  await stage(op, host, layout, source, before?.previous ?? null);
  await switchTo(op, host, layout, source.id);
  await apply(op);
  await beginService(op, scene, service, source, wish);
  const linger = wish.linger && !(await lingerOf(scene).isOn(op));
  if (linger) {
    await writeRecord(op, host, layout, { ...withOwn, linger });
    await lingerOf(scene).set(op, true);
  }
  await writeRecord(op, host, layout, { ...withOwn, linger: withOwn.linger || linger, state: 'installed' });
  return await report([...own, ...placing.placed].map(asDone));
}

/** A daemon that runs already, started by a command, gives way to the unit's; its sandboxes go on. */
async function beginService(op: Operation, scene: Scene, service: Service, source: Source, wish: InstallWish): Promise<void> {
  if (scene.places === null) return;
  const running = await runningDaemon(op, scene);
  if (service.kind === 'none') {
    // The next command starts one.
    if (running !== null && running.release !== source.id) await service.stop(op);
    return;
  }
  await service.enable(op);
  const unit = await service.state(op);
  if (running !== null && running.release === source.id && unit?.pid === running.pid) return;
  op.progress({ step: 'starting the daemon' });
  if (unit?.pid !== null && unit !== null) await service.stop(op);
  else if (running !== null) await stopByCommand(op, scene);
  await service.start(op);
  await untilHealthy(op, scene, service, { release: source.id, running: [], withinMs: wish.withinMs });
}

/** The daemon that no unit keeps. */
export async function stopByCommand(op: Operation, scene: Scene): Promise<void> {
  const { host, layout, programEnv } = scene;
  const done = await host.run(op, [at(layout, `${layout.current}/bin/hutch`), 'daemon', 'stop'], { env: programEnv });
  if (done.exitCode !== 0)
    throw op.error('unavailable', `the daemon that runs does not end: ${new TextDecoder().decode(done.stderr).trim()}`, {
      hint: 'end it and try again: hutch daemon stop',
    });
}

/** The release and what belongs to it, as they are told. */
async function ownPlaces(op: Operation, { host, layout }: Scene, source: Source): Promise<readonly Placed[]> {
  const there = (await isWhole(op, host, layout, source.id)) ? 'there' : 'make';
  const isCurrent = (await currentRelease(op, host, layout)) === source.id;
  const isRecorded = (await host.stat(op, at(layout, layout.record))) !== null;
  return [
    {
      kind: 'directory',
      path: `${layout.releases}/${source.id}`,
      about: `the release: ${source.parts.length} files, with Node.js ${source.node}`,
      state: there,
    },
    { kind: 'link', path: layout.current, about: 'to the release in use', state: isCurrent ? 'there' : 'make' },
    { kind: 'file', path: layout.record, about: 'what was installed', state: isRecorded ? 'there' : 'make' },
    { kind: 'file', path: layout.lock, about: 'one command at a time', state: isRecorded ? 'there' : 'make' },
  ];
}

/** Directories above our own, and above those that the daemon makes, that are made for them, so that they go with them. */
async function parents(op: Operation, { host, layout, places }: Scene, before: InstallRecord | null): Promise<InstallRecord['made']> {
  const known = new Set((before?.made ?? []).map(({ path }) => path));
  const missing = new Set<string>();
  for (const dir of [layout.lib, ...(places === null ? [] : stateDirs(places))])
    for (const path of await missingParents(op, host, layout, dir)) if (!known.has(path)) missing.add(path);
  return [...missing].map((path) => ({ kind: 'directory', path }));
}

async function notesOf(op: Operation, scene: Scene, wish: InstallWish, record: InstallRecord): Promise<readonly string[]> {
  const { host, layout, env } = scene;
  const notes: string[] = [];
  if (layout.root !== '')
    return [`another root: nothing was started${wish.service === 'none' ? '' : '; on that machine: systemctl enable --now hutchd'}`];
  const path = (env['PATH'] ?? '').split(':');
  const bin = layout.command.replace(/\/[^/]+$/, '');
  if (!path.includes(bin)) notes.push(`${bin} is not in PATH: add it, or call ${layout.command}`);
  if (layout.whose === 'user') {
    notes.push(`zsh looks for completions in fpath: fpath+=(${layout.completions.zsh.replace(/\/[^/]+$/, '')})`);
    if (wish.service === 'systemd' && !wish.linger && !record.linger && !(await lingerOf({ host, layout, env }).isOn(op)))
      notes.push(
        'the daemon ends with your last session, and begins with your next; to let it live without: loginctl enable-linger (or install --linger)',
      );
  }
  if (wish.service === 'none')
    notes.push('no unit keeps the daemon: a command starts it when it is needed, and nothing does after a reboot');
  if ((await findsLocalNames(op, host)) === 'no')
    notes.push(`only browsers find NAME.hutch.localhost here, at which published ports answer; for other programs, as root: ${NAMES_FIX}`);
  return notes;
}
