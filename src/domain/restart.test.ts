import fc from 'fast-check';
import { expect, test } from 'vitest';
import { replay, someSandbox } from '../../test/support/histories.ts';
import { newOpId } from './ids.ts';
import { restartDelayMs, wantsRestart } from './restart.ts';
import { END_CAUSES, type EndCause, RESTART_POLICIES, type RestartPolicy, type Sandbox } from './sandbox.ts';

const opId = newOpId(() => new Uint8Array(6).fill(7));

function ended(restart: RestartPolicy, cause: EndCause, exitCode: number | null): Sandbox {
  const made = someSandbox();
  const steps = replay({ ...made, spec: { ...made.spec, restart } }, [
    { type: 'started', reason: 'boot', deadlineAtMs: null, atMs: 20, opId },
    {
      ...{ type: 'ended', reason: 'stop-user', diedAtMs: 30, evidence: 'exit.json', atMs: 30, opId },
      ended: { cause, exitCode, oomKilled: false, actor: 'guest', atMs: 30 },
    },
  ]);
  return steps.at(-1)?.after ?? made;
}

test('what is started again, by policy, cause and exit code', () => {
  const all = RESTART_POLICIES.flatMap((policy) =>
    END_CAUSES.flatMap((cause) => (cause === 'exited' ? [0, 1, null] : [null]).map((code) => ({ policy, cause, code }))),
  );
  const again = all.filter(({ policy, cause, code }) => wantsRestart(ended(policy, cause, code)));
  expect(again.map(({ policy, cause, code }) => `${policy} ${cause}${cause === 'exited' ? ` ${code}` : ''}`)).toEqual([
    'on-failure exited 1',
    'on-failure exited null',
    'on-failure crashed',
    'on-failure host-stopped',
    'on-failure host-reboot',
    'always exited 0',
    'always exited 1',
    'always exited null',
    'always crashed',
    'always guest-shutdown',
    'always host-stopped',
    'always host-reboot',
  ]);
});

test('one that somebody stopped meanwhile waits for somebody, and for the next end again once it was started', () => {
  const waiting = ended('always', 'exited', 1);
  const [held, started] = replay(waiting, [
    { type: 'changed', change: { held: true }, atMs: 40, opId },
    { type: 'started', reason: 'restart', deadlineAtMs: null, atMs: 50, opId },
  ]);
  expect(held === undefined || wantsRestart(held.after)).toBe(false);
  expect(started?.after.spec.held).toBeUndefined();
});

test('each wait is twice the last, up to a minute', () => {
  expect([0, 1, 2, 7, 8, 9].map(restartDelayMs)).toEqual([250, 500, 1_000, 32_000, 60_000, 60_000]);
  fc.assert(fc.property(fc.nat(), (failures) => restartDelayMs(failures) <= restartDelayMs(failures + 1)));
});
