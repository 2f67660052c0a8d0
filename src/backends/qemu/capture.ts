// A machine that runs, or stands still, written down: what of its memory and disks differs from what is stored, and the
// state of its devices, all of one instant.
import { dirname, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { z } from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import type { Dead } from '../dead.ts';
import { hashes } from '../hashes.ts';
import { type Taken, take } from '../imprint.ts';
import { BASE, CHAIN_MAX, type Layer, linkStore, nextOf, readyDisk, type Store, sha256, withTaken } from '../stored.ts';
import { allOf } from '../wait.ts';
import { type Manifest, readManifest, STATE, writeManifest, writePart } from './bundle.ts';
import { type QemuConfig, QMP_COMMAND_MS, RELEASE_MS } from './config.ts';
import { dialVmm, IGNORE_SHARED, migrated } from './control.ts';
import type { Kept, KeptMemories } from './kept.ts';
import { STATE_BYTES_MAX } from './manifest.ts';
import { diskPath, qmpSocketPath, SOCKETS, scratchDiskPath, stateSocketPath } from './paths.ts';
import { openQmp, type Qmp } from './qmp.ts';
import { mappedOf, newMemoryName, type Running, readRunning, writeRunning } from './running.ts';
import { inspectVmm, killVmm } from './vmm.ts';

/** One that writes much, to a slow disk. */
const SYNC_MS = 5 * 60_000;
/** One that has been killed is gone by then. */
const LIVES_MS = 5_000;
const LOOK_EVERY_MS = 20;

export type Capture = {
  /** `memory`: the disk stays where it is. */
  readonly what: 'memory' | 'memory and disk' | 'disk';
  /** A bundle of the same sandbox's: what is in it already is not stored again. */
  readonly since: string | null;
  readonly afterwards: 'ends' | 'goes on';
  /** Most of it is taken while it still runs: more work in all, a shorter stand-still. */
  readonly before: boolean;
  /** Whether it outlives the host: on the disk, with checksums. Else it is gone, or settled (`settled`), before anybody counts on that. */
  readonly lasts: boolean;
};

export type Captured = {
  /** How long it stood still, for as far as it went on. */
  readonly stillMs: number;
  /** What it would take without all that it has in common with others. */
  readonly apparentBytes: number;
  readonly dead: Dead | null;
};

/**
 * Writes to `dir`, which must not be there. On failure the machine goes on as it was, and `dir` is gone.
 * @throws HutchError `failed_precondition` for a machine that was started by an older version of Hutch.
 */
export async function capture(
  op: Operation,
  config: QemuConfig,
  plan: SandboxPlan,
  dir: string,
  how: Capture,
  keptMemories: KeptMemories,
): Promise<Captured> {
  const { host, imprintPath } = config;
  if (imprintPath === undefined) throw op.error('unimplemented', 'this backend has no program that writes machines down');
  await using undo = new AsyncDisposableStack();
  const releasing = (release: (op: Operation) => Promise<unknown>): void =>
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await release(late).catch((cause: unknown) => op.log.warn({ sandbox: plan.id, cause }, 'a failed snapshot left something behind'));
    });
  if ((await host.stat(op, dir)) !== null) throw op.error('conflict', `there is something already where it would be written: ${dir}`);
  const evidence = await inspectVmm(op, host, plan.runDir);
  if (!evidence.alive && how.what === 'disk') return await restingDisk(op, config, plan, dir, how, releasing, undo);
  if (!evidence.alive) throw op.error('failed_precondition', `sandbox ${plan.name} does not run`);
  const noted = await readRunning(op, host, plan);
  if (noted === null) {
    throw op.error('failed_precondition', `sandbox ${plan.name} was started by an older version of Hutch`, {
      hint: `start it anew: hutch restart ${plan.name}`,
    });
  }
  const running = how.lasts ? await settled(op, config, plan, noted) : noted;
  releasing((late) => host.remove(late, dir));
  const origin = { evidence, mapped: running.memory, bytes: running.fingerprint.memoryMiB * 1024 * 1024 };
  // Whoever takes memory has the kernel note anew what is written.
  const kept = how.what === 'disk' ? null : await keptMemories.take(plan, origin);
  if (kept !== null) releasing((late) => host.remove(late, kept.dir));
  const earlierOne = kept?.usable === true && !how.lasts && kept.layers.length < CHAIN_MAX ? kept : null;
  const keeps = how.what !== 'disk' && !how.lasts && how.afterwards === 'goes on';
  if (keeps) releasing((late) => keptMemories.forget(late, origin));
  const opening = control(op, host, plan);
  releasing(async () => void (await (await opening.catch(() => null))?.[Symbol.asyncDispose]()));
  const [stored, qmp] = await allOf([prepare(op, config, plan, dir, running, how, earlierOne), opening]);
  // All that is wanted of it has one more name.
  const letGo = kept === null ? Promise.resolve() : host.remove(op, kept.dir);
  letGo.catch(() => {}); // heard below

  const status = await statusOf(op, qmp);
  const wasRunning = status === 'running';
  if (status === WRITTEN_DOWN) await standStillAgain(op, qmp);
  let stoodSinceMs = 0;
  let stillMs = 0;
  let state: Uint8Array = new Uint8Array();
  const goOn = async (late: Operation): Promise<void> => {
    if (!wasRunning) return;
    using limited = late.within(QMP_COMMAND_MS, "QEMU's answer to cont");
    await qmp.execute(limited, 'cont');
  };
  releasing(async (late) => void (stoodSinceMs > 0 && (await goOn(late))));
  const taken = await take(
    op,
    host,
    imprintPath,
    {
      memory:
        how.what === 'disk'
          ? null
          : {
              ...{ pid: evidence.pid, mapped: mappedOf(running.memory), ...stored.memory },
              ...{ noted: earlierOne !== null, keep: keeps },
            },
      disks: stored.disks,
      lasts: how.lasts,
    },
    {
      before: how.before,
      async begin() {
        stoodSinceMs = host.monotonicMs();
        using limited = op.within(QMP_COMMAND_MS, "QEMU's answer to stop");
        if (wasRunning) await qmp.execute(limited, 'stop');
      },
      async end() {
        if (how.what !== 'disk') state = await deviceState(op, config, plan, qmp);
        if (how.afterwards === 'goes on') await goOn(op);
        stillMs = host.monotonicMs() - stoodSinceMs;
      },
    },
  );
  await letGo;
  if (how.what !== 'disk') await writePart(op, host, join(dir, STATE), state, 0o400, how.lasts);
  if (how.what === 'memory') {
    using syncing = op.within(SYNC_MS, "writing the sandbox's disk");
    await host.sync(syncing, diskPath(plan));
    if (running.own === 'vdc') {
      await host.sync(syncing, scratchDiskPath(plan));
      await host.link(op, scratchDiskPath(plan), join(dir, SCRATCH));
    }
  }
  const { memory, ...sizes } = await conclude(op, config, dir, running, stored, taken, state, how.lasts);
  // Its name too, before there is nothing else.
  if (how.afterwards === 'ends') await host.sync(op, dirname(dir));
  if (how.afterwards === 'goes on') {
    if (keeps && memory !== null) await keptMemories.keep(op, plan, origin, { dir: join(dir, stored.memoryName), layers: memory.layers });
    undo.move();
    await qmp[Symbol.asyncDispose]();
    return { stillMs, ...sizes, dead: null };
  }
  // It is written down: from here on it is dead or alive, but not lost.
  const dead = await killVmm(op, host, plan.runDir, 'now').catch((cause: unknown) => endedAllTheSame(op, host, plan, cause));
  undo.move();
  await qmp[Symbol.asyncDispose]();
  return { stillMs: host.monotonicMs() - stoodSinceMs, ...sizes, dead };
}

