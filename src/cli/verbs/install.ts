// hutch system: installing Hutch, upgrading it, and taking it away. What is done is in src/install; here it is asked for
// and told.
import { existsSync } from 'node:fs';
import { dirname, isAbsolute, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { HutchError } from '../../domain/errors.ts';
import { install as installRelease } from '../../install/install.ts';
import type { Placed } from '../../install/place.ts';
import { type Begun, beginHere, type Installed, type Scene } from '../../install/scene.ts';
import { type StatusReport, status as statusOf } from '../../install/status.ts';
import { uninstall as uninstallRelease } from '../../install/uninstall.ts';
import { upgrade as upgradeRelease } from '../../install/upgrade.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { exitOf } from '../exit-codes.ts';
import { clock, json, roughAge, safe, table } from '../output.ts';
import { durationMs } from '../spec.ts';

/** That there is something for the machine; who may not see more of it is told so. */
const MACHINES = '/usr/local/lib/hutch/install.json';
const WITHIN_MS = 60_000;
const WITHIN_MS_MAX = 3_600_000;

export async function install(context: Context, args: Args): Promise<number> {
  const { op, scene } = begin(context, args, 'system.install');
  const report = await installRelease(op, scene, {
    from: fromOf(args) ?? ownSource() ?? nothingToTake('install'),
    service: args.has('no-service') ? 'none' : 'systemd',
    how: args.has('dry-run') ? 'only-tell' : 'do',
    foreign: args.has('replace') ? 'replace' : 'refuse',
    linger: args.has('linger'),
    withinMs: within(args),
  }).finally(() => context.progress.clear());
  const verb = report.dryRun
    ? 'would install'
    : report.files.every(({ state }) => state === 'there' || state === 'kept')
      ? 'is installed:'
      : 'installed';
  const parts = report.daemon.map(({ kind, what, about }) => [kind, what, about]);
  const daemon = parts.length === 0 ? '' : `\nWhile it runs, the daemon makes:\n\n${table(['WHAT', 'WHICH', 'FOR'], parts)}`;
  const notes = report.notes.map((note) => `\n${safe(note)}\n`).join('');
  await context.io.out(
    context.json ? json(report) : `${verb} ${report.release} ${forWhom(report)}\n\n${fileTable(report.files)}${daemon}${notes}`,
  );
  return 0;
}

export async function upgrade(context: Context, args: Args): Promise<number> {
  const { op, scene } = begin(context, args, 'system.upgrade');
  const report = await upgradeRelease(op, scene, {
    from: fromOf(args) ?? sourceToTake(scene) ?? nothingToTake('upgrade'),
    how: args.has('dry-run') ? 'only-tell' : 'do',
    withinMs: within(args),
  }).finally(() => context.progress.clear());
  const said = {
    upgraded: `upgraded from ${report.from.id} to ${report.to.id}; sandboxes went on`,
    there: `nothing to do: ${report.to.id} is installed`,
    'would-upgrade': `would upgrade from ${report.from.id} to ${report.to.id}`,
  }[report.outcome];
  const does = report.outcome === 'would-upgrade' ? report.does.map((one) => `  ${one}\n`).join('') : '';
  const files = `${does}${report.files.length === 0 ? '' : `\n${fileTable(report.files)}`}`;
  await context.io.out(context.json ? json(report) : `${report.repaired === null ? '' : `${report.repaired}\n`}${said}\n${files}`);
  return 0;
}

export async function status(context: Context, args: Args): Promise<number> {
  const { op, scene } = begin(context, args, 'system.status');
  const report = await statusOf(op, scene, { from: fromOf(args) ?? sourceToTake(scene), withinMs: within(args) }).finally(() =>
    context.progress.clear(),
  );
  await context.io.out(context.json ? json(report) : statusText(report, scene));
  if (report.installed === null) return exitOf('notFound');
  return report.healthy ? 0 : exitOf('unavailable');
}

export async function uninstall(context: Context, args: Args): Promise<number> {
  const { op, scene } = begin(context, args, 'system.uninstall');
  const report = await uninstallRelease(op, scene, {
    how: args.has('dry-run') ? 'only-tell' : 'do',
    state: args.has('purge') ? 'purge' : 'keep',
    sandboxes: args.has('force') ? 'stop' : 'refuse',
  }).finally(() => context.progress.clear());
  if (context.json) await context.io.out(json(report));
  else if (!report.wasInstalled) await context.io.out(`nothing is installed in ${scene.layout.root}${scene.layout.lib}\n`);
  else {
    const rows = report.removed.map(({ kind, what }) => [report.dryRun ? 'would go' : 'gone', kind, what]);
    const kept = report.kept.map(({ what, why }) => ['kept', why, what]);
    const stopped =
      report.stopped.length === 0 ? '' : `\n${report.dryRun ? 'these run' : 'stopped'}: ${report.stopped.map(safe).join(', ')}\n`;
    await context.io.out(
      `${table(['WHAT', 'KIND', 'WHERE'], rows)}${kept.length === 0 ? '' : `\n${table(['WHAT', 'WHY', 'WHERE'], kept)}`}${stopped}`,
    );
  }
  return 0;
}

function begin(context: Context, args: Args, verb: string): Begun {
  const root = args.value('root') ?? null;
  if (root !== null && !isAbsolute(root)) throw usage(`--root is an absolute path, not '${root}'`);
  const { env, interrupts, progress } = context;
  const whose = args.has('user') ? 'user' : null;
  return beginHere({ env, verb, whose, root, signal: interrupts.signal, onProgress: (step) => progress.show(step) });
}

function within(args: Args): number {
  const given = args.value('within');
  return given === undefined ? WITHIN_MS : durationMs('within', given, { minMs: 1_000, maxMs: WITHIN_MS_MAX });
}

function fromOf(args: Args): string | null {
  const [given] = args.positionals;
  return given === undefined ? null : resolve(given);
}

/** The checkout or release that we are of ourselves. */
function ownSource(): string | null {
  let dir = dirname(fileURLToPath(import.meta.url));
  for (let levels = 0; levels < 4; levels += 1, dir = dirname(dir))
    if (existsSync(`${dir}/packaging/bin/hutchd`) || existsSync(`${dir}/release.json`)) return dir;
  return null;
}

/** Null where we are what is installed: that is no release to change to. */
function sourceToTake({ layout }: Scene): string | null {
  const own = ownSource();
  return own?.startsWith(`${layout.root}${layout.releases}/`) === true ? null : own;
}

function nothingToTake(verb: string): never {
  throw new HutchError({
    code: 'invalid_argument',
    message: `hutch system ${verb} needs FROM: this Hutch is the installed one`,
    hint: `name a newer checkout, or a release: hutch system ${verb} DIR`,
  });
}

function forWhom({ whose, root }: Installed): string {
  const who = whose === 'system' ? 'for this machine' : 'for this user';
  return root === '' ? who : `${whose === 'system' ? 'for a machine' : 'for a user'} below ${root}`;
}

function fileTable(files: readonly Placed[]): string {
  return table(
    ['STATE', 'WHAT', 'WHERE', 'FOR'],
    files.map(({ state, kind, path, about }) => [state, kind, path, about]),
  );
}

function statusText(report: StatusReport, scene: Scene): string {
  const { installed, unit, daemon, sandboxes, problems, upgrade: next, repaired } = report;
  if (installed === null && scene.layout.whose === 'user' && existsSync(MACHINES))
    return 'nothing is installed for this user; for the machine there is something: ask as root\n';
  if (installed === null) return `nothing is installed in ${scene.layout.root}${scene.layout.lib}; install it with: hutch system install\n`;
  const rows: [string, string][] = [
    ['installed', `${installed.release} ${forWhom(installed)}${installed.previous === null ? '' : `, before it ${installed.previous}`}`],
    ['unit', unitLine(installed, unit)],
    [
      'daemon',
      daemon === null
        ? 'does not run'
        : `${daemon.version}, process ${daemon.pid}, of ${daemon.release ?? 'another place'}, since ${clock(daemon.startedAtMs)}, ${roughAge(Date.now() - daemon.startedAtMs)} ago`,
    ],
    ...(sandboxes === null ? [] : [['sandboxes', `${sandboxes.all}, of which ${sandboxes.running} run`] as [string, string]]),
    ...problems.map((problem): [string, string] => ['problem', problem]),
    ...(repaired === null ? [] : [['repaired', repaired] as [string, string]]),
    ...(next === null ? [] : next.does.map((does): [string, string] => ['upgrade', `from ${next.from}: ${does}`])),
  ];
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, text]) => `${name.padEnd(width)}  ${safe(text)}\n`).join('');
}

function unitLine(installed: Installed, unit: StatusReport['unit']): string {
  if (installed.service === 'none') return 'none: a command starts the daemon when it is needed';
  if (unit === null) return 'not known to systemd';
  return `${unit.name}: ${unit.active} (${unit.sub}), ${unit.enabled ? 'starts with the machine' : 'does not start with the machine'}`;
}
