// A client of registries, by the OCI distribution specification. It reads: manifests and blobs. A
// registry is not trusted: every answer has a bound in size and in time, what has a digest is checked
// against it, a login goes to the registry that it is for and to the token server that this names, and a
// redirect may not lead nearer to us than the registry itself is.
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { HUB, type ImageReference } from '../../domain/image-reference.ts';
import type { Host, HttpAnswer } from '../../host/host.ts';
import { isLoopbackName } from '../../host/http.ts';
import type { Operation } from '../../host/operation.ts';
import { LINK, LOOPBACK, type Nearness, nearnessOf, PUBLIC } from './address.ts';
import { type Challenge, parseChallenge } from './challenge.ts';
import type { Credentials, Login } from './credentials.ts';

export type RegistryOptions = {
  readonly host: Host;
  readonly credentials: Credentials;
  /** Registries, by name and port, that may be asked without TLS or with a certificate of anybody's. Loopback may always. */
  readonly insecure: readonly string[];
  /** A file of certificates that are trusted beside the well-known ones; null: none. */
  readonly caPath: string | null;
  /** `http_proxy` and its kin. */
  readonly proxy: Readonly<Record<string, string>>;
  readonly patience?: Patience;
};

/** Milliseconds, and how often something is tried. */
export type Patience = {
  readonly idleMs: number;
  readonly tries: number;
  /** Doubled from try to try. */
  readonly pauseMs: number;
  /** The longest that a registry may make us wait at one time. */
  readonly retryAfterMsMax: number;
  /** A download that brings less than `slowBytes` in this time is given up, and tried again. */
  readonly slowMs: number;
  readonly slowBytes: number;
};
const PATIENCE: Patience = { idleMs: 30_000, tries: 5, pauseMs: 500, retryAfterMsMax: 60_000, slowMs: 60_000, slowBytes: 64 * 1024 };

const REDIRECTS_MAX = 5;
export const MANIFEST_BYTES_MAX = 4 * 1024 * 1024;
const TOKEN_BYTES_MAX = 64 * 1024;
const ERROR_BYTES_MAX = 16 * 1024;
const CA_BYTES_MAX = 1024 * 1024;
const TOKENS_MAX = 1_000;
/** What a token is good for when nobody says. */
const TOKEN_SECONDS = 60;
const ACCEPT = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ');

const tokenAnswer = z.object({
  token: z.string().max(TOKEN_BYTES_MAX).optional(),
  access_token: z.string().max(TOKEN_BYTES_MAX).optional(),
  expires_in: z.number().optional(),
});
const errorAnswer = z.object({ errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })).max(64) });

type Repository = Pick<ImageReference, 'registry' | 'repository'>;
export type Fetched = { readonly bytes: Buffer; readonly mediaType: string; readonly digest: string };
export type Blob = { readonly digest: string; readonly sizeBytes: number };

type Token = { readonly header: string; readonly untilMs: number };
/** How a registry is reached; found out once. */
type Endpoint = {
  readonly origin: string;
  readonly anyCertificate: boolean;
  /** Of the nearest address that it was found at. */
  nearness: Nearness;
};

export class Registry {
  readonly #host: Host;
  readonly #options: RegistryOptions;
  readonly #patience: Patience;
  readonly #endpoints = new Map<string, Endpoint>();
  /** By registry and repository. */
  readonly #tokens = new Map<string, Token>();

  constructor(options: RegistryOptions) {
    this.#host = options.host;
    this.#options = options;
    this.#patience = options.patience ?? PATIENCE;
  }

