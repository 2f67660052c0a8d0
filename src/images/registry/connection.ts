// How registries are asked: over which address, with which login, and how far a redirect is followed. A
// login goes to its registry and to the token server that this names; a redirect may not lead nearer
// to us than the registry itself is.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { HUB } from '../../domain/image-reference.ts';
import type { Host, HttpAnswer, HttpRequest } from '../../host/host.ts';
import { isLoopbackName, isUntrusted } from '../../host/http.ts';
import type { Operation } from '../../host/operation.ts';
import { LINK, LOOPBACK, type Nearness, nearnessOf, PUBLIC } from './address.ts';
import { type Asked, jsonOf, loginHint, needsLogin, type Repository, readAll, refusalOf, statusError } from './answers.ts';
import { type Challenge, parseChallenge } from './challenge.ts';
import type { Credentials, Login } from './credentials.ts';
import { hurried, type Patience } from './patience.ts';

export type ConnectionOptions = {
  readonly host: Host;
  readonly credentials: Credentials;
  /** Registries, by name and port, that may be asked without TLS or with a certificate of anybody's. Loopback may always. */
  readonly insecure: readonly string[];
  /** A file of certificates that are trusted beside the well-known ones; null: none. */
  readonly caPath: string | null;
  /** The same for one registry alone, by its name and port. */
  readonly caPaths?: ReadonlyMap<string, string>;
  /** `http_proxy` and its kin. */
  readonly proxy: Readonly<Record<string, string>>;
};

const REDIRECTS_MAX = 5;
const TOKEN_BYTES_MAX = 64 * 1024;
const CA_BYTES_MAX = 1024 * 1024;
const TOKENS_MAX = 1_000;
/** What a token is good for when nobody says. */
const TOKEN_SECONDS = 60;

// Some write null for what they do not say.
const tokenAnswer = z.object({
  token: z.string().max(TOKEN_BYTES_MAX).nullish(),
  access_token: z.string().max(TOKEN_BYTES_MAX).nullish(),
  expires_in: z.number().nullish(),
});

type Token = { readonly header: string; readonly untilMs: number };
/** How a registry is reached; found out once. */
type Endpoint = {
  readonly registry: string;
  readonly origin: string;
  readonly anyCertificate: boolean;
  /** Of the nearest address that it was found at. */
  nearness: Nearness;
};

/** Made anew for each time that it is sent. */
export type Upload = Exclude<HttpRequest['body'], undefined> | (() => Exclude<HttpRequest['body'], undefined>);

export type Question = {
  readonly method?: HttpRequest['method'];
  /** Below the repository, or an address that the registry gave. */
  readonly path: string | URL;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Upload;
  readonly asked?: Asked;
  /** Another repository of this registry that is read from meanwhile. */
  readonly from?: string;
};

type Pace = Pick<Patience, 'idleMs' | 'slowMs' | 'slowBytes'>;

export class Connection {
  readonly #host: Host;
  readonly #options: ConnectionOptions;
  readonly #pace: Pace;
  readonly #endpoints = new Map<string, Endpoint>();
  /** By registry and what they allow. */
  readonly #tokens = new Map<string, Token>();
  /** The origin of each answer, which after a redirect is another than was asked. */
  readonly #answeredBy = new WeakMap<HttpAnswer, string>();

  constructor(options: ConnectionOptions, pace: Pace) {
    this.#host = options.host;
    this.#options = options;
    this.#pace = pace;
  }

  /** The answer, when it is none of a failure. @throws HutchError for all others. */
  async send(op: Operation, repository: Repository, question: Question): Promise<HttpAnswer> {
    const { path, asked = 'read' } = question;
    const endpoint = await this.#endpoint(op, repository);
    const url = path instanceof URL ? path : new URL(`/v2/${repository.repository}/${path}`, endpoint.origin);
    const shown = path instanceof URL ? path.pathname : path;
    const key = keyOf(repository, question);
    const known = this.#tokens.get(key);
    const token = known !== undefined && known.untilMs > this.#host.monotonicMs() ? known.header : null;
    const headers = question.headers ?? {};
    const answer = await this.#follow(op, endpoint, url, question, { ...headers, ...(token === null ? {} : { Authorization: token }) });
    if (answer.status < 400) return answer;
    using refusal = answer;
    // Who gives out tokens the registry alone may say, and not a store that it redirects to.
    if (refusal.status !== 401 || this.#answeredBy.get(answer) !== endpoint.origin) {
      throw await refusalOf(op, repository, shown, refusal, asked);
    }
    this.#tokens.delete(key);
    const { login, why } = await this.#options.credentials.look(op, repository.registry);
    try {
      const header = await this.#authorization(op, endpoint, repository, question, refusal, login);
      const second = await this.#follow(op, endpoint, url, question, { ...headers, Authorization: header });
      if (second.status < 400) return second;
      using again = second;
      this.#tokens.delete(key);
      throw await refusalOf(op, repository, shown, again, asked);
    } catch (error) {
      if (why === null || !(error instanceof HutchError) || error.code !== 'permission_denied') throw error;
      throw op.error('permission_denied', error.message, { hint: `${why}; mend that, or ${error.hint}` });
    }
  }

