// A file of the sandbox that is read, or written, from one offset on: one stream of the agent's for many requests.
import { Buffer } from 'node:buffer';
import type { Agent } from '../../guest/agent.ts';
import type { Operation } from '../../host/operation.ts';

export class Downstream {
  /** What comes next. */
  at: number;
  readonly #bytes: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array();

  private constructor(at: number, bytes: AsyncIterator<Uint8Array>) {
    this.at = at;
    this.#bytes = bytes;
  }

  static async open(
    op: Operation,
    agent: Agent,
    spec: { readonly user?: string; readonly path: string; readonly offset: number },
  ): Promise<Downstream> {
    const { bytes } = await agent.file.read(op, spec);
    return new Downstream(spec.offset, bytes);
  }

  /** As many as are wanted, fewer only before the end; null at it. */
  async take(length: number): Promise<Buffer | null> {
    const parts: Buffer[] = [];
    let missing = length;
    while (missing > 0) {
      if (this.#rest.byteLength === 0) {
        const { done, value } = await this.#bytes.next();
        if (done === true) break;
        this.#rest = value;
        continue;
      }
      // A copy: what comes next may lie in the same memory.
      const part = Buffer.from(this.#rest.subarray(0, missing));
      this.#rest = this.#rest.subarray(part.byteLength);
      missing -= part.byteLength;
      parts.push(part);
    }
    const taken = Buffer.concat(parts);
    this.at += taken.byteLength;
    return taken.byteLength === 0 ? null : taken;
  }

  async close(): Promise<void> {
    await this.#bytes.return?.();
  }
}

export class Upstream {
  /** What comes next. */
  at: number;
  readonly #done: Promise<unknown>;
  #waiting: { readonly bytes: Uint8Array | null; readonly taken: () => void } | null = null;
  #wanted = Promise.withResolvers<void>();
  #failure: { readonly error: unknown } | null = null;

  constructor(op: Operation, agent: Agent, spec: { readonly user?: string; readonly path: string; readonly at: number }) {
    this.at = spec.at;
    this.#done = agent.file.write(op, spec, this.#source()).catch((error: unknown) => {
      this.#failure = { error };
      this.#waiting?.taken();
      throw error;
    });
    this.#done.catch(() => {}); // told by the next `put`, or by `end`
  }

  async put(bytes: Uint8Array): Promise<void> {
    await this.#give(bytes);
    this.at += bytes.byteLength;
  }

  /** Resolves when all of it is in the file. */
  async end(): Promise<void> {
    if (this.#failure === null) await this.#give(null);
    await this.#done;
  }

  async #give(bytes: Uint8Array | null): Promise<void> {
    if (this.#failure !== null) throw this.#failure.error;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting = { bytes, taken: resolve };
    this.#wanted.resolve();
    await promise;
    if (this.#failure !== null) throw (this.#failure as { readonly error: unknown }).error;
  }

  async *#source(): AsyncGenerator<Uint8Array> {
    for (;;) {
      await this.#wanted.promise;
      this.#wanted = Promise.withResolvers();
      const next = this.#waiting;
      this.#waiting = null;
      next?.taken();
      if (next === null || next.bytes === null) return;
      yield next.bytes;
    }
  }
}
