// The files of an installation outside of its releases: the command, completions, the unit, the settings. Each is there
// already, is made, or is somebody else's and left alone: nothing that we have not made is written over without a word.
import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import type { Environment } from '../config/places.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { at, type Layout } from './layout.ts';
import type { InstallRecord, Made } from './record.ts';
import { partOf, type Source } from './release.ts';

const FILE_BYTES_MAX = 4_194_304;

export type Placed = {
  readonly kind: 'directory' | 'file' | 'link';
  readonly path: string;
  readonly about: string;
  /** `make` and `replace` are told by a dry run, in place of `made` and `replaced`. */
  readonly state: 'make' | 'made' | 'there' | 'kept' | 'replace' | 'replaced';
};

/** As it is told when it was done. */
export function asDone(placed: Placed): Placed {
  const state = placed.state === 'make' ? 'made' : placed.state === 'replace' ? 'replaced' : placed.state;
  return { ...placed, state };
}

type Wanted = { readonly path: string; readonly about: string; readonly keep: boolean } & (
  | { readonly kind: 'link'; readonly target: string }
  | { readonly kind: 'file'; readonly content: string }
);

export type PlaceNeeds = {
  readonly host: Host;
  readonly layout: Layout;
  readonly env: Environment;
  readonly programEnv: Readonly<Record<string, string>>;
  readonly service: 'systemd' | 'none';
  /** The release that they are of. */
  readonly source: Source;
};

