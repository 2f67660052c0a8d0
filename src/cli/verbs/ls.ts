// hutch ls: the table of sandboxes, once or again after each event.
import { showPublished } from '../../domain/published-port.ts';
import type { Output } from '../../services/verbs.ts';
import type { Args } from '../args.ts';
import type { Context } from '../context.ts';
import { followEvents } from '../follow.ts';
import { commandLine, cut, json, roughAge, table } from '../output.ts';

type Page = Output<'sandbox.list'>;
type Sandbox = Page['sandboxes'][number];

const ID_CHARS_SHOWN = 12;
const COMMAND_CHARS_SHOWN = 40;
/** Events come in bursts; one look is enough for all of one. */
const SETTLE_MS = 100;

export async function run(context: Context, args: Args): Promise<number> {
  const show = async (): Promise<void> => {
    const page = await everything(context, args);
    const text = context.json
      ? json(page)
      : args.has('quiet')
        ? page.sandboxes.map(({ id }) => `${id}\n`).join('')
        : sandboxTable(page.sandboxes);
    const again = args.has('watch') && context.io.isTerminal.stdout && !context.json;
    await context.io.out(again ? `\u001b[H\u001b[2J${text}` : text);
  };
  if (!args.has('watch')) {
    await show();
    return 0;
  }
  await show();
  for await (const _ of followEvents(context, { settleMs: SETTLE_MS })) await show();
  return 0;
}

async function everything(context: Context, args: Args): Promise<Page> {
  const state = args.value('state');
  const label = [...args.values('label')];
  const sandboxes: Sandbox[] = [];
  let cursor: string | null = null;
  do {
    const page: Page = await context.client.call(
      'sandbox.list',
      { ...(state === undefined ? {} : { state }), ...(label.length === 0 ? {} : { label }), ...(cursor === null ? {} : { cursor }) },
      { signal: context.interrupts.signal },
    );
    sandboxes.push(...page.sandboxes);
    cursor = page.nextCursor;
  } while (cursor !== null);
  return { sandboxes, nextCursor: null };
}

export function sandboxTable(sandboxes: readonly Sandbox[], nowMs: number = Date.now()): string {
  // Most have none, and the line is long.
  const hasPorts = sandboxes.some(({ publish }) => publish.length > 0);
  const rows = sandboxes.map((sandbox) => [
    sandbox.id.slice(0, ID_CHARS_SHOWN),
    sandbox.name,
    stateText(sandbox, nowMs),
    sandbox.imageName ?? sandbox.imageId.slice(0, ID_CHARS_SHOWN),
    String(sandbox.shape.cpus),
    `${sandbox.shape.memoryMiB}M`,
    `${roughAge(nowMs - sandbox.createdAtMs)} ago`,
    ...(hasPorts ? [sandbox.publish.length === 0 ? '-' : sandbox.publish.map(showPublished).join(', ')] : []),
    sandbox.main === null ? '-' : cut(commandLine(sandbox.main.argv), COMMAND_CHARS_SHOWN),
  ]);
  return table(['ID', 'NAME', 'STATE', 'IMAGE', 'CPUS', 'MEMORY', 'CREATED', ...(hasPorts ? ['PORTS'] : []), 'COMMAND'], rows);
}

function stateText({ state, ended, startedAtMs, changedAtMs, busyOpId }: Sandbox, nowMs: number): string {
  const busy = busyOpId === null ? '' : ' …';
  if (state === 'running' && startedAtMs !== null) return `running ${roughAge(nowMs - startedAtMs)}${busy}`;
  if (state === 'stopped' && ended !== null) return `stopped (${ended.exitCode ?? ended.cause}) ${roughAge(nowMs - ended.atMs)} ago${busy}`;
  return `${state} ${roughAge(nowMs - changedAtMs)}${busy}`;
}
