// A restore that ends at any call: the next opening finds the store of before, or the restored one, and never a half.
import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { checkCopy, headerLine, restoreStore } from '../../src/store/backup.ts';
import { countCalls, dieAtNthCall, failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { someSandboxId, someSpec } from './support/sandboxes.ts';
import { openAt, tempDir } from './support/stores.ts';

const op = testOperation();
const host = nodeHost();
const LONG = process.env['HUTCH_TEST_LONG'] !== undefined;
/** Each case opens a store, in a thread of its own. */
const WITHIN_MS = 300_000;

/** A directory with a store of two sandboxes as a killed daemon leaves it, its log beside; and a backup of when there was one. */
async function prepared(dir: string): Promise<{ readonly backup: string; readonly left: string }> {
  const path = join(dir, 'hutch.db');
  const left = join(dir, 'left');
  const copy = join(dir, 'copy');
  const backup = join(dir, 'backup');
  await mkdir(left);
  await using store = await openAt(path);
  const create = async (name: string) => {
    const { defaultProjectId: projectId } = store;
    await store.commit(op, [{ change: 'createSandbox', id: someSandboxId(), projectId, spec: someSpec(name), atMs: 1 }]);
  };
  await create('one');
  await writeFile(copy, '', { mode: 0o600 });
  await store.copyInto(op, copy);
  await create('two');
  for (const file of ['hutch.db', 'hutch.db-wal']) await copyFile(join(dir, file), join(left, file));
  const { schemaVersion, ledger, sandboxes } = await checkCopy(op, copy);
  expect(sandboxes).toBe(1);
  const data = await readFile(copy);
  const line = headerLine({
    ...{ format: 'hutch-backup-1', version: '0.1.0', schemaVersion, createdAtMs: 1, sizeBytes: data.byteLength },
    ...{ sha256: await host.sha256(op, copy), ledger },
  });
  await writeFile(backup, Buffer.concat([line, data]));
  return { backup, left };
}

async function inPlace(dir: string, left: string): Promise<string> {
  await mkdir(dir);
  for (const file of await readdir(left)) await copyFile(join(left, file), join(dir, file));
  return join(dir, 'hutch.db');
}

async function sandboxesIn(path: string): Promise<number> {
  await using store = await openAt(path);
  const check = await store.query('checkLedger', { from: { sequence: 0, hash: '0'.repeat(64) } });
  expect(check.state).not.toBe('broken');
  return await store.query('countSandboxes', {});
}

/** What is called when nothing goes wrong. A stream counts when it is made, and what reads it dies of its own. */
async function callsOf(dir: string, left: string, backup: string): Promise<readonly number[]> {
  const counting = countCalls(host);
  await restoreStore(op, counting, await inPlace(join(dir, 'counted'), left), backup);
  return counting.calls.filter(({ method }) => method !== 'readStream').map(({ n }) => n);
}

test(
  'a restore that is killed after any call has happened whole or not at all',
  async () => {
    await using dir = await tempDir();
    const { backup, left } = await prepared(dir.path);
    const found: number[] = [];
    const calls = await callsOf(dir.path, left, backup);
    expect(calls.length).toBeGreaterThan(15);
    // Up to the copy nothing is touched that anybody reads.
    for (const nth of LONG ? calls : calls.slice(-11)) {
      const path = await inPlace(join(dir.path, `${nth}`), left);
      const died = Promise.withResolvers<'died'>();
      const dying = dieAtNthCall(host, nth, { when: 'after', die: () => died.resolve('died') });
      await Promise.race([restoreStore(op, dying, path, backup), died.promise]);
      found.push(await sandboxesIn(path));
      expect(
        (await readdir(join(dir.path, `${nth}`))).filter((name) => name.endsWith('.restored')),
        `call ${nth}`,
      ).toEqual([]);
    }
    // Two sandboxes as long as nothing has happened, one from the moment when it has, and never anything else.
    const turn = found.indexOf(1);
    expect(turn).toBeGreaterThan(0);
    expect(found).toEqual(found.map((_, index) => (index < turn ? 2 : 1)));
  },
  WITHIN_MS,
);

test(
  'a restore whose calls fail leaves the store of before or the restored one',
  async () => {
    await using dir = await tempDir();
    const { backup, left } = await prepared(dir.path);
    for (const nth of (await callsOf(dir.path, left, backup)).filter((_, index) => LONG || index % 4 === 1)) {
      const path = await inPlace(join(dir.path, `${nth}`), left);
      await restoreStore(op, failNthCall(host, nth), path, backup).catch(() => {});
      expect([1, 2], `call ${nth}`).toContain(await sandboxesIn(path));
    }
  },
  WITHIN_MS,
);