/** Settings that a user's shell has and its service manager may not. */
const PASSED_ON = ['XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'XDG_STATE_HOME'] as const;

async function wantedOf(op: Operation, { host, layout, env, programEnv, service, source }: PlaceNeeds): Promise<readonly Wanted[]> {
  const text = async (path: string) => new TextDecoder().decode(await host.readFile(op, partOf(op, source, path), FILE_BYTES_MAX));
  const completion = async (shell: 'bash' | 'zsh' | 'fish'): Promise<Wanted> => {
    const argv = [partOf(op, source, 'bin/node'), '--', partOf(op, source, 'dist/hutch.cjs'), 'completion', shell];
    const said = await host.run(op, argv, { env: programEnv });
    if (said.exitCode !== 0) {
      const why = new TextDecoder().decode(said.stderr).trim().split('\n')[0] ?? '';
      throw op.error('failed_precondition', `the command of release ${source.id} does not run: ${why}`, {
        hint: 'take a fresh copy of Hutch',
      });
    }
    const path = layout.completions[shell];
    return { kind: 'file', path, content: new TextDecoder().decode(said.stdout), about: `completion for ${shell}`, keep: false };
  };
  const wanted: Wanted[] = [
    { kind: 'link', path: layout.command, target: `${layout.current}/bin/hutch`, about: 'the command', keep: false },
    await completion('bash'),
    await completion('zsh'),
    await completion('fish'),
    {
      kind: 'file',
      path: layout.config,
      content: await text('packaging/config.toml'),
      about: 'settings, all of them commented out',
      keep: true,
    },
  ];
  if (service === 'systemd') {
    const template = await text(`packaging/systemd/${layout.whose === 'system' ? 'hutchd' : 'hutchd-user'}.service`);
    wanted.push({
      kind: 'file',
      path: layout.unit,
      content: unitText(template, layout, env),
      about: 'the unit of the daemon',
      keep: false,
    });
  }
  return wanted;
}

/** Fills in a unit's template. */
export function unitText(template: string, layout: Layout, env: Environment): string {
  const own =
    layout.whose === 'user' ? PASSED_ON.flatMap((name) => (env[name]?.startsWith('/') === true ? [`${name}=${env[name]}`] : [])) : [];
  const environment = own.length === 0 ? '' : `Environment=${own.map(quoted).join(' ')}\n`;
  return template
    .replace('@ENVIRONMENT@\n', () => environment)
    .replaceAll('@EXEC@', () => quoted(`${layout.current}/bin/hutchd`))
    .replaceAll('@CURRENT@', () => specifiersOf(layout.current));
}

const specifiersOf = (text: string): string => text.replaceAll('%', '%%');

/** A word as systemd reads it (systemd.syntax(7)): `%` begins a specifier, `$` a variable. */
function quoted(word: string): string {
  const plain = specifiersOf(word).replaceAll('$', '$$$$');
  return /^[\w./:=%$+@-]+$/.test(plain) ? plain : `"${plain.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
}

export type Placing = {
  readonly placed: readonly Placed[];
  /** As they are to stand in the record. */
  readonly made: readonly Made[];
};

/**
 * Looks at what is there, and says what is to be made. @throws HutchError `conflict` where something that is not ours is in
 * the way, unless it may be replaced.
 */
export async function planFiles(
  op: Operation,
  needs: PlaceNeeds,
  { record, foreign }: { readonly record: InstallRecord | null; readonly foreign: 'refuse' | 'replace' },
): Promise<{ readonly placing: Placing; readonly apply: (applying: Operation) => Promise<void> }> {
  const { host, layout } = needs;
  const ours = new Map((record?.made ?? []).map((one) => [one.path, one]));
  const placed: Placed[] = [];
  const made: Made[] = [];
  const deeds: ((op: Operation) => Promise<void>)[] = [];
  const dirs = new Set<string>();
  for (const wanted of await wantedOf(op, needs)) {
    const { path, kind, about } = wanted;
    const there = await lookAt(op, host, at(layout, path), wanted);
    const known = ours.get(path);
    if (there !== 'none' && wanted.keep) {
      placed.push({ kind, path, about, state: there === 'same' ? 'there' : 'kept' });
      if (known !== undefined) made.push(known);
      continue;
    }
    if (there === 'same') placed.push({ kind, path, about, state: 'there' });
    else {
      if (there === 'other' && known === undefined && foreign === 'refuse')
        throw op.error('conflict', `${path} is there already, and no installation of Hutch has made it`, {
          hint: `move it away, or have it written over: hutch system install --replace`,
        });
      placed.push({ kind, path, about, state: there === 'none' ? 'make' : 'replace' });
      for (const dir of await missingParents(op, host, layout, path)) dirs.add(dir);
      deeds.push((doing) => write(doing, host, layout, wanted));
    }
    made.push({ kind, path, ...(wanted.kind === 'file' ? { sha256: digest(wanted.content) } : {}) });
  }
  const kept = (record?.made ?? []).filter(({ kind }) => kind === 'directory');
  const directories = [...dirs].toSorted().filter((dir) => !kept.some(({ path }) => path === dir));
  return {
    placing: {
      placed: [...directories.map((path): Placed => ({ kind: 'directory', path, about: '', state: 'make' })), ...placed],
      made: [...kept, ...directories.map((path): Made => ({ kind: 'directory', path })), ...made],
    },
    apply: async (applying) => {
      for (const deed of deeds) await deed(applying);
    },
  };
}

async function lookAt(op: Operation, host: Host, path: string, wanted: Wanted): Promise<'none' | 'same' | 'other'> {
  const info = await host.stat(op, path);
  if (info === null) return 'none';
  if (wanted.kind === 'link') return info.type === 'symlink' && (await host.readLink(op, path)) === wanted.target ? 'same' : 'other';
  if (info.type !== 'file' || info.sizeBytes > FILE_BYTES_MAX) return 'other';
  return (await host.sha256(op, path)) === digest(wanted.content) ? 'same' : 'other';
}

/** Whether a file is as we have made it. */
export async function isUnchanged(op: Operation, host: Host, layout: Layout, made: Made | undefined): Promise<boolean> {
  if (made?.sha256 === undefined) return made !== undefined;
  const path = at(layout, made.path);
  return (await host.stat(op, path))?.type === 'file' && (await host.sha256(op, path)) === made.sha256;
}

/** Outer ones first. */
export async function missingParents(op: Operation, host: Host, layout: Layout, path: string): Promise<readonly string[]> {
  const missing: string[] = [];
  for (let dir = dirname(path); dir !== '/' && (await host.stat(op, at(layout, dir))) === null; dir = dirname(dir)) missing.unshift(dir);
  return missing;
}

async function write(op: Operation, host: Host, layout: Layout, wanted: Wanted): Promise<void> {
  const path = at(layout, wanted.path);
  for (const dir of await missingParents(op, host, layout, wanted.path)) await host.makeDir(op, at(layout, dir), 0o755);
  if (wanted.kind === 'file') return await host.writeFileAtomic(op, path, wanted.content, 0o644);
  const beside = `${path}.hutch-new`;
  await host.remove(op, beside);
  await host.symlink(op, wanted.target, beside);
  await host.rename(op, beside, path);
}

function digest(content: string): string {
  return createHash('sha256').update(content).digest('hex');
}
