import fc from 'fast-check';
import { expect, test } from 'vitest';
import { anyHistory, replay, type Step, someSandbox } from '../../test/support/histories.ts';
import { newId, newOpId } from './ids.ts';
import { COCOON_KINDS, deathTimeMs, LEDGER_REASONS, type LedgerDraft, ledgerEntries } from './ledger.ts';
import type { Ended, SandboxCreation, SandboxEvent } from './sandbox.ts';

const opId = newOpId(() => new Uint8Array(6).fill(7));
const snapshotId = newId('snp', () => new Uint8Array(17).fill(3));
const parentId = newId('sbx', () => new Uint8Array(17).fill(4));
const source = { snapshotId, parentId };
const ended: Ended = { cause: 'crashed', exitCode: null, oomKilled: false, actor: 'host', atMs: 0 };
const creation: SandboxCreation = { type: 'created', atMs: 10, opId };

const start = (atMs: number, reason: 'boot' | 'clone' | 'restore' | 'hibernate-wake' = 'boot'): SandboxEvent => ({
  type: 'started',
  reason,
  deadlineAtMs: null,
  atMs,
  opId,
});
const end = (atMs: number, diedAtMs = atMs, reason: 'stop-user' | 'stop-crash' | 'restore' = 'stop-user'): SandboxEvent => ({
  type: 'ended',
  reason,
  ended,
  diedAtMs,
  evidence: 'exit.json',
  atMs,
  opId,
});
const at = <T extends 'paused' | 'resumed'>(type: T, atMs: number) => ({ type, atMs, opId });
const fail = (atMs: number): SandboxEvent => ({ type: 'failed', cause: 'silence', atMs, opId });
const remove = (atMs: number, process: (SandboxEvent & { type: 'deleted' })['process'] = null): SandboxEvent => ({
  type: 'deleted',
  process,
  atMs,
  opId,
});

function entriesOf(steps: readonly Step[]): readonly LedgerDraft[] {
  return [
    ...ledgerEntries(null, someSandbox(), creation),
    ...steps.flatMap(({ before, event, after }) => ledgerEntries(before, after, event)),
  ];
}

/** Everything must be legal here, unlike in random histories. */
function ledgerOf(...events: SandboxEvent[]): readonly string[] {
  const steps = replay(someSandbox(), events);
  expect(steps.map(({ event }) => event)).toEqual(events);
  return entriesOf(steps).map(({ atMs, kind, reason }) => `${atMs} ${kind} ${reason}`);
}

const MADE = '10 vm.storage.start boot';

test('what is deleted while it runs ends and goes at one instant', () => {
  expect(ledgerOf(start(20), end(30, 28), { ...remove(60), diedAtMs: 28 } as SandboxEvent)).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '28 vm.compute.stop stop-user',
    '28 vm.storage.stop vm-rm',
  ]);
});

test('start, stop, start, delete', () => {
  expect(ledgerOf(start(20), end(30), start(40), end(50), remove(60))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '30 vm.compute.stop stop-user',
    '40 vm.compute.start restart',
    '50 vm.compute.stop stop-user',
    '60 vm.storage.stop vm-rm',
  ]);
});

test('a change of shape closes what is open and opens it anew; any other change bills nothing', () => {
  const change = (atMs: number, more: object): SandboxEvent => ({ type: 'changed', change: more, atMs, opId });
  const shape = { cpus: 4, memoryMiB: 512, diskMiB: 8_192 };
  expect(
    ledgerOf(start(20), change(30, { shape }), change(35, { labels: {}, shape }), end(40), change(50, { shape: someSandbox().spec.shape })),
  ).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '30 vm.compute.stop set',
    '30 vm.storage.stop set',
    '30 vm.storage.start set',
    '30 vm.compute.start set',
    '40 vm.compute.stop stop-user',
    '50 vm.storage.stop set',
    '50 vm.storage.start set',
  ]);
});

test('error closes nothing; a later stop closes as the user’s', () => {
  expect(ledgerOf(start(20), fail(30), end(40))).toEqual([MADE, '20 vm.compute.start boot', '40 vm.compute.stop stop-user']);
});

test('start after error: the crash is billed to the moment of death, then the restart', () => {
  expect(ledgerOf(start(20), fail(30), end(500, 25, 'stop-crash'), start(500))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '25 vm.compute.stop stop-crash',
    '500 vm.compute.start restart',
  ]);
});

test('a sandbox that only seemed dead goes on being billed once', () => {
  expect(ledgerOf(start(20), fail(30), { type: 'recovered', deadlineAtMs: null, atMs: 40, opId }, end(50))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '50 vm.compute.stop stop-user',
  ]);
});

test('deleting a running one closes compute, then storage, at one instant', () => {
  expect(ledgerOf(start(20), at('paused', 25), remove(30, { reason: 'stop-user', evidence: 'exit.json' }))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '25 vm.paused.start pause',
    '30 vm.paused.stop stop-user',
    '30 vm.compute.stop stop-user',
    '30 vm.storage.stop vm-rm',
  ]);
});

