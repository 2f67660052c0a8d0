// Random sandboxes and histories, for property tests of whatever stands on them. Clocks in them are
// stepped back now and then, and deaths are discovered late.
import fc from 'fast-check';
import { newId, newOpId } from '../../src/domain/ids.ts';
import { ACCEPTS, newSandbox, type Sandbox, type SandboxEvent, transition } from '../../src/domain/sandbox.ts';

const opId = newOpId(() => new Uint8Array(6).fill(1));
const snapshotId = newId('snp', () => new Uint8Array(17).fill(2));
const parentId = newId('sbx', () => new Uint8Array(17).fill(4));

export function someSandbox(atMs = 10): Sandbox {
  return newSandbox({
    id: newId('sbx', () => new Uint8Array(17).fill(5)),
    projectId: newId('prj', () => new Uint8Array(17).fill(6)),
    spec: {
      name: 'web',
      backend: 'qemu',
      imageId: newId('img', () => new Uint8Array(17).fill(7)),
      kernelId: null,
      shape: { cpus: 2, memoryMiB: 512, diskMiB: 8_192 },
      network: 'allow',
      env: {},
      secretNames: [],
      labels: {},
      workdir: null,
      user: null,
      main: null,
      autoRemove: false,
      timeoutMs: null,
    },
    atMs,
    opId,
  });
}

/** What may be asked for in one step: which event, when, and the choices inside it. */
const wish = fc.record({
  type: fc.nat(),
  /** Mostly forward; a clock is stepped back now and then. */
  passedMs: fc.integer({ min: -15, max: 100 }),
  diedMsAgo: fc.integer({ min: 0, max: 150 }),
  choice: fc.nat(),
  legal: fc.integer({ min: 0, max: 9 }).map((roll) => roll > 0),
  mayDelete: fc.integer({ min: 0, max: 9 }).map((roll) => roll === 0),
});

const TYPES = Object.keys(eventsAt(0, 0, 0)) as readonly SandboxEvent['type'][];

/** Any event at any time; most are illegal where they land. */
export const anyEvent: fc.Arbitrary<SandboxEvent> = wish.map(
  ({ type, passedMs, diedMsAgo, choice }) => eventsAt(100 + passedMs, diedMsAgo, choice)[pick(TYPES, type)],
);

/** Mostly legal events, one after the other; `replay` leaves out what is illegal. */
export const anyHistory: fc.Arbitrary<readonly SandboxEvent[]> = fc.array(wish, { maxLength: 40, size: 'max' }).map((wishes) => {
  const events: SandboxEvent[] = [];
  let sandbox = someSandbox();
  let clockMs = sandbox.createdAtMs;
  for (const { type, passedMs, diedMsAgo, choice, legal, mayDelete } of wishes) {
    clockMs = Math.max(0, clockMs + passedMs);
    const accepted: readonly SandboxEvent['type'][] = legal
      ? ACCEPTS[sandbox.state].filter((name) => mayDelete || name !== 'deleted')
      : TYPES;
    if (accepted.length === 0) continue;
    const event = eventsAt(clockMs, diedMsAgo, choice)[pick(accepted, type)];
    const after = transition(sandbox, event);
    if (!('illegal' in after)) sandbox = after;
    events.push(event);
  }
  return events;
});

function pick<T>(from: readonly T[], nth: number): T {
  const picked = from[nth % from.length];
  if (picked === undefined) throw new Error('nothing to pick from');
  return picked;
}

function eventsAt(atMs: number, diedMsAgo: number, choice: number): { readonly [T in SandboxEvent['type']]: SandboxEvent & { type: T } } {
  const stamp = { atMs, opId };
  const diedAtMs = atMs - diedMsAgo;
  const reason = pick(['boot', 'restart', 'restore', 'hibernate-wake', 'clone'] as const, choice);
  return {
    started: {
      ...stamp,
      type: 'started',
      reason,
      deadlineAtMs: null,
      ...(choice % 2 === 0 ? {} : { source: { snapshotId, parentId } }),
      ...(reason === 'restore' ? { shape: { cpus: 4, memoryMiB: 1_024, diskMiB: 16_384 } } : {}),
    },
    paused: { ...stamp, type: 'paused' },
    resumed: { ...stamp, type: 'resumed' },
    suspended: { ...stamp, type: 'suspended', snapshotId },
    failed: { ...stamp, type: 'failed', cause: 'who knows' },
    recovered: { ...stamp, type: 'recovered', deadlineAtMs: null },
    changed: {
      ...stamp,
      type: 'changed',
      change: pick(
        [
          { labels: { tier: 'b' }, restart: 'always' },
          { shape: { cpus: 3, memoryMiB: 256 * (1 + (choice % 5)), diskMiB: 8_192 }, pending: null },
          { pending: { cpus: 1 + (choice % 7) }, idleMs: null, timeoutMs: 60_000 },
        ] as const,
        choice,
      ),
      deadlineAtMs: choice % 2 === 0 ? null : atMs + 60_000,
    },
    renamed: { ...stamp, type: 'renamed', name: `other-${choice % 10}` },
    begun: { ...stamp, type: 'begun', main: { argv: ['make'], tty: false, stdin: 'null' } },
    prepared: {
      ...stamp,
      type: 'prepared',
      workspace: {
        ...{ sourcePath: '/src', repoRoot: '/src', repoName: 'src', guestPath: '/root/src', mode: 'full_copy', includesUntracked: true },
        ...{ headCommit: null, branch: null, baseCommit: '0'.repeat(40), preparedAtMs: atMs },
      },
    },
    ended: {
      ...stamp,
      type: 'ended',
      reason: pick(['stop-user', 'stop-crash', 'restore', 'hibernate'] as const, choice),
      diedAtMs,
      evidence: 'exit.json',
      ended: { cause: 'stopped', exitCode: null, oomKilled: false, actor: 'daemon', atMs: diedAtMs },
    },
    deleted: {
      ...stamp,
      type: 'deleted',
      process: pick(
        [null, { reason: 'stop-user', evidence: 'exit.json' }, { reason: 'stop-crash', evidence: 'pid-gone', diedAtMs }] as const,
        choice,
      ),
    },
  };
}

export type Step = { readonly before: Sandbox; readonly event: SandboxEvent; readonly after: Sandbox };

/** The legal steps of a history. */
export function replay(from: Sandbox, events: readonly SandboxEvent[]): readonly Step[] {
  const steps: Step[] = [];
  let before = from;
  for (const event of events) {
    const after = transition(before, event);
    if ('illegal' in after) continue;
    steps.push({ before, event, after });
    before = after;
  }
  return steps;
}
