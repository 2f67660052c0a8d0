// hutch ports: where sandboxes listen.
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { forEachRef } from '../many.ts';
import { table } from '../output.ts';

export async function run(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'port.list', { ref }), {
    text: ({ ports }) =>
      table(
        ['PROTOCOL', 'ADDRESS', 'PORT', 'PROCESS'],
        ports.map(({ protocol, address, port, process, pid }) => [
          protocol,
          address,
          String(port),
          process === null ? '-' : `${process}${pid === null ? '' : ` (${pid})`}`,
        ]),
      ),
  });
}
