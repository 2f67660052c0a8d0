// hutch set: says of each thing whether it is in force, or from when on.
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { changes } from '../spec.ts';

type Result = Output<'sandbox.set'>;

const WORDS = {
  cpus: 'cpus',
  memoryMiB: 'memory',
  diskMiB: 'disk',
  pids: 'pids',
  network: 'network',
  timeoutMs: 'timeout',
  labels: 'labels',
  restart: 'restart',
  idleMs: 'idle',
  idleAction: 'idle-action',
  undo: 'undo',
} as const satisfies Record<Result['now'][number], string>;

export async function run(context: Context, args: Args): Promise<number> {
  const wanted = changes(args);
  if (Object.keys(wanted).length === 0) throw usage('nothing is to be changed', 'say what, like: hutch set --memory 2G web');
  return await forEachRef(context, args.positionals, (ref) => change(context, 'sandbox.set', { ref, ...wanted }), {
    text: ({ sandbox, now, atNextStart }) => {
      const listed = (names: Result['now']): string => names.map((name) => WORDS[name]).join(', ');
      // A suspended one that is started goes on as it was.
      const again = ['running', 'paused', 'suspended'].includes(sandbox.state) ? 'restart' : 'start';
      const lines = [
        ...(now.length === 0 ? [] : [`${sandbox.name}: ${listed(now)}: now`]),
        ...(atNextStart.length === 0
          ? []
          : [`${sandbox.name}: ${listed(atNextStart)}: from its next start on (hutch ${again} ${sandbox.name})`]),
      ];
      return `${lines.join('\n')}\n`;
    },
  });
}
