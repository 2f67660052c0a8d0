// hutch ports: where sandboxes listen, and at which ports of this machine those are answered at.
import { hostSide } from '../../domain/published-port.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { forEachRef } from '../many.ts';
import { table } from '../output.ts';

type Ports = Output<'port.list'>;

export async function run(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'port.list', { ref }), { text: portTable });
}

export function portTable({ ports, published }: Ports): string {
  const at = (guestPort: number): string =>
    published
      .filter((port) => port.guestPort === guestPort)
      .map((port) => `${hostSide(port)}${port.problem === null ? '' : ` (not now: ${port.problem})`}`)
      .join(', ');
  const listening = ports.map(({ protocol, address, port, process, pid }) => [
    protocol,
    address,
    String(port),
    process === null ? '-' : `${process}${pid === null ? '' : ` (${pid})`}`,
    (protocol === 'tcp' ? at(port) : '') || '-',
  ]);
  // Published, and nobody listens yet.
  const idle = [...new Set(published.map(({ guestPort }) => guestPort))]
    .filter((guestPort) => !ports.some(({ protocol, port }) => protocol === 'tcp' && port === guestPort))
    .map((guestPort) => ['tcp', '-', String(guestPort), '-', at(guestPort)]);
  return table(['PROTOCOL', 'ADDRESS', 'PORT', 'PROCESS', 'PUBLISHED'], [...listening, ...idle]);
}
