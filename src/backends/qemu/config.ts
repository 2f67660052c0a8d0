// What the composition root gives to the QEMU backend. Everything that the backend touches comes in
// here: it reads no environment, no configuration file and no clock of its own.
import type { Duplex } from 'node:stream';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Network } from '../../network/network.ts';

export type Owner = { readonly uid: number; readonly gid: number };

/** A disk as the agent's `configure` takes it. */
export type GuestDisk = { readonly device: string; readonly sizeBytes: number };

/** `auto` takes KVM where guest code really runs under it. */
export type AccelerationChoice = 'auto' | 'kvm' | 'tcg';
export type Acceleration = 'kvm' | 'tcg';

export type QemuConfig = {
  readonly host: Host;
  /** Absolute; under data, never on a tmpfs. Made if it is not there. */
  readonly templatesDir: string;
  /** For what lives as long as a template's build or a probe: sockets and logs. Absolute. */
  readonly workDir: string;
  /** The shim's program. */
  readonly shimPath: string;
  /** The built rust/readonly: maps memories privately that QEMU takes to be shared. */
  readonly readonlyLibraryPath?: string;
  /** The built rust/imprint: writes machines down. Without it nothing is suspended, snapshotted or forked. */
  readonly imprintPath?: string;
  /** The built rust/files: serves directories of this machine. Without it none can be mounted. */
  readonly filesPath?: string;
  /** Name or absolute path of the emulator. */
  readonly qemu?: string;
  readonly acceleration?: AccelerationChoice;
  /** Who runs the machines that become templates; null: we ourselves. */
  readonly templateOwner?: Owner | null;
  /** Where cgroups may be made, one directory per controller or one for all (`findCgroups`). */
  readonly cgroups?: readonly string[];
  /** Parent of the sandboxes' run directories: tells our shims from others' when leaks are looked for. */
  readonly runRoot?: string;
  readonly network: Network;
  /** Longest boot of a template until its agent answers, per attempt. Default: `BOOT_MS`. */
  readonly bootMs?: number;
  /** Of the disk that is mounted in templates: sandboxes with another size start a little slower. Default: 8192. */
  readonly templateDiskMiB?: number;
  /**
   * Waits until the agent behind `dial` has said hello, configures it as no sandbox in particular (with
   * `disk`, and the network that all have), has it read what every sandbox reads first and write all to
   * the disk, and lets go of the stream. Called once per template.
   */
  readonly warmAgent: (op: Operation, dial: (op: Operation) => Promise<Duplex>, disk: GuestDisk) => Promise<void>;
  /**
   * Waits until the agent behind `dial` has said hello, and lets go of the stream. Called when a sandbox's own machine boots; without it
   * none does: each comes from a template.
   */
  readonly greetAgent?: (op: Operation, dial: (op: Operation) => Promise<Duplex>) => Promise<void>;
};

/** Longest boot of a template until its agent answers, per attempt. */
export const BOOT_MS = { kvm: 60_000, tcg: 90_000 } as const satisfies Record<Acceleration, number>;
export const BOOT_ATTEMPTS = 2;
/** Until QEMU greets on its control socket, and until it has loaded a state: fifty at once on two cores take their time. */
export const QMP_READY_MS = 60_000;
/** One control command to a machine that runs. */
export const QMP_COMMAND_MS = 10_000;
/** Loading a template's state, or saving it. */
export const MIGRATION_MS = 30_000;
/** From SIGTERM to SIGKILL, and from that to giving up. */
export const KILL_GRACE_MS = 3_000;
export const KILL_FORCE_MS = 10_000;
/** Releasing whatever a failed call had acquired. */
export const RELEASE_MS = 20_000;

export const TEMPLATE_DISK_MIB = 8192;

/** Memory is given in steps, so that few templates serve many shapes. */
export const MEMORY_STEP_MIB = 128;
