// hutch ports: where sandboxes listen, and at which ports of this machine those are answered at.
import { hostSide } from '../../domain/published-port.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { resumed } from '../follow.ts';
import { forEachRef } from '../many.ts';
import { json, safe, table } from '../output.ts';

type Ports = Output<'port.list'>;

export async function run(context: Context, args: Args): Promise<number> {
  if (args.has('watch')) return await watch(context, args.positionals);
  return await forEachRef(context, args.positionals, (ref) => ask(context, 'port.list', { ref }), { text: portTable });
}

/** Over lost connections: what listens then is said anew. */
async function watch(context: Context, refs: readonly string[]): Promise<number> {
  const [ref] = refs;
  if (ref === undefined || refs.length > 1) throw usage('--watch takes one sandbox', 'run one hutch ports --watch for each');
  const changes = resumed<Output<'port.watch'>>(context, {
    open: () => context.client.lines('port.watch', { ref }, { signal: context.interrupts.signal }),
    cursorAfter: () => 0,
    from: null,
    ends: false,
  });
  for await (const change of changes) {
    const { kind, protocol, address, port } = change;
    const line = [
      kind.padEnd('listening'.length),
      protocol,
      address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`,
      program(change),
    ];
    await context.io.out(context.json ? json(change) : `${line.map(safe).join('  ')}\n`);
  }
  return 0;
}

const program = ({ process, pid }: Pick<Ports['ports'][number], 'process' | 'pid'>): string =>
  process === null ? '-' : `${process}${pid === null ? '' : ` (${pid})`}`;

export function portTable({ ports, published }: Ports): string {
  const at = (guestPort: number): string =>
    published
      .filter((port) => port.guestPort === guestPort)
      .map((port) => `${hostSide(port)}${port.problem === null ? '' : ` (not now: ${port.problem})`}`)
      .join(', ');
  const listening = ports.map(({ protocol, address, port, ...by }) => [
    protocol,
    address,
    String(port),
    program(by),
    (protocol === 'tcp' ? at(port) : '') || '-',
  ]);
  // Published, and nobody listens yet.
  const idle = [...new Set(published.map(({ guestPort }) => guestPort))]
    .filter((guestPort) => !ports.some(({ protocol, port }) => protocol === 'tcp' && port === guestPort))
    .map((guestPort) => ['tcp', '-', String(guestPort), '-', at(guestPort)]);
  return table(['PROTOCOL', 'ADDRESS', 'PORT', 'PROCESS', 'PUBLISHED'], [...listening, ...idle]);
}
