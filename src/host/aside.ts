// A second thread for work on many bytes: hashing them, and copying files while hashing them. The daemon's own thread goes on
// with all else meanwhile, and most machines have another processor. The thread begins with the first work, everybody
// shares it, and it ends when nobody has it open any more: it takes some ten megabytes.
import { Worker } from 'node:worker_threads';
import { heed } from './errors.ts';
import type { Aside, Sum } from './host.ts';
import type { Operation } from './operation.ts';

const YOUNG_MB = 1;
const OLD_MB = 32;

/** A part of a file that is read and hashed, and where it is appended. */
type FileAsk = {
  readonly ask: 'file';
  readonly path: string;
  readonly offset: number;
  readonly bytes: number;
  readonly to: string | null;
  /** 1 when nobody waits for it any more. */
  readonly isOver: Int32Array;
};
type Ask =
  | FileAsk
  | { readonly ask: 'update'; readonly sum: number; readonly bytes: Uint8Array }
  | { readonly ask: 'hex'; readonly sum: number };
type Done = { readonly hex: string; readonly bytes: number };
type Answer = { readonly id: number } & (
  | { readonly done: Done }
  | { readonly failed: { readonly message: string; readonly code: string } }
);

/**
 * What the thread runs. It goes there as text, so that a daemon whose files were replaced while it runs has the thread
 * that belongs to it: nothing outside of this function is known there.
 */
function work(): void {
  const fs = process.getBuiltinModule('node:fs');
  const { createHash } = process.getBuiltinModule('node:crypto');
  const { parentPort: port } = process.getBuiltinModule('node:worker_threads');
  const sums = new Map<number, ReturnType<typeof createHash>>();
  const memory = Buffer.allocUnsafeSlow(512 * 1024);
  const answer = (id: number, done: Done): void => port?.postMessage({ id, done });
  const fail = (id: number, error: unknown): void => {
    const { message, code = '' } = error as NodeJS.ErrnoException;
    port?.postMessage({ id, failed: { message, code } });
  };
  /** A piece at a time: between two of them others have their turn. */
  const file = (id: number, { path, offset, bytes, to, isOver }: FileAsk): void => {
    const hash = createHash('sha256');
    const from = fs.openSync(path, 'r');
    let into: number | null = null;
    let done = 0;
    const close = (): void => {
      fs.closeSync(from);
      if (into !== null) fs.closeSync(into);
    };
    const step = (): void => {
      try {
        if (to !== null) into ??= fs.openSync(to, 'a', 0o600);
        if (Atomics.load(isOver, 0) === 1) throw new Error('nobody waits for it');
        const length = fs.readSync(from, memory, 0, Math.min(memory.byteLength, bytes - done), offset + done);
        hash.update(memory.subarray(0, length));
        for (let at = 0; into !== null && at < length; ) at += fs.writeSync(into, memory, at, length - at);
        done += length;
        if (length > 0 && done < bytes) {
          setImmediate(step);
          return;
        }
      } catch (error) {
        close();
        fail(id, error);
        return;
      }
      close();
      answer(id, { hex: hash.digest('hex'), bytes: done });
    };
    step();
  };
  port?.on('message', ({ id, ask }: { readonly id: number; readonly ask: Ask }) => {
    try {
      if (ask.ask === 'file') {
        file(id, ask);
        return;
      }
      const hash = sums.get(ask.sum) ?? createHash('sha256');
      if (ask.ask === 'update') {
        sums.set(ask.sum, hash.update(ask.bytes));
        answer(id, { hex: '', bytes: ask.bytes.byteLength });
      } else {
        sums.delete(ask.sum);
        answer(id, { hex: hash.digest('hex'), bytes: 0 });
      }
    } catch (error) {
      fail(id, error);
    }
  });
}

/** Gives what opens the one thread of a host. */
export function asides(): () => Aside {
  let thread: Thread | null = null;
  let users = 0;
  const current = (): Thread => {
    if (thread === null || thread.isGone) thread = new Thread();
    return thread;
  };
  return () => {
    users += 1;
    let isOpen = true;
    const under = new Set<Promise<unknown>>();
    const asked = (of: Thread, ask: Ask): Promise<Done> => {
      const done = of.ask(ask);
      under.add(done);
      const over = (): void => void under.delete(done);
      done.then(over, over);
      return done;
    };
    const file = async (op: Operation, what: string, ask: Omit<FileAsk, 'ask' | 'isOver'>, over?: AbortSignal): Promise<Done> => {
      const isOver = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));
      const end = (): void => void Atomics.store(isOver, 0, 1);
      const signals = [op.signal, ...(over === undefined ? [] : [over])];
      for (const signal of signals) signal.addEventListener('abort', end, { once: true });
      if (over?.aborted === true) end();
      try {
        return await heed(op, what, () => asked(current(), { ask: 'file', ...ask, isOver }));
      } finally {
        for (const signal of signals) signal.removeEventListener('abort', end);
      }
    };
    return {
      sum: () => newSum(current(), asked),
      sha256: async (op, path) => (await file(op, `hash ${path}`, { path, offset: 0, bytes: Number.MAX_SAFE_INTEGER, to: null })).hex,
      append: async (op, from, to, over) => {
        const { hex: sha256, bytes } = await file(op, `append to ${to}`, { ...from, to }, over);
        return { sha256, bytes };
      },
      async [Symbol.asyncDispose]() {
        if (!isOpen) return;
        isOpen = false;
        await Promise.allSettled(under);
        users -= 1;
        if (users > 0) return;
        const last = thread;
        thread = null;
        await last?.end();
      },
    };
  };
}

let sums = 0;

function newSum(thread: Thread, asked: (of: Thread, ask: Ask) => Promise<Done>): Sum {
  sums += 1;
  const sum = sums;
  return {
    update: async (bytes) => void (await asked(thread, { ask: 'update', sum, bytes })),
    hex: async () => (await asked(thread, { ask: 'hex', sum })).hex,
  };
}

type Waiting = { readonly resolve: (done: Done) => void; readonly reject: (error: Error) => void };

class Thread {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  isGone = false;

  constructor() {
    this.#worker = new Worker(`(${work.toString()})()`, {
      ...{ eval: true, execArgv: [], env: {}, name: 'hutch-aside' },
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB, maxOldGenerationSizeMb: OLD_MB },
    });
    this.#worker.on('message', (answer: Answer) => this.#take(answer));
    this.#worker.on('error', (error) => this.#lost(error));
    this.#worker.on('exit', () => this.#lost(new Error('the thread for large files has ended')));
  }

  ask(ask: Ask): Promise<Done> {
    if (this.isGone) return Promise.reject(new Error('the thread for large files is gone'));
    const { promise, resolve, reject } = Promise.withResolvers<Done>();
    this.#lastId += 1;
    this.#waiting.set(this.#lastId, { resolve, reject });
    this.#worker.postMessage({ id: this.#lastId, ask });
    return promise;
  }

  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  #take(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if ('done' in answer) waiting?.resolve(answer.done);
    else waiting?.reject(Object.assign(new Error(answer.failed.message), { code: answer.failed.code }));
  }

  #lost(error: Error): void {
    this.isGone = true;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
