// What must hold of any store whatever happened to it: the chain is whole, and each sandbox's row says
// what its ledger entries and events say.
import { expect } from 'vitest';
import type { LedgerEntry } from '../../../src/domain/ledger.ts';
import type { Sandbox } from '../../../src/domain/sandbox.ts';
import { readLedger, verifyLedger } from '../../../src/metering/read.ts';
import type { Store } from '../../../src/store/contract.ts';
import { SANDBOX_STATES_ALL } from './sandboxes.ts';

const never = new AbortController().signal;

export async function expectConsistent(store: Store): Promise<readonly Sandbox[]> {
  const entries = await Array.fromAsync(readLedger(store, { after: 0, signal: never }));
  expect(await verifyLedger(store, never)).toMatchObject({ ok: true, entries: entries.length });
  const bySandbox = Map.groupBy(entries, ({ sandboxId }) => sandboxId);
  const sandboxes: Sandbox[] = [];
  for (let cursor: string | null = null; ; ) {
    const page: Awaited<ReturnType<typeof store.query<'sandboxes'>>> = await store.query('sandboxes', {
      states: SANDBOX_STATES_ALL,
      cursor,
    });
    sandboxes.push(...page.sandboxes);
    cursor = page.nextCursor;
    if (cursor === null) break;
  }
  expect(new Set(bySandbox.keys())).toEqual(new Set(sandboxes.map(({ id }) => id)));
  for (const sandbox of sandboxes) {
    const own = bySandbox.get(sandbox.id) ?? [];
    const billed = openSince(own, 'vm.compute');
    // One that was given another shape is billed anew since then.
    if (billed?.reason !== 'set') expect(billed?.atMs ?? null, sandbox.id).toBe(sandbox.openComputeSinceMs);
    else expect(billed.atMs, sandbox.id).toBeGreaterThanOrEqual(sandbox.openComputeSinceMs ?? Number.POSITIVE_INFINITY);
    expect(openSince(own, 'vm.paused')?.atMs ?? null, sandbox.id).toBe(sandbox.openPauseSinceMs);
    expect(openSince(own, 'vm.storage') === null, sandbox.id).toBe(sandbox.state === 'deleted');
    const events = await store.query('events', { sandboxId: sandbox.id });
    expect(
      events.filter(({ type }) => type.startsWith('sandbox.')),
      'an event a generation',
    ).toHaveLength(sandbox.generation);
  }
  return sandboxes;
}

function openSince(entries: readonly LedgerEntry[], resource: string): LedgerEntry | null {
  let since: LedgerEntry | null = null;
  for (const entry of entries) {
    if (entry.kind === `${resource}.start`) since = entry;
    if (entry.kind === `${resource}.stop`) since = null;
  }
  return since;
}