  /** An address that a registry gave: absolute, or below its own. */
  async located(op: Operation, repository: Repository, location: string): Promise<URL> {
    const endpoint = await this.#endpoint(op, repository);
    return this.#elsewhere(op, endpoint, location, new URL(endpoint.origin), `${repository.registry} sends uploads`);
  }

  /** @throws HutchError `permission_denied` when the registry does not take this login. */
  async checkLogin(op: Operation, registry: string, login: Login): Promise<void> {
    const repository = { registry, repository: '' };
    const endpoint = await this.#endpoint(op, repository);
    const url = new URL('/v2/', endpoint.origin);
    using first = await this.#ask(op, endpoint, url, { path: url }, {});
    if (first.status !== 401) return;
    const header = await this.#authorization(op, endpoint, repository, { path: url }, first, login);
    using second = await this.#ask(op, endpoint, url, { path: url }, { Authorization: header });
    if (second.status < 400) return;
    throw op.error('permission_denied', `${registry} does not take this login`);
  }

  /** Whatever was kept of a login is not used any more. */
  forget(registry: string): void {
    for (const key of this.#tokens.keys()) if (key.startsWith(`${registry} `)) this.#tokens.delete(key);
  }

  /** Redirects, with what belongs to the registry alone left behind. What is uploaded goes where it was asked to go. */
  async #follow(
    op: Operation,
    endpoint: Endpoint,
    url: URL,
    question: Question,
    headers: Readonly<Record<string, string>>,
  ): Promise<HttpAnswer> {
    let at = url;
    for (let count = 0; count <= REDIRECTS_MAX; count += 1) {
      const { Authorization: _secret, ...rest } = headers;
      const answer = await this.#ask(op, endpoint, at, question, at.origin === endpoint.origin ? headers : rest);
      const { location } = answer.headers;
      this.#answeredBy.set(answer, at.origin);
      const leadsOn = [301, 302, 303, 307, 308].includes(answer.status) && location !== undefined;
      if (!leadsOn) return answer;
      using _done = answer;
      if (question.body !== undefined) throw op.error('failed_precondition', `${url.host} redirects an upload, which is not followed`);
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

  async #ask(
    op: Operation,
    endpoint: Endpoint,
    url: URL,
    { method, body }: Pick<Question, 'method' | 'body' | 'path'>,
    headers: Readonly<Record<string, string>>,
  ): Promise<HttpAnswer> {
    const isOwn = url.origin === endpoint.origin;
    const trusted = await this.trusted(op, endpoint.registry);
    const sent = typeof body === 'function' ? body() : body;
    const { idleMs, slowMs } = this.#pace;
    const request = {
      method: method ?? (sent === undefined ? 'GET' : 'POST'),
      url,
      headers: { 'User-Agent': 'hutch', ...headers },
      ...(sent === undefined ? {} : { body: sent }),
      ...(trusted === '' ? {} : { trusted }),
      anyCertificate: isOwn && endpoint.anyCertificate,
      proxy: this.#options.proxy,
      mayConnect: (address: string) => {
        const nearness = nearnessOf(address);
        if (!isOwn) return mayLead(endpoint.nearness, nearness);
        if (nearness > endpoint.nearness) endpoint.nearness = nearness;
        return true;
      },
      idleMs,
      // After an upload a registry may have much to do before it answers.
      ...(typeof sent === 'object' && 'chunks' in sent ? {} : { headMs: slowMs }),
    };
    const answer = await this.#host.request(op, request).catch((error: unknown) => {
      if (!(error instanceof HutchError) || !isUntrusted(error)) throw error;
      const hint = `name its authority in the configuration: images.registry_ca = ["${endpoint.registry}=FILE.pem"], or for all: images.ca = "/etc/ssl/certs/ca-certificates.crt"`;
      throw op.error(error.code, error.message, { cause: error, hint });
    });
    return hurried(op, this.#host, answer, url.host, this.#pace);
  }

