// What the tests of the agent protocol share: an operation, and waiting for a condition.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { newOpId } from '../../src/domain/ids.ts';
import { type Log, newOperation, type Operation } from '../../src/host/operation.ts';

export type Logged = { readonly level: string; readonly facts: object; readonly sentence: string };

export function testOperation(signal?: AbortSignal): Operation & { readonly logged: Logged[] } {
  const logged: Logged[] = [];
  const at = (level: string) => (facts: object, sentence: string) => void logged.push({ level, facts, sentence });
  const log: Log = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
  const id = newOpId((count) => crypto.getRandomValues(new Uint8Array(count)));
  return { ...newOperation({ id, actor: 'daemon', log, ...(signal === undefined ? {} : { signal }) }), logged };
}

/** Polls until the condition holds; fails after `ms`, saying what was waited for. */
export async function eventually(what: string, condition: () => boolean, ms = 10_000): Promise<void> {
  const deadlineMs = performance.now() + ms;
  while (!condition()) {
    if (performance.now() > deadlineMs) throw new Error(`still waiting for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The error that a promise rejects with; fails when it does not. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('expected a rejection');
}

export function text(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
}

/** A generator of numbers in [0, 1) that a seed decides (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What this process keeps in memory once its garbage is gone, in bytes. */
export async function keptBytes(): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let count = 0; count < 3; count += 1) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
