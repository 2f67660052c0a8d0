// hutch df and hutch prune.
import type { Args } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';
import { durationMs } from '../spec.ts';

const YEAR_MS = 31_536_000_000;

export async function df(context: Context): Promise<number> {
  const answer = await ask(context, 'system.df', {});
  const rows = answer.parts.map(({ name, bytes, reclaimableBytes }) => [
    safe(name),
    roughSize(bytes),
    reclaimableBytes === null ? '-' : `${roughSize(reclaimableBytes)} of stopped sandboxes`,
  ]);
  const free = `${roughSize(answer.freeBytes)} of ${roughSize(answer.totalBytes)} are free in ${answer.dataDir}\n`;
  await context.io.out(context.json ? json(answer) : `${table(['WHAT', 'TAKES', 'CAN GO'], rows)}\n${free}`);
  return 0;
}

export async function prune(context: Context, args: Args): Promise<number> {
  const older = args.value('older-than');
  const dryRun = args.has('dry-run');
  const answer = await change(context, 'system.prune', {
    ...(older === undefined ? {} : { olderThanMs: older === '0' ? 0 : durationMs('older-than', older, { minMs: 0, maxMs: YEAR_MS }) }),
    ...(dryRun ? { dryRun } : {}),
  });
  const rows = [
    ...answer.sandboxes.map(({ name, bytes, stoppedAtMs }) => [
      'sandbox',
      name,
      roughSize(bytes),
      `stopped ${roughAge(Date.now() - stoppedAtMs)} ago`,
    ]),
    ...answer.templates.map(({ backend, template, bytes }) => ['template', template, roughSize(bytes), `of ${backend}, unused`]),
    ...answer.failed.map(({ id, error }) => ['failed', id, '-', safe(error.message)]),
  ];
  const sum = `${dryRun ? 'would free' : 'freed'} ${roughSize(answer.bytes)}\n`;
  await context.io.out(
    context.json ? json(answer) : `${rows.length === 0 ? '' : `${table(['WHAT', 'NAME', 'TAKES', 'WHY'], rows)}\n`}${sum}`,
  );
  return answer.failed.length === 0 ? 0 : 1;
}
