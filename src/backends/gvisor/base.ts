// The read-only ground under every sandbox's private layer: an image that this machine has packed is mounted as it is, by
// rust/cell and for its sandbox alone. Where that cannot be done (without root, without loop devices, of what a user gave), it is
// unpacked on this host, once. A directory with an image's digest as its name is whole; what is being made, or was left by a
// crash, has another name. Nobody but us may enter: programs in there have their set-user-id bits.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { RootFiles } from '../backend.ts';
import { pause } from '../wait.ts';
import type { GvisorConfig } from './config.ts';
import { type RightsFinder, removeTree } from './rights.ts';

const TRIAL_MS = 20_000;
const UNPACK_MS = 15 * 60_000;
const LOOK_EVERY_MS = 200;
const RELEASE_MS = 60_000;
const MOUNT_POINTS = ['proc', 'sys', 'dev', 'tmp'];
/** Never changed: sandboxes stand on it. */
const UNDER = 'under-1';
const BUILDING = '.building-';
const LOCK = '.lock-';
const WHOLE = /^[0-9a-f]{64}$/;

/** Where it is unpacked, or the file to be mounted and the directories that lie under it where it lacks one. */
export type Ground = { readonly basePath: string } | { readonly imagePath: string; readonly underPath: string };

export class Bases {
  readonly #host: Host;
  readonly #dir: string;
  readonly #workDir: string;
  readonly #cellPath: string;
  readonly #rights: RightsFinder;
  readonly #ready = new Set<string>();
  /** Paths of images that were mounted once: they can be as long as this daemon lives. */
  readonly #mountable = new Set<string>();

  constructor(host: Host, { basesDir, workDir, cellPath }: Pick<GvisorConfig, 'basesDir' | 'workDir' | 'cellPath'>, rights: RightsFinder) {
    this.#host = host;
    this.#dir = basesDir;
    this.#workDir = workDir;
    this.#cellPath = cellPath;
    this.#rights = rights;
  }

