// hutch system uninstall: takes away what the installation made, and what the daemon made of the machine's. What sandboxes have
// is kept unless it is asked for. May be run again after any interruption: the record goes last.
import type { Operation } from '../host/operation.ts';
import { at, stateDirs } from './layout.ts';
import { clearMachine, type MachinePart } from './machine.ts';
import { isUnchanged } from './place.ts';
import { type InstallRecord, type Made, readRecord } from './record.ts';
import { hold, hutch, type Listed, listSandboxes, runningDaemon, type Scene, serviceOf } from './scene.ts';
import { lingerOf, type Service } from './service.ts';

const STOP_MS = 600_000;

export type UninstallWish = {
  readonly how: 'do' | 'only-tell';
  /** What sandboxes have: their disks, images, the ledger. */
  readonly state: 'keep' | 'purge';
  /** Those that run. */
  readonly sandboxes: 'refuse' | 'stop';
};

export type UninstallReport = {
  readonly dryRun: boolean;
  /** False where nothing was installed. */
  readonly wasInstalled: boolean;
  readonly removed: readonly { readonly kind: Made['kind'] | MachinePart['kind']; readonly what: string }[];
  readonly kept: readonly { readonly what: string; readonly why: string }[];
  readonly stopped: readonly string[];
};

export async function uninstall(op: Operation, scene: Scene, wish: UninstallWish): Promise<UninstallReport> {
  const { host, layout, places } = scene;
  const record = await readRecord(op, host, layout);
  const dryRun = wish.how === 'only-tell';
  if (record === null) return { dryRun, wasInstalled: false, removed: [], kept: [], stopped: [] };
  const service = await serviceOf(op, scene, record.service);
  const live = places === null ? [] : await liveSandboxes(op, scene, service, wish);
  if (live.length > 0 && wish.sandboxes === 'refuse' && !dryRun) {
    const names = live.map(({ name }) => name);
    throw op.error('failed_precondition', `sandboxes run: ${names.slice(0, 10).join(', ')}${names.length > 10 ? ' …' : ''}`, {
      hint: 'stop them first, or have it done: hutch system uninstall --force',
    });
  }
  const { gone, kept } = await planRemoval(op, scene, record, wish);
  if (dryRun)
    return {
      dryRun,
      wasInstalled: true,
      removed: gone.map(({ kind, path }) => ({ kind, what: path })),
      kept,
      stopped: live.map(({ name }) => name),
    };

  await using _held = await hold(op, scene);
  await endSandboxes(op, scene, live, wish);
  op.progress({ step: 'ending the daemon' });
  await service.disable(op);
  if (places !== null && (await runningDaemon(op, scene)) !== null) await must(op, scene, ['daemon', 'stop']);
  const machine = places === null ? [] : await clearMachine(op, host, places);
  if (record.linger) await lingerOf(scene).set(op, false);
  for (const { kind, path } of gone) {
    if (path === layout.lib) continue;
    if (kind !== 'directory') await host.remove(op, at(layout, path));
  }
  await service.reload(op);
  if (places !== null) for (const dir of wish.state === 'purge' ? stateDirs(places) : [places.runDir]) await removeState(op, scene, dir);
  for (const path of [layout.current, layout.releases, layout.journal]) await host.remove(op, at(layout, path));
  // With the record: from here on nothing is installed.
  await host.remove(op, at(layout, layout.lib));
  const removed: { kind: Made['kind'] | MachinePart['kind']; what: string }[] = [];
  for (const { kind, path } of gone) {
    // What others have put into a directory of ours keeps it.
    if (
      kind === 'directory' &&
      path !== layout.lib &&
      (await host.stat(op, at(layout, path))) !== null &&
      !(await host.removeEmptyDir(op, at(layout, path)))
    )
      kept.push({ what: path, why: 'others have put something into it' });
    else removed.push({ kind, what: path });
  }
  return {
    dryRun,
    wasInstalled: true,
    removed: [...removed, ...machine.map(({ kind, what }) => ({ kind, what }))],
    kept,
    stopped: live.map(({ name }) => name),
  };
}

/** The claims of other daemons' users lie there too. */
async function removeState(op: Operation, { host }: Scene, dir: string): Promise<void> {
  if ((await host.stat(op, dir)) === null) return;
  const claims = `${dir}/uids`;
  const others = (await host.stat(op, claims)) !== null && (await host.list(op, claims)).some((name) => /^\d+$/.test(name));
  if (!others) return await host.remove(op, dir);
  for (const name of await host.list(op, dir)) if (name !== 'uids') await host.remove(op, `${dir}/${name}`);
}

