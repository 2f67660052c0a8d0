// The first start of a kind of machine, of which there is no template yet: its kernel boots as the sandbox's own machine, and the template
// is made behind it by another one (docs/decisions/0050). So what was booted is somebody's, and nobody else comes from it.
import { join } from 'node:path';
import type { SandboxId } from '../../domain/ids.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { DiskSeeds } from '../disk.ts';
import { BASE, MEMORY_MODE } from '../stored.ts';
import { BOOT_MS, type QemuConfig } from './config.ts';
import type { Emulator } from './emulator.ts';
import { diskPath, freshMarkPath } from './paths.ts';
import type { StartInput } from './start.ts';
import type { TemplateShelf } from './template.ts';
import type { TemplateKey, TemplateRecipe } from './template-key.ts';

/** Kinds that are remembered. One that is forgotten may boot once more. */
const TRIED_MAX = 1_000;

/** Who may boot. One of each kind at a time, and once: whoever comes meanwhile, or finds no template afterwards, waits for the template. */
export class FirstBoots {
  readonly #shelf: TemplateShelf;
  readonly #held = new Map<TemplateKey, SandboxId>();
  readonly #tried = new Set<TemplateKey>();

  constructor(shelf: TemplateShelf) {
    this.#shelf = shelf;
  }

  /** Whether this one boots: it holds that until `over` or `drop`. */
  async claim(op: Operation, key: TemplateKey, id: SandboxId): Promise<boolean> {
    if (this.#shelf.isUnderWay(key) || this.#tried.has(key)) return false;
    if ((await this.#shelf.look(op, key)) !== null) return false;
    // Nothing happens between these.
    if (this.#shelf.isUnderWay(key) || this.#tried.has(key)) return false;
    const holder = this.#held.get(key);
    if (holder === undefined) this.#held.set(key, id);
    return holder === undefined || holder === id;
  }

  /** It has booted, or could not. */
  over(key: TemplateKey): void {
    this.#held.delete(key);
    if (this.#tried.size >= TRIED_MAX) this.#tried.clear();
    this.#tried.add(key);
  }

  /** It has a template now: should that go, the next one may boot again. */
  made(key: TemplateKey): void {
    this.#tried.delete(key);
  }

  /** It is gone, and never came to its start. */
  drop(id: SandboxId): void {
    for (const [key, holder] of this.#held) if (holder === id) this.#held.delete(key);
  }
}

export function fromKernel(
  config: QemuConfig,
  seeds: DiskSeeds,
  plan: SandboxPlan,
  emulator: Emulator,
  { machine, fingerprint, boot, commandLine }: TemplateRecipe,
): StartInput {
  const { kernelPath, initramfsPath } = boot;
  const withinMs = config.bootMs ?? BOOT_MS[machine.acceleration];
  return {
    ...{ emulator, machine, fingerprint },
    begins: { with: 'kernel', kernelPath, initramfsPath, commandLine, withinMs },
    async linkMemory(op, dir) {
      const base = join(dir, BASE);
      await config.host.writeSparse(op, base, machine.memoryMiB * 1024 * 1024, []);
      await config.host.chmod(op, base, MEMORY_MODE);
      return { base: null, layers: [] };
    },
    async chooseDisks(op) {
      await unmarked(op, config.host, seeds, plan);
      return { drives: { vdb: diskPath(plan), vdc: null }, own: 'vdb', settled: Promise.resolve() };
    },
    goesOn: false,
  };
}

/** One that was made as a template's copy has been used by nobody: it is made again, as what it is, before a guest may write. */
async function unmarked(op: Operation, host: Host, seeds: DiskSeeds, plan: SandboxPlan): Promise<void> {
  const mark = freshMarkPath(plan);
  if ((await host.stat(op, mark)) === null) return;
  await seeds.makeDisk(op, diskPath(plan), plan.shape.diskMiB * 1024 * 1024, plan.runAs);
  await host.remove(op, mark);
  await host.sync(op, plan.dataDir);
}
