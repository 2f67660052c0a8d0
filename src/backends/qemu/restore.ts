// A machine that was written down goes on: checked first, then mapped from the files of its bundle under names of
// the sandbox's own, so that the bundle may go while the machine runs.
import { join } from 'node:path';
import { errnoOf } from '../../host/errors.ts';
import type { FileInfo, Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { hashes } from '../hashes.ts';
import { layOut } from '../imprint.ts';
import { BASE, hasMap, layerFiles, linkStore, type Store, sha256, wholeFile } from '../stored.ts';
import { difference, type Fingerprint, type Manifest, readManifest, STATE } from './bundle.ts';
import { DISK_DIR, SCRATCH, SCRATCH_DIR } from './capture.ts';
import type { QemuConfig } from './config.ts';
import type { ChosenDisks } from './drives.ts';
import { STATE_BYTES_MAX } from './manifest.ts';
import { diskPath, scratchDiskPath } from './paths.ts';
import type { StartInput } from './start.ts';

/** Files whose content was found right in this daemon's life, as long as they are the same. */
const SEEN_MAX = 10_000;
/** Forks that are under way. */
const PASSING_MAX = 16;

export class Bundles {
  readonly #config: QemuConfig;
  readonly #seen = new Map<string, string>();
  /** By their directory. */
  readonly #passing = new Map<string, { found: Promise<Manifest> | null }>();

  constructor(config: QemuConfig) {
    this.#config = config;
  }

  /** It is gone in a moment, and nobody writes to it till then: it is checked once for all who begin with it. */
  passes(dir: string): void {
    const [oldest] = this.#passing.keys();
    if (this.#passing.size >= PASSING_MAX && oldest !== undefined) this.#passing.delete(oldest);
    this.#passing.set(dir, { found: null });
  }

  /** Reads it, and compares every file with what was written. @throws HutchError `failed_precondition` with what is wrong. */
  async check(op: Operation, dir: string, how: 'quick' | 'full'): Promise<Manifest> {
    const passing = how === 'quick' ? this.#passing.get(dir) : undefined;
    if (passing === undefined) return await this.#look(op, dir, how);
    passing.found ??= this.#look(op, dir, how);
    try {
      return await passing.found;
    } catch (error) {
      passing.found = null;
      throw error;
    }
  }

  async #look(op: Operation, dir: string, how: 'quick' | 'full'): Promise<Manifest> {
    const { host } = this.#config;
    const refused = (why: string): Error =>
      op.error('failed_precondition', `what was saved cannot be used: ${why}`, { hint: `it lies in ${dir}` });
    const read = await readManifest(op, host, dir);
    if (!read.ok) throw refused(read.why);
    const { manifest } = read;
    if (manifest.state !== null) {
      const state = await readOrNull(op, host, join(dir, STATE), STATE_BYTES_MAX);
      if (state === null || sha256(state) !== manifest.state.sha256) throw refused('the state of its devices is not what was saved');
    }
    const files: { path: string; hash: string | null; bytes: number }[] = [];
    for (const [name, store] of storesOf(manifest)) {
      if (!(await hasMap(op, host, join(dir, name), store))) throw refused(`the map of its ${nameOf(name)} is not what was saved`);
      files.push(...layerFiles(join(dir, name), store));
    }
    if (manifest.memory !== null)
      files.push({ path: join(dir, manifest.memory.dir, BASE), hash: manifest.memory.base, bytes: manifest.memory.bytes });
    if (how === 'full' && files.some(({ hash }) => hash === null)) throw refused('it was not meant to be kept');
    const wrong = await this.#wrong(op, files, how);
    if (wrong !== null) throw refused(`${wrong.slice(dir.length + 1)} is not what was saved`);
    return manifest;
  }

  async #wrong(
    op: Operation,
    files: readonly { readonly path: string; readonly hash: string | null; readonly bytes: number }[],
    how: 'quick' | 'full',
  ): Promise<string | null> {
    const { host, imprintPath = '' } = this.#config;
    const unseen: { readonly path: string; readonly hash: string; readonly identity: string }[] = [];
    for (const { path, hash, bytes } of files) {
      const info = await host.stat(op, path);
      if (info === null || info.type !== 'file' || info.sizeBytes !== bytes) return path;
      if (hash === null) continue; // written a moment ago, for a moment
      const identity = identityOf(info);
      if (how === 'full' || this.#seen.get(identity) !== hash) unseen.push({ path, hash, identity });
    }
    const found = await hashes(
      op,
      host,
      imprintPath,
      unseen.map(({ path }) => path),
    );
    for (const [at, { path, hash, identity }] of unseen.entries()) {
      if (found[at] !== hash) return path;
      if (this.#seen.size >= SEEN_MAX) this.#seen.clear();
      this.#seen.set(identity, hash);
    }
    return null;
  }

  /** What starts the machine of a bundle. `now`: what a machine of this sandbox would be here and now. */
  async input(
    op: Operation,
    plan: SandboxPlan,
    dir: string,
    now: Pick<StartInput, 'emulator' | 'machine' | 'fingerprint'>,
    beforeRunning: (op: Operation) => Promise<void>,
    sameness: Sameness = 'machine',
  ): Promise<StartInput> {
    const { host } = this.#config;
    const manifest = await this.check(op, dir, 'quick');
    const { memory } = manifest;
    if (memory === null || manifest.state === null) throw op.error('failed_precondition', 'this snapshot has a disk, but no memory');
    refuseDifference(op, manifest.fingerprint, now.fingerprint, sameness);
    return {
      ...now,
      // What it was started as stays with it: its kernel and agent are in its memory.
      fingerprint: { ...now.fingerprint, ...brought(manifest.fingerprint) },
      begins: { with: 'state', state: await host.readFile(op, join(dir, STATE), STATE_BYTES_MAX) },
      async linkMemory(linking, to) {
        await linkStore(linking, host, join(dir, memory.dir), to, memory);
        return { base: memory.base, layers: memory.layers };
      },
      chooseDisks: (choosing) => this.#chooseDisks(choosing, plan, dir, manifest),
      goesOn: true,
      beforeRunning,
    };
  }

  /** The private disk as it was then. `spent`: by the only one that begins with it, so that it can be what was written down. */
  async layDisk(op: Operation, plan: SandboxPlan, dir: string, of: 'spent' | 'kept'): Promise<void> {
    const { disk } = await this.check(op, dir, 'quick');
    if (disk === null) throw op.error('failed_precondition', 'what was saved has no disk of its own');
    await this.#lay(op, plan, join(dir, DISK_DIR), disk, diskPath(plan), of);
  }

  /** Of nobody's: to be looked into. */
  async layOut(op: Operation, dir: string, path: string): Promise<void> {
    const { host, imprintPath = '' } = this.#config;
    const { disk } = await this.check(op, dir, 'quick');
    if (disk === null) throw op.error('failed_precondition', 'what was saved has no disk of its own');
    await layOut(op, host, imprintPath, join(dir, DISK_DIR), disk.bytes, path);
  }

  async #lay(op: Operation, plan: SandboxPlan, from: string, store: Store, path: string, of: 'spent' | 'kept'): Promise<void> {
    const { host, imprintPath = '' } = this.#config;
    await host.remove(op, path);
    const whole = of === 'spent' ? wholeFile(from, store) : null;
    if (whole === null || !(await isLinked(op, host, whole, path))) await layOut(op, host, imprintPath, from, store.bytes, path);
    await host.chmod(op, path, 0o600);
    if (plan.runAs !== null) await host.chown(op, path, plan.runAs.uid, plan.runAs.gid);
  }

  async #chooseDisks(op: Operation, plan: SandboxPlan, dir: string, { own, scratch }: Manifest): Promise<ChosenDisks> {
    const { host } = this.#config;
    const settled = Promise.resolve();
    if (own === 'vdb') return { drives: { vdb: diskPath(plan), vdc: null }, own, settled };
    const path = scratchDiskPath(plan);
    if (scratch !== null) await this.#lay(op, plan, join(dir, SCRATCH_DIR), scratch, path, 'kept');
    else {
      // A copy: if it does not go on after all, the next try needs it as it was.
      await host.cloneFile(op, join(dir, SCRATCH), path);
      if (plan.runAs !== null) await host.chown(op, path, plan.runAs.uid, plan.runAs.gid);
    }
    return { drives: { vdb: path, vdc: diskPath(plan) }, own, settled };
  }
}

