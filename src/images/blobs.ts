// Layers as they came, under their digests. What lies there is whole and was checked; what is under way
// lies in staging, and after a crash is only there.
import { join } from 'node:path';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { type ImagePaths, listOr, SHARED_DIR_MODE } from './layout.ts';
import { Shared } from './shared.ts';

const BLOB_MODE = 0o400;
const RELEASE_MS = 60_000;
/** What is in staging of ours: nothing of it is gone on with by a later daemon. */
export const STAGED = /^(blob|make|import|export|build|gone)-/;

export class Blobs {
  readonly #host: Host;
  readonly #paths: ImagePaths;
  readonly #coming = new Shared<void>();
  /** By hex digits: how many need it now, so that nobody takes it away meanwhile. */
  readonly #held = new Map<string, number>();

  constructor(host: Host, paths: ImagePaths) {
    this.#host = host;
    this.#paths = paths;
  }

  path(digest: string): string {
    return join(this.#paths.blobs, digest.replace(/^sha256:/, ''));
  }

  /** What is remembered of it as registries are sent it (packed.ts). */
  packedPath(digest: string): string {
    return `${this.path(digest)}.packed.json`;
  }

  async has(op: Operation, digest: string, sizeBytes: number): Promise<boolean> {
    return (await this.#host.stat(op, this.path(digest)))?.sizeBytes === sizeBytes;
  }

  /** As long as it is held, `remove` leaves it. */
  hold(digests: readonly string[]): Disposable {
    for (const digest of digests) this.#held.set(digest, (this.#held.get(digest) ?? 0) + 1);
    return {
      [Symbol.dispose]: () => {
        for (const digest of digests) {
          const count = (this.#held.get(digest) ?? 1) - 1;
          if (count === 0) this.#held.delete(digest);
          else this.#held.set(digest, count);
        }
      },
    };
  }

  /** Its path, once it is there: `make` puts it, whole and checked, at the path that it is given. Two that want it make it once. */
  async get(op: Operation, digest: string, sizeBytes: number, make: (op: Operation, path: string) => Promise<void>): Promise<string> {
    const path = this.path(digest);
    if (await this.has(op, digest, sizeBytes)) return path;
    await this.#coming.join(op, digest, async (shared) => {
      if (await this.has(shared, digest, sizeBytes)) return;
      const host = this.#host;
      await using staged = await this.stage(shared, `blob-${digest.slice(7, 19)}-${shared.id}`);
      await make(shared, staged.path);
      await this.adopt(shared, staged.path, digest);
      await host.remove(shared, staged.path);
    });
    return path;
  }

  /** A file that is whole and checked becomes the blob of that digest. */
  async adopt(op: Operation, file: string, digest: string): Promise<void> {
    const host = this.#host;
    await host.makeDir(op, this.#paths.blobs, 0o700);
    await host.chmod(op, file, BLOB_MODE);
    await host.sync(op, file);
    await host.rename(op, file, this.path(digest));
  }

  /** A path in staging that is removed, with all below it, when it is disposed. */
  async stage(op: Operation, name: string): Promise<AsyncDisposable & { readonly path: string }> {
    const host = this.#host;
    const path = join(this.#paths.staging, name);
    await host.makeDir(op, this.#paths.staging, SHARED_DIR_MODE);
    return {
      path,
      async [Symbol.asyncDispose]() {
        using late = op.releasing(RELEASE_MS);
        await host.remove(late, path).catch((cause: unknown) => op.log.warn({ path, cause }, 'left in staging; the next start removes it'));
      },
    };
  }

  async list(op: Operation): Promise<readonly { readonly digest: string; readonly sizeBytes: number }[]> {
    const found: { digest: string; sizeBytes: number }[] = [];
    for (const name of await listOr(op, this.#host, this.#paths.blobs)) {
      if (!/^[0-9a-f]{64}$/.test(name)) continue;
      const info = await this.#host.stat(op, join(this.#paths.blobs, name));
      if (info !== null) found.push({ digest: `sha256:${name}`, sizeBytes: info.sizeBytes });
    }
    return found;
  }

  /** False when somebody needs it now. */
  async remove(op: Operation, digest: string): Promise<boolean> {
    if (this.#held.has(digest) || this.#coming.has(digest)) return false;
    await this.#host.remove(op, this.packedPath(digest));
    await this.#host.remove(op, this.path(digest));
    return true;
  }

  /** What a crash left. Only when no daemon works: at the start of one. */
  async sweep(op: Operation): Promise<void> {
    for (const name of await listOr(op, this.#host, this.#paths.staging)) {
      if (STAGED.test(name)) await this.#host.remove(op, join(this.#paths.staging, name));
    }
  }
}
