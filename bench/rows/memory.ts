// What many idle sandboxes take of the host's memory, and the daemon that keeps them.
import { setTimeout as sleep } from 'node:timers/promises';
import { type Restored, restoreBare } from '../bare/restore.ts';
import type { Bench, Measurement } from '../context.ts';
import { alone, figures, judge, type Row, short } from '../harness.ts';
import { execOk, Place } from '../place.ts';
import { memoryOf, threadsMs } from '../proc.ts';
import { addStopped } from '../stopped.ts';

const SETTLE_MS = 2_000;
/** V8 goes on collecting for some seconds what starting left. */
const IDLE_AFTER_MS = 20_000;
const IDLE_PERCENT_MAX = 0.1;
const PRIVATE_FACTOR = 1.3;
const PSS_MIB_MAX = 40;
const SHIM_MIB_MAX = 1;
const RESIDENT_MIB_MAX = 120;
const READY_MS_MAX = 1_000;

async function memory(bench: Bench): Promise<readonly Row[]> {
  const { place } = bench;
  const template = await bench.template();
  const count = bench.pick({ quick: 2, usual: 10, long: 50 });
  const base: number[] = [];
  {
    await using restored = new AsyncDisposableStack();
    const all: Restored[] = [];
    for (let i = 0; i < count; i += 1) {
      const one = restored.use(await restoreBare(template));
      await one.agent.run(['/bin/true']);
      all.push(one);
    }
    await sleep(SETTLE_MS);
    for (const { pid } of all) base.push(memoryOf(pid).privateMiB);
  }
  for (let i = 0; i < count; i += 1) await execOk(await place.hutch.create(), ['true']);
  await sleep(SETTLE_MS);
  const machines = place.machines();
  if (machines.length !== count) throw new Error(`${count} sandboxes were made, ${machines.length} QEMU processes are to be seen`);
  const vmms = machines.map(({ vmm }) => memoryOf(vmm));
  const shims = machines.map(({ shim }) => memoryOf(shim).pssMiB);
  const pss = vmms.map(({ pssMiB }, i) => pssMiB + (shims[i] ?? 0));
  const rows = [
    judge(
      {
        what: `private memory of each of ${count} idle sandboxes (VMM)`,
        unit: 'MiB',
        baselineName: 'bare QEMU restored, one program run',
        target: `≤ ${PRIVATE_FACTOR}×`,
        meets: (ratio) => ratio <= PRIVATE_FACTOR,
        note: 'Pages that the guest has written since the template, QEMU’s heap, and the translated code of the emulator. A sandbox has been told its identity and network, which the bare one has not.',
      },
      base,
      vmms.map(({ privateMiB }) => privateMiB),
    ),
    alone(
      {
        what: `PSS of each of ${count} idle sandboxes (VMM and shim)`,
        unit: 'MiB',
        target: `≤ ${PSS_MIB_MAX} MiB`,
        met: bench.size === 'quick' ? null : figures(pss).median <= PSS_MIB_MAX,
        note: `The template’s pages are shared by all: with fewer sandboxes each bears more of them (${count} here). passt is not counted.`,
      },
      pss,
    ),
    alone(
      {
        what: 'PSS of a shim',
        unit: 'MiB',
        target: `≤ ${SHIM_MIB_MAX} MiB`,
        met: figures(shims).median <= SHIM_MIB_MAX,
        note: 'A static Rust binary; most of it is the stack and heap that it has touched.',
      },
      shims,
    ),
    ...(await daemonWith(bench, place, `${count} running sandboxes`)),
  ];
  await place.deleteAll();
  return rows;
}

async function daemonWith(bench: Bench, place: Place, what: string): Promise<readonly Row[]> {
  const runs = bench.runs(3, 1);
  const ready: number[] = [];
  for (let i = 0; i < runs; i += 1) {
    await place.stopDaemon();
    ready.push(await place.startDaemon());
  }
  await sleep(bench.size === 'quick' ? SETTLE_MS : IDLE_AFTER_MS);
  const idleMs = bench.pick({ quick: 500, usual: 30_000, long: 60_000 });
  const before = threadsMs(place.daemonPid);
  await sleep(idleMs);
  const busy = ((threadsMs(place.daemonPid) - before) / idleMs) * 100;
  const resident = memoryOf(place.daemonPid).residentMiB;
  return [
    alone(
      {
        what: `daemon with ${what}: start and reconcile`,
        unit: 'ms',
        target: `≤ ${READY_MS_MAX} ms`,
        met: figures(ready).median <= READY_MS_MAX,
        note: 'From starting the process until it says that it is ready: Node.js, the bundle, the store, then every sandbox that should run is looked for.',
      },
      ready,
    ),
    alone(
      {
        what: `daemon with ${what}: memory (RSS)`,
        unit: 'MiB',
        target: `≤ ${RESIDENT_MIB_MAX} MiB`,
        met: resident <= RESIDENT_MIB_MAX,
        note: 'Node.js itself with an empty program takes about 45 MiB, of which most is its program file; the store’s worker is a second V8. What counted most was garbage: looking for what each sandbox had booted from, which one that runs does not need, left 30 MiB of it. Tried: V8’s options for size (2 MiB less).',
      },
      [resident],
    ),
    alone(
      {
        what: `daemon with ${what}: processor time when idle`,
        unit: '%',
        target: '0',
        met: bench.size === 'quick' ? null : busy < IDLE_PERCENT_MAX,
        note: `Of one processor, over ${short(idleMs / 1000)} s, from ${IDLE_AFTER_MS / 1000} s after its start on. What is left is a note every ten seconds that the daemon lives, while a sandbox runs: by that the time of a crash is known. A guest that nobody uses is asked for a sign of life every five minutes; every ten seconds, and all of it was seven times as much.`,
      },
      [busy],
    ),
  ];
}

/** In a place of its own: it is thrown away, which is quicker than deleting them one by one. */
async function stopped(bench: Bench): Promise<readonly Row[]> {
  const count = bench.pick({ quick: 10, usual: 1_000, long: 1_000 });
  await using place = await Place.make();
  await place.startDaemon();
  const like = await place.hutch.create({ start: false });
  await place.stopDaemon();
  await addStopped(place, like.id, count);
  return await daemonWith(bench, place, `${count.toLocaleString('en')} stopped sandboxes`);
}

export const MEMORY: readonly Measurement[] = [
  { name: 'memory', about: 'memory of idle sandboxes, and the daemon that has them', rows: memory },
  { name: 'stopped', about: 'the daemon with 1,000 stopped sandboxes', rows: stopped },
];
