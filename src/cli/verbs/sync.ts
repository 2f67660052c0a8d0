// hutch sync: a directory here and one in a sandbox, kept alike.
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseSize } from '../../domain/size.ts';
import { Sandbox } from '../../sdk/sandbox.ts';
import { type SyncEvent, type SyncOptions, syncDirectory } from '../../sdk/sync/sync.ts';
import { type Args, usage } from '../args.ts';
import { ask, type Context } from '../context.ts';
import { exitOf } from '../exit-codes.ts';
import { json, roughSize, safe } from '../output.ts';

export async function run(context: Context, args: Args): Promise<number> {
  const [ref = '', text = ''] = args.positionals;
  const { dir, guestPath } = placesOf(text);
  const options = optionsOf(args);
  const sandbox = new Sandbox(context.client, await ask(context, 'sandbox.get', { ref }), async () => {});
  let bytes = 0;
  const result = await syncDirectory(sandbox, dir, guestPath, {
    ...options,
    signal: context.interrupts.signal,
    memoryDir: memoryDir(context.env),
    async onEvent(event) {
      if (event.type === 'up' || event.type === 'down') bytes += event.bytes;
      await tell(context, event, sandbox.name);
    },
  });
  if (!context.json) {
    const parts = [
      `${result.up} up`,
      `${result.down} down`,
      `${result.removed} removed`,
      `${result.conflicts} ${result.conflicts === 1 ? 'conflict' : 'conflicts'}`,
    ];
    const failed = result.failed === 0 ? '' : `, ${result.failed} failed`;
    await context.io.err(`${options.dryRun === true ? 'would be: ' : ''}${parts.join(', ')}${failed}; ${roughSize(bytes)}\n`);
  }
  return result.failed === 0 ? 0 : exitOf('failed');
}

async function tell({ io, json: isJson }: Context, event: SyncEvent, name: string): Promise<void> {
  if (isJson) return await io.out(json(event));
  if (event.type === 'alike') return;
  const path = safe(event.path);
  if (event.type === 'skipped') await io.err(`left out: ${path}: ${safe(event.why)}\n`);
  else if (event.type === 'failed') await io.err(`error: ${path}: ${safe(event.why)}\n`);
  else if (event.type === 'conflict') await io.out(`conflict  ${path}  (what ${name} had is at ${safe(event.kept)})\n`);
  else if (event.type === 'removed') await io.out(`removed   ${path}  (${event.where === 'here' ? 'here' : `in ${name}`})\n`);
  else await io.out(`${event.type.padEnd(10)}${path}\n`);
}

/** The last colon: a directory here may have one in its name. */
function placesOf(text: string): { readonly dir: string; readonly guestPath: string } {
  const at = text.lastIndexOf(':');
  const [dir, guestPath] = [text.slice(0, at), text.slice(at + 1)];
  if (at <= 0 || guestPath === '') throw usage(`'${text}' names no two directories`, 'write it DIR:GUEST, like .:/work/web');
  return { dir, guestPath };
}

function optionsOf(args: Args): SyncOptions {
  if (args.has('watch') && args.has('dry-run')) throw usage('--watch and --dry-run exclude each other');
  const [user, size] = [args.value('user'), args.value('max-size')];
  return {
    twoWay: args.has('two-way'),
    removes: args.has('delete'),
    watch: args.has('watch'),
    dryRun: args.has('dry-run'),
    exclude: args.values('exclude'),
    ...(user === undefined ? {} : { user }),
    ...(size === undefined ? {} : { fileBytesMax: bytesOf(size) }),
  };
}

function bytesOf(text: string): number {
  const parsed = parseSize(text, { what: '--max-size', min: 0n, max: 1n << 50n });
  if (!parsed.ok) throw usage(parsed.message, parsed.hint);
  return Number(parsed.value);
}

function memoryDir(env: Context['env']): string {
  const home = env['HUTCH_HOME'];
  if (home !== undefined && home !== '') return join(home, 'sync');
  const state = env['XDG_STATE_HOME'];
  return join(state?.startsWith('/') === true ? state : join(homedir(), '.local/state'), 'hutch', 'sync');
}
