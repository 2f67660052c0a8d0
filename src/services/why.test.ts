import { expect, test } from 'vitest';
import type { OpId, SandboxId } from '../domain/ids.ts';
import type { EventRecord, OperationRecord } from '../domain/records.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import { operationSentence, sandboxSentence, whoOf } from './why.ts';

const NOW = 10_000_000;
const who = whoOf(new Map());
const base = {
  id: 'sbx1' as SandboxId,
  spec: { name: 'web' },
  createdAtMs: NOW - 3_600_000,
  changedAtMs: NOW,
  openComputeSinceMs: null,
} as unknown as Sandbox;
const of = (state: object): Sandbox => ({ ...base, ...state }) as Sandbox;
const event = (type: string, detail: Record<string, unknown> = {}, actor = 'key1'): EventRecord =>
  ({
    cursor: 1,
    atMs: NOW,
    type,
    detail,
    actor,
    opId: 'op-1a2b3c4d5e6f' as OpId,
    sandboxId: base.id,
    sandboxName: 'web',
    projectId: null,
  }) as EventRecord;
const ended = (cause: string, more: object = {}) =>
  of({ state: 'stopped', ended: { cause, exitCode: null, oomKilled: false, actor: 'key1', atMs: NOW - 5_000, ...more } });

test.each([
  [of({ state: 'created' }), [], 'web was made 1 hour ago and has not been started.'],
  [
    of({ state: 'running', sinceMs: NOW, openComputeSinceMs: NOW - 120_000, deadlineAtMs: NOW + 60_000 }),
    [event('sandbox.started')],
    'web runs: it was started 2 minutes ago by the key key1 (op-1a2b3c4d5e6f); its time is up in 1 minute.',
  ],
  [
    of({ state: 'running', sinceMs: NOW, openComputeSinceMs: NOW - 120_000, deadlineAtMs: null }),
    [event('sandbox.started'), event('sandbox.network-lost')],
    'web runs: it was started 2 minutes ago by the key key1 (op-1a2b3c4d5e6f). Its network is lost: what carried it ended just now. Stopping and starting it brings it back.',
  ],
  [
    of({ state: 'running', sinceMs: NOW, openComputeSinceMs: NOW, deadlineAtMs: null }),
    [event('sandbox.network-lost'), event('sandbox.started')],
    'web runs: it was started just now by the key key1 (op-1a2b3c4d5e6f).',
  ],
  [
    of({ state: 'paused', sinceMs: NOW - 61_000, deadlineAtMs: null }),
    [event('sandbox.paused')],
    'web is paused: the key key1 froze it 1 minute ago (op-1a2b3c4d5e6f).',
  ],
  [ended('exited', { exitCode: 3 }), [], 'web is stopped: its main process ended 5 seconds ago, exit code 3.'],
  [
    ended('exited', { exitCode: 137, oomKilled: true }),
    [],
    'web is stopped: its main process ended 5 seconds ago after it had run out of memory, exit code 137.',
  ],
  [ended('stopped'), [], 'web is stopped: the key key1 stopped it 5 seconds ago.'],
  [ended('timeout'), [], 'web is stopped: its time was up 5 seconds ago.'],
  [
    ended('crashed'),
    [event('sandbox.ended', { evidence: 'exit.json: signal SIGKILL' })],
    'web is stopped: its virtual machine ended by itself 5 seconds ago (evidence: exit.json: signal SIGKILL).',
  ],
  [
    { ...ended('crashed'), spec: { name: 'web', backend: 'gvisor' } },
    [event('sandbox.ended', { evidence: 'exit.json: runsc ended with 134' })],
    'web is stopped: its kernel in user space ended by itself 5 seconds ago (evidence: exit.json: runsc ended with 134).',
  ],
  [ended('guest-shutdown'), [], 'web is stopped: it shut itself down from inside 5 seconds ago.'],
  [
    { ...ended('host-stopped'), spec: { name: 'web', backend: 'docker' } },
    [event('sandbox.ended', { evidence: 'engine: the container ended with 143' })],
    'web is stopped: its Docker Engine, or somebody who uses that, stopped its container 5 seconds ago (evidence: engine: the container ended with 143).',
  ],
  [ended('host-reboot'), [], 'web is stopped: the host went down or was restarted under it, last seen alive 5 seconds ago.'],
  [
    of({ state: 'error', cause: 'its process could not be ended', openComputeSinceMs: 1 }),
    [],
    'web is in error: its process could not be ended. Its process is not proven dead, so its time goes on being counted.',
  ],
  [
    of({ state: 'deleted', deletedAtMs: NOW - 1_000 }),
    [event('sandbox.ended', { cause: 'exited', exitCode: 0, endedAtMs: NOW - 2_000 }), event('sandbox.deleted')],
    'web was deleted 1 second ago by the key key1 (op-1a2b3c4d5e6f); before, its main process ended 2 seconds ago, exit code 0.',
  ],
] as const)('a person is told: %#', (sandbox, events, sentence) => {
  expect(sandboxSentence(sandbox as Sandbox, events as readonly EventRecord[], [], { nowMs: NOW, who })).toBe(sentence);
});

test('what is under way is told too', () => {
  const running = { id: 'op-000000000001', verb: 'sandbox.stop', actor: 'daemon' } as unknown as OperationRecord;
  expect(sandboxSentence(of({ state: 'created' }), [], [running], { nowMs: NOW, who })).toContain(
    'Now the daemon is at it with sandbox.stop (op-000000000001).',
  );
});

test.each([
  ['running', { step: 'starting' }, 'the key key1 asked for sandbox.create on web; it is under way: starting.'],
  ['done', {}, 'the key key1 asked for sandbox.create on web; it was done in 250 ms.'],
  ['failed', { error: { message: 'the disk is full' } }, 'the key key1 asked for sandbox.create on web; it failed: the disk is full.'],
  ['cancelled', {}, 'the key key1 asked for sandbox.create on web; it was cancelled and cleaned up.'],
  [
    'interrupted',
    {},
    'the key key1 asked for sandbox.create on web; the daemon ended while it was under way, and the next one finished or undid it.',
  ],
] as const)('an operation that is %s is told', (state, more, sentence) => {
  const operation = {
    id: 'op-1',
    verb: 'sandbox.create',
    actor: 'key1',
    state,
    targetId: base.id,
    step: null,
    error: null,
    startedAtMs: 1_000,
    endedAtMs: 1_250,
    ...more,
  } as unknown as OperationRecord;
  expect(operationSentence(operation, [], base, who)).toBe(sentence);
});

test('a key is called by its name where it is known', () => {
  const known = whoOf(new Map([['key1', 'ci']]));
  expect(sandboxSentence(ended('stopped'), [], [], { nowMs: NOW, who: known })).toBe(
    'web is stopped: the key ci stopped it 5 seconds ago.',
  );
  expect(known('key2')).toBe('the key key2');
  expect(known('daemon')).toBe('the daemon');
});
