// Logins for registries, where the user's own Docker keeps them: a credential helper, or the file
// config.json. `docker login` and ours see each other's. A secret goes to its registry and nowhere else:
// not into a log, an error, an argument vector, or our own store.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { HUB } from '../../domain/image-reference.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

/** Under which Docker has always kept the login for Docker Hub. */
const HUB_KEY = 'https://index.docker.io/v1/';
const FILE_BYTES_MAX = 1024 * 1024;
const HELPER_MS = 10_000;
const HELPER = /^[A-Za-z0-9_.-]{1,64}$/;

export type Login = { readonly username: string; readonly password: string } | { readonly identityToken: string };
/** Of the user whose logins they are. Credential helpers are looked for in its PATH first, and have it but for what is Hutch's own. */
export type DockerHome = Readonly<Record<string, string | undefined>> & {
  readonly HOME?: string | undefined;
  readonly DOCKER_CONFIG?: string | undefined;
  readonly PATH?: string | undefined;
};

const entry = z.looseObject({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
});
// Loose: what others keep in the file stays in it.
const configFile = z.looseObject({
  auths: z.record(z.string(), entry).optional(),
  credsStore: z.string().optional(),
  credHelpers: z.record(z.string(), z.string()).optional(),
});
type ConfigFile = z.infer<typeof configFile>;
const NONE = /credentials not found/;
const helperAnswer = z.object({ Username: z.string(), Secret: z.string() });

export class Credentials {
  readonly #host: Host;
  readonly #env: DockerHome;
  readonly #helperMs: number;

  constructor(host: Host, env: DockerHome, helperMs = HELPER_MS) {
    this.#host = host;
    this.#env = env;
    this.#helperMs = helperMs;
  }

  /** Null where there is no login for that registry. */
  async of(op: Operation, registry: string): Promise<Login | null> {
    return (await this.look(op, registry)).login;
  }

  /** `why`: what kept a helper from giving one, which is worth a word only where one is wanted. */
  async look(op: Operation, registry: string): Promise<{ readonly login: Login | null; readonly why: string | null }> {
    const file = await this.#read(op);
    const helper = helperOf(file, registry);
    const found = helper === null ? { login: null, why: null } : await this.#fromHelper(op, helper, registry);
    return found.login === null ? { login: this.#inFile(file, registry), why: found.why } : found;
  }

  #inFile(file: ConfigFile, registry: string): Login | null {
    const kept = keysOf(registry)
      .map((key) => file.auths?.[key])
      .find((found) => found !== undefined);
    if (kept === undefined) return null;
    if (kept.identitytoken !== undefined && kept.identitytoken !== '') return { identityToken: kept.identitytoken };
    const pair = Buffer.from(kept.auth ?? '', 'base64').toString();
    const colon = pair.indexOf(':');
    if (colon > 0) return { username: pair.slice(0, colon), password: pair.slice(colon + 1) };
    return kept.username !== undefined && kept.password !== undefined ? { username: kept.username, password: kept.password } : null;
  }