type Removal = { readonly gone: Made[]; readonly kept: { what: string; why: string }[] };

/** Files first, then directories, inner ones first. */
async function planRemoval(op: Operation, { host, layout, places }: Scene, record: InstallRecord, wish: UninstallWish): Promise<Removal> {
  const gone: Made[] = [];
  const kept: { what: string; why: string }[] = [];
  for (const made of record.made) {
    if (made.kind === 'file' && made.path === layout.config && wish.state === 'keep' && !(await isUnchanged(op, host, layout, made))) {
      if ((await host.stat(op, at(layout, made.path))) !== null)
        kept.push({ what: made.path, why: 'you have changed it; --purge removes it too' });
    } else gone.push(made);
  }
  if (
    wish.state === 'purge' &&
    !record.made.some(({ path }) => path === layout.config) &&
    (await host.stat(op, at(layout, layout.config))) !== null
  )
    kept.push({ what: layout.config, why: 'it was there before' });
  gone.push({ kind: 'directory', path: layout.lib });
  if (places !== null) {
    const [, ...rest] = stateDirs(places);
    if (wish.state === 'purge') gone.push(...stateDirs(places).map((path): Made => ({ kind: 'directory', path })));
    else {
      kept.push({ what: places.dataDir, why: 'what sandboxes have: disks, images, the ledger; --purge removes it too' });
      for (const dir of rest.filter((path) => path !== places.runDir))
        kept.push({ what: dir, why: 'the daemon’s log; --purge removes it too' });
    }
  }
  const staying = places === null || wish.state === 'purge' ? [] : stateDirs(places);
  const isAbove = (path: string): boolean => staying.some((dir) => dir.startsWith(`${path}/`));
  // A path is longer than those above it.
  const dirs = gone
    .filter(({ kind, path }) => kind === 'directory' && !isAbove(path))
    .toSorted((left, right) => right.path.length - left.path.length);
  return { gone: [...gone.filter(({ kind }) => kind !== 'directory'), ...dirs], kept };
}

/** Those whose processes may live. They are known to a daemon alone, so one is started where there is a store. */
async function liveSandboxes(op: Operation, scene: Scene, service: Service, wish: UninstallWish): Promise<readonly Listed[]> {
  const { host, places } = scene;
  let listed = await listSandboxes(op, scene);
  if (listed === null && places !== null && (await host.stat(op, places.storePath)) !== null && wish.how === 'do') {
    try {
      await service.start(op);
      listed = await waitForList(op, scene);
    } catch (error) {
      if (wish.sandboxes === 'refuse' || op.signal.aborted)
        throw op.error('unavailable', 'the daemon does not start, so it is not known whether sandboxes run', {
          hint: 'see: hutch daemon logs; to go on in spite of that: hutch system uninstall --force',
          cause: error,
        });
    }
  }
  return (listed ?? []).filter(({ state }) => state === 'running' || state === 'paused' || state === 'error');
}

const ANSWERS_MS = 60_000;

async function waitForList(op: Operation, scene: Scene): Promise<readonly Listed[]> {
  using limited = op.within(ANSWERS_MS, 'the daemon');
  for (;;) {
    const listed = await listSandboxes(limited, scene);
    if (listed !== null) return listed;
  }
}

async function endSandboxes(op: Operation, scene: Scene, live: readonly Listed[], wish: UninstallWish): Promise<void> {
  const running = live.filter(({ state }) => state !== 'error').map(({ id }) => id);
  if (running.length > 0) {
    op.progress({ step: 'stopping sandboxes' });
    await must(op, scene, ['stop', ...running]);
  }
  if (wish.state === 'keep') return;
  // Also what they have in a Docker Engine, which goes with no directory.
  const all = (await listSandboxes(op, scene))?.map(({ id }) => id) ?? [];
  if (all.length > 0) await must(op, scene, ['rm', '-f', ...all]);
}

async function must(op: Operation, scene: Scene, words: readonly string[]): Promise<void> {
  const said = await hutch(op, scene, words, STOP_MS);
  if (said === null || said.exitCode !== 0)
    throw op.error('unavailable', `hutch ${words[0]} failed: ${said?.stderr.split('\n')[0] ?? 'the command is gone'}`, {
      hint: 'mend that, and try again',
    });
}
