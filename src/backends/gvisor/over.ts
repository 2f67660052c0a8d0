// Two files that lie over an image in every sandbox of a runtime that needs them: a library, and the list by which
// every program loads it. They are a layer of the sandbox's root, under its own: what lies there the runtime may
// remember, while a file that is mounted for itself it asks the host for each time that a program starts.
import { basename, join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { Asked } from '../asked.ts';
import { DIGEST_CHARS, OVER_DIR } from './paths.ts';

/** In the sandbox. */
const PRELOAD_LIST = '/etc/ld.so.preload';
const LIBRARY = '/etc/ld.so.hutch';
const LIBRARY_BYTES_MAX = 1024 * 1024;

export class Overs {
  readonly #host: Host;
  readonly #dir: string;
  readonly #libraryPath: string;
  readonly #made = new Asked<string>();

  constructor(host: Host, dir: string, libraryPath: string) {
    this.#host = host;
    this.#dir = dir;
    this.#libraryPath = libraryPath;
  }

  /** The layer's directory. Over which images it may lie, rust/cell sees, which has them before it. */
  async take(op: Operation): Promise<string> {
    return await this.#made.get(op, (asking) => this.#make(asking));
  }

  /**
   * The one that a saved sandbox goes on with, by the name that `nameOf` gave: what is open in there has to be what it was.
   * @throws HutchError `failed_precondition` where there is none of it.
   */
  async find(op: Operation, name: string | null): Promise<string | null> {
    if (name === null) return null;
    const path = join(this.#dir, `${OVER_DIR}${name}`);
    if ((await this.#host.stat(op, join(path, PRELOAD_LIST))) !== null) return path;
    // It came from another machine: then ours will do, if it is the same.
    if ((await this.name(op)) === name) return await this.take(op);
    throw op.error('failed_precondition', 'what was saved cannot go on here: a library in it is of another release of Hutch', {
      hint: 'take it up with the release that saved it; without its memory it goes on anywhere: hutch snapshot create --disk-only',
    });
  }

  /** By which a layer of this release is known. */
  async name(op: Operation): Promise<string> {
    return (await this.#host.sha256(op, this.#libraryPath)).replace(/^sha256:/, '').slice(0, DIGEST_CHARS);
  }

  static nameOf(path: string | null): string | null {
    return path === null ? null : basename(path).slice(OVER_DIR.length);
  }

  /** Never changed once it is there, as sandboxes lie over it: another library makes another one. */
  async #make(op: Operation): Promise<string> {
    const host = this.#host;
    const path = join(this.#dir, `${OVER_DIR}${await this.name(op)}`);
    if ((await host.stat(op, join(path, PRELOAD_LIST))) !== null) return path;
    await host.makeDir(op, this.#dir, 0o700);
    await host.makeDir(op, join(path, 'etc'), 0o755);
    await host.writeFileAtomic(op, join(path, LIBRARY), await host.readFile(op, this.#libraryPath, LIBRARY_BYTES_MAX), 0o755);
    // Last, as it says that all is there.
    await host.writeFileAtomic(op, join(path, PRELOAD_LIST), `${LIBRARY}\n`, 0o444);
    return path;
  }
}
