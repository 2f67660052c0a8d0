// hutch fork: copies of a sandbox that runs, and what a command says in each of them.
import { HutchError } from '../../domain/errors.ts';
import { Sandbox } from '../../sdk/sandbox.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { type Context, change } from '../context.ts';
import { LiveLines } from '../live.ts';
import { json, safe, table } from '../output.ts';
import { wholeNumber } from '../spec.ts';

const COUNT_MAX = 64;
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
const LAST_LINE_CHARS_MAX = 60;
const TAIL_CHARS = 1_000;
const HEAD = ['CHILD', 'NAME', 'CODE', 'LAST LINE'];

type Forked = Output<'sandbox.fork'>;
type Said = { readonly exitCode: number; readonly stdout: string; readonly stderr: string };
type Row = {
  readonly index: number;
  readonly name: string | null;
  readonly id: string | null;
  readonly error: string | null;
  readonly exec: Said | null;
};

export async function fork(context: Context, args: Args): Promise<number> {
  const ref = args.first();
  const [number, prefix, command] = [args.value('number'), args.value('name-prefix'), args.value('exec')];
  const forked = await change(context, 'sandbox.fork', {
    ref,
    ...(number === undefined ? {} : { count: wholeNumber('number', number, 1, COUNT_MAX) }),
    ...(prefix === undefined ? {} : { namePrefix: prefix }),
  });
  const rows = command === undefined ? plain(forked) : await inEach(context, forked, command);
  if (context.json) await context.io.out(json({ ...forked, ...(command === undefined ? {} : { execs: rows }) }));
  else if (command === undefined) await context.io.out(rows.flatMap(({ name }) => (name === null ? [] : [`${name}\n`])).join(''));
  else
    await context.io.out(
      table(
        HEAD,
        rows.map((row) => cells(row)),
      ),
    );
  for (const { index, error } of rows) if (error !== null) await context.io.err(`hutch: child ${index}: ${safe(error)}\n`);
  if (!context.json && forked.stillMs > 0) await context.io.err(`${ref} stood still for ${Math.round(forked.stillMs)} ms\n`);
  return rows.every(({ error, exec }) => error === null && (exec === null || exec.exitCode === 0)) ? 0 : 1;
}

function plain({ children, failed }: Forked): Row[] {
  const made = children.map(({ index, sandbox: { name, id } }) => ({ index, name, id, error: null, exec: null }));
  const not = failed.map(({ index, error }) => ({ index, name: null, id: null, error: error.message, exec: null }));
  return [...made, ...not].sort((a, b) => a.index - b.index);
}

/** In all of them at once; `HUTCH_FORK_INDEX` tells each which it is. On a terminal a table shows how far each is. */
async function inEach(context: Context, forked: Forked, command: string): Promise<Row[]> {
  const { signal } = context.interrupts;
  const rows = new Map(plain(forked).map((row) => [row.index, row]));
  const tails = new Map<number, string>();
  const live = new LiveLines(context.io, 'stderr');
  const show = async (): Promise<void> => {
    if (!context.json)
      await live.show(
        table(
          HEAD,
          [...rows.values()].map((row) => cells(row, tails.get(row.index))),
        ),
      );
  };
  const one = async ({ index, sandbox: info }: Forked['children'][number]): Promise<void> => {
    const { name, id } = info;
    const heard = async (chunk: Uint8Array): Promise<void> => {
      tails.set(index, `${tails.get(index) ?? ''}${Buffer.from(chunk).toString('utf8')}`.slice(-TAIL_CHARS));
      await show();
    };
    try {
      const { exitCode, stdout, stderr } = await new Sandbox(context.client, info, async () => {}).exec(['sh', '-c', command], {
        env: { HUTCH_FORK_INDEX: String(index) },
        outputBytesMax: OUTPUT_BYTES_MAX,
        onStdout: heard,
        onStderr: heard,
        signal,
      });
      rows.set(index, { index, name, id, error: null, exec: { exitCode, stdout, stderr } });
    } catch (error) {
      if (!(error instanceof HutchError) || signal.aborted) throw error;
      rows.set(index, { index, name, id, error: error.message, exec: null });
    }
    await show();
  };
  try {
    await Promise.all(forked.children.map(one));
  } finally {
    await live.settle('');
  }
  return [...rows.values()];
}

/** `tail`: what it wrote last, where it has not ended. */
function cells({ index, name, exec, error }: Row, tail = ''): string[] {
  const lines = (exec === null ? tail : `${exec.stdout}${exec.stderr}`).trimEnd().split('\n');
  const code = exec !== null ? String(exec.exitCode) : error === null ? '…' : '-';
  return [String(index), name ?? '-', code, (lines.at(-1) ?? '').slice(0, LAST_LINE_CHARS_MAX)];
}