/** It may have been killed, and only the word of it is missing: what was saved is then all that there is. @throws `cause` where it lives. */
async function endedAllTheSame(op: Operation, host: Host, plan: SandboxPlan, cause: unknown): Promise<Dead> {
  using late = op.releasing(RELEASE_MS);
  const until = host.monotonicMs() + LIVES_MS;
  for (;;) {
    const now = await inspectVmm(late, host, plan.runDir).catch(() => null);
    if (now?.alive === false) return now;
    if (host.monotonicMs() > until) throw cause;
    await setTimeout(LOOK_EVERY_MS);
  }
}

/**
 * Before anything that lasts stands on what the machine has mapped: all of it is on the disk, as what a fork began with need not be, and has
 * its checksum. Once in a machine's life.
 */
async function settled(op: Operation, { host, imprintPath = '' }: QemuConfig, plan: SandboxPlan, noted: Running): Promise<Running> {
  const { dir, base, layers } = noted.memory;
  const passing = layers.filter(({ hash }) => hash === null);
  if (base !== null && passing.length === 0) return noted;
  using limited = op.within(SYNC_MS, "writing the sandbox's memory");
  for (const { number } of passing) await host.sync(limited, join(dir, String(number)));
  const names = [...(base === null ? [BASE] : []), ...passing.map(({ number }) => String(number))];
  const found = await hashes(
    op,
    host,
    imprintPath,
    names.map((name) => join(dir, name)),
  );
  const hashOf = (name: string): string | null => found[names.indexOf(name)] ?? null;
  const known = layers.map((layer) => (layer.hash === null ? { ...layer, hash: hashOf(String(layer.number)) } : layer));
  const running = { ...noted, memory: { ...noted.memory, base: base ?? hashOf(BASE), layers: known } };
  await writeRunning(op, host, plan, running);
  return running;
}

