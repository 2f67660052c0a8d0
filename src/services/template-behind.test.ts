import { setTimeout as pause } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { Backend } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import type { Deps } from './deps.ts';
import type { Operations } from './operations.ts';
import type { StartGate } from './start-gate.ts';
import { TemplatesBehind, type Wanted } from './template-behind.ts';

/** How long what is put off waits here. */
const AGAIN_MS = 10;

/** A machine with that much memory and disk to spare, on which nobody is starting anything. */
function machine(spare: { memoryMiB: number; diskMiB: number }, whenLookedAt = () => {}) {
  const host = {
    readFile: async () => {
      whenLookedAt();
      return new TextEncoder().encode(`MemAvailable:   ${spare.memoryMiB * 1024} kB\n`);
    },
    fileSystem: async () => ({ freeBytes: spare.diskMiB * 1_048_576 }),
  };
  const log = { info: () => {}, warn: () => {} };
  const error = (code: 'resource_exhausted', message: string) => new HutchError({ code, message });
  const deps = { host, log, places: { dataDir: '/data' }, settings: { freeMiBMin: 512 }, store: {} } as unknown as Deps;
  const operations = {
    run: async ({ signal }: { signal: AbortSignal }, work: (call: object) => unknown) => await work({ op: { signal, log, error } }),
  };
  const startGate = { idleMs: 60_000 };
  return new TemplatesBehind({ deps, operations: operations as unknown as Operations, startGate: startGate as StartGate }, AGAIN_MS);
}

/** Of a backend that makes them so. */
function wanted(prepare: (op: { readonly signal: AbortSignal }) => Promise<void>): Wanted {
  const shape = { cpus: 1, memoryMiB: 256, diskMiB: 1024, pids: 100 };
  const backend = { name: 'qemu', prepare } as unknown as Backend;
  return { backend, shape, boot: { files: {} } as Wanted['boot'], mounted: { volumes: 0, directories: 0 } };
}

test.each([
  ['memory', { memoryMiB: 900, diskMiB: 10_000 }],
  ['disk', { memoryMiB: 9_000, diskMiB: 100 }],
] as const)('on a machine that is short of %s none is made until it is not', async (what, spare) => {
  const now: { memoryMiB: number; diskMiB: number } = { ...spare };
  let prepared = 0;
  let looks = 0;
  const thrice = Promise.withResolvers<void>();
  const behind = machine(now, () => {
    looks += 1;
    if (looks === 3) thrice.resolve();
  });
  const { promise, resolve } = Promise.withResolvers<void>();
  const make = async () => {
    prepared += 1;
  };
  behind.want('one', wanted(make), resolve);
  await thrice.promise;
  expect(prepared).toBe(0);
  now[what === 'memory' ? 'memoryMiB' : 'diskMiB'] = 100_000;
  await promise;
  expect(prepared).toBe(1);
  behind.stop();
});

test('one is made at a time, and each only once, however often it is wanted', async () => {
  const behind = machine({ memoryMiB: 9_000, diskMiB: 9_000 });
  let atOnce = 0;
  let most = 0;
  const made: string[] = [];
  const make = async () => {
    atOnce += 1;
    most = Math.max(most, atOnce);
    await pause(5);
    atOnce -= 1;
  };
  const { promise, resolve } = Promise.withResolvers<void>();
  for (const key of ['a', 'b', 'a', 'b'])
    behind.want(key, wanted(make), () => {
      made.push(key);
      if (made.length === 2) resolve();
    });
  await promise;
  await pause(2 * AGAIN_MS);
  expect([most, made.toSorted()]).toEqual([1, ['a', 'b']]);
  behind.stop();
});

test('one that fails is left to whoever wants it next; a daemon that ends waits for the one it gives up', async () => {
  const behind = machine({ memoryMiB: 9_000, diskMiB: 9_000 });
  const { promise: failed, resolve: fail } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  let ended = false;
  const refuses = async () => {
    fail();
    throw new Error('the test wants none');
  };
  const hangs = async ({ signal }: { readonly signal: AbortSignal }) => {
    begin();
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
    await pause(5);
    ended = true;
    signal.throwIfAborted();
  };
  const never = () => expect.unreachable();
  behind.want('refuses', wanted(refuses), never);
  behind.want('hangs', wanted(hangs), never);
  await Promise.all([failed, begun]);
  behind.stop();
  await behind.close();
  expect(ended).toBe(true);
});
