// Where the Engine is, found as the `docker` command finds it: DOCKER_HOST, else the context that is
// chosen by DOCKER_CONTEXT or in Docker's own configuration, else the usual socket.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { DockerEnvironment } from './config.ts';

export type Endpoint = {
  readonly socketPath: string;
  /** For people: which setting said so. */
  readonly source: string;
};

const DEFAULT_HOST = 'unix:///var/run/docker.sock';
const FILE_BYTES_MAX = 1024 * 1024;

// Docker's own files: fields that we do not know are its business.
const configFile = z.object({ currentContext: z.string().max(255).optional() });
const contextFile = z.object({ Endpoints: z.object({ docker: z.object({ Host: z.string().max(4096) }) }) });

/** @throws HutchError `failed_precondition` when what is configured cannot be used. */
export async function findEndpoint(op: Operation, host: Host, env: DockerEnvironment): Promise<Endpoint> {
  if (env.DOCKER_HOST !== undefined && env.DOCKER_HOST !== '') return parse(op, env.DOCKER_HOST, 'DOCKER_HOST');
  const dir = dockerDir(env);
  const chosen = env.DOCKER_CONTEXT || (dir === null ? undefined : await currentContext(op, host, dir));
  if (chosen === undefined || chosen === '' || chosen === 'default') return parse(op, DEFAULT_HOST, 'the default');
  const path = join(dir ?? '/', 'contexts/meta', createHash('sha256').update(chosen).digest('hex'), 'meta.json');
  const meta = await readJson(op, host, path, contextFile);
  if (meta === null) {
    throw op.error('failed_precondition', `Docker's context ${chosen} does not exist`, { hint: 'see: docker context ls' });
  }
  return parse(op, meta.Endpoints.docker.Host, `the context ${chosen}`);
}

/** Docker's configuration directory; null for who has no home. */
export function dockerDir(env: DockerEnvironment): string | null {
  if (env.DOCKER_CONFIG) return env.DOCKER_CONFIG;
  return env.HOME ? join(env.HOME, '.docker') : null;
}

async function currentContext(op: Operation, host: Host, dir: string): Promise<string | undefined> {
  return (await readJson(op, host, join(dir, 'config.json'), configFile))?.currentContext;
}

/** Null where there is no such file. */
export async function readJson<T>(op: Operation, host: Host, path: string, schema: z.ZodType<T>): Promise<T | null> {
  if ((await host.stat(op, path)) === null) return null;
  try {
    return schema.parse(JSON.parse(new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX))));
  } catch (cause) {
    throw op.error('failed_precondition', `${path} cannot be read as Docker's`, { cause });
  }
}

function parse(op: Operation, text: string, source: string): Endpoint {
  const path = /^unix:\/\/(\/.+)$/.exec(text)?.[1];
  if (path !== undefined) return { socketPath: path, source };
  const there = /^(?:ssh|tcp|https?):\/\/((?:[\w.-]+@)?[\w.-]+)/.exec(text)?.[1] ?? 'HOST';
  throw op.error(
    'failed_precondition',
    `${source} names ${text.slice(0, 200)}; only a Docker Engine behind a unix socket is used, not over TCP, TLS or SSH`,
    {
      hint: `forward its socket to this machine: ssh -nNT -L /run/docker-remote.sock:/var/run/docker.sock ${there}, and DOCKER_HOST=unix:///run/docker-remote.sock`,
    },
  );
}
