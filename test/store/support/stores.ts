// A store in a directory of its own that goes with the test.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Host } from '../../../src/host/host.ts';
import { nodeHost } from '../../../src/host/node-host.ts';
import type { Store } from '../../../src/store/contract.ts';
import { openStore } from '../../../src/store/store.ts';
import { testOperation } from '../../support/operation.ts';

export type TempDir = AsyncDisposable & { readonly path: string };

export async function tempDir(): Promise<TempDir> {
  const path = await mkdtemp(join(tmpdir(), 'hutch-store-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

export function openAt(path: string, host: Host = nodeHost()): Promise<Store & AsyncDisposable> {
  return openStore({ path, host, op: testOperation() });
}

/** A new store, and its directory. */
export async function tempStore(host: Host = nodeHost()): Promise<Store & AsyncDisposable> {
  const dir = await tempDir();
  try {
    const store = await openAt(join(dir.path, 'hutch.db'), host);
    const close = async () => {
      await store.close();
      await dir[Symbol.asyncDispose]();
    };
    return Object.defineProperty(store, Symbol.asyncDispose, { value: close });
  } catch (error) {
    await dir[Symbol.asyncDispose]();
    throw error;
  }
}