/** The copy of the template's disk that a machine has whose own disk is another, as a file of its bundle. */
export const SCRATCH = 'scratch.img';
export const DISK_DIR = 'disk';
export const SCRATCH_DIR = 'scratch';

type Prepared = {
  readonly memoryName: string;
  readonly memoryBase: string | null;
  readonly memory: { readonly dir: string; readonly bytes: number; readonly layer: number; readonly mappedLayers: number };
  readonly memoryLayers: readonly Layer[];
  readonly disks: readonly { readonly path: string; readonly dir: string; readonly bytes: number; readonly layer: number }[];
  readonly diskLayers: readonly (readonly Layer[])[];
};

/** The directories, with what is stored already. */
async function prepare(
  op: Operation,
  { host }: QemuConfig,
  plan: SandboxPlan,
  dir: string,
  running: Running,
  how: Capture,
  kept: Kept | null,
): Promise<Prepared> {
  const memoryName = newMemoryName(host);
  const memoryDir = join(dir, memoryName);
  await host.makeDir(op, dir, 0o700);
  const since = how.since === null ? null : await earlier(op, host, how.since, running, how.what);
  const memoryLayers = since?.memory?.layers ?? kept?.layers ?? running.memory.layers;
  if (how.what !== 'disk') await host.makeDir(op, memoryDir, 0o711);
  if (how.what === 'disk') {
    // It has none.
  } else if (since?.memory != null && how.since !== null)
    await linkStore(op, host, join(how.since, since.memory.dir), memoryDir, since.memory);
  else if (kept !== null) await linkStore(op, host, kept.dir, memoryDir, { layers: [...kept.layers] });
  else await linkStore(op, host, running.memory.dir, memoryDir, running.memory);
  const { disks, diskLayers } =
    how.what === 'memory' ? { disks: [], diskLayers: [] } : await disksInto(op, host, dir, disksOf(plan, running.own), since, how.since);
  return {
    memoryName,
    memoryBase: running.memory.base,
    memory: {
      dir: memoryDir,
      bytes: running.fingerprint.memoryMiB * 1024 * 1024,
      layer: nextOf(memoryLayers),
      mappedLayers: running.memory.layers.at(-1)?.number ?? 0,
    },
    memoryLayers,
    disks,
    diskLayers,
  };
}

type PreparedDisks = Pick<Prepared, 'disks' | 'diskLayers'>;

async function prepareDisks(
  op: Operation,
  { host }: QemuConfig,
  plan: SandboxPlan,
  dir: string,
  { scratch, since }: { readonly scratch: string | null; readonly since: string | null },
): Promise<PreparedDisks> {
  await host.makeDir(op, dir, 0o700);
  const stored = since === null ? null : await readManifest(op, host, since);
  const paths = { disk: diskPath(plan), scratch };
  return await disksInto(op, host, dir, paths, stored?.ok === true ? stored.manifest : null, since);
}

type DiskPaths = { readonly disk: string; readonly scratch: string | null };

function disksOf(plan: SandboxPlan, own: Running['own']): DiskPaths {
  return { disk: diskPath(plan), scratch: own === 'vdc' ? scratchDiskPath(plan) : null };
}

