// What the Engine can do here, asked of itself.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { NetworkAbilities } from '../../network/network.ts';
import type { Backend, Capabilities, Enforcement } from '../backend.ts';
import type { DockerConfig } from './config.ts';
import type { Endpoint } from './endpoint.ts';
import type { Engine } from './engine.ts';
import type { Sight } from './sight.ts';

const info = z.object({
  ServerVersion: z.string(),
  OSType: z.string(),
  CgroupVersion: z.string().nullish(),
  MemoryLimit: z.boolean().nullish(),
  SwapLimit: z.boolean().nullish(),
  CpuCfsQuota: z.boolean().nullish(),
  PidsLimit: z.boolean().nullish(),
  SecurityOptions: z.array(z.string()).nullish(),
});

type ProbeParts = {
  readonly config: DockerConfig;
  readonly engine: Engine;
  readonly sight: Sight;
  /** Null where a disk in a file can be mounted on this machine. */
  readonly whyNoVolumes: (op: Operation) => Promise<string | null>;
  /** Null where the Engine's networks are on this machine. */
  readonly whyNoNetworks: (op: Operation) => Promise<string | null>;
};

export async function probeEngine(
  op: Operation,
  { config, engine, sight, whyNoVolumes, whyNoNetworks }: ProbeParts,
): ReturnType<Backend['probe']> {
  try {
    // More than for its first word: that it hangs is then known to whoever asks next.
    const ms = 2 * (await engine.pingMs(op));
    const answer = await engine.json(op, info, { method: 'GET', path: '/info' }, ms);
    if (answer.OSType !== 'linux') {
      return { ok: false, why: `the Docker Engine runs containers of ${answer.OSType}`, hint: 'use one that runs Linux containers' };
    }
    const endpoint = await engine.endpoint(op);
    const isHere = endpoint.kind === 'unix' && (await sight.seesOurFiles(op));
    const { modes, notes } = await networksOf(op, config, isHere ? async () => null : whyNoNetworks);
    const noVolumes = isHere ? await whyNoVolumes(op) : `host directories, volumes, devices: ${whyElsewhere(endpoint)}`;
    return {
      ok: true,
      can: {
        ...capabilities(answer, endpoint, modes, [...notes, ...(noVolumes === null ? [] : [noVolumes])]),
        hostDirectories: isHere,
        devices: isHere,
        volumes: noVolumes === null,
      },
    };
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return { ok: false, why: error.message, hint: error.hint ?? 'see: hutch doctor' };
  }
}

/** What this machine can keep a sandbox from, of networks that are on it. */
async function networksOf(op: Operation, { network }: DockerConfig, whyNot: ProbeParts['whyNoNetworks']): Promise<NetworkAbilities> {
  const here = await network.probe(op);
  const why = here.modes.includes('allow') ? await whyNot(op) : null;
  return why === null ? here : { modes: ['none'], notes: [...here.notes, why] };
}

/** One that is asked over a network may be on this machine, and see our directories; but nobody can tell whose devices and processes it has. */
function whyElsewhere({ kind, address }: Endpoint): string {
  if (kind === 'unix') return 'the Engine does not see the files of this machine';
  return `the Engine is reached at ${address}; one on this machine has them over its unix socket`;
}

function capabilities(
  answer: z.infer<typeof info>,
  endpoint: Endpoint,
  networks: Capabilities['networks'],
  networkNotes: readonly string[],
): Capabilities {
  const held = (flag: boolean | null | undefined): Enforcement => (flag === true ? 'enforced' : 'no');
  return {
    isolation: 'shared-kernel',
    securityBoundary: false,
    pause: true,
    suspend: false,
    fork: false,
    snapshot: true,
    diskSnapshot: true,
    hostDirectories: false,
    volumes: false,
    devices: false,
    limits: { cpu: held(answer.CpuCfsQuota), memory: held(answer.MemoryLimit), disk: 'no', processes: held(answer.PidsLimit) },
    // A container's network is chosen when it is made, and its disk has no size.
    changes: { cpus: 'live', memory: 'live', disk: 'no', processes: 'live', network: 'no' },
    networks,
    acceleration: 'none',
    notes: [
      `Docker Engine ${answer.ServerVersion}, cgroups version ${answer.CgroupVersion ?? '1'}, from ${endpoint.source}`,
      ...(endpoint.kind === 'tcp' && endpoint.tls === null
        ? [`in the clear: whoever is on the way to ${endpoint.address} has the machine`]
        : []),
      'disk: a container has no limit of its own, it shares what the Engine has',
      'no new privileges: sudo and other set-user-id programs do not raise them',
      ...(answer.SwapLimit === false ? ['swap is not limited: the kernel does not account for it'] : []),
      ...networkNotes,
    ],
  };
}
