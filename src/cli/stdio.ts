// What -i, -t and --no-stdin mean with the stdin that we have: docker's rules, but for piped input,
// which is passed on without being asked for.
import { type Args, usage } from './args.ts';
import type { Context } from './context.ts';
import { stdinKind } from './io.ts';
import { terminalSize } from './terminal.ts';

export type Stdio = {
  readonly tty: boolean;
  readonly input: 'terminal' | 'data' | 'none';
  readonly terminal: { readonly cols: number; readonly rows: number; readonly term?: string } | null;
};

const TERM = /^[\x21-\x7e]{1,64}$/;

export function stdioOf(context: Context, args: Args): Stdio {
  const tty = args.has('tty');
  const kind = stdinKind();
  const wanted = args.has('interactive');
  if (args.has('no-stdin') && wanted) throw usage('-i and --no-stdin exclude each other');
  if (tty && wanted && kind !== 'terminal') throw usage('-it needs a terminal, and our input is none', 'leave out -t');
  if (tty && context.json) throw usage('-t and --json exclude each other');
  const input =
    args.has('no-stdin') || kind === 'nothing'
      ? 'none'
      : kind === 'data'
        ? tty && !wanted
          ? 'none'
          : 'data'
        : wanted
          ? 'terminal'
          : 'none';
  return { tty, input, terminal: tty ? ourTerminal(context) : null };
}

export function ourTerminal(context: Pick<Context, 'env'>): NonNullable<Stdio['terminal']> {
  const term = context.env['TERM'];
  return { ...terminalSize(), ...(term !== undefined && TERM.test(term) ? { term } : {}) };
}
