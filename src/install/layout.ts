// Where an installation lies: for the machine, for one user, or below another root (for packagers, and for looking at what
// it would make). Pure. Paths that are written into files never have that root in front; `at` puts it there.
import type { Environment, Places } from '../config/places.ts';
import { HutchError } from '../domain/errors.ts';

export type Layout = {
  readonly whose: 'system' | 'user';
  /** In front of every path on disk: `''`, or a directory that is to become a root. */
  readonly root: string;
  /** Releases, the link to the one in use, and the records of the installation. */
  readonly lib: string;
  readonly releases: string;
  /** The link to the release in use. */
  readonly current: string;
  readonly command: string;
  readonly completions: { readonly bash: string; readonly zsh: string; readonly fish: string };
  readonly unit: string;
  readonly config: string;
  /** What the installation has made. */
  readonly record: string;
  /** An upgrade that is under way, or was cut short. */
  readonly journal: string;
  readonly lock: string;
};

export const UNIT = 'hutchd.service';

export type LayoutChoice = {
  readonly whose: 'system' | 'user';
  readonly env: Environment;
  readonly root: string;
};

/** @throws HutchError `invalid_argument` where HOME is needed and cannot be used. */
export function layoutOf({ whose, env, root }: LayoutChoice): Layout {
  const layout = whose === 'system' ? systemLayout(root) : userLayout(homeOf(env), env, root);
  // Where all of the daemon's lies elsewhere, so do its settings.
  const home = root === '' ? absolute(env['HUTCH_HOME']) : null;
  return home === null ? layout : { ...layout, config: `${home}/config.toml` };
}

function systemLayout(root: string): Layout {
  const share = '/usr/local/share';
  return {
    whose: 'system',
    root,
    ...below('/usr/local/lib/hutch'),
    command: '/usr/local/bin/hutch',
    completions: {
      bash: `${share}/bash-completion/completions/hutch`,
      zsh: `${share}/zsh/site-functions/_hutch`,
      fish: `${share}/fish/vendor_completions.d/hutch.fish`,
    },
    unit: `/etc/systemd/system/${UNIT}`,
    config: '/etc/hutch/config.toml',
  };
}

function userLayout(home: string, env: Environment, root: string): Layout {
  const config = absolute(env['XDG_CONFIG_HOME']) ?? `${home}/.config`;
  const share = absolute(env['XDG_DATA_HOME']) ?? `${home}/.local/share`;
  return {
    whose: 'user',
    root,
    ...below(`${home}/.local/lib/hutch`),
    command: `${home}/.local/bin/hutch`,
    completions: {
      bash: `${share}/bash-completion/completions/hutch`,
      zsh: `${share}/zsh/site-functions/_hutch`,
      fish: `${config}/fish/completions/hutch.fish`,
    },
    unit: `${config}/systemd/user/${UNIT}`,
    config: `${config}/hutch/config.toml`,
  };
}

function below(lib: string): Pick<Layout, 'lib' | 'releases' | 'current' | 'record' | 'journal' | 'lock'> {
  return {
    lib,
    releases: `${lib}/releases`,
    current: `${lib}/current`,
    record: `${lib}/install.json`,
    journal: `${lib}/upgrade.json`,
    lock: `${lib}/lock`,
  };
}

/** Where a path of the installation lies on this disk. */
export function at(layout: Layout, path: string): string {
  return `${layout.root}${path}`;
}

export function releaseDir(layout: Layout, release: string): string {
  return `${layout.releases}/${release}`;
}

/** The directories that the daemon makes, which are not the installation's. */
export function stateDirs(places: Places): readonly string[] {
  return [places.dataDir, places.runDir, places.logDir];
}

function homeOf(env: Environment): string {
  const home = absolute(env['HOME']);
  if (home !== null) return home;
  throw new HutchError({ code: 'invalid_argument', message: `HOME: '${env['HOME'] ?? ''}' is not an absolute path`, hint: 'set HOME' });
}

function absolute(path: string | undefined): string | null {
  if (path?.startsWith('/') !== true || /[\0\n]/.test(path)) return null;
  return path.replace(/\/+$/, '') || null;
}