  /** Gives where it was kept: for people. */
  async keep(op: Operation, registry: string, login: { readonly username: string; readonly password: string }): Promise<string> {
    const file = await this.#read(op);
    const helper = helperOf(file, registry);
    if (helper !== null) {
      await this.#runHelper(
        op,
        helper,
        'store',
        JSON.stringify({ ServerURL: keyOf(registry), Username: login.username, Secret: login.password }),
      );
      return `the credential helper ${helper}`;
    }
    const auth = Buffer.from(`${login.username}:${login.password}`).toString('base64');
    return await this.#write(op, { ...file, auths: { ...file.auths, [keyOf(registry)]: { auth } } });
  }

  /** Whether there was one. */
  async forget(op: Operation, registry: string): Promise<boolean> {
    const file = await this.#read(op);
    const had = (await this.of(op, registry)) !== null;
    const helper = helperOf(file, registry);
    if (helper !== null && had) await this.#erase(op, helper, registry);
    const keys = new Set(keysOf(registry));
    const auths = Object.fromEntries(Object.entries(file.auths ?? {}).filter(([key]) => !keys.has(key)));
    if (Object.keys(auths).length !== Object.keys(file.auths ?? {}).length) await this.#write(op, { ...file, auths });
    return had;
  }

  /** Helpers differ in what they say of one that they do not have: what counts is whether it is gone. */
  async #erase(op: Operation, helper: string, registry: string): Promise<void> {
    const failure = await this.#runHelper(op, helper, 'erase', keyOf(registry)).then(
      () => null,
      (error: unknown) => error,
    );
    if (failure !== null && (await this.#fromHelper(op, helper, registry)).login !== null) throw failure;
  }

  async #read(op: Operation): Promise<ConfigFile> {
    const path = this.#path();
    if (path === null || (await this.#host.stat(op, path)) === null) return {};
    try {
      return configFile.parse(JSON.parse(Buffer.from(await this.#host.readFile(op, path, FILE_BYTES_MAX)).toString()));
    } catch (cause) {
      if (cause instanceof HutchError) throw cause;
      throw op.error('failed_precondition', `${path} cannot be read: it is no configuration of Docker's`, { cause });
    }
  }

  async #write(op: Operation, file: ConfigFile): Promise<string> {
    const path = this.#path();
    if (path === null)
      throw op.error('failed_precondition', 'the daemon has neither HOME nor DOCKER_CONFIG: there is no place for a login');
    await this.#host.makeDir(op, join(path, '..'), 0o700);
    await this.#host.writeFileAtomic(op, path, `${JSON.stringify(file, null, '\t')}\n`, 0o600);
    return path;
  }

  #path(): string | null {
    const { DOCKER_CONFIG: dir, HOME: home } = this.#env;
    if (dir?.startsWith('/') === true) return join(dir, 'config.json');
    return home?.startsWith('/') === true ? join(home, '.docker', 'config.json') : null;
  }

  async #fromHelper(
    op: Operation,
    helper: string,
    registry: string,
  ): Promise<{ readonly login: Login | null; readonly why: string | null }> {
    let said: string;
    try {
      said = await this.#runHelper(op, helper, 'get', keyOf(registry));
    } catch (error) {
      if (error instanceof HelperHasNone) return { login: null, why: null };
      if (error instanceof HutchError && error.code === 'failed_precondition') return { login: null, why: error.message };
      throw error;
    }
    const parsed = helperAnswer.safeParse(jsonOr(said));
    if (!parsed.success) return { login: null, why: `the credential helper ${helper} gave what is no login` };
    const { Username, Secret } = parsed.data;
    return { login: Username === '<token>' ? { identityToken: Secret } : { username: Username, password: Secret }, why: null };
  }

  /** @throws HelperHasNone where it says so, in the words by which Docker knows it. */
  async #runHelper(op: Operation, helper: string, verb: 'get' | 'store' | 'erase', input: string): Promise<string> {
    const program = HELPER.test(helper) ? await this.#host.which(op, `docker-credential-${helper}`, this.#env.PATH) : null;
    if (program === null) {
      throw op.error(
        'failed_precondition',
        `Docker's configuration names the credential helper ${helper.slice(0, 64)}, which is not installed`,
      );
    }
    using limited = op.within(this.#helperMs, `the credential helper ${helper}`);
    const { exitCode, stdout } = await this.#host.run(limited, [program, verb], {
      input: new TextEncoder().encode(input),
      env: helperEnvironment(this.#env),
    });
    const said = new TextDecoder().decode(stdout);
    if (exitCode === 0) return said;
    if (NONE.test(said)) throw new HelperHasNone();
    throw op.error('failed_precondition', `the credential helper ${helper} failed to ${verb} a login`);
  }
}

/** Where its own keeper is it is told by the environment: the bus of a desktop, a profile of a cloud, the home of a keyring. */
function helperEnvironment(env: DockerHome): Record<string, string> {
  const isGiven = (entry: [string, string | undefined]): entry is [string, string] =>
    entry[1] !== undefined && !entry[0].startsWith('HUTCH_');
  return Object.fromEntries(Object.entries(env).filter(isGiven));
}

class HelperHasNone extends Error {}

function helperOf(file: ConfigFile, registry: string): string | null {
  const own = keysOf(registry)
    .map((key) => file.credHelpers?.[key])
    .find((found) => found !== undefined);
  return own ?? file.credsStore ?? null;
}

function keyOf(registry: string): string {
  return registry === HUB ? HUB_KEY : registry;
}

/** In the ways in which it is written in that file. */
function keysOf(registry: string): readonly string[] {
  if (registry === HUB) return [HUB_KEY, 'index.docker.io', HUB, 'https://index.docker.io'];
  return [
    registry,
    `https://${registry}`,
    `https://${registry}/`,
    `http://${registry}`,
    `https://${registry}/v1/`,
    `https://${registry}/v2/`,
  ];
}

function jsonOr(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
