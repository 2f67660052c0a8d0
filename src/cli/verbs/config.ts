// hutch config show: each value of the daemon's configuration, and where it came from. Where none runs, of
// the one that would start now: to look at settings starts nothing.
import { readFile } from 'node:fs/promises';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { daemonAccess } from '../daemon.ts';
import { json, table } from '../output.ts';
import { daemonVersion } from './version.ts';

export async function show(context: Context, _args: Args): Promise<number> {
  const { isLocal, places } = await daemonAccess(context.env);
  // Also where a daemon runs: what is wrong in the file now is told now, not when the next daemon does not start.
  const next = isLocal ? await own(context, places.configPaths) : null;
  const answer = next !== null && (await daemonVersion(context)) === null ? next : await ask(context, 'config.get', {});
  const rows = answer.values.map(({ key, value, source }) => [key, typeof value === 'string' ? value : JSON.stringify(value), source]);
  await context.io.out(context.json ? json(answer) : table(['KEY', 'VALUE', 'FROM'], rows));
  const changed = next === null || context.json ? [] : changesOf(answer, next);
  if (changed.length > 0) {
    const how = 'hutch daemon stop, and the next command, make it count';
    await context.io.err(`hutch: changed since the daemon was started: ${changed.join(', ')} (${how})\n`);
  }
  return 0;
}

type Values = Output<'config.get'>;

function changesOf(daemon: Values, next: Values): readonly string[] {
  const had = new Map(daemon.values.map(({ key, value }) => [key, JSON.stringify(value)]));
  return next.values.filter(({ key, value }) => had.get(key) !== JSON.stringify(value)).map(({ key }) => key);
}

async function own({ env }: Context, paths: readonly string[]): Promise<Values> {
  const { loadConfig } = await import('../../config/config.ts');
  const { values } = await loadConfig({ paths, readFile: textIfThere, env });
  return { values: values.map(({ key, value, source }) => ({ key, value, source })) };
}

async function textIfThere(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