async function disksInto(
  op: Operation,
  host: Host,
  dir: string,
  paths: DiskPaths,
  since: Manifest | null,
  sinceDir: string | null,
): Promise<PreparedDisks> {
  const disks: Prepared['disks'][number][] = [];
  const diskLayers: (readonly Layer[])[] = [];
  const wanted = [
    [DISK_DIR, paths.disk, since?.disk ?? null],
    ...(paths.scratch === null ? [] : ([[SCRATCH_DIR, paths.scratch, since?.scratch ?? null]] as const)),
  ] as const;
  for (const [name, path, store] of wanted) {
    const earlier = store === null || sinceDir === null ? null : { dir: join(sinceDir, name), store };
    const { disk, layers } = await readyDisk(op, host, path, join(dir, name), earlier);
    diskLayers.push(layers);
    disks.push(disk);
  }
  return { disks, diskLayers };
}

/** An earlier bundle whose memory begins with what the process has mapped, layer by layer; null where it does not. */
async function earlier(op: Operation, host: Host, dir: string, running: Running, what: Capture['what']): Promise<Manifest | null> {
  const read = await readManifest(op, host, dir);
  // Disks are compared block by block: any will do.
  if (read.ok && what === 'disk' && (read.manifest.disk?.layers.length ?? 0) < CHAIN_MAX) return read.manifest;
  if (!read.ok || read.manifest.memory === null) return null;
  const { base, layers } = read.manifest.memory;
  const isSame = running.memory.base === base && running.memory.layers.every(({ id }, at) => layers[at]?.id === id);
  return isSame && layers.length < CHAIN_MAX ? read.manifest : null;
}

async function storesOfDisks(op: Operation, host: Host, { disks, diskLayers }: PreparedDisks, taken: readonly Taken[]): Promise<Store[]> {
  const stores: Store[] = [];
  for (const [at, disk] of disks.entries())
    stores.push(await withTaken(op, host, disk.dir, { bytes: disk.bytes, layers: diskLayers[at] ?? [] }, taken[at]));
  return stores;
}

async function conclude(
  op: Operation,
  { host }: QemuConfig,
  dir: string,
  running: Running,
  stored: Prepared,
  taken: Awaited<ReturnType<typeof take>>,
  state: Uint8Array,
  lasts: boolean,
): Promise<Pick<Captured, 'apparentBytes'> & Pick<Manifest, 'memory'>> {
  const { memory } = stored;
  const hasMemory = state.byteLength > 0;
  const first = hasMemory ? 1 : 0; // what was taken, in order: the memory, the disks
  const stores = await storesOfDisks(op, host, stored, taken.slice(first));
  const [disk = null, scratch = null] = stores;
  if (hasMemory && lasts) await host.sync(op, memory.dir);
  const memoryStore = hasMemory
    ? {
        ...(await withTaken(op, host, memory.dir, { bytes: memory.bytes, layers: stored.memoryLayers }, taken[0])),
        dir: stored.memoryName,
        base: stored.memoryBase,
      }
    : null;
  const content = {
    version: 1,
    ...{ fingerprint: running.fingerprint, memory: memoryStore },
    state: hasMemory ? { bytes: state.byteLength, sha256: sha256(state) } : null,
    ...{ disk, own: running.own, scratch, takenAtMs: host.nowMs() },
  } as const;
  await writeManifest(op, host, dir, content, lasts);
  const base = hasMemory ? ((await host.stat(op, join(memory.dir, BASE)))?.allocatedBytes ?? 0) : 0;
  const layers = [memoryStore, disk, scratch].flatMap((store) => store?.layers ?? []);
  return {
    memory: memoryStore,
    apparentBytes: layers.reduce((sum, { bytes }) => sum + bytes, state.byteLength + base),
  };
}

/**
 * Of a sandbox that is suspended: its memory is in `saved` already, and has there one more name of the same files. On failure
 * `dir` is gone, and it is suspended as before.
 */