  /** By tag or digest; one that was asked for by its digest has it. */
  async manifest(op: Operation, repository: Repository, wanted: string): Promise<Fetched> {
    const what = `${nameOf(repository)} ${wanted}`;
    return await this.#retrying(op, what, async () => {
      using answer = await this.#get(op, repository, `manifests/${wanted}`, { Accept: ACCEPT });
      const bytes = await readAll(op, answer, MANIFEST_BYTES_MAX, `the manifest of ${what}`);
      const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
      if (wanted.startsWith('sha256:') && digest !== wanted) {
        throw op.error('failed_precondition', `the registry gave another manifest than ${what}: its digest is ${digest}`);
      }
      return { bytes, digest, mediaType: (answer.headers['content-type'] ?? '').split(';')[0]?.trim() ?? '' };
    });
  }

  /** Into memory; for what is small. */
  async smallBlob(op: Operation, repository: Repository, { digest, sizeBytes }: Blob, bytesMax: number): Promise<Buffer> {
    const what = `${nameOf(repository)} ${digest}`;
    if (sizeBytes > bytesMax) throw op.error('failed_precondition', `${what} has ${sizeBytes} bytes; at most ${bytesMax} are read`);
    return await this.#retrying(op, what, async () => {
      using answer = await this.#get(op, repository, `blobs/${digest}`, {});
      const bytes = await readAll(op, answer, bytesMax, what);
      const found = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
      if (found !== digest) throw wrongDigest(op, what, found);
      return bytes;
    });
  }

  /** Into a file, whole and checked when this returns. A connection that breaks is gone on with where it broke. */
  async blob(
    op: Operation,
    repository: Repository,
    { digest, sizeBytes }: Blob,
    path: string,
    onBytes: (total: number) => void,
  ): Promise<void> {
    const what = `${nameOf(repository)} ${digest}`;
    const host = this.#host;
    await host.remove(op, path);
    let hash = createHash('sha256');
    let total = 0;
    let lastTotal = -1;
    await this.#retrying(
      op,
      what,
      async () => {
        lastTotal = total;
        using answer = await this.#get(op, repository, `blobs/${digest}`, total === 0 ? {} : { Range: `bytes=${total}-` });
        if (total > 0 && !goesOn(answer, total)) {
          await host.remove(op, path);
          hash = createHash('sha256');
          total = 0;
        }
        const watched = this.#watched(op, what, answer.body);
        await host.appendStream(
          op,
          path,
          (async function* () {
            for await (const chunk of watched) {
              if (total + chunk.byteLength > sizeBytes)
                throw op.error('failed_precondition', `${what} has more than the ${sizeBytes} bytes that its manifest says`);
              hash.update(chunk);
              yield chunk;
              total += chunk.byteLength;
              onBytes(total);
            }
          })(),
        );
        if (total < sizeBytes) throw op.error('unavailable', `${what} ended after ${total} of ${sizeBytes} bytes`);
      },
      () => total > lastTotal && lastTotal >= 0,
    );
    const found = `sha256:${hash.digest('hex')}`;
    if (found !== digest) throw wrongDigest(op, what, found);
  }

  /** @throws HutchError `permission_denied` when the registry does not take this login. */
  async checkLogin(op: Operation, registry: string, login: Login): Promise<void> {
    const repository = { registry, repository: '' };
    const endpoint = await this.#endpoint(op, repository);
    using first = await this.#ask(op, endpoint, new URL('/v2/', endpoint.origin), {});
    if (first.status !== 401) return;
    const header = await this.#authorization(op, endpoint, repository, first, login);
    using second = await this.#ask(op, endpoint, new URL('/v2/', endpoint.origin), { Authorization: header });
    if (second.status < 400) return;
    throw op.error('permission_denied', `${registry} does not take this login`);
  }

  /** Whatever was kept of a login is not used any more. */
  forget(registry: string): void {
    for (const key of this.#tokens.keys()) if (key.startsWith(`${registry} `)) this.#tokens.delete(key);
  }

  async #get(op: Operation, repository: Repository, path: string, headers: Readonly<Record<string, string>>): Promise<HttpAnswer> {
    const endpoint = await this.#endpoint(op, repository);
    const url = new URL(`/v2/${repository.repository}/${path}`, endpoint.origin);
    const key = `${repository.registry} ${repository.repository}`;
    const known = this.#tokens.get(key);
    const token = known !== undefined && known.untilMs > this.#host.monotonicMs() ? known.header : null;
    const answer = await this.#follow(op, endpoint, url, { ...headers, ...(token === null ? {} : { Authorization: token }) });
    if (answer.status < 400) return answer;
    using refusal = answer;
    if (refusal.status !== 401) throw await refusalOf(op, repository, path, refusal);
    this.#tokens.delete(key);
    const login = await this.#options.credentials.of(op, repository.registry);
    const header = await this.#authorization(op, endpoint, repository, refusal, login);
    const second = await this.#follow(op, endpoint, url, { ...headers, Authorization: header });
    if (second.status < 400) return second;
    using again = second;
    this.#tokens.delete(key);
    throw await refusalOf(op, repository, path, again);
  }

  /** Redirects, with what belongs to the registry alone left behind. */
  async #follow(op: Operation, endpoint: Endpoint, url: URL, headers: Readonly<Record<string, string>>): Promise<HttpAnswer> {
    let at = url;
    for (let count = 0; count <= REDIRECTS_MAX; count += 1) {
      const isOwn = at.origin === url.origin;
      const { Authorization: _secret, ...rest } = headers;
      const answer = await this.#ask(op, endpoint, at, isOwn ? headers : rest);
      const { location } = answer.headers;
      if (![301, 302, 303, 307, 308].includes(answer.status) || location === undefined) return answer;
      using _done = answer;
      at = this.#elsewhere(op, endpoint, location, at, `${url.host} redirects`);
    }
    throw op.error('failed_precondition', `${url.host} redirects more than ${REDIRECTS_MAX} times`);
  }

  #elsewhere(op: Operation, endpoint: Endpoint, location: string, base: URL, who: string): URL {
    const target = URL.parse(location, base.href);
    const isSecure =
      target?.protocol === 'https:' || (target?.protocol === 'http:' && (endpoint.anyCertificate || endpoint.origin.startsWith('http:')));
    if (target === null || !isSecure || target.username !== '' || target.password !== '') {
      throw op.error('failed_precondition', `${who} to an address that is not followed: ${location.slice(0, 200)}`);
    }
    return target;
  }

  async #ask(op: Operation, endpoint: Endpoint, url: URL, headers: Readonly<Record<string, string>>, body?: string): Promise<HttpAnswer> {
    const isOwn = url.origin === endpoint.origin;
    const trusted = await this.#trusted(op);
    return await this.#host.request(op, {
      method: body === undefined ? 'GET' : 'POST',
      url,
      headers: { 'User-Agent': 'hutch', ...headers },
      ...(body === undefined ? {} : { body }),
      ...(trusted === null ? {} : { trusted }),
      anyCertificate: isOwn && endpoint.anyCertificate,
      proxy: this.#options.proxy,
      mayConnect: (address) => {
        const nearness = nearnessOf(address);
        if (!isOwn) return mayLead(endpoint.nearness, nearness);
        if (nearness > endpoint.nearness) endpoint.nearness = nearness;
        return true;
      },
      idleMs: this.#patience.idleMs,
    });
  }

  async #trusted(op: Operation): Promise<string | null> {
    const { caPath } = this.#options;
    return caPath === null ? null : Buffer.from(await this.#host.readFile(op, caPath, CA_BYTES_MAX)).toString();
  }

  /** By TLS; without it only where that is allowed by name, or never leaves this machine. */
  async #endpoint(op: Operation, { registry }: Repository): Promise<Endpoint> {
    const known = this.#endpoints.get(registry);
    if (known !== undefined) return known;
    const address = registry === HUB ? 'registry-1.docker.io' : registry;
    const { hostname } = new URL(`https://${address}`);
    const name = hostname.replace(/^\[(.*)\]$/, '$1');
    const nearness = isLoopbackName(name) ? LOOPBACK : PUBLIC;
    const anyCertificate = isLoopbackName(name) || this.#options.insecure.includes(registry);
    const secure: Endpoint = { origin: `https://${address}`, anyCertificate, nearness };
    let endpoint = secure;
    if (anyCertificate) {
      try {
        using _answer = await this.#ask(op, secure, new URL('/v2/', secure.origin), {});
      } catch (error) {
        if (!(error instanceof HutchError) || error.code !== 'unavailable') throw error;
        const plain: Endpoint = { ...secure, origin: `http://${address}` };
        using _answer = await this.#ask(op, plain, new URL('/v2/', plain.origin), {});
        endpoint = plain;
      }
    }
    this.#endpoints.set(registry, endpoint);
    return endpoint;
  }

  /** What stands in `Authorization` from now on. */
  async #authorization(
    op: Operation,
    endpoint: Endpoint,
    repository: Repository,
    refusal: HttpAnswer,
    login: Login | null,
  ): Promise<string> {
    const challenge = parseChallenge(refusal.headers['www-authenticate'] ?? '');
    if (challenge === null) throw op.error('permission_denied', `${repository.registry} wants a login of a kind that is not known`);
    if (challenge.scheme === 'bearer') return await this.#token(op, endpoint, repository, challenge, login);
    if (login === null || !('username' in login)) throw needsLogin(op, repository.registry);
    const header = basic(login);
    this.#remember(repository, { header, untilMs: Number.POSITIVE_INFINITY });
    return header;
  }

  async #token(
    op: Operation,
    endpoint: Endpoint,
    repository: Repository,
    { realm, service, scope }: Extract<Challenge, { scheme: 'bearer' }>,
    login: Login | null,
  ): Promise<string> {
    const url = this.#elsewhere(op, endpoint, realm, new URL(endpoint.origin), `${repository.registry} has its tokens given out`);
    // What it may ask for is ours to say: reading this repository.
    const own = repository.repository === '' ? null : `repository:${repository.repository}:pull`;
    const asked = own ?? scope;
    const isOauth = login !== null && 'identityToken' in login;
    const query = new URLSearchParams();
    if (service !== null) query.set('service', service);
    if (asked !== null) query.set('scope', asked);
    if (isOauth) {
      query.set('grant_type', 'refresh_token');
      query.set('client_id', 'hutch');
      query.set('refresh_token', login.identityToken);
    } else for (const [key, value] of query) url.searchParams.set(key, value);
    const headers = isOauth
      ? { 'Content-Type': 'application/x-www-form-urlencoded' }
      : login === null || !('username' in login)
        ? {}
        : { Authorization: basic(login) };
    using answer = await this.#ask(op, endpoint, url, headers, isOauth ? query.toString() : undefined);
    if (answer.status === 401 || answer.status === 403) {
      throw login === null
        ? needsLogin(op, repository.registry)
        : op.error('permission_denied', `${repository.registry} does not take the login that is kept for it`, {
            hint: loginHint(repository.registry),
          });
    }
    if (answer.status !== 200) throw statusError(op, answer, `the token server ${url.host} answered ${answer.status}`);
    const parsed = tokenAnswer.safeParse(jsonOf(await readAll(op, answer, TOKEN_BYTES_MAX, `the answer of the token server ${url.host}`)));
    const token = parsed.success ? parsed.data.token || parsed.data.access_token : undefined;
    if (!parsed.success || token === undefined || !/^[\x21-\x7e]+$/.test(token)) {
      throw op.error('failed_precondition', `the token server ${url.host} gave no token`);
    }
    const seconds = Math.min(Math.max(parsed.data.expires_in ?? TOKEN_SECONDS, 1), 3_600);
    // Half of it: a token must not end between asking and answering.
    this.#remember(repository, { header: `Bearer ${token}`, untilMs: this.#host.monotonicMs() + seconds * 500 });
    return `Bearer ${token}`;
  }

  #remember({ registry, repository }: Repository, token: Token): void {
    if (this.#tokens.size >= TOKENS_MAX) this.#tokens.clear();
    this.#tokens.set(`${registry} ${repository}`, token);
  }

  /** Again, after a pause, what fails for a while only. What gets on does not count as failing. */
  async #retrying<T>(op: Operation, what: string, work: () => Promise<T>, gotOn: () => boolean = () => false): Promise<T> {
    const { tries, pauseMs, retryAfterMsMax } = this.#patience;
    for (let failed = 0; ; ) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof HutchError) || error.code !== 'unavailable' || op.signal.aborted) throw error;
        failed = gotOn() ? 1 : failed + 1;
        if (failed >= tries) throw error;
        const waitMs = retryAfterOf(error) ?? pauseMs * 2 ** (failed - 1);
        if (waitMs > retryAfterMsMax) throw error;
        op.log.info({ what, waitMs, cause: error.message }, 'a registry is asked again');
        await sleep(waitMs, undefined, { signal: op.signal }).catch(() => op.signal.throwIfAborted());
      }
    }
  }

  /** A server that sends a byte now and then would hold us for ever. */
  async *#watched(op: Operation, what: string, body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    const { slowMs, slowBytes } = this.#patience;
    let since = this.#host.monotonicMs();
    let bytes = 0;
    for await (const chunk of body) {
      bytes += chunk.byteLength;
      const now = this.#host.monotonicMs();
      if (now - since >= slowMs) {
        if (bytes < slowBytes)
          throw op.error('unavailable', `${what} comes too slowly: ${bytes} bytes in ${Math.round((now - since) / 1000)} seconds`);
        since = now;
        bytes = 0;
      }
      yield chunk;
    }
  }
}

