// What the Engine is asked to make for one sandbox, and what it says of it. Everything that is not
// needed is taken away: capabilities, new privileges, namespaces of the host, the log, restarts.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Mount } from '../../domain/mount.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { LABEL, PIDS_MAX } from './config.ts';
import type { Engine } from './engine.ts';

/** What the agent and ordinary programs need to act for several users; nothing that reaches the host. */
const CAPABILITIES = [
  'CHOWN',
  'DAC_OVERRIDE',
  'FOWNER',
  'FSETID',
  'KILL',
  'NET_BIND_SERVICE',
  'SETGID',
  'SETPCAP',
  'SETUID',
  'SYS_CHROOT',
] as const;

/** Where the agent's own things are in the container. */
export const INSIDE = { agent: '/.hutch/agent', run: '/.hutch/run', socket: '/.hutch/run/agent.sock' } as const;

type Limits = Readonly<Record<(typeof LIMITS)[number], number>>;
const LIMITS = ['Memory', 'MemorySwap', 'NanoCpus', 'PidsLimit'] as const;

/** How the agent and we reach each other. */
export type Reach =
  /** The Engine sees our files: agent and socket are mounted, read-only. */
  | { readonly kind: 'mounted'; readonly agentPath: string; readonly socketDir: string }
  /** It does not: the agent was put in as a file and speaks over the attached stdin and stdout. */
  | { readonly kind: 'attached' };

export type ContainerPlan = {
  readonly image: string;
  readonly instance: string;
  readonly reach: Reach;
  /** Name of the network, or `none`. */
  readonly network: string;
  /** Where the Engine finds them. */
  readonly volumes: readonly Mount[];
};

export function containerName(plan: Pick<SandboxPlan, 'id'>): string {
  return `hutch-${plan.id}`;
}

export function limitsOf({ cpus, memoryMiB, pids = PIDS_MAX }: SandboxPlan['shape']): Limits {
  const memoryBytes = memoryMiB * 1024 * 1024;
  return { Memory: memoryBytes, MemorySwap: memoryBytes /* with memory: no swap */, NanoCpus: cpus * 1e9, PidsLimit: pids };
}

/** Whether it was made or changed to have just these. */
export function hasLimits({ HostConfig }: Container, shape: SandboxPlan['shape']): boolean {
  const limits = limitsOf(shape);
  return LIMITS.every((name) => HostConfig[name] === limits[name]);
}

export function containerBody(plan: SandboxPlan, { image, instance, reach, network, volumes }: ContainerPlan): object {
  return {
    Image: image,
    Entrypoint: [INSIDE.agent],
    Cmd: reach.kind === 'mounted' ? ['--connect', INSIDE.socket, '--root', '/'] : ['--stdio', '--root', '/'],
    Hostname: plan.name,
    User: '0:0',
    WorkingDir: '/',
    StopSignal: 'SIGTERM',
    Healthcheck: { Test: ['NONE'] },
    Tty: false,
    // It gets a network namespace with a loopback all the same; the Engine need not run itself once more in it, which is half of a start.
    NetworkDisabled: network === 'none',
    OpenStdin: reach.kind === 'attached',
    StdinOnce: false,
    Labels: {
      [LABEL.sandbox]: plan.id,
      [LABEL.instance]: instance,
      ...(plan.projectId === null ? {} : { [LABEL.project]: plan.projectId }),
    },
    HostConfig: {
      NetworkMode: network,
      ...(reach.kind === 'mounted'
        ? {
            Mounts: [
              ...(plan.mounts ?? []).map(directoryMount),
              ...volumes.map(directoryMount),
              { Type: 'bind', Source: reach.agentPath, Target: INSIDE.agent, ReadOnly: true },
              { Type: 'bind', Source: reach.socketDir, Target: INSIDE.run, ReadOnly: true },
            ],
          }
        : {}),
      ...limitsOf(plan.shape),
      // To be read and written; a node of its own for another device cannot be made.
      Devices: (plan.devices ?? []).map((path) => ({ PathOnHost: path, PathInContainer: path, CgroupPermissions: 'rw' })),
      CapDrop: ['ALL'],
      CapAdd: [...CAPABILITIES],
      SecurityOpt: ['no-new-privileges:true'],
      Privileged: false,
      IpcMode: 'private',
      // With version 1 of cgroups the Engine's own default is the host's.
      CgroupnsMode: 'private',
      LogConfig: { Type: 'none' },
      RestartPolicy: { Name: 'no' },
      AutoRemove: false,
    },
  };
}

/** What is mounted below a read-only one would be writable on older Engines, so it is not shown there. */
function directoryMount({ source, target, readOnly }: Mount): object {
  return {
    Type: 'bind',
    Source: source,
    Target: target,
    ReadOnly: readOnly,
    BindOptions: { Propagation: 'rprivate', NonRecursive: readOnly },
  };
}

const containerAnswer = z.object({
  Id: z.string().regex(/^[0-9a-f]{64}$/),
  Name: z.string(),
  /** Of the image that it was made from. */
  Image: z.string(),
  SizeRw: z.number().nullish(),
  State: z.object({
    Status: z.string(),
    Running: z.boolean(),
    Paused: z.boolean(),
    OOMKilled: z.boolean(),
    Pid: z.int(),
    ExitCode: z.int(),
    Error: z.string(),
    StartedAt: z.string(),
    FinishedAt: z.string(),
  }),
  Config: z.object({ Labels: z.record(z.string(), z.string()).nullish() }),
  Mounts: z.array(z.object({ Type: z.string(), Destination: z.string() })).nullish(),
  HostConfig: z.object({ Memory: z.number(), MemorySwap: z.number(), NanoCpus: z.number(), PidsLimit: z.number().nullish() }),
});
export type Container = z.infer<typeof containerAnswer>;

/** By id or name; null where there is none. */
export async function findContainer(
  op: Operation,
  engine: Engine,
  ref: string,
  size: 'with-size' | 'without' = 'without',
): Promise<Container | null> {
  try {
    return await engine.json(op, containerAnswer, {
      method: 'GET',
      path: `/containers/${ref}/json`,
      query: size === 'with-size' ? { size: true } : {},
    });
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return null;
    throw error;
  }
}

/** Whether it is that sandbox's, and this daemon's. */
export function isOurs(container: Container, id: string, instance: string): boolean {
  const labels = container.Config.Labels ?? {};
  return labels[LABEL.sandbox] === id && labels[LABEL.instance] === instance;
}
