// The copies of the demo's sandbox at work: each runs its part of the suite, all of them are shown as they go on.
import { Sandbox } from '../../sdk/sandbox.ts';
import type { Output } from '../../services/verbs.ts';
import type { Context } from '../context.ts';
import type { LiveLines } from '../live.ts';
import { table } from '../output.ts';
import { RUN_PART, TESTS_PER_PART } from './guest.ts';

export type Copy = {
  readonly index: number;
  readonly name: string;
  readonly id: string;
  passed: number;
  failed: number;
  /** null: it is at work. */
  exitCode: number | null;
};

/** Of a command that its daemon's death has cut off: the next daemon takes it up. */
const RECONNECT_MS = 60_000;

export type Work = {
  readonly forked: Output<'sandbox.fork'>;
  readonly live: LiveLines;
  /** Called once, when any copy has passed its first test. */
  readonly atFirst: () => Promise<void>;
};

export async function work(context: Context, { forked, live, atFirst }: Work): Promise<readonly Copy[]> {
  const copies = forked.children.map(
    ({ index, sandbox: { name, id } }): Copy => ({ index, name, id, passed: 0, failed: 0, exitCode: null }),
  );
  const show = (): Promise<void> => (context.json ? Promise.resolve() : live.show(copyTable(copies)));
  let interlude: Promise<void> | null = null;
  const part = async (info: Sandbox['info'], copy: Copy): Promise<void> => {
    const { exitCode } = await new Sandbox(context.client, info, async () => {}).exec(['sh', '-c', RUN_PART], {
      env: { HUTCH_FORK_INDEX: String(copy.index) },
      reconnectForMs: RECONNECT_MS,
      signal: context.interrupts.signal,
      async onStdout(chunk) {
        const text = Buffer.from(chunk).toString('utf8');
        copy.passed += count(text, 'ok\n');
        copy.failed += count(text, 'FAILED\n');
        await show();
        interlude ??= atFirst();
      },
    });
    copy.exitCode = exitCode;
    await show();
  };
  const outcomes = await Promise.allSettled(forked.children.map(({ sandbox }, at) => part(sandbox, copies[at] as Copy)));
  await interlude;
  await (context.json ? Promise.resolve() : live.settle(copyTable(copies)));
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  return copies;
}

/** Lines are short and written whole, so none is cut. */
function count(text: string, line: string): number {
  return text.split(line).length - 1;
}

function ended(exitCode: number | null): string {
  return exitCode === null ? '' : `, ended with ${exitCode}`;
}

function copyTable(copies: readonly Copy[]): string {
  return table(
    ['        COPY', 'TESTS', ''],
    copies.map(({ name, passed, failed, exitCode }) => [
      `        ${name}`,
      `${'█'.repeat(passed)}${'·'.repeat(Math.max(0, TESTS_PER_PART - passed))}`,
      failed > 0 ? `${failed} failed` : passed === TESTS_PER_PART ? 'all passed' : `${passed} of ${TESTS_PER_PART}${ended(exitCode)}`,
    ]),
  );
}