export async function captureSaved(
  op: Operation,
  config: QemuConfig,
  plan: SandboxPlan,
  dir: string,
  { since, saved, lasts }: { readonly since: string | null; readonly saved: string; readonly lasts: boolean },
): Promise<Captured> {
  const { host } = config;
  const read = await readManifest(op, host, saved);
  if (!read.ok || read.manifest.memory === null || read.manifest.state === null)
    throw op.error('failed_precondition', `what was saved of sandbox ${plan.name} cannot be used${read.ok ? '' : `: ${read.why}`}`);
  const { memory, state, own, fingerprint } = read.manifest;
  if ((await host.stat(op, dir)) !== null) throw op.error('conflict', `there is something already where it would be written: ${dir}`);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, dir).catch((cause: unknown) => op.log.warn({ dir, cause }, 'a failed snapshot left something behind'));
  });
  const stored = await prepareDisks(op, config, plan, dir, { scratch: own === 'vdc' ? join(saved, SCRATCH) : null, since });
  const still = { before: false, begin: async () => {}, end: async () => {} };
  const taken = await take(op, host, config.imprintPath ?? '', { memory: null, disks: stored.disks, lasts }, still);
  const stores = await storesOfDisks(op, host, stored, taken);
  await host.makeDir(op, join(dir, memory.dir), 0o711);
  await linkStore(op, host, join(saved, memory.dir), join(dir, memory.dir), memory);
  if (lasts) await host.sync(op, join(dir, memory.dir));
  await host.link(op, join(saved, STATE), join(dir, STATE));
  const [disk = null, scratch = null] = stores;
  const content = { version: 1, fingerprint, memory, state, disk, own, scratch, takenAtMs: host.nowMs() } as const;
  await writeManifest(op, host, dir, content, lasts);
  undo.move();
  const base = (await host.stat(op, join(dir, memory.dir, BASE)))?.allocatedBytes ?? 0;
  const layers = [memory, ...stores].flatMap((store) => store.layers);
  return {
    stillMs: 0,
    apparentBytes: layers.reduce((sum, { bytes }) => sum + bytes, state.bytes + base),
    dead: null,
  };
}

/** Of a sandbox that does not run: nothing changes its disk. */
async function restingDisk(
  op: Operation,
  config: QemuConfig,
  plan: SandboxPlan,
  dir: string,
  how: Capture,
  releasing: (release: (op: Operation) => Promise<unknown>) => void,
  undo: AsyncDisposableStack,
): Promise<Captured> {
  const { host, imprintPath = '' } = config;
  releasing((late) => host.remove(late, dir));
  // There is no machine: nothing of what it would be is asked of a disk alone.
  const nowhere: Running = {
    fingerprint: { emulator: '', acceleration: 'tcg', cpu: '', cpus: 1, memoryMiB: 1, image: '', machine: '' },
    own: 'vdb',
    started: { network: null, disk: { device: '/dev/vdb', sizeBytes: 0 } },
    memory: { dir: '', base: '', layers: [] },
  };
  const stored = await prepare(op, config, plan, dir, nowhere, how, null);
  const still = { before: false, begin: async () => {}, end: async () => {} };
  const taken = await take(op, host, imprintPath, { memory: null, disks: stored.disks, lasts: how.lasts }, still);
  const { apparentBytes } = await conclude(op, config, dir, nowhere, stored, taken, new Uint8Array(), how.lasts);
  undo.move();
  return { stillMs: 0, apparentBytes, dead: null };
}

async function control(op: Operation, host: Host, plan: SandboxPlan): Promise<Qmp> {
  using limited = op.within(QMP_COMMAND_MS, "QEMU's greeting");
  return await openQmp(limited, await dialVmm(limited, host, qmpSocketPath(plan)));
}

async function statusOf(op: Operation, qmp: Qmp): Promise<string> {
  using limited = op.within(QMP_COMMAND_MS, "QEMU's answer to query-status");
  return z.object({ status: z.string() }).parse(await qmp.execute(limited, 'query-status')).status;
}

/** A machine whose devices were saved while it stood still, and that has not gone on since. */
const WRITTEN_DOWN = 'postmigrate';

/** QEMU saves the devices of such a one no second time: it goes on for a moment, and stands still again. */
async function standStillAgain(op: Operation, qmp: Qmp): Promise<void> {
  using limited = op.within(QMP_COMMAND_MS, "QEMU's answer to stop");
  await qmp.execute(limited, 'cont');
  await qmp.execute(limited, 'stop');
}

/** Of a machine that stands still. Its memory is not in it: QEMU takes it to be shared. */
async function deviceState(op: Operation, { host }: QemuConfig, plan: SandboxPlan, qmp: Qmp): Promise<Uint8Array> {
  using limited = op.within(QMP_COMMAND_MS, "saving the machine's devices");
  const path = stateSocketPath(plan);
  await host.remove(limited, path);
  await qmp.execute(limited, 'migrate-set-capabilities', IGNORE_SHARED);
  await using receiver = await host.receiveUnix(limited, path, STATE_BYTES_MAX);
  if (plan.runAs !== null) await host.chown(limited, path, plan.runAs.uid, plan.runAs.gid);
  await qmp.execute(limited, 'migrate', { uri: `unix:${SOCKETS.state}` });
  await migrated(limited, qmp);
  return await receiver.content;
}
