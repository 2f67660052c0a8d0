import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { anyEvent, anyHistory, replay, someSandbox } from '../../test/support/histories.ts';
import { isName, newId, newOpId } from './ids.ts';
import { ACCEPTS, illegalSentence, newSandbox, type Sandbox, type SandboxEvent, type SandboxState, transition } from './sandbox.ts';

const opId = newOpId(() => new Uint8Array(6).fill(7));
const snapshotId = newId('snp', () => new Uint8Array(17).fill(3));
const ended = { cause: 'exited', exitCode: 3, oomKilled: false, actor: 'guest', atMs: 90 } as const;

const workspace = {
  sourcePath: '/home/me/web/src',
  repoRoot: '/home/me/web',
  repoName: 'web',
  guestPath: '/root/web',
  mode: 'shallow_overlay',
  includesUntracked: false,
  headCommit: null,
  branch: null,
  baseCommit: '0'.repeat(40),
  preparedAtMs: 100,
} as const;

/** One of each, with its process as that state implies. */
const EVENTS = {
  started: { type: 'started', reason: 'boot', deadlineAtMs: 500, atMs: 100, opId },
  paused: { type: 'paused', atMs: 100, opId },
  resumed: { type: 'resumed', atMs: 100, opId },
  suspended: { type: 'suspended', snapshotId, atMs: 100, opId },
  ended: { type: 'ended', reason: 'stop-user', ended, diedAtMs: 90, evidence: 'exit.json', atMs: 100, opId },
  failed: { type: 'failed', cause: 'the agent is silent', atMs: 100, opId },
  recovered: { type: 'recovered', deadlineAtMs: null, atMs: 100, opId },
  renamed: { type: 'renamed', name: 'other', atMs: 100, opId },
  changed: { type: 'changed', change: { labels: { tier: 'b' } }, atMs: 100, opId },
  begun: { type: 'begun', main: { argv: ['make'], tty: false, stdin: 'null' }, atMs: 100, opId },
  prepared: { type: 'prepared', workspace, atMs: 100, opId },
  deleted: { type: 'deleted', process: { reason: 'stop-user', evidence: 'exit.json' }, atMs: 100, opId },
} as const satisfies { [T in SandboxEvent['type']]: SandboxEvent & { type: T } };

const { started, paused, suspended, failed } = EVENTS;
const EXAMPLES: { readonly [S in SandboxState]: Sandbox } = {
  created: someSandbox(),
  running: after([started]),
  paused: after([started, paused]),
  suspended: after([started, suspended]),
  stopped: after([started, EVENTS.ended]),
  error: after([started, failed]),
  deleted: after([EVENTS.deleted]),
};

function after(events: readonly SandboxEvent[]): Sandbox {
  return replay(someSandbox(), events).at(-1)?.after ?? someSandbox();
}

/** Where each legal edge leads: written down apart from the code, so that a change there is seen here. */
const LEADS: { readonly [S in SandboxState]: Partial<Record<SandboxEvent['type'], SandboxState>> } = {
  created: { started: 'running', failed: 'error', renamed: 'created', changed: 'created', deleted: 'deleted' },
  running: {
    ...{ paused: 'paused', suspended: 'suspended', ended: 'stopped', failed: 'error', renamed: 'running', deleted: 'deleted' },
    ...{ begun: 'running', prepared: 'running', changed: 'running' },
  },
  paused: {
    resumed: 'running',
    suspended: 'suspended',
    ended: 'stopped',
    failed: 'error',
    renamed: 'paused',
    changed: 'paused',
    deleted: 'deleted',
  },
  suspended: { started: 'running', ended: 'stopped', failed: 'error', renamed: 'suspended', changed: 'suspended', deleted: 'deleted' },
  stopped: { started: 'running', failed: 'error', renamed: 'stopped', changed: 'stopped', deleted: 'deleted' },
  // Its compute interval is open: it can be ended, recovered or deleted with proof, but not just started.
  error: { ended: 'stopped', failed: 'error', recovered: 'running', renamed: 'error', changed: 'error', deleted: 'deleted' },
  deleted: {},
};

describe('every state and every event', () => {
  for (const [from, sandbox] of Object.entries(EXAMPLES) as [SandboxState, Sandbox][]) {
    for (const event of Object.values(EVENTS)) {
      const to = LEADS[from][event.type];
      test(to === undefined ? `${from} refuses ${event.type}` : `${from} by ${event.type} becomes ${to}`, () => {
        expect(sandbox.state).toBe(from);
        const result = transition(sandbox, event);
        if (to === undefined) expect(result).toEqual({ illegal: event.type, from });
        else expect(result).toMatchObject({ state: to, generation: sandbox.generation + 1, lastOpId: opId, id: sandbox.id });
      });
    }
  }
});

test('a main process is given once, and a workspace again and again', () => {
  const begun = after([started, EVENTS.begun]);
  expect(begun.spec.main).toEqual(EVENTS.begun.main);
  expect(transition(begun, EVENTS.begun)).toEqual({ illegal: 'begun', from: 'running' });
  expect(illegalSentence(begun, { illegal: 'begun', from: 'running' })).toContain('has a main process');
  const other = { ...workspace, branch: 'other' };
  expect(after([started, EVENTS.prepared, { ...EVENTS.prepared, workspace: other }]).spec.workspace).toEqual(other);
});

