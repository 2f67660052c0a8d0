// Where the Engine is, found as the `docker` command finds it: DOCKER_HOST, else the context that is
// chosen by DOCKER_CONTEXT or in Docker's own configuration, else the usual socket.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import type { Host, TlsOptions } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { DockerEnvironment } from './config.ts';

export type Endpoint = {
  /** For people: which setting said so. */
  readonly source: string;
  /** As it was written, such as `tcp://10.0.0.5:2376`. */
  readonly address: string;
} & (
  | { readonly kind: 'unix'; readonly socketPath: string }
  /** `tls` null: in the clear. */
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tls: TlsOptions | null }
  /** Its machine's own `docker` carries a connection to it. `socketPath` null: where that looks by itself. */
  | {
      readonly kind: 'ssh';
      readonly user: string | null;
      readonly host: string;
      readonly port: number | null;
      readonly socketPath: string | null;
    }
);

const DEFAULT_HOST = 'unix:///var/run/docker.sock';
const FILE_BYTES_MAX = 1024 * 1024;
const PORT = { clear: 2375, tls: 2376 } as const;

// Docker's own files: fields that we do not know are its business.
const configFile = z.object({ currentContext: z.string().max(255).optional() });
const contextFile = z.object({
  Endpoints: z.object({ docker: z.object({ Host: z.string().max(4096), SkipTLSVerify: z.boolean().optional() }) }),
});

/** @throws HutchError `failed_precondition` when what is configured cannot be used. */
export async function findEndpoint(op: Operation, host: Host, env: DockerEnvironment): Promise<Endpoint> {
  if (env.DOCKER_HOST !== undefined && env.DOCKER_HOST !== '') {
    return parse(op, env.DOCKER_HOST, 'DOCKER_HOST', await tlsOfEnvironment(op, host, env));
  }
  const dir = dockerDir(env);
  const chosen = env.DOCKER_CONTEXT || (dir === null ? undefined : await currentContext(op, host, dir));
  if (chosen === undefined || chosen === '' || chosen === 'default') return parse(op, DEFAULT_HOST, 'the default', null);
  const id = createHash('sha256').update(chosen).digest('hex');
  const contexts = join(dir ?? '/', 'contexts');
  const meta = await readJson(op, host, join(contexts, 'meta', id, 'meta.json'), contextFile);
  if (meta === null) {
    throw op.error('failed_precondition', `Docker's context ${chosen} does not exist`, { hint: 'see: docker context ls' });
  }
  const { Host: address, SkipTLSVerify } = meta.Endpoints.docker;
  const material = await certificates(op, host, join(contexts, 'tls', id, 'docker'));
  const tls = material === null && SkipTLSVerify !== true ? null : { ...material, verify: SkipTLSVerify !== true };
  return parse(op, address, `the context ${chosen}`, tls);
}

/** As the `docker` command: TLS when DOCKER_TLS_VERIFY is set to anything, or DOCKER_TLS, which trusts whoever answers. */
async function tlsOfEnvironment(op: Operation, host: Host, env: DockerEnvironment): Promise<TlsOptions | null> {
  const verify = (env.DOCKER_TLS_VERIFY ?? '') !== '';
  if (!verify && (env.DOCKER_TLS ?? '') === '') return null;
  const dir = env.DOCKER_CERT_PATH || dockerDir(env);
  const material = dir === null ? null : await certificates(op, host, dir);
  if (material === null && env.DOCKER_CERT_PATH) {
    throw op.error('failed_precondition', `DOCKER_CERT_PATH ${env.DOCKER_CERT_PATH} has no certificates`, {
      hint: 'it is a directory with ca.pem, cert.pem and key.pem',
    });
  }
  return { ...material, verify };
}

/** Null where there is none of them. */
async function certificates(op: Operation, host: Host, dir: string): Promise<Omit<TlsOptions, 'verify'> | null> {
  const read = async (name: string): Promise<Uint8Array | undefined> => {
    const path = join(dir, name);
    return (await host.stat(op, path)) === null ? undefined : await host.readFile(op, path, FILE_BYTES_MAX);
  };
  const [ca, cert, key] = [await read('ca.pem'), await read('cert.pem'), await read('key.pem')];
  if (ca === undefined && cert === undefined && key === undefined) return null;
  if ((cert === undefined) !== (key === undefined)) {
    throw op.error('failed_precondition', `${dir} has ${cert === undefined ? 'key.pem without cert.pem' : 'cert.pem without key.pem'}`);
  }
  return { ...(ca === undefined ? {} : { ca }), ...(cert === undefined ? {} : { cert }), ...(key === undefined ? {} : { key }) };
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

function parse(op: Operation, text: string, source: string, tls: TlsOptions | null): Endpoint {
  const address = text.slice(0, 200);
  const socketPath = /^unix:\/\/(\/.+)$/.exec(text)?.[1];
  if (socketPath !== undefined) return { kind: 'unix', socketPath, source, address };
  const tcp = /^tcp:\/\/(?:\[(?<v6>[0-9a-fA-F:.]+)\]|(?<name>[\w.-]+))(?::(?<port>\d{1,5}))?\/?$/.exec(text)?.groups;
  const port = Number(tcp?.['port'] ?? (tls === null ? PORT.clear : PORT.tls));
  if (tcp !== undefined && port > 0 && port <= 65_535) {
    return { kind: 'tcp', host: tcp['v6'] ?? tcp['name'] ?? '', port, tls, source, address };
  }
  const ssh =
    /^ssh:\/\/(?:(?<user>[\w.][\w.-]*)@)?(?:\[(?<v6>[0-9a-fA-F:.]+)\]|(?<name>\w[\w.-]*))(?::(?<port>\d{1,5}))?(?<path>\/[\w./@+-]*)?$/.exec(
      text,
    )?.groups;
  if (ssh !== undefined) {
    const { user, v6, name, port: sshPort, path } = ssh;
    const isDefault = path === undefined || path === '/';
    const own = { user: user ?? null, host: v6 ?? name ?? '', port: sshPort === undefined ? null : Number(sshPort) };
    if (own.port === null || (own.port > 0 && own.port <= 65_535))
      return { kind: 'ssh', ...own, socketPath: isDefault ? null : path, source, address };
  }
  throw op.error(
    'failed_precondition',
    `${source} names ${address}; a Docker Engine is reached over unix://, tcp://, with TLS or without, or ssh://[USER@]HOST[:PORT][/SOCKET]`,
    { hint: 'see: docker context ls' },
  );
}
