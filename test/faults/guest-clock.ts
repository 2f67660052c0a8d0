// How far the clock of a sandbox is from this machine's, as exactly as can be seen from outside.
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

const LOOKS = 20;

/**
 * Within which bounds its clock differs from ours, in milliseconds: a shell that runs already is asked again and again, and each answer was
 * given between question and reading.
 */
export async function clockOffset(
  daemon: DaemonUnderTest,
  ref: string,
): Promise<{ readonly atLeastMs: number; readonly atMostMs: number }> {
  const shell = await daemon.exec(ref, { argv: ['bash', '-c', 'while read -r; do echo $EPOCHREALTIME; done'], stdin: 'open' });
  await shell.saw('started');
  let [atLeastMs, atMostMs] = [Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (let look = 1; look <= LOOKS; look += 1) {
    const askedMs = performance.timeOrigin + performance.now();
    shell.input('\n');
    const lines = (): string[] => shell.stdout.toString('latin1').split('\n').slice(0, -1);
    await eventually('it says what time it is', () => lines().length === look);
    const saidMs = Number(lines().at(-1)) * 1000;
    atLeastMs = Math.max(atLeastMs, saidMs - (performance.timeOrigin + performance.now()));
    atMostMs = Math.min(atMostMs, saidMs - askedMs);
  }
  shell.socket.terminate();
  return { atLeastMs, atMostMs };
}