test('a sandbox in error whose process is proven dead can be started again', () => {
  const proven = after([started, failed, EVENTS.ended, failed]);
  expect(proven).toMatchObject({ state: 'error', openComputeSinceMs: null, ended });
  expect(transition(proven, started)).toMatchObject({ state: 'running', startCount: 2 });
});

test('error keeps why it ended and what memory it has on disk, also when it fails twice', () => {
  expect(after([started, EVENTS.ended, failed, { ...failed, cause: 'again' }])).toMatchObject({ state: 'error', cause: 'again', ended });
  const asleep = after([started, suspended, failed, failed]);
  expect(asleep).toMatchObject({ state: 'error', snapshotId });
  expect(transition(asleep, { ...started, reason: 'hibernate-wake' })).toMatchObject({ state: 'running' });
});

test('what was paused when it failed is paused when it recovers', () => {
  expect(transition(after([started, paused, failed]), EVENTS.recovered)).toMatchObject({ state: 'paused', openPauseSinceMs: 100 });
});

test('nothing but proof closes a compute interval', () => {
  const doubtful = after([started, failed]);
  expect(doubtful.openComputeSinceMs).toBe(100);
  expect(transition(doubtful, { ...EVENTS.deleted, process: null })).toEqual({ illegal: 'deleted', from: 'error' });
  expect(illegalSentence(doubtful, { illegal: 'started', from: 'error' })).toBe(
    `sandbox web (${doubtful.id}) is in error and its process is not proven dead; it cannot be started`,
  );
});

test('only a first start is a clone, and only what sleeps can wake', () => {
  expect(transition(EXAMPLES.stopped, { ...started, reason: 'clone' })).toEqual({ illegal: 'started', from: 'stopped' });
  expect(transition(EXAMPLES.stopped, { ...started, reason: 'hibernate-wake' })).toEqual({ illegal: 'started', from: 'stopped' });
  expect(transition(EXAMPLES.created, { ...started, reason: 'clone' })).toMatchObject({ state: 'running' });
});

test('a restore brings its shape along', () => {
  const shape = { cpus: 4, memoryMiB: 1_024, diskMiB: 9_000 };
  expect(transition(EXAMPLES.stopped, { ...started, reason: 'restore', shape })).toMatchObject({ spec: { shape, name: 'web' } });
});

test('whatever happens: generations grow by one, times never run back, the sentinels fit the state', () => {
  fc.assert(
    fc.property(anyHistory, (events) => {
      for (const { before, event, after: now } of replay(someSandbox(), events)) {
        expect(now.generation).toBe(before.generation + 1);
        expect(now.changedAtMs).toBe(Math.max(before.changedAtMs, event.atMs));
        expect((now.aliveAtMs === null) === (now.openComputeSinceMs === null)).toBe(true);
        if (now.state === 'running') expect([now.openComputeSinceMs !== null, now.openPauseSinceMs]).toEqual([true, null]);
        if (now.state === 'paused') expect([now.openComputeSinceMs !== null, now.openPauseSinceMs !== null]).toEqual([true, true]);
        if (['created', 'suspended', 'stopped', 'deleted'].includes(now.state)) {
          expect([now.openComputeSinceMs, now.openPauseSinceMs]).toEqual([null, null]);
        }
        if (now.openPauseSinceMs !== null) expect(now.openPauseSinceMs).toBeGreaterThanOrEqual(now.openComputeSinceMs ?? Infinity);
      }
    }),
  );
});

test('what ACCEPTS does not list is refused and changes nothing', () => {
  fc.assert(
    fc.property(anyHistory, anyEvent, (events, event) => {
      const sandbox = replay(someSandbox(), events).at(-1)?.after ?? someSandbox();
      const copy = structuredClone(sandbox);
      const result = transition(sandbox, event);
      expect(sandbox).toEqual(copy);
      const accepts: readonly string[] = ACCEPTS[sandbox.state];
      if (!accepts.includes(event.type)) expect(result).toEqual({ illegal: event.type, from: sandbox.state });
    }),
  );
});

test('ids are what their kind says, and no id may be a name', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 17, maxLength: 17 }), (bytes) => {
      const id = newId('sbx', () => bytes);
      expect(id).toMatch(/^sbx[0-9a-hjkmnp-tv-z]{17}$/);
      expect(isName(id)).toBe(false);
    }),
  );
  expect(['a', '0', 'web-2', 'a'.repeat(63)].filter((name) => !isName(name))).toEqual([]);
  expect(['', '-a', 'a-', 'A', 'a_b', 'a.b', 'a'.repeat(64), 'ä', 'web\n'].filter(isName)).toEqual([]);
});

test('a hundred thousand ids made at once are as many different ones', () => {
  const ids = Array.from({ length: 100_000 }, () => newId('sbx', (length) => crypto.getRandomValues(new Uint8Array(length))));
  expect(new Set(ids).size).toBe(ids.length);
});

test('an id is never made from less randomness than it has', () => {
  expect(() => newId('sbx', () => new Uint8Array(16))).toThrow('asked for 17 random bytes, got 16');
  expect(() => newOpId(() => new Uint8Array(7))).toThrow('asked for 6 random bytes, got 7');
});

test('a new sandbox has run never', () => {
  expect(newSandbox({ ...someSandbox(), atMs: 5, opId })).toMatchObject({
    state: 'created',
    startCount: 0,
    generation: 1,
    openComputeSinceMs: null,
  });
});
