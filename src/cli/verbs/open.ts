// hutch open: a port of a sandbox in the browser, at the port of this machine that answers for it.
import { spawn } from 'node:child_process';
import { HutchError } from '../../domain/errors.ts';
import { hostSide, LOOPBACK } from '../../domain/published-port.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { json, safe } from '../output.ts';
import { durationMs, wholeNumber } from '../spec.ts';

type Published = Output<'port.publish'>;

/** The API's bounds. */
const SHARE_MS = { minMs: 1_000, maxMs: 30 * 86_400_000 };

/** How a browser reaches this very machine where all of its addresses are published. */
const NEAR: Readonly<Record<string, string>> = { '0.0.0.0': LOOPBACK, '::': '::1' };
const TLS_PORTS: ReadonlySet<number> = new Set([443, 8443]);

export async function run(context: Context, args: Args): Promise<number> {
  const [ref = '', text = ''] = args.positionals;
  const guestPort = wholeNumber('PORT', text, 1, 65_535, 'PORT');
  if (args.has('unshare') || args.value('share') !== undefined) return await share(context, args, ref, guestPort);
  const { address } = context.client;
  if (address.type === 'tcp' && !isHere(address.host)) {
    throw usage(
      `the daemon runs on ${address.host}, whose ports are not this machine's`,
      `bring it here with: hutch forward ${ref} 0:${text}`,
    );
  }
  const { publish } = await ask(context, 'sandbox.get', { ref });
  const known = publish.filter((port) => port.guestPort === guestPort);
  const port = known.find(({ hostAddress }) => isHere(hostAddress)) ?? known[0] ?? (await ask(context, 'port.publish', { ref, guestPort }));
  const url = urlOf(port);
  await context.io.out(context.json ? json({ url, ...port }) : `${url}\n`);
  if (!context.json) await tellIfDead(context, ref, guestPort);
  if (!context.json && !args.has('print') && hasScreen(context.env)) await openBrowser(url);
  return 0;
}

/** What is opened may not have begun to listen yet: no error, but nothing that should be a surprise. */
async function tellIfDead(context: Context, ref: string, guestPort: number): Promise<void> {
  try {
    const { ports } = await ask(context, 'port.list', { ref });
    if (!ports.some(({ port }) => port === guestPort)) await context.io.err(`nothing listens on port ${guestPort} of ${safe(ref)} yet\n`);
  } catch (error) {
    if (!(error instanceof HutchError)) throw error; // a warning that cannot be had: what was asked for is done
  }
}

/** A link for others, or none any more. */
async function share(context: Context, args: Args, ref: string, port: number): Promise<number> {
  const time = args.value('share');
  if (time !== undefined && (args.has('unshare') || args.has('print'))) throw usage('--share excludes --unshare and --print');
  if (time === undefined) {
    await ask(context, 'port.unshare', { ref, port });
    await context.io.out(context.json ? json({}) : `no link to port ${port} works any more\n`);
    return 0;
  }
  const shared = await ask(context, 'port.share', { ref, port, expiresInMs: durationMs('share', time, SHARE_MS) });
  await context.io.out(context.json ? json(shared) : `${shared.url}\n`);
  if (context.json) return 0;
  const until = new Date(shared.expiresAtMs).toISOString();
  const near = shared.reach === 'this-machine' ? '; only this machine reaches it, as that is where the daemon listens (daemon.listen)' : '';
  const own =
    shared.reach === 'network' && shared.host.includes('.localhost')
      ? '; .localhost is the machine of whoever opens it: set daemon.preview_domain'
      : '';
  await context.io.err(`works until ${until} for whoever has it${near}${own}; take it back with: hutch open --unshare ${ref} ${port}\n`);
  return 0;
}

function isHere(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

export function urlOf({ hostAddress, hostPort, guestPort }: Published): string {
  const scheme = TLS_PORTS.has(guestPort) ? 'https' : 'http';
  return `${scheme}://${hostSide({ hostAddress: NEAR[hostAddress] ?? hostAddress, hostPort })}/`;
}

/** Somebody looks at it: a terminal, and a display. */
function hasScreen(env: Context['env']): boolean {
  return process.stdout.isTTY === true && ((env['DISPLAY'] ?? '') !== '' || (env['WAYLAND_DISPLAY'] ?? '') !== '');
}

/** Resolves once the opener has started; it goes on without us. */
async function openBrowser(url: string): Promise<void> {
  const child = spawn('xdg-open', [url], { stdio: 'ignore', detached: true });
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', (cause) =>
      reject(
        new HutchError({
          code: 'failed_precondition',
          message: 'there is no xdg-open to open it with',
          hint: 'apt-get install xdg-utils',
          cause,
        }),
      ),
    );
  });
  child.unref();
}
