import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { expect, test } from 'vitest';
import type { LedgerEntry } from '../../src/domain/ledger.ts';
import { ledgerLine } from '../../src/metering/export.ts';
import { LEDGER_PAGE_ENTRIES, readLedger, verifyLedger } from '../../src/metering/read.ts';
import type { Store } from '../../src/store/contract.ts';
import { deleted, someSandboxId, someSpec, started, stopped } from '../store/support/sandboxes.ts';
import { openAt, tempDir, tempStore } from '../store/support/stores.ts';
import { testOperation } from '../support/operation.ts';

const op = testOperation();
const never = new AbortController().signal;

/** Four entries each. */
async function live(store: Store, name: string, atMs: number): Promise<void> {
  const id = someSandboxId();
  await store.commit(op, [
    { change: 'createSandbox', id, projectId: store.defaultProjectId, spec: someSpec(name), atMs },
    { change: 'applyEvent', sandboxId: id, event: started(atMs + 1) },
    { change: 'applyEvent', sandboxId: id, event: stopped(atMs + 2) },
    { change: 'applyEvent', sandboxId: id, event: deleted(atMs + 3) },
  ]);
}

test('a ledger of many pages is read in order, each entry once, from any cursor', async () => {
  await using store = await tempStore();
  const lives = Math.ceil((LEDGER_PAGE_ENTRIES * 2.5) / 4);
  await Promise.all(Array.from({ length: lives }, (_, index) => live(store, `web-${index}`, index * 10)));
  const sequences = (await Array.fromAsync(readLedger(store, { after: 0, signal: never }))).map(({ sequence }) => sequence);
  expect(sequences).toEqual(Array.from({ length: lives * 4 }, (_, index) => index + 1));
  const some = await Array.fromAsync(readLedger(store, { after: 7, limit: LEDGER_PAGE_ENTRIES + 3, signal: never }));
  expect([some[0]?.sequence, some.length]).toEqual([8, LEDGER_PAGE_ENTRIES + 3]);
  expect(new Set((await Array.fromAsync(readLedger(store, { after: 0, signal: never }))).map(({ id }) => id)).size).toBe(lives * 4);
  expect(await verifyLedger(store, never)).toMatchObject({ ok: true, entries: lives * 4, firstBreak: null });
});

test('a follower gets what was there and what comes, and ends when it is told to', async () => {
  await using store = await tempStore();
  await live(store, 'web-1', 10);
  const end = new AbortController();
  const seen: LedgerEntry[] = [];
  const following = (async () => {
    for await (const entry of readLedger(store, { after: 1, follow: true, signal: end.signal })) {
      seen.push(entry);
      if (seen.length === 3) await live(store, 'web-2', 100);
      if (seen.length === 7) end.abort(new Error('enough'));
    }
  })();
  await expect(following).rejects.toThrow('enough');
  expect(seen.map(({ sequence }) => sequence)).toEqual([2, 3, 4, 5, 6, 7, 8]);
});

test('an empty ledger is whole', async () => {
  await using store = await tempStore();
  expect(await verifyLedger(store, never)).toEqual({ ok: true, entries: 0, lastHash: null, firstBreak: null });
  expect(await Array.fromAsync(readLedger(store, { after: 0, signal: never }))).toEqual([]);
});

test('the export of a life is what a bill can be made from', async () => {
  await using store = await tempStore();
  await live(store, 'web', Date.UTC(2026, 0, 1));
  const lines = (await Array.fromAsync(readLedger(store, { after: 0, signal: never }))).map((entry) => ledgerLine(entry, 'cocoon'));
  expect(lines.map((line) => JSON.parse(line ?? '')).map(({ kind, reason, emitted_at }) => [kind, reason, emitted_at])).toEqual([
    ['vm.storage.start', 'boot', '2026-01-01T00:00:00.000Z'],
    ['vm.compute.start', 'boot', '2026-01-01T00:00:00.001Z'],
    ['vm.compute.stop', 'stop-user', '2026-01-01T00:00:00.002Z'],
    ['vm.storage.stop', 'vm-rm', '2026-01-01T00:00:00.003Z'],
  ]);
});

test.each([
  ['an edited time', 'UPDATE ledger SET at_ms = at_ms + 1 WHERE sequence = 5', 5, 'was changed: its content does not have its hash'],
  [
    'an edited shape',
    `UPDATE ledger SET shape = replace(shape, '"cpus":1', '"cpus":9') WHERE sequence = 1`,
    1,
    'was changed: its content does not have its hash',
  ],
  ['an added member', `UPDATE ledger SET shape = '{"gpus":1}' WHERE sequence = 1`, 1, 'cannot be read: shape'],
  ['an edited evidence', "UPDATE ledger SET evidence = 'none' WHERE sequence = 3", 3, 'was changed: its content does not have its hash'],
  ['an unknown kind', "UPDATE ledger SET kind = 'vm.free' WHERE sequence = 2", 2, 'cannot be read: kind'],
  ['a removed entry', 'DELETE FROM ledger WHERE sequence = 6', 6, 'is missing: the next one is 7'],
  ['a ledger cut short', 'DELETE FROM ledger WHERE sequence > 6', 7, 'is missing: the last one recorded is 8'],
  ['an emptied ledger', 'DELETE FROM ledger', 1, 'is missing: the last one recorded is 8'],
  [
    'a rewritten entry with a hash of its own',
    `UPDATE ledger SET hash = '${'f'.repeat(64)}' WHERE sequence = 4`,
    4,
    'was changed: its content does not have its hash',
  ],
  [
    'two entries that changed places',
    'UPDATE ledger SET sequence = CASE sequence WHEN 2 THEN -3 ELSE -2 END WHERE sequence IN (2, 3); UPDATE ledger SET sequence = -sequence WHERE sequence < 0',
    2,
    'does not follow the one before: its previous hash is another',
  ],
])('%s is found, and named', async (_what, sql, sequence, problem) => {
  await using dir = await tempDir();
  const path = join(dir.path, 'hutch.db');
  const before = await openAt(path);
  await live(before, 'web-1', 10);
  await live(before, 'web-2', 20);
  await before.close();
  const forger = new DatabaseSync(path);
  forger.exec(sql);
  forger.close();
  await using store = await openAt(path);
  expect(await verifyLedger(store, never)).toMatchObject({ ok: false, entries: sequence - 1, firstBreak: { sequence, problem } });
});