  /** Certificates in PEM; empty: none but the well-known ones. Null: of no registry. */
  async trusted(op: Operation, registry: string | null): Promise<string> {
    const { caPath, caPaths } = this.#options;
    const texts: string[] = [];
    for (const [key, path] of [
      ['images.ca', caPath],
      ['images.registry_ca', registry === null ? null : caPaths?.get(registry)],
    ] as const) {
      if (path != null) texts.push(await this.#certificates(op, key, path));
    }
    return texts.join('\n');
  }

  async #certificates(op: Operation, key: string, path: string): Promise<string> {
    const bytes = await this.#host.readFile(op, path, CA_BYTES_MAX).catch((cause: unknown) => {
      throw op.error('failed_precondition', `${key}: ${cause instanceof HutchError ? cause.message : String(cause)}`, { cause });
    });
    const text = Buffer.from(bytes).toString();
    // A file of something else would be taken in silence, and then nobody be trusted.
    if (!text.includes('-----BEGIN CERTIFICATE-----')) throw op.error('failed_precondition', `${key}: ${path} has no certificate in PEM`);
    return text;
  }

  /** By TLS; without it only where that is allowed by name, or never leaves this machine. */
  async #endpoint(op: Operation, { registry }: Repository): Promise<Endpoint> {
    const known = this.#endpoints.get(registry);
    if (known !== undefined) return known;
    const address = registry === HUB ? 'registry-1.docker.io' : registry;
    const { hostname } = new URL(`https://${address}`);
    const name = hostname.replace(/^\[(.*)\]$/, '$1');
    const nearness = isLoopbackName(name) ? LOOPBACK : PUBLIC;
    const isNamed = this.#options.insecure.includes(registry);
    // Of one that has an authority of its own the certificate is looked at, wherever it is.
    const anyCertificate = isNamed || (isLoopbackName(name) && this.#options.caPaths?.has(registry) !== true);
    const secure: Endpoint = { registry, origin: `https://${address}`, anyCertificate, nearness };
    let endpoint = secure;
    if (anyCertificate) {
      const plain: Endpoint = { ...secure, origin: `http://${address}` };
      const probe = async ({ origin }: Endpoint): Promise<void> => {
        const url = new URL('/v2/', origin);
        using _answer = await this.#ask(op, origin === plain.origin ? plain : secure, url, { path: url }, {});
      };
      try {
        await probe(secure);
      } catch (error) {
        if (!(error instanceof HutchError) || error.code !== 'unavailable') throw error;
        await probe(plain);
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
    question: Question,
    refusal: HttpAnswer,
    login: Login | null,
  ): Promise<string> {
    const challenge = parseChallenge(refusal.headers['www-authenticate'] ?? '');
    if (challenge === null) throw op.error('permission_denied', `${repository.registry} wants a login of a kind that is not known`);
    if (challenge.scheme === 'bearer') return await this.#token(op, endpoint, repository, question, challenge, login);
    if (login === null || !('username' in login)) throw needsLogin(op, repository.registry);
    const header = basic(login);
    this.#remember(keyOf(repository, question), { header, untilMs: Number.POSITIVE_INFINITY });
    return header;
  }

  async #token(
    op: Operation,
    endpoint: Endpoint,
    repository: Repository,
    question: Question,
    { realm, service, scope }: Extract<Challenge, { scheme: 'bearer' }>,
    login: Login | null,
  ): Promise<string> {
    const url = this.#elsewhere(op, endpoint, realm, new URL(endpoint.origin), `${repository.registry} has its tokens given out`);
    // What it may ask for is ours to say: this repository, and what we do with it.
    const own = repository.repository === '' ? null : scopesOf(repository, question);
    const isOauth = login !== null && 'identityToken' in login;
    const query = new URLSearchParams();
    if (service !== null) query.set('service', service);
    for (const asked of own ?? (scope === null ? [] : [scope])) query.append('scope', asked);
    if (isOauth) {
      query.set('grant_type', 'refresh_token');
      query.set('client_id', 'hutch');
      query.set('refresh_token', login.identityToken);
    } else for (const [key, value] of query) url.searchParams.append(key, value);
    const headers = isOauth
      ? { 'Content-Type': 'application/x-www-form-urlencoded' }
      : login === null || !('username' in login)
        ? {}
        : { Authorization: basic(login) };
    using answer = await this.#ask(op, endpoint, url, { path: url, ...(isOauth ? { body: query.toString() } : {}) }, headers);
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
    if (!parsed.success || token == null || !/^[\x21-\x7e]+$/.test(token)) {
      throw op.error('failed_precondition', `the token server ${url.host} gave no token`);
    }
    const seconds = Math.min(Math.max(parsed.data.expires_in ?? TOKEN_SECONDS, 1), 3_600);
    // Half of it: a token must not end between asking and answering.
    this.#remember(keyOf(repository, question), { header: `Bearer ${token}`, untilMs: this.#host.monotonicMs() + seconds * 500 });
    return `Bearer ${token}`;
  }

  #remember(key: string, token: Token): void {
    if (this.#tokens.size >= TOKENS_MAX) this.#tokens.clear();
    this.#tokens.set(key, token);
  }
}

function scopesOf({ repository }: Repository, { asked = 'read', from }: Question): string[] {
  const own = `repository:${repository}:${asked === 'read' ? 'pull' : 'pull,push'}`;
  return from === undefined ? [own] : [own, `repository:${from}:pull`];
}

function keyOf(repository: Repository, question: Question): string {
  return `${repository.registry} ${scopesOf(repository, question).join(' ')}`;
}

function mayLead(from: Nearness, to: Nearness): boolean {
  return to !== LINK && to <= from;
}

function basic({ username, password }: { readonly username: string; readonly password: string }): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
}
