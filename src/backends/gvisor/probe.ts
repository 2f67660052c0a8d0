// What this backend can do on this machine, for doctor and for the choice of a backend.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Backend, Capabilities } from '../backend.ts';
import { type Cgroups, TASKS_MAX } from './cgroup.ts';
import type { GvisorConfig } from './config.ts';
import type { Layers } from './layer.ts';
import type { Platform } from './platform.ts';
import type { Rights } from './rights.ts';
import type { Runtime } from './runtime.ts';

type Probed = Awaited<ReturnType<Backend['probe']>>;

export async function probeMachine(
  op: Operation,
  config: GvisorConfig,
  { cgroups, layers }: { readonly cgroups: Cgroups; readonly layers: Layers },
  find: (op: Operation) => Promise<{ readonly runtime: Runtime; readonly platform: Platform; readonly rights: Rights }>,
): Promise<Probed> {
  const { host, network } = config;
  try {
    for (const path of [config.shimPath, config.cellPath, config.agentPath, config.automountLibraryPath]) {
      if ((await host.which(op, path)) !== null) continue;
      return {
        ok: false,
        why: `a program of ours is missing: ${path}`,
        hint: 'take a fresh copy of Hutch: its prebuilt directory is incomplete',
      };
    }
    for (const [program, source] of [
      ['rdsquashfs', 'squashfs-tools-ng'],
      ['mke2fs', 'e2fsprogs'],
    ] as const) {
      if ((await host.which(op, program)) === null)
        return { ok: false, why: `${program} is not installed`, hint: `install it: apt-get install ${source}` };
    }
    const { runtime, platform, rights } = await find(op);
    const [limited, whyUnbounded, { modes, notes }] = await Promise.all([cgroups.work(op), layers.whyUnbounded(op), networks(op, config)]);
    return { ok: true, can: capabilities(runtime, platform, { limited, whyUnbounded, isRoot: rights.userId === null }, modes, [...notes]) };
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return { ok: false, why: error.message, hint: error.hint ?? 'see: hutch doctor' };
  }

  /** The network that a sandbox's own frames go through takes a device for them. */
  async function networks(asking: Operation, { host: here }: GvisorConfig) {
    const found = await network.probe(asking);
    if (!found.modes.includes('allow') || (await here.stat(asking, '/dev/net/tun')) !== null) return found;
    return { modes: ['none'] as const, notes: [...found.notes, 'no network: there is no /dev/net/tun'] };
  }
}

function capabilities(
  runtime: Runtime,
  platform: Platform,
  { limited, whyUnbounded, isRoot }: { readonly limited: boolean; readonly whyUnbounded: string | null; readonly isRoot: boolean },
  networks: Capabilities['networks'],
  networkNotes: readonly string[],
): Capabilities {
  return {
    isolation: 'user-space-kernel',
    securityBoundary: true,
    pause: true,
    suspend: isRoot,
    // A layer that is a directory of the host's cannot be copied in an instant.
    fork: isRoot && whyUnbounded === null,
    snapshot: isRoot && whyUnbounded === null,
    diskSnapshot: false,
    hostDirectories: true,
    devices: false,
    // Mounted as a layer is.
    volumes: whyUnbounded === null,
    limits: {
      cpu: limited ? 'enforced' : 'no',
      // The kernel counts the runtime's own memory and threads with the sandbox's, and ends all of it.
      memory: limited ? 'host-process' : 'no',
      processes: limited && platform.processes === 'counted' ? 'host-process' : 'no',
      disk: whyUnbounded === null ? 'enforced' : 'no',
    },
    changes: { cpus: 'next-start', memory: 'next-start', disk: 'next-start', processes: 'next-start', network: 'next-start' },
    networks,
    acceleration: 'none',
    notes: [
      `runsc ${runtime.version}, platform ${platform.name}`,
      ...platform.notes,
      ...(limited
        ? [
            "memory is limited together with the runtime's own: a sandbox that exceeds it ends as a whole",
            platform.processes === 'counted'
              ? `processes are limited by the kernel in user space, which who is root inside may lift, and with the runtime's threads to ${TASKS_MAX}`
              : `processes are limited with the runtime's threads to ${TASKS_MAX} alone: this runsc counts them, and lets nearly every one begin that is too many`,
          ]
        : ['no limits of cpu, memory and processes: there are no cgroups that we may make']),
      ...(whyUnbounded === null
        ? []
        : [
            `the disk's size is not limited, as no disk in a file can be mounted, and a layer is a directory of the host's: ${whyUnbounded}`,
          ]),
      ...(isRoot ? [] : ['no suspend and no fork: without root what runs is not written down']),
      ...networkNotes,
    ],
  };
}
