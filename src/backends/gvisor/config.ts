// What the composition root gives to the gVisor backend. Everything that the backend touches comes in
// here: it reads no environment, no configuration file and no clock of its own.
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Network } from '../../network/network.ts';

export type GvisorConfig = {
  readonly host: Host;
  /** Unpacked images; absolute, under data. Made if it is not there. */
  readonly basesDir: string;
  /** Below them lies what is saved of sandboxes, three directories down at most; absolute. */
  readonly savedRoots: readonly string[];
  /** For probes, and for what they found out. Absolute. */
  readonly workDir: string;
  readonly shimPath: string;
  /** Makes the place that the runtime runs in (rust/cell). */
  readonly cellPath: string;
  /** The entry process of every sandbox. */
  readonly agentPath: string;
  /** The built rust/automount: for a runtime that needs it. */
  readonly automountLibraryPath: string;
  /** The built rust/imprint: checksums of what is stored. */
  readonly imprintPath: string;
  /** Name or absolute path of the runtime. */
  readonly runsc?: string;
  /** Of the cgroups of this daemon's sandboxes; null: none are made. */
  readonly cgroupName: string | null;
  /** Parent of the sandboxes' run directories: tells our shims from others' when leaks are looked for. */
  readonly runRoot: string;
  readonly network: Network;
  /** Why /dev/kvm runs no guest here, where somebody has tried; null where one ran, or nobody knows. */
  readonly whyNoKvm: (op: Operation) => Promise<string | null>;
};

/** From the start of the runtime until the agent has connected: fifty at once on two cores take their time. */
export const ARRIVE_MS = 60_000;
/** One command to a runtime that runs. */
export const COMMAND_MS = 30_000;
/** From SIGTERM to SIGKILL, and from that to giving up. */
export const KILL_GRACE_MS = 3_000;
export const KILL_FORCE_MS = 15_000;
/** Releasing whatever a failed call had acquired. */
export const RELEASE_MS = 30_000;
