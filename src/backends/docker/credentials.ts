// The login for a registry, from where the user's own Docker keeps it: a credential helper, or the
// configuration file. It goes into one header of one request and is kept nowhere.
import { join } from 'node:path';
import * as z from 'zod';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { type DockerEnvironment, userEnvironment } from './config.ts';
import { dockerDir, readJson } from './endpoint.ts';

const HUB = 'https://index.docker.io/v1/';
const HELPER_MS = 10_000;
const HELPER = /^[A-Za-z0-9_.-]{1,64}$/;

const configFile = z.object({
  auths: z.record(z.string(), z.object({ auth: z.string().optional(), identitytoken: z.string().optional() })).optional(),
  credsStore: z.string().optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
});
const helperAnswer = z.object({ Username: z.string(), Secret: z.string() });

/** For the header `X-Registry-Auth`; null where there is no login for that registry. */
export async function registryAuth(op: Operation, host: Host, env: DockerEnvironment, name: string): Promise<string | null> {
  const dir = dockerDir(env);
  const file = dir === null ? null : await readJson(op, host, join(dir, 'config.json'), configFile);
  if (file === null) return null;
  const registry = registryOf(name);
  const helper = file.credHelpers?.[registry] ?? file.credsStore;
  const fromHelper = helper === undefined ? null : await askHelper(op, host, env, helper, registry);
  if (fromHelper !== null) return encode({ ...fromHelper, serveraddress: registry });
  const kept = file.auths?.[registry] ?? file.auths?.[`https://${registry}`];
  if (kept?.identitytoken !== undefined && kept.identitytoken !== '')
    return encode({ identitytoken: kept.identitytoken, serveraddress: registry });
  if (kept?.auth === undefined || kept.auth === '') return null;
  const login = Buffer.from(kept.auth, 'base64').toString();
  const colon = login.indexOf(':');
  if (colon < 0) return null;
  return encode({ username: login.slice(0, colon), password: login.slice(colon + 1), serveraddress: registry });
}

/** As the configuration file names it. */
export function registryOf(name: string): string {
  const first = name.split('/')[0] ?? '';
  const isHost = name.includes('/') && (first.includes('.') || first.includes(':') || first === 'localhost');
  return isHost ? first : HUB;
}

async function askHelper(op: Operation, host: Host, env: DockerEnvironment, helper: string, registry: string) {
  if (!HELPER.test(helper)) return null;
  const program = await host.which(op, `docker-credential-${helper}`, env.PATH);
  if (program === null) return null;
  using limited = op.within(HELPER_MS, `Docker's credential helper ${helper}`);
  const { exitCode, stdout } = await host.run(limited, [program, 'get'], {
    input: new TextEncoder().encode(registry),
    env: userEnvironment(env),
  });
  if (exitCode !== 0) return null; // it has none for this registry
  const parsed = helperAnswer.safeParse(JSON.parse(new TextDecoder().decode(stdout)));
  if (!parsed.success) return null;
  const { Username, Secret } = parsed.data;
  return Username === '<token>' ? { identitytoken: Secret } : { username: Username, password: Secret };
}

/** With its padding: Engine 20.10 takes what lacks it for no login at all. */
function encode(auth: object): string {
  return Buffer.from(JSON.stringify(auth)).toString('base64').replaceAll('+', '-').replaceAll('/', '_');
}
