// Where things lie: as root, as a user, or all of it below HUTCH_HOME. Pure: the environment is passed
// in, and nothing is looked at or made.
import { HutchError } from '../domain/errors.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

export type Places = {
  /** Store, images, disks. Survives everything. */
  readonly dataDir: string;
  /** Sockets and the shims' files: of this boot only. */
  readonly runDir: string;
  readonly logDir: string;
  /** The first one that exists is read. */
  readonly configPaths: readonly string[];
  readonly socketPath: string;
  readonly storePath: string;
  /** Held by the one daemon of the data directory. */
  readonly lockPath: string;
  /** The owner's API key, for the CLI on this machine. */
  readonly ownerKeyPath: string;
};

export type Whose = { readonly uid: number; readonly env: Environment };

/**
 * A unix socket's path has 107 bytes at most (unix(7)), and the longest below this directory is
 * `/sandboxes/<id>/<socket>`.
 */
export const RUN_DIR_BYTES_MAX = 60;

const SYSTEM_CONFIG = '/etc/hutch/config.toml';

/** @throws HutchError `invalid_argument` when HUTCH_HOME or HOME cannot be used. */
export function placesOf({ uid, env }: Whose): Places {
  const home = env['HUTCH_HOME'];
  if (home !== undefined && home !== '') return ofHutchHome(home);
  if (uid === 0) {
    return withFiles({ dataDir: '/var/lib/hutch', runDir: '/run/hutch', logDir: '/var/log/hutch', configPaths: [SYSTEM_CONFIG] });
  }
  const data = xdg(env, 'XDG_DATA_HOME', '.local/share');
  const state = xdg(env, 'XDG_STATE_HOME', '.local/state');
  const config = xdg(env, 'XDG_CONFIG_HOME', '.config');
  const run = env['XDG_RUNTIME_DIR'];
  return withFiles({
    dataDir: `${data}/hutch`,
    // Without a login session there is no such directory; what lies in ours is told apart by its boot id.
    runDir: isAbsolute(run) ? `${trimmed(run)}/hutch` : `${state}/hutch/run`,
    logDir: `${state}/hutch`,
    configPaths: [`${config}/hutch/config.toml`, SYSTEM_CONFIG],
  });
}

function ofHutchHome(home: string): Places {
  if (!isAbsolute(home)) throw new HutchError({ code: 'invalid_argument', message: `HUTCH_HOME: '${home}' is not an absolute path` });
  const root = trimmed(home);
  return withFiles({ dataDir: `${root}/data`, runDir: `${root}/run`, logDir: `${root}/log`, configPaths: [`${root}/config.toml`] });
}

function withFiles(dirs: Pick<Places, 'dataDir' | 'runDir' | 'logDir' | 'configPaths'>): Places {
  const { dataDir, runDir } = dirs;
  const bytes = new TextEncoder().encode(runDir).byteLength;
  if (bytes > RUN_DIR_BYTES_MAX) {
    throw new HutchError({
      code: 'invalid_argument',
      message: `the directory for sockets, ${runDir}, has ${bytes} bytes; at most ${RUN_DIR_BYTES_MAX} leave room for the names of sockets`,
      hint: 'set HUTCH_HOME to a shorter path',
    });
  }
  return {
    ...dirs,
    socketPath: `${runDir}/hutch.sock`,
    storePath: `${dataDir}/hutch.db`,
    lockPath: `${dataDir}/hutch.lock`,
    ownerKeyPath: `${dataDir}/owner.key`,
  };
}

/** What is not absolute is to be ignored (XDG Base Directory Specification). */
function xdg(env: Environment, name: string, below: string): string {
  const set = env[name];
  if (isAbsolute(set)) return trimmed(set);
  const home = env['HOME'];
  if (!isAbsolute(home)) {
    throw new HutchError({
      code: 'invalid_argument',
      message: `HOME: '${home ?? ''}' is not an absolute path`,
      hint: `set HOME, ${name} or HUTCH_HOME`,
    });
  }
  return `${home === '/' ? '' : trimmed(home)}/${below}`;
}

function isAbsolute(path: string | undefined): path is string {
  return path?.startsWith('/') === true && !path.includes('\0');
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, '') || '/';
}