function mayLead(from: Nearness, to: Nearness): boolean {
  return to !== LINK && to <= from;
}

function goesOn(answer: HttpAnswer, from: number): boolean {
  return answer.status === 206 && new RegExp(`^bytes ${from}-`).test(answer.headers['content-range'] ?? '');
}

function nameOf({ registry, repository }: Repository): string {
  return registry === HUB ? repository.replace(/^library\//, '') : `${registry}/${repository}`;
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}

async function readAll(op: Operation, answer: HttpAnswer, bytesMax: number, what: string): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of answer.body) {
    total += chunk.byteLength;
    if (total > bytesMax) throw op.error('failed_precondition', `${what} has more than ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function refusalOf(op: Operation, repository: Repository, path: string, answer: HttpAnswer): Promise<HutchError> {
  const { registry } = repository;
  const name = nameOf(repository);
  const said = await readAll(op, answer, ERROR_BYTES_MAX, 'an error').catch(() => Buffer.alloc(0));
  const reason = reasonOf(said);
  const wanted = path.replace(/^(manifests|blobs)\//, '');
  if (answer.status === 404) return op.error('not_found', `${registry} has no ${name} ${wanted}${reason}`);
  if (answer.status === 401 || answer.status === 403) {
    return op.error('permission_denied', `${registry} does not give out ${name}${reason}`, { hint: loginHint(registry) });
  }
  return statusError(op, answer, `${registry} answered ${answer.status} to the question for ${name} ${wanted}${reason}`);
}

function statusError(op: Operation, answer: HttpAnswer, message: string): HutchError {
  const isPassing = answer.status === 429 || answer.status >= 500;
  const after = answer.headers['retry-after'];
  if (!isPassing) return op.error('failed_precondition', message);
  const error = op.error('unavailable', answer.status === 429 ? `${message}: too many requests` : message);
  if (after !== undefined && /^\d{1,9}$/.test(after)) RETRY_AFTER_MS.set(error, Number(after) * 1000);
  else if (after !== undefined && !Number.isNaN(Date.parse(after))) RETRY_AFTER_MS.set(error, Math.max(0, Date.parse(after) - Date.now()));
  return error;
}

/** How long a registry wants to be left alone, with the error that says so. */
const RETRY_AFTER_MS = new WeakMap<HutchError, number>();

function retryAfterOf(error: HutchError): number | null {
  return RETRY_AFTER_MS.get(error) ?? null;
}

function reasonOf(said: Buffer): string {
  const parsed = errorAnswer.safeParse(jsonOf(said));
  const [first] = parsed.success ? parsed.data.errors : [];
  const text = first?.message ?? first?.code;
  return text === undefined || text === '' ? '' : ` (${text.replace(/[^\x20-\x7e]/g, ' ').slice(0, 200)})`;
}

function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}

function needsLogin(op: Operation, registry: string): HutchError {
  return op.error('permission_denied', `${registry} wants a login`, { hint: loginHint(registry) });
}

function loginHint(registry: string): string {
  return `log in with: hutch image login${registry === HUB ? '' : ` ${registry}`}`;
}

function wrongDigest(op: Operation, what: string, found: string): HutchError {
  return op.error('failed_precondition', `${what} is not what it should be: its digest is ${found}`);
}
