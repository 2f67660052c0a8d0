// A client of registries, by the OCI distribution specification: manifests and blobs, read and written. A
// registry is not trusted: every answer has a bound in size and in time, and what has a digest is
// checked against it. How it is reached, connection.ts knows.
import { createHash } from 'node:crypto';
import { HutchError } from '../../domain/errors.ts';
import type { Host, HttpAnswer } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { nameOf, type Repository, readAll, wrongDigest } from './answers.ts';
import { Connection, type ConnectionOptions } from './connection.ts';
import type { Login } from './credentials.ts';
import { fetchFile } from './fetch.ts';
import { PATIENCE, type Patience, retrying } from './patience.ts';
import { type ArtifactToPush, type OnBytes, type PushResult, pushArtifact } from './upload.ts';

/** A registry that is asked before another one. */
export type Mirror = {
  readonly of: string;
  readonly registry: string;
  /** In front of the repository there; may be empty. */
  readonly prefix: string;
};
export type RegistryOptions = ConnectionOptions & { readonly patience?: Patience; readonly mirrors?: readonly Mirror[] };

/** A mirror that could not be reached is not asked again so soon. */
const MIRROR_DOWN_MS = 60_000;

export const MANIFEST_BYTES_MAX = 4 * 1024 * 1024;
const ACCEPT = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ');

export type Fetched = { readonly bytes: Buffer; readonly mediaType: string; readonly digest: string };
export type Blob = { readonly digest: string; readonly sizeBytes: number };

export class Registry {
  readonly #host: Host;
  readonly #connection: Connection;
  readonly #patience: Patience;
  readonly #mirrors: readonly Mirror[];
  readonly #proxy: RegistryOptions['proxy'];
  readonly #downUntilMs = new Map<Mirror, number>();

  constructor(options: RegistryOptions) {
    this.#host = options.host;
    this.#mirrors = options.mirrors ?? [];
    this.#proxy = options.proxy;
    this.#patience = options.patience ?? PATIENCE;
    this.#connection = new Connection(options, this.#patience);
  }

  /** Of anybody's, under this machine's proxy and authorities. */
  async fetchFile(op: Operation, url: URL, reach: { readonly lan: boolean }): Promise<HttpAnswer> {
    return await fetchFile(op, { host: this.#host, proxy: this.#proxy, trusted: await this.#connection.trusted(op, null) }, url, reach);
  }

  /** By tag or digest; one that was asked for by its digest has it. */
  async manifest(op: Operation, repository: Repository, wanted: string): Promise<Fetched> {
    return await this.#fromAny(op, repository, (source, tries) => this.#manifest(op, source, wanted, tries));
  }

  async #manifest(op: Operation, repository: Repository, wanted: string, patience: Patience): Promise<Fetched> {
    const what = `${nameOf(repository)} ${wanted}`;
    return await retrying(op, patience, what, async () => {
      using answer = await this.#connection.send(op, repository, { path: `manifests/${wanted}`, headers: { Accept: ACCEPT } });
      const bytes = await readAll(op, answer, MANIFEST_BYTES_MAX, `the manifest of ${what}`);
      const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
      if (wanted.startsWith('sha256:') && digest !== wanted) {
        throw op.error('failed_precondition', `the registry gave another manifest than ${what}: its digest is ${digest}`);
      }
      return { bytes, digest, mediaType: (answer.headers['content-type'] ?? '').split(';')[0]?.trim() ?? '' };
    });
  }

  /** Into memory; for what is small. */
  async smallBlob(op: Operation, repository: Repository, blob: Blob, bytesMax: number): Promise<Buffer> {
    return await this.#fromAny(op, repository, (source, tries) => this.#smallBlob(op, source, blob, bytesMax, tries));
  }

  async #smallBlob(
    op: Operation,
    repository: Repository,
    { digest, sizeBytes }: Blob,
    bytesMax: number,
    patience: Patience,
  ): Promise<Buffer> {
    const what = `${nameOf(repository)} ${digest}`;
    if (sizeBytes > bytesMax) throw op.error('failed_precondition', `${what} has ${sizeBytes} bytes; at most ${bytesMax} are read`);
    return await retrying(op, patience, what, async () => {
      using answer = await this.#connection.send(op, repository, { path: `blobs/${digest}` });
      const bytes = await readAll(op, answer, bytesMax, what);
      const found = `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
      if (found !== digest) throw wrongDigest(op, what, found);
      return bytes;
    });
  }

  /** Into a file, whole and checked when this returns. A connection that breaks is gone on with where it broke. */
  async blob(op: Operation, repository: Repository, blob: Blob, path: string, onBytes: (total: number) => void): Promise<void> {
    await this.#fromAny(op, repository, (source, tries) => this.#blob(op, source, blob, path, onBytes, tries));
  }

  async #blob(
    op: Operation,
    repository: Repository,
    { digest, sizeBytes }: Blob,
    path: string,
    onBytes: (total: number) => void,
    patience: Patience,
  ): Promise<void> {
    const what = `${nameOf(repository)} ${digest}`;
    const host = this.#host;
    await host.remove(op, path);
    let hash = createHash('sha256');
    let total = 0;
    let lastTotal = -1;
    await retrying(
      op,
      patience,
      what,
      async () => {
        lastTotal = total;
        using answer = await this.#connection.send(op, repository, {
          path: `blobs/${digest}`,
          headers: total === 0 ? {} : { Range: `bytes=${total}-` },
        });
        if (total > 0 && !goesOn(answer, total)) {
          await host.remove(op, path);
          hash = createHash('sha256');
          total = 0;
        }
        await host.appendStream(
          op,
          path,
          (async function* () {
            for await (const chunk of answer.body) {
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

  /** Whatever a manifest lists, and then the manifest, by a tag or its digest. */
  async push(op: Operation, repository: Repository, name: string, artifact: ArtifactToPush, onBytes?: OnBytes): Promise<PushResult> {
    return await pushArtifact(op, { connection: this.#connection, patience: this.#patience }, repository, name, artifact, onBytes);
  }

  /** @throws HutchError `permission_denied` when the registry does not take this login. */
  async checkLogin(op: Operation, registry: string, login: Login): Promise<void> {
    await this.#connection.checkLogin(op, registry, login);
  }

  /** Whatever was kept of a login is not used any more. */
  forget(registry: string): void {
    this.#connection.forget(registry);
  }

  /** From a mirror, once and briefly; from the registry itself where no mirror has it. What has a digest is checked in each case. */
  async #fromAny<T>(op: Operation, repository: Repository, work: (source: Repository, patience: Patience) => Promise<T>): Promise<T> {
    for (const mirror of this.#mirrors) {
      if (mirror.of !== repository.registry || (this.#downUntilMs.get(mirror) ?? 0) > this.#host.monotonicMs()) continue;
      const source = {
        registry: mirror.registry,
        repository: [mirror.prefix, repository.repository].filter((part) => part !== '').join('/'),
      };
      try {
        return await work(source, { ...this.#patience, tries: 1 });
      } catch (error) {
        if (!(error instanceof HutchError) || error.code === 'resource_exhausted' || op.signal.aborted) throw error;
        op.log.info({ mirror: mirror.registry, cause: error.message }, 'a mirror is passed over');
        if (error.code === 'unavailable') this.#downUntilMs.set(mirror, this.#host.monotonicMs() + MIRROR_DOWN_MS);
      }
    }
    return await work(repository, this.#patience);
  }
}

function goesOn(answer: HttpAnswer, from: number): boolean {
  return answer.status === 206 && new RegExp(`^bytes ${from}-`).test(answer.headers['content-range'] ?? '');
}
