// hutch doctor: what this machine can do, each line with what mends it. Exit 1 when sandboxes cannot run.
import { HutchError } from '../../domain/errors.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { exitOf } from '../exit-codes.ts';
import { json, safe } from '../output.ts';

type Report = Output<'doctor.check'>;

/** Of a check of a backend that works and is no boundary. */
const ISOLATION = 'isolation of ';
const MARKS = { ok: 'ok     ', warning: 'warning', missing: 'missing' } as const;

export async function run(context: Context, args: Args): Promise<number> {
  if (args.has('leaks')) return await leaks(context);
  const report = await check(context);
  await context.io.out(context.json ? json(report) : text(report));
  return report.ok ? 0 : exitOf('failed');
}

/** Without a daemon there is one thing to mend first. */
async function check(context: Context): Promise<Report> {
  try {
    return await ask(context, 'doctor.check', {});
  } catch (error) {
    if (!(error instanceof HutchError && (error.code === 'unavailable' || error.code === 'unauthenticated'))) throw error;
    return { ok: false, checks: [{ name: 'daemon', status: 'missing', detail: error.message, fix: error.hint }] };
  }
}

function text({ ok, checks }: Report): string {
  const width = Math.max(...checks.map(({ name }) => name.length));
  const lines = checks.map(({ name, status, detail, fix }) => {
    const mend = fix === null || status === 'ok' ? '' : `\n${' '.repeat(MARKS.ok.length + width + 4)}fix: ${safe(fix)}`;
    return `${MARKS[status]}  ${name.padEnd(width)}  ${safe(detail)}${mend}`;
  });
  // It works, and is taken only when it is asked for.
  const asked = checks.find(({ name }) => name.startsWith(ISOLATION))?.name.slice(ISOLATION.length);
  const how = asked === undefined ? 'Sandboxes cannot run on this machine as it is.' : `Sandboxes run here only with --backend ${asked}.`;
  return `${lines.join('\n')}\n${ok ? '' : `\n${how}\n`}`;
}

async function leaks(context: Context): Promise<number> {
  const found = await ask(context, 'doctor.leaks', {});
  if (context.json) await context.io.out(json(found));
  else
    await context.io.out(
      found.leaks.length === 0 ? 'nothing is left over\n' : found.leaks.map(({ kind, what }) => `${kind}  ${safe(what)}\n`).join(''),
    );
  return found.leaks.length === 0 ? 0 : exitOf('failed');
}
