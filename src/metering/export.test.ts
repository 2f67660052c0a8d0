import { expect, test } from 'vitest';
import { newId, newOpId } from '../domain/ids.ts';
import { LEDGER_KINDS, type LedgerEntry } from '../domain/ledger.ts';
import { cocoonEntry, ledgerLine } from './export.ts';

const id = <K extends 'sbx' | 'snp' | 'prj'>(kind: K, fill: number) => newId(kind, () => new Uint8Array(17).fill(fill));

const entry: LedgerEntry = {
  sequence: 7,
  id: '01JABCDEFGHJKMNPQRSTVWXYZ0',
  kind: 'vm.compute.start',
  reason: 'clone',
  atMs: Date.UTC(2026, 6, 14, 1, 2, 3, 45),
  projectId: id('prj', 1),
  sandboxId: id('sbx', 2),
  snapshotId: null,
  sourceSnapshotId: id('snp', 3),
  parentId: id('sbx', 4),
  backend: 'qemu',
  shape: { cpus: 2, memoryBytes: 536_870_912, storageBytes: 8_589_934_592 },
  opId: newOpId(() => new Uint8Array(6).fill(9)),
  evidence: null,
  emittedAtMs: Date.UTC(2026, 6, 14, 5),
  monotonicMs: 12.5,
  bootId: 'boot',
  previousHash: '0'.repeat(64),
  hash: '1'.repeat(64),
};

test('the Cocoon format is frozen: field names, their order, types and times', () => {
  expect(ledgerLine(entry, 'cocoon')).toBe(
    '{"kind":"vm.compute.start","vm_id":"sbx22222222222222222","source_snapshot_id":"snp33333333333333333","reason":"clone","hypervisor":"qemu",' +
      '"shape":{"cpu":2,"mem_bytes":536870912,"storage_bytes":8589934592},"emitted_at":"2026-07-14T01:02:03.045Z"}',
  );
  const bare = {
    ...entry,
    kind: 'snap.storage.stop',
    sandboxId: null,
    sourceSnapshotId: null,
    snapshotId: id('snp', 5),
    reason: null,
    backend: null,
    shape: {},
  } as const;
  expect(ledgerLine(bare, 'cocoon')).toBe(
    '{"kind":"snap.storage.stop","snapshot_id":"snp55555555555555555","shape":{},"emitted_at":"2026-07-14T01:02:03.045Z"}',
  );
});

test('the Cocoon format has six kinds', () => {
  expect(LEDGER_KINDS.map((kind) => cocoonEntry({ ...entry, kind })?.kind).filter((kind) => kind !== undefined)).toEqual([
    'vm.compute.start',
    'vm.compute.stop',
    'vm.storage.start',
    'vm.storage.stop',
    'snap.storage.start',
    'snap.storage.stop',
  ]);
});

test('a crash is exported with the moment of death, not with that of its discovery', () => {
  const crash = { ...entry, kind: 'vm.compute.stop', reason: 'stop-crash', atMs: 1_000, emittedAtMs: 900_000 } as const;
  expect(cocoonEntry(crash)?.emitted_at).toBe('1970-01-01T00:00:01.000Z');
});

test('our own format has everything', () => {
  expect(JSON.parse(ledgerLine(entry, 'hutch') ?? '')).toEqual(entry);
});