test('deleting one that crashed long ago bills compute to its death and storage to now', () => {
  expect(ledgerOf(start(20), fail(30), remove(900, { reason: 'stop-crash', evidence: 'boot-id', diedAtMs: 35 }))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '35 vm.compute.stop stop-crash',
    '900 vm.storage.stop vm-rm',
  ]);
});

test('suspend closes as hibernate, and waking opens as hibernate-wake', () => {
  expect(ledgerOf(start(20), { type: 'suspended', snapshotId, atMs: 30, opId }, start(40, 'hibernate-wake'))).toEqual([
    MADE,
    '20 vm.compute.start boot',
    '30 vm.compute.stop hibernate',
    '40 vm.compute.start hibernate-wake',
  ]);
});

test('a clone carries its snapshot and parent, at one instant', () => {
  const sandbox = someSandbox();
  const [step] = replay(sandbox, [{ ...start(10, 'clone'), source } as SandboxEvent]);
  const entries = [
    ...ledgerEntries(null, sandbox, { ...creation, source }),
    ...(step === undefined ? [] : ledgerEntries(step.before, step.after, step.event)),
  ];
  expect(entries).toMatchObject([
    { kind: 'vm.storage.start', reason: 'clone', atMs: 10, sourceSnapshotId: snapshotId, parentId },
    { kind: 'vm.compute.start', reason: 'clone', atMs: 10, sourceSnapshotId: snapshotId, parentId },
  ]);
});

test('a restore in place closes the old shape and opens the new one, storage and compute at one instant', () => {
  const shape = { cpus: 4, memoryMiB: 1_024, diskMiB: 16_384 };
  const steps = replay(someSandbox(), [
    start(20),
    { ...end(30, 30, 'restore'), source } as SandboxEvent,
    { ...start(30, 'restore'), source, shape } as SandboxEvent,
  ]);
  const small = { cpus: 2, memoryBytes: 512 * 1_048_576, storageBytes: 8_192 * 1_048_576 };
  const large = { cpus: 4, memoryBytes: 1_024 * 1_048_576, storageBytes: 16_384 * 1_048_576 };
  expect(entriesOf(steps).slice(2)).toMatchObject([
    { kind: 'vm.compute.stop', reason: 'restore', atMs: 30, shape: small, sourceSnapshotId: snapshotId },
    { kind: 'vm.storage.stop', reason: 'restore', atMs: 30, shape: small, sourceSnapshotId: snapshotId },
    { kind: 'vm.storage.start', reason: 'restore', atMs: 30, shape: large, sourceSnapshotId: snapshotId },
    { kind: 'vm.compute.start', reason: 'restore', atMs: 30, shape: large, sourceSnapshotId: snapshotId },
  ]);
});

test('a restore that fails after the kill has closed compute once, and storage stays open', () => {
  expect(ledgerOf(start(20), end(30, 30, 'restore'), fail(31))).toEqual([MADE, '20 vm.compute.start boot', '30 vm.compute.stop restore']);
});

test('a clock stepped back hides no interval and makes none negative', () => {
  expect(ledgerOf(start(100), at('paused', 50), at('resumed', 60), end(40, 20))).toEqual([
    MADE,
    '100 vm.compute.start boot',
    '100 vm.paused.start pause',
    '100 vm.paused.stop resume',
    '100 vm.compute.stop stop-user',
  ]);
});

test('nothing dies before it was last seen alive', () => {
  expect(ledgerOf(start(20), at('paused', 30), at('resumed', 40), end(90, 25, 'stop-crash')).at(-1)).toBe('40 vm.compute.stop stop-crash');
});

test('a death is known by its evidence, else by the last heartbeat, and lies within the life', () => {
  const [step] = replay(someSandbox(), [start(100)]);
  const running = step?.after ?? someSandbox();
  expect(deathTimeMs(running, { diedAtMs: 150, lastBeatMs: 120, nowMs: 900 })).toBe(150);
  expect(deathTimeMs(running, { diedAtMs: null, lastBeatMs: 120, nowMs: 900 })).toBe(120);
  expect(deathTimeMs(running, { diedAtMs: null, lastBeatMs: null, nowMs: 900 })).toBe(900);
  expect(deathTimeMs(running, { diedAtMs: 50, lastBeatMs: null, nowMs: 900 }), 'a clock was stepped').toBe(100);
  expect(deathTimeMs(running, { diedAtMs: 5_000, lastBeatMs: null, nowMs: 900 }), 'a clock was stepped').toBe(900);
});

