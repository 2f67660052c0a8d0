// Hutch's two networks in the Engine: made when the first sandbox needs one, each on a bridge whose
// name the firewall's rules know. Somebody else's network of the same name is never touched.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { NetworkMode } from '../../domain/sandbox.ts';
import type { Operation } from '../../host/operation.ts';
import { isAway } from './away.ts';
import { type DockerConfig, LABEL } from './config.ts';
import type { Engine } from './engine.ts';

const networkAnswer = z.object({
  Id: z.string(),
  Labels: z.record(z.string(), z.string()).nullish(),
  Options: z.record(z.string(), z.string()).nullish(),
});
const made = z.object({ Id: z.string() });

type Connected = Exclude<NetworkMode, 'none'>;
const MODES = ['allow', 'allow-lan'] as const satisfies readonly Connected[];

export function networkName(instance: string, mode: Connected): string {
  return mode === 'allow' ? instance : `${instance}-lan`;
}

/** The name to give a container; the network is there, and its bridge is on this machine. */
export async function ensureNetwork(op: Operation, config: DockerConfig, engine: Engine, mode: NetworkMode): Promise<string> {
  if (mode === 'none') return 'none';
  const name = networkName(config.instance, mode);
  const bridge = mode === 'allow' ? config.network.bridges.internet : config.network.bridges.lan;
  const known = (await find(op, engine, name)) ?? (await make(op, config, engine, name, bridge));
  if (known.Labels?.[LABEL.instance] !== config.instance || known.Options?.['com.docker.network.bridge.name'] !== bridge) {
    throw op.error('conflict', `the Docker Engine has a network ${name} that is not Hutch's`, {
      hint: `rename it, or: docker network rm ${name}`,
    });
  }
  if ((await config.host.stat(op, `/sys/class/net/${bridge}`)) === null) {
    throw op.error(
      'failed_precondition',
      'the networks of this Docker Engine are not on this machine, so nothing would keep a sandbox from them',
      {
        hint: 'start it with --no-net',
      },
    );
  }
  return name;
}

/**
 * Null where its networks are on this machine, so that our rules hold for them. It is tried out, with the one that the first sandbox
 * would have: where it is elsewhere nobody uses it, and it is removed.
 */
export async function whyNoNetworks(op: Operation, config: DockerConfig, engine: Engine): Promise<string | null> {
  try {
    await ensureNetwork(op, config, engine, 'allow');
    return null;
  } catch (error) {
    if (!(error instanceof HutchError) || isAway(error)) throw error;
    if (error.code === 'failed_precondition') await removeNetworks(op, config, engine);
    return `no network: ${error.message}`;
  }
}

async function make(op: Operation, { instance }: DockerConfig, engine: Engine, name: string, bridge: string) {
  try {
    await engine.json(op, made, {
      method: 'POST',
      path: '/networks/create',
      body: {
        Name: name,
        CheckDuplicate: true,
        Driver: 'bridge',
        EnableIPv6: false,
        Labels: { [LABEL.instance]: instance },
        Options: {
          'com.docker.network.bridge.name': bridge,
          'com.docker.network.bridge.enable_icc': 'false',
          'com.docker.network.bridge.enable_ip_masquerade': 'true',
        },
      },
    });
  } catch (error) {
    // Another sandbox of ours may have made it in the meantime.
    if (!(error instanceof HutchError && error.code === 'conflict')) throw error;
  }
  const found = await find(op, engine, name);
  if (found === null) throw op.error('internal', `the Docker Engine made the network ${name}, and does not have it`);
  return found;
}

async function find(op: Operation, engine: Engine, name: string) {
  try {
    return await engine.json(op, networkAnswer, { method: 'GET', path: `/networks/${name}` });
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return null;
    throw error;
  }
}

/** When no container of ours is left. What is not ours, or in use, stays. */
export async function removeNetworks(op: Operation, { instance }: DockerConfig, engine: Engine): Promise<void> {
  for (const mode of MODES) {
    const name = networkName(instance, mode);
    const found = await find(op, engine, name);
    if (found?.Labels?.[LABEL.instance] !== instance) continue;
    try {
      await engine.call(op, { method: 'DELETE', path: `/networks/${found.Id}` });
    } catch (error) {
      if (!(error instanceof HutchError && (error.code === 'permission_denied' || error.code === 'not_found'))) throw error;
    }
  }
}
