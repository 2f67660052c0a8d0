// Whose root a sandbox's files belong to and its runtime runs as: the machine's where the daemon is root, else that of
// a user namespace, in which the daemon's user is root and the users that the machine grants it (subuid(5)) are the others.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

/** An image may name any of the users that 16 bits can. */
const COUNT_MIN = 65_535;
const FILE_BYTES_MAX = 1024 * 1024;

export type Rights = {
  /** The program as root over the sandboxes' files. */
  readonly argv: (argv: readonly string[]) => readonly string[];
  /** The same, over the processes of the sandbox that `pid` is of. */
  readonly argvOf: (pid: number, argv: readonly string[]) => readonly string[];
  /** Told to `hutch-cell` when it makes a sandbox's place. */
  readonly cellArgs: readonly string[];
  /** Null: the machine's root. */
  readonly userId: number | null;
};

export class RightsFinder {
  readonly #host: Host;
  readonly #cellPath: string;
  #found: Rights | undefined;

  constructor(host: Host, cellPath: string) {
    this.#host = host;
    this.#cellPath = cellPath;
  }

  /** @throws HutchError `failed_precondition` where the machine grants the daemon's user no users. */
  async find(op: Operation): Promise<Rights> {
    this.#found ??= await this.#look(op);
    return this.#found;
  }

  async #look(op: Operation): Promise<Rights> {
    const host = this.#host;
    if (host.uid === 0) return { argv: (argv) => argv, argvOf: (_pid, argv) => argv, cellArgs: [], userId: null };
    const { stdout } = await host.run(op, ['id', '-un']);
    const user = new TextDecoder().decode(stdout).trim();
    const [uids, gids] = await Promise.all(['/etc/subuid', '/etc/subgid'].map((path) => this.#rangeOf(op, path, user)));
    if (uids === undefined || gids === undefined || uids === null || gids === null) {
      throw op.error('failed_precondition', `${user} has no users of its own on this machine, which the files of images would belong to`, {
        hint: `as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${user}, in a range that no other line of /etc/subuid has`,
      });
    }
    if ((await host.which(op, 'newuidmap')) === null)
      throw op.error('failed_precondition', 'newuidmap is not installed, which grants a user users of its own', {
        hint: 'install it: apt-get install uidmap',
      });
    const rights: Rights = {
      argv: (argv) => [this.#cellPath, '--as-root', uids, gids, '--', ...argv],
      argvOf: (pid, argv) => [this.#cellPath, '--as-root-of', `${pid}`, '--', ...argv],
      cellArgs: ['--uids', uids, '--gids', gids],
      userId: host.uid,
    };
    const trial = await host.run(op, rights.argv(['true']));
    if (trial.exitCode !== 0) {
      const why = new TextDecoder().decode(trial.stderr).replace(/^hutch-cell: /, '');
      throw op.error('failed_precondition', `a user namespace cannot be used here: ${why.trim()}`, {
        hint: 'run the daemon as root, or use the backend qemu',
      });
    }
    return rights;
  }

  async #rangeOf(op: Operation, path: string, user: string): Promise<string | null> {
    const host = this.#host;
    if ((await host.stat(op, path)) === null) return null;
    return rangeIn(new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX)), user, host.uid);
  }
}

/** A directory in which files may be those of other users. */
export async function removeTree(op: Operation, host: Host, rights: Rights, path: string): Promise<void> {
  if (rights.userId === null || (await host.stat(op, path)) === null) return await host.remove(op, path);
  const { exitCode, stderr } = await host.run(op, rights.argv(['rm', '-rf', '--one-file-system', path]));
  if (exitCode !== 0) throw op.error('internal', `cannot remove ${path}: ${new TextDecoder().decode(stderr).trim()}`);
}

/** The first that is large enough, as `FIRST:COUNT`: of a line `NAME:FIRST:COUNT`, whose name may be a number. */
export function rangeIn(content: string, user: string, uid: number): string | null {
  for (const line of content.split('\n')) {
    const [name, first, count] = line.split(':');
    if (name !== user && name !== `${uid}`) continue;
    if (/^\d+$/.test(first ?? '') && /^\d+$/.test(count ?? '') && Number(count) >= COUNT_MIN) return `${first}:${COUNT_MIN}`;
  }
  return null;
}