/** False: what is to begin lies on another file system. */
async function isLinked(op: Operation, host: Host, from: string, to: string): Promise<boolean> {
  try {
    await host.link(op, from, to);
    return true;
  } catch (error) {
    if (errnoOf(error) !== 'EXDEV') throw error;
    return false;
  }
}

/** What must be the same: `machine` for a sandbox that goes on as itself, `everything` for one that is made anew; `size`: as little as can be. */
export type Sameness = 'machine' | 'everything' | 'size';

export function refuseDifference(op: Operation, saved: Fingerprint, now: Fingerprint, sameness: Sameness): void {
  // Its pages and processors have to find their places, whoever insists.
  const forced = { ...now, cpus: saved.cpus, memoryMiB: saved.memoryMiB };
  const why =
    sameness === 'size' ? difference(forced, { ...forced, cpus: now.cpus, memoryMiB: now.memoryMiB }) : difference(saved, now, sameness);
  if (why === null) return;
  throw op.error('failed_precondition', `what was saved cannot go on here: ${why}`, {
    ...(sameness === 'everything' ? { hint: 'it may not run there; to try it all the same: --force' } : {}),
  });
}

function brought({ kernel, agent }: Fingerprint): Pick<Fingerprint, 'kernel' | 'agent'> {
  return { ...(kernel === undefined ? {} : { kernel }), ...(agent === undefined ? {} : { agent }) };
}

function storesOf(manifest: Manifest): readonly (readonly [string, Store])[] {
  const { memory, disk, scratch } = manifest;
  return [
    ...(memory === null ? [] : ([[memory.dir, memory]] as const)),
    ...(disk === null ? [] : ([[DISK_DIR, disk]] as const)),
    ...(scratch === null ? [] : ([[SCRATCH_DIR, scratch]] as const)),
  ];
}

function nameOf(dir: string): string {
  return dir.startsWith('memory-') ? 'memory' : dir;
}

/** A further name is no change. */
function identityOf(info: FileInfo): string {
  return `${info.device}:${info.inode}:${info.sizeBytes}:${info.modifiedNs}`;
}

async function readOrNull(op: Operation, host: Host, path: string, bytesMax: number): Promise<Uint8Array | null> {
  return (await host.stat(op, path)) === null ? null : await host.readFile(op, path, bytesMax);
}
