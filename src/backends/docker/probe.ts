// What the Engine can do here, asked of itself; and whether it sees our files, found out by a mark
// that it is asked to read back.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Backend, Capabilities, Enforcement } from '../backend.ts';
import { type DockerConfig, PING_MS } from './config.ts';
import type { Endpoint } from './endpoint.ts';
import type { Engine } from './engine.ts';

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

/** `whyNoVolumes`: null where a disk in a file can be mounted on this machine. */
export async function probeEngine(
  op: Operation,
  config: DockerConfig,
  engine: Engine,
  whyNoVolumes: (op: Operation) => Promise<string | null>,
): ReturnType<Backend['probe']> {
  try {
    const ms = await engine.pingMs(op);
    using limited = op.within(ms, 'Docker');
    const answer = await engine.json(limited, info, { method: 'GET', path: '/info' }, ms);
    if (answer.OSType !== 'linux') {
      return { ok: false, why: `the Docker Engine runs containers of ${answer.OSType}`, hint: 'use one that runs Linux containers' };
    }
    const { modes, notes } = await config.network.probe(op);
    const endpoint = await engine.endpoint(op);
    const noVolumes = endpoint.kind === 'unix' ? await whyNoVolumes(op) : "volumes: the Engine is another machine's";
    return {
      ok: true,
      can: {
        ...capabilities(answer, endpoint, modes, [...notes, ...(noVolumes === null ? [] : [noVolumes])]),
        volumes: noVolumes === null,
      },
    };
  } catch (error) {
    if (op.signal.aborted || !(error instanceof HutchError)) throw error;
    return { ok: false, why: error.message, hint: error.hint ?? 'see: hutch doctor' };
  }
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
    snapshot: false,
    diskSnapshot: true,
    // One elsewhere has another machine's.
    hostDirectories: endpoint.kind === 'unix',
    volumes: false,
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

/**
 * Whether files of ours in each of these directories are seen by the Engine's containers: one of them may be a volume of the
 * container that we run in, another not. `image`: any image that it has.
 */
export async function seesOurFiles(
  op: Operation,
  { host, instance }: Pick<DockerConfig, 'host' | 'instance'>,
  engine: Engine,
  image: string,
  dirs: readonly string[],
): Promise<boolean> {
  const nonce = Buffer.from(host.randomBytes(16)).toString('hex');
  const marks = dirs.map((dir, at) => ({ dir: join(dir, `nonce-${op.id}`), target: `/.hutch/nonce-${at}` }));
  await using undo = new AsyncDisposableStack();
  const releasing = (work: (late: Operation) => Promise<void>): void =>
    undo.defer(async () => {
      using late = op.releasing(PING_MS);
      await work(late).catch((cause: unknown) => op.log.warn({ cause }, 'the probe of the Docker Engine left something behind'));
    });
  for (const { dir } of marks) {
    await host.makeDir(op, dir, 0o755);
    releasing((late) => host.remove(late, dir));
    await host.writeFileAtomic(op, join(dir, nonce), nonce, 0o644);
  }
  try {
    const { Id } = await engine.json(op, z.object({ Id: z.string() }), {
      method: 'POST',
      path: '/containers/create',
      body: {
        Image: image,
        Entrypoint: ['/nothing'],
        Labels: { 'dev.hutch.instance': instance },
        HostConfig: {
          NetworkMode: 'none',
          Mounts: marks.map(({ dir, target }) => ({ Type: 'bind', Source: dir, Target: target, ReadOnly: true })),
        },
      },
    });
    releasing((late) => engine.call(late, { method: 'DELETE', path: `/containers/${Id}`, query: { force: true, v: true } }));
    for (const { target } of marks)
      await engine.call(op, { method: 'HEAD', path: `/containers/${Id}/archive`, query: { path: `${target}/${nonce}` } });
    return true;
  } catch (error) {
    // It refuses a directory that it does not have, or does not find what lies in it.
    if (error instanceof HutchError && ['invalid_argument', 'not_found'].includes(error.code)) return false;
    throw error;
  }
}
