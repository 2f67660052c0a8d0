// The private layer of one sandbox: an ext4 in a file of the size that was asked for, where this machine lets us
// mount one (rust/cell), else a directory of the host's, which nothing bounds. What was made stays what it is.
import { join } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { Asked } from '../asked.ts';
import type { SandboxPlan } from '../backend.ts';
import { damagedDisk } from '../damaged.ts';
import { DiskSeeds, fileSystemBytes, growFileSystem } from '../disk.ts';
import { type GvisorConfig, RELEASE_MS } from './config.ts';
import { diskMountDir, diskPath, layerDir, overlayWorkDir, upperDir } from './paths.ts';

const TRIAL_MS = 20_000;
const TRIAL_BYTES = 4 * 1024 * 1024;
const WHY_CHARS_MAX = 400;
const MIB = 1024 * 1024;

/** What `hutch-cell` is told. */
export type LayerArgs = readonly string[];

export class Layers {
  readonly #config: GvisorConfig;
  readonly #host: Host;
  readonly #seeds: DiskSeeds;
  readonly #trial = new Asked<string | null>();

  constructor(config: GvisorConfig) {
    this.#config = config;
    this.#host = config.host;
    this.#seeds = new DiskSeeds(config.host, config.basesDir);
  }

  /** Null: a new sandbox gets a disk of its own size. */
  async whyUnbounded(op: Operation): Promise<string | null> {
    return await this.#trial.get(op, (asking) => this.#try(asking));
  }

  async make(op: Operation, plan: SandboxPlan): Promise<void> {
    const host = this.#host;
    await host.makeDir(op, layerDir(plan), 0o700);
    if ((await this.whyUnbounded(op)) === null) return await this.#seeds.makeDisk(op, diskPath(plan), plan.shape.diskMiB * MIB, null);
    // This one's owner and mode are those of the sandbox's `/`.
    await host.makeDir(op, upperDir(plan), 0o755);
    await host.makeDir(op, overlayWorkDir(plan), 0o700);
  }

  /** @throws HutchError `failed_precondition` when there is none. */
  async argsOf(op: Operation, plan: SandboxPlan): Promise<LayerArgs> {
    const host = this.#host;
    if ((await host.stat(op, diskPath(plan)))?.type === 'file') return diskArgs(diskPath(plan), diskMountDir(plan));
    if ((await host.stat(op, upperDir(plan)))?.type === 'directory') return ['--upper', upperDir(plan), '--work', overlayWorkDir(plan)];
    throw op.error('failed_precondition', `the private layer of sandbox ${plan.id} is gone: ${layerDir(plan)}`);
  }

  /** To the plan's size, with its file system, while it is not mounted. A directory of the host's has no size. */
  async grow(op: Operation, plan: SandboxPlan): Promise<void> {
    const host = this.#host;
    const path = diskPath(plan);
    const disk = await host.stat(op, path);
    if (disk?.type !== 'file') return;
    const sizeBytes = Math.max(disk.sizeBytes, plan.shape.diskMiB * MIB);
    if (disk.sizeBytes < sizeBytes) await host.truncate(op, path, sizeBytes);
    // A daemon may have died in between.
    if ((await fileSystemBytes(op, host, path)) >= sizeBytes) return;
    try {
      await growFileSystem(op, host, path);
    } catch (cause) {
      if (!(cause instanceof HutchError) || cause.code !== 'failed_precondition') throw cause;
      throw damagedDisk(op, { name: plan.name, path, hasSnapshots: true, why: cause.message.split('\n').at(-1) ?? '', cause });
    }
  }

  /** Where what was written lies, as its own mount namespace has it. */
  async upperOf(op: Operation, plan: SandboxPlan): Promise<string> {
    const isDisk = (await this.#host.stat(op, diskPath(plan)))?.type === 'file';
    return isDisk ? join(diskMountDir(plan), 'upper') : upperDir(plan);
  }

  /** Runs a program in such a place: that a loop device is there does not say that it can be used. */
  async #try(op: Operation): Promise<string | null> {
    const host = this.#host;
    if (host.uid !== 0) return 'a loop device takes root';
    const { cellPath, workDir } = this.#config;
    const dir = join(workDir, `disk-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await host.remove(late, dir);
    });
    const [file, lower, mount, root] = ['disk', 'lower', 'mount', 'root'].map((name) => join(dir, name)) as [
      string,
      string,
      string,
      string,
    ];
    for (const each of [lower, mount, root]) await host.makeDir(op, each, 0o700);
    await this.#seeds.makeDisk(op, file, TRIAL_BYTES, null);
    using limited = op.within(TRIAL_MS, 'trying a disk in a file');
    const argv = [cellPath, '--lower', lower, '--root', root, ...diskArgs(file, mount), '--', 'true'];
    const { exitCode, stderr } = await host.run(limited, argv);
    if (exitCode === 0) return null;
    return new TextDecoder()
      .decode(stderr)
      .replace(/^hutch-cell: /, '')
      .replaceAll(dir, '…')
      .trim()
      .slice(0, WHY_CHARS_MAX);
  }
}

function diskArgs(file: string, mount: string): LayerArgs {
  return ['--disk', file, '--disk-at', mount, '--upper', join(mount, 'upper'), '--work', join(mount, 'work')];
}
