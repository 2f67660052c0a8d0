// What this backend can do on this machine, for doctor and for the choice of a backend.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import { type Backend, type Capabilities, NO_KVM } from '../backend.ts';
import type { Accelerated } from './acceleration.ts';
import type { QemuConfig } from './config.ts';
import type { Emulator, EmulatorFinder } from './emulator.ts';

type Probed = Awaited<ReturnType<Backend['probe']>>;

const NEEDED = [
  ['mke2fs', 'apt-get install e2fsprogs'],
  ['flock', 'apt-get install util-linux'],
] as const;

export async function probeMachine(
  op: Operation,
  config: QemuConfig,
  finder: EmulatorFinder,
  accelerated: (op: Operation, emulator: Emulator) => Promise<Accelerated>,
): Promise<Probed> {
  const { host, network, shimPath } = config;
  try {
    const emulator = await finder.find(op);
    for (const [program, hint] of NEEDED) {
      if ((await host.which(op, program)) === null) return { ok: false, why: `${program} is not installed`, hint: `install it: ${hint}` };
    }
    if ((await host.which(op, shimPath)) === null) {
      return {
        ok: false,
        why: `the shim is missing at ${shimPath}`,
        hint: 'take a fresh copy of Hutch: its prebuilt directory is incomplete',
      };
    }
    const how = await accelerated(op, emulator);
    const { modes, notes } = await network.probe(op);
    return { ok: true, can: capabilities(config, emulator, how, modes, notes) };
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return { ok: false, why: error.message, hint: error.hint ?? 'see: hutch doctor' };
  }
}

function capabilities(
  { imprintPath, readonlyLibraryPath, filesPath }: QemuConfig,
  emulator: Emulator,
  how: Accelerated,
  networks: Capabilities['networks'],
  networkNotes: readonly string[],
): Capabilities {
  return {
    isolation: 'vm',
    securityBoundary: true,
    pause: true,
    suspend: imprintPath !== undefined && readonlyLibraryPath !== undefined,
    fork: imprintPath !== undefined && readonlyLibraryPath !== undefined,
    snapshot: true,
    diskSnapshot: false,
    hostDirectories: filesPath !== undefined,
    devices: false,
    volumes: true,
    // By the machine itself: a guest has these processors, this memory and this disk, and its processes are its own.
    limits: { cpu: 'enforced', memory: 'enforced', disk: 'enforced', processes: 'enforced' },
    // The machine type has no hot plug.
    changes: { cpus: 'next-start', memory: 'next-start', disk: 'next-start', processes: 'next-start', network: 'next-start' },
    networks,
    acceleration: how.acceleration,
    notes: [
      `QEMU ${emulator.version}`,
      ...(how.acceleration === 'kvm' || how.why === null ? [] : [`${NO_KVM}${how.why}`]),
      ...networkNotes,
    ],
  };
}