/** Intervals of one resource, from its entries; throws when they do not pair. */
function intervals(
  entries: readonly LedgerDraft[],
  resource: 'vm.compute' | 'vm.storage' | 'vm.paused',
): { from: number; to: number | null }[] {
  const found: { from: number; to: number | null }[] = [];
  for (const entry of entries) {
    const last = found.at(-1);
    if (entry.kind === `${resource}.start`) {
      if (last?.to === null) throw new Error(`${resource} starts twice`);
      found.push({ from: entry.atMs, to: null });
    } else if (entry.kind === `${resource}.stop`) {
      if (last?.to !== null) throw new Error(`${resource} stops without a start`);
      last.to = entry.atMs;
    }
  }
  return found;
}

test('whatever happens: intervals pair, never overlap, nest, and are open exactly while the sentinel is set', () => {
  fc.assert(
    fc.property(anyHistory, (events) => {
      const steps = replay(someSandbox(), events);
      const entries = entriesOf(steps);
      const last = steps.at(-1)?.after ?? someSandbox();
      const [compute, storage, paused] = (['vm.compute', 'vm.storage', 'vm.paused'] as const).map((resource) =>
        intervals(entries, resource),
      );
      for (const list of [compute, storage, paused]) {
        for (const [index, { from, to }] of (list ?? []).entries()) {
          expect(to ?? Infinity).toBeGreaterThanOrEqual(from);
          expect(from).toBeGreaterThanOrEqual(list?.[index - 1]?.to ?? 0);
        }
      }
      for (const pause of paused ?? []) {
        const around = compute?.find(({ from, to }) => from <= pause.from && (to ?? Infinity) >= (pause.to ?? Infinity));
        expect(around, 'a pause lies within one compute interval').toBeDefined();
      }
      expect(compute?.filter(({ to }) => to === null)).toHaveLength(last.openComputeSinceMs === null ? 0 : 1);
      expect(paused?.filter(({ to }) => to === null)).toHaveLength(last.openPauseSinceMs === null ? 0 : 1);
      expect(storage?.filter(({ to }) => to === null)).toHaveLength(last.state === 'deleted' ? 0 : 1);
      expect(storage?.[0]?.from).toBeLessThanOrEqual(compute?.[0]?.from ?? Infinity);
    }),
    { numRuns: 500 },
  );
});

/** A second, cruder account of the same history: how long was there a process? */
function computeMs(steps: readonly Step[]): number {
  let total = 0;
  let since: number | null = null;
  let proven = 0;
  for (const { before, event, after } of steps) {
    const nowMs = Math.max(before.changedAtMs, event.atMs);
    if (since !== null && event.type === 'changed' && JSON.stringify(after.spec.shape) !== JSON.stringify(before.spec.shape)) {
      total += nowMs - since;
      since = proven = nowMs;
    }
    if (event.type === 'started') since = proven = nowMs;
    if (event.type === 'paused' || event.type === 'resumed' || event.type === 'recovered') proven = nowMs;
    const died = event.type === 'ended' ? event.diedAtMs : event.type === 'suspended' || event.type === 'deleted' ? nowMs : null;
    const really = event.type === 'deleted' ? (event.process?.diedAtMs ?? died) : died;
    if (since !== null && really !== null) {
      total += Math.min(nowMs, Math.max(proven, really)) - since;
      since = null;
    }
  }
  return total;
}

test('whatever happens: closed compute intervals add up to the time in which a process lived', () => {
  fc.assert(
    fc.property(anyHistory, (events) => {
      const steps = replay(someSandbox(), events);
      const billed = intervals(entriesOf(steps), 'vm.compute').reduce((sum, { from, to }) => sum + (to === null ? 0 : to - from), 0);
      expect(billed).toBe(computeMs(steps));
    }),
    { numRuns: 500 },
  );
});

test('whatever happens: entries of one change share one instant, but for the death of a process', () => {
  fc.assert(
    fc.property(anyHistory, (events) => {
      for (const { before, event, after } of replay(someSandbox(), events)) {
        const entries = ledgerEntries(before, after, event);
        const others = entries.filter(
          ({ kind }) => !(kind === 'vm.compute.stop' || (kind === 'vm.paused.stop' && event.type !== 'resumed')),
        );
        expect(others.every(({ atMs }) => atMs === after.changedAtMs)).toBe(true);
        expect(entries.every(({ opId: by, sandboxId }) => by === event.opId && sandboxId === after.id)).toBe(true);
        if (['failed', 'recovered', 'renamed'].includes(event.type)) expect(entries).toEqual([]);
      }
    }),
  );
});

test('the names that consumers key on are frozen', () => {
  expect(COCOON_KINDS).toEqual([
    'vm.compute.start',
    'vm.compute.stop',
    'vm.storage.start',
    'vm.storage.stop',
    'snap.storage.start',
    'snap.storage.stop',
  ]);
  expect(LEDGER_REASONS.slice(0, 9)).toEqual([
    'boot',
    'restart',
    'clone',
    'restore',
    'hibernate-wake',
    'stop-user',
    'stop-crash',
    'vm-rm',
    'snap-rm',
  ]);
});