  /** One that is unpacked already stays so: sandboxes may stand on it. */
  async take(op: Operation, image: RootFiles): Promise<Ground> {
    const host = this.#host;
    const name = image.imageDigest.replace(/^sha256:/, '');
    if (!WHOLE.test(name)) throw op.error('internal', `not an image's digest: ${image.imageDigest}`);
    const path = join(this.#dir, name);
    if ((await host.stat(op, path)) === null && (await this.#canBeMounted(op, image))) {
      return { imagePath: image.imagePath, underPath: await this.#under(op) };
    }
    return { basePath: await this.#takeUnpacked(op, image.imagePath, name, path) };
  }

  /** Tried with the image itself: that a loop device is there does not say that it can be used, nor what this kernel reads. */
  async #canBeMounted(op: Operation, { imagePath, isPackedHere = false }: RootFiles): Promise<boolean> {
    if (!isPackedHere || this.#host.uid !== 0) return false;
    if (!this.#mountable.has(imagePath) && (await this.#tryToMount(op, imagePath))) this.#mountable.add(imagePath);
    return this.#mountable.has(imagePath);
  }

  async #tryToMount(op: Operation, imagePath: string): Promise<boolean> {
    const host = this.#host;
    const dir = join(this.#workDir, `probe-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await host.remove(late, dir);
    });
    await host.makeDir(op, dir, 0o700);
    using limited = op.within(TRIAL_MS, 'trying to mount the image');
    const { exitCode, stderr } = await host.run(limited, [this.#cellPath, '--look-at', imagePath, dir]);
    if (exitCode === 0) return true;
    op.log.debug({ imagePath, why: new TextDecoder().decode(stderr).trim() }, 'the image cannot be mounted, and is unpacked');
    return false;
  }

  async #under(op: Operation): Promise<string> {
    const under = join(this.#dir, UNDER);
    if (this.#ready.has(UNDER)) return under;
    await this.#host.makeDir(op, this.#dir, 0o700);
    for (const name of MOUNT_POINTS) await this.#host.makeDir(op, join(under, name), 0o755);
    this.#ready.add(UNDER);
    return under;
  }

  /** Made on first use, with progress. Whoever comes second waits for the first. */
  async #takeUnpacked(op: Operation, imagePath: string, name: string, path: string): Promise<string> {
    const host = this.#host;
    if (this.#ready.has(name) && (await host.stat(op, path)) !== null) return path;
    using limited = op.within(UNPACK_MS, 'unpacking the image');
    await host.makeDir(limited, this.#dir, 0o700);
    while ((await host.stat(limited, path)) === null) {
      await using lock = await host.lockFile(limited, join(this.#dir, `${LOCK}${name}`));
      if (lock === null) await pause(limited, LOOK_EVERY_MS);
      else if ((await host.stat(limited, path)) === null) await this.#unpack(limited, imagePath, name, path);
    }
    this.#ready.add(name);
    return path;
  }

  /** What was begun and is held by nobody. */
  async abandoned(op: Operation): Promise<readonly string[]> {
    const host = this.#host;
    if ((await host.stat(op, this.#dir)) === null) return [];
    const found: string[] = [];
    for (const name of await host.list(op, this.#dir)) {
      if (!name.startsWith(BUILDING)) continue;
      await using lock = await host.lockFile(op, join(this.#dir, name.replace(BUILDING, LOCK)));
      if (lock !== null) found.push(join(this.#dir, name));
    }
    return found;
  }

  /** Those that are whole, with what they take of the disk. */
  async list(op: Operation): Promise<readonly { readonly digest: string; readonly sizeBytes: number }[]> {
    const host = this.#host;
    if ((await host.stat(op, this.#dir)) === null) return [];
    const names = (await host.list(op, this.#dir)).filter((name) => WHOLE.test(name));
    if (names.length === 0) return [];
    const rights = await this.#rights.find(op);
    const found: { digest: string; sizeBytes: number }[] = [];
    for (const name of names) {
      const { exitCode, stdout } = await host.run(op, rights.argv(['du', '--summarize', '--block-size=1', join(this.#dir, name)]));
      if (exitCode === 0) found.push({ digest: `sha256:${name}`, sizeBytes: Number.parseInt(Buffer.from(stdout).toString(), 10) });
    }
    return found;
  }

  /** For the caller to know that no sandbox stands on it; the next one that wants it unpacks it again. False: it is being made. */
  async remove(op: Operation, digest: string): Promise<boolean> {
    const host = this.#host;
    const name = digest.replace(/^sha256:/, '');
    const path = join(this.#dir, name);
    if (!WHOLE.test(name) || (await host.stat(op, path)) === null) return false;
    await using lock = await host.lockFile(op, join(this.#dir, `${LOCK}${name}`));
    if (lock === null || (await host.stat(op, path)) === null) return false;
    this.#ready.delete(name);
    const going = join(this.#dir, `${BUILDING}${name}`);
    const rights = await this.#rights.find(op);
    await removeTree(op, host, rights, going);
    await host.rename(op, path, going); // from now on it is nobody's ground, however far its removal comes
    await removeTree(op, host, rights, going);
    return true;
  }

  async #unpack(op: Operation, imagePath: string, name: string, path: string): Promise<void> {
    const host = this.#host;
    op.progress({ step: 'unpack', detail: 'the image, for gVisor (once)' });
    const building = join(this.#dir, `${BUILDING}${name}`);
    const rights = await this.#rights.find(op);
    await removeTree(op, host, rights, building);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await removeTree(late, host, rights, building).catch((cause: unknown) =>
        op.log.warn({ building, cause }, 'half an unpacked image is left'),
      );
    });
    // No device of an image's becomes one of this machine's: the sandbox has a /dev of its own.
    const options = ['--quiet', '--no-dev', '--chmod', '--chown', '--set-times', '--set-xattr'];
    const { exitCode, stderr } = await host.run(
      op,
      rights.argv(['rdsquashfs', ...options, '--unpack-path', '/', '--unpack-root', building, imagePath]),
    );
    if (exitCode !== 0) throw op.error('internal', `the image cannot be unpacked: ${new TextDecoder().decode(stderr).trim()}`);
    // The runtime mounts there, and an image made from nothing need not have them.
    for (const name of MOUNT_POINTS) {
      if ((await host.stat(op, join(building, name))) === null) await host.makeDir(op, join(building, name), 0o755);
    }
    // Every file of it, before its name says that it is whole.
    const synced = await host.run(op, ['sync', '--file-system', building]);
    if (synced.exitCode !== 0)
      throw op.error('internal', `the unpacked image cannot be written: ${new TextDecoder().decode(synced.stderr).trim()}`);
    await host.rename(op, building, path);
    undo.move();
  }
}
