// The directory in which one build works: what a crash leaves is there, and the next start removes it. Always true: it is made when
// something first goes into it, and a build out of the cache has none.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { Blobs } from '../blobs.ts';
import { SHARED_DIR_MODE } from '../layout.ts';

export class BuildStaging implements AsyncDisposable {
  readonly host: Host;
  readonly blobs: Blobs;
  readonly #name: string;
  readonly #undo = new AsyncDisposableStack();
  #dir: Promise<string> | null = null;

  constructor(host: Host, blobs: Blobs, name: string) {
    this.host = host;
    this.blobs = blobs;
    this.#name = name;
  }

  /** Where a file of that name goes. */
  async file(op: Operation, name: string): Promise<string> {
    this.#dir ??= this.#make(op);
    return join(await this.#dir, name);
  }

  async #make(op: Operation): Promise<string> {
    const { path } = this.#undo.use(await this.blobs.stage(op, this.#name));
    await this.host.makeDir(op, path, SHARED_DIR_MODE);
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dir?.catch(() => {}); // whoever wanted it has heard
    await this.#undo.disposeAsync();
  }
}
