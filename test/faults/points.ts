// Points of an operation of a real daemon at which it is killed, or its host fails: some of them by chance, or, in a long run, each of its
// calls until it makes no more. The fault is told while the daemon runs, so there is one start of a daemon for each, not two.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { armWith } from '../support/armed.ts';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { isLong, options } from './world.ts';

/** Death before a call leaves what death after the one before it leaves. */
const ACTIONS = ['die-after', 'fail'] as const;
type Action = (typeof ACTIONS)[number];
/** One that makes more has not ended. */
const CALLS_MAX = 800;
/** The last of the daemon's log, where something is wrong. */
const LOG_CHARS = 4_000;

export type Point = {
  readonly verb: string;
  readonly action: Action;
  /** For whoever reads of a failure. */
  readonly fault: string;
  /**
   * The operation is struck, its daemon is killed where it still lives, and the next one is there.
   * @returns whether it was answered
   */
  strike(act: () => Promise<unknown>): Promise<boolean>;
};

/** `verbs`: with about as many calls as each makes, for what is chosen by chance. */
export async function atPoints(
  daemon: DaemonUnderTest,
  own: Readonly<Record<string, string>>,
  {
    verbs,
    samples,
    random,
  }: {
    readonly verbs: readonly (readonly [verb: string, calls: number])[];
    readonly samples: number;
    readonly random: { next(): { readonly value: number } };
  },
  at: (point: Point) => Promise<void>,
): Promise<void> {
  const [armed, report] = [join(daemon.home, 'armed.json'), join(daemon.home, 'fault.json')];
  const fresh = async (): Promise<void> => {
    for (const path of [armed, report]) rmSync(path, { force: true });
    await daemon.startAgain(options({ ...own, HUTCH_TEST_ARMED: armed, HUTCH_TEST_FAULT_REPORT: report }));
  };
  const one = async (verb: string, action: Action, n: number): Promise<boolean> => {
    const fault = `${action}:${n}:${verb}`;
    let hit: string | null = null;
    const strike = async (act: () => Promise<unknown>): Promise<boolean> => {
      armWith(armed, { HUTCH_TEST_FAULT: fault });
      const done = await act().then(
        () => true,
        () => false,
      );
      hit = existsSync(report) ? readFileSync(report, 'utf8').trim().slice(0, 200) : null;
      await daemon.kill9();
      await fresh();
      return done;
    };
    await at({ verb, action, fault, strike }).catch(async (cause: unknown) => {
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`after ${fault} (${hit}): ${why}\n${(await daemon.log()).slice(-LOG_CHARS)}`, { cause });
    });
    if (isLong) process.stdout.write(`${fault}: ${hit ?? 'not reached'}\n`);
    return hit !== null;
  };
  await daemon.terminate();
  await fresh();
  if (isLong) for (const [verb] of verbs) await each(verb, one);
  else
    for (let nth = 0; nth < samples; nth += 1) {
      const action = ACTIONS[Math.floor(random.next().value * ACTIONS.length)] ?? 'fail';
      const [verb, calls] = verbs[nth % verbs.length] ?? ['', 0];
      await one(verb, action, 1 + Math.floor(random.next().value * calls));
    }
  await daemon.terminate();
  await daemon.startAgain(options(own));
}

/** From HUTCH_TEST_FROM on, where that is said: an hour of points can be run in pieces. */
async function each(verb: string, one: (verb: string, action: Action, n: number) => Promise<boolean>): Promise<void> {
  for (let n = Number(process.env['HUTCH_TEST_FROM'] ?? 1); n <= CALLS_MAX; n += 1) {
    let hits = 0;
    for (const action of ACTIONS) if (await one(verb, action, n)) hits += 1;
    if (hits === 0) return;
  }
  throw new Error(`${verb} makes more than ${CALLS_MAX} calls`);
}
