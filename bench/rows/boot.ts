// A cold boot, which a shape's first use pays once: until Hutch's agent answers, against the same
// kernel and machine until the first line of a program.
import { mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { newQemuBackend } from '../../src/backends/qemu/backend.ts';
import { connectAgent } from '../../src/guest/agent.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { noNetwork } from '../../src/network/network.ts';
import { BareGuest } from '../bare/guest.ts';
import type { BareTemplate } from '../bare/restore.ts';
import type { Bench, Measurement } from '../context.ts';
import { pair, type Row } from '../harness.ts';
import { benchOperation } from '../operation.ts';
import { ROOT } from '../place.ts';

const FACTOR = 1.15;
const PREBUILT = join(ROOT, 'prebuilt', 'x86_64');
const SHIM = join(PREBUILT, 'hutch-shim');

/** A new template: from the start of its machine’s shim until its agent has said hello. */
async function bootMs(bench: Bench, template: BareTemplate): Promise<number> {
  const dir = mkdtempSync(join(template.workDir, 'boot'));
  const boot = await bench.boot();
  let began = 0;
  let ready = 0;
  const op = benchOperation();
  const host = nodeHost();
  try {
    const backend = newQemuBackend({
      host: {
        ...host,
        run(runOp, argv, options) {
          if (argv[0] === SHIM) began = performance.now();
          return host.run(runOp, argv, options);
        },
      },
      templatesDir: join(dir, 'templates'),
      workDir: join(dir, 'work'),
      shimPath: SHIM,
      readonlyLibraryPath: join(PREBUILT, 'hutch-readonly.so'),
      acceleration: template.machine.acceleration,
      network: noNetwork,
      warmAgent: async (warming, dial) => {
        using agent = await connectAgent(warming, await dial(warming));
        await agent.hello(warming);
        ready = performance.now();
      },
    });
    const digest = `sha256:${'0'.repeat(64)}`;
    const { cpus, memoryMiB } = template.machine;
    await backend.prepare(op, {
      shape: { cpus, memoryMiB, diskMiB: 1024 },
      boot: {
        kind: 'machine',
        ...{ imagePath: template.imagePath, imageDigest: digest, kernelPath: boot.kernelPath, kernelDigest: digest },
        ...{ initramfsPath: boot.agentInitramfsPath, initramfsDigest: digest },
      },
    });
    return ready - began;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function boot(bench: Bench): Promise<readonly Row[]> {
  const template = await bench.template();
  const bare = await bench.boot();
  return [
    await pair({
      what: 'cold boot until the agent answers',
      unit: 'ms',
      baselineName: 'bare QEMU until the first user line',
      runs: bench.runs(7, 1),
      warmUps: bench.size === 'quick' ? 0 : 1,
      target: `≤ ${FACTOR}×`,
      meets: (ratio) => ratio <= FACTOR,
      baseline: async () => {
        await using guest = await BareGuest.boot(template, bare);
        return guest.firstLineMs;
      },
      candidate: () => bootMs(bench, template),
      note: 'Bound by the kernel under emulation. After the first line the agent still loads ten modules and mounts the image; that is made up for by what the boot leaves out: tests of the kernel’s own ciphers, serial ports that are not there, grace periods (the bare guest’s command line is without these options), and a block of the file system for each page that the guest touches, as the template’s memory is written to its file after the boot. Tried and left out: modules without their signatures (3 % less work, but they taint the kernel), and no tracing file system (4 % less, but its users would miss it).',
    }),
  ];
}

export const BOOT: readonly Measurement[] = [{ name: 'boot', about: 'cold boot to ready', rows: boot }];
