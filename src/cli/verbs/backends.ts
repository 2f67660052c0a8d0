// hutch backends: the matrix of what each backend can do on this machine, as their probes say it.
import type { Output } from '../../services/verbs.ts';
import { ask, type Context } from '../context.ts';
import { json, safe, table } from '../output.ts';

type List = Output<'backends.list'>;
type Backend = List['backends'][number];
type Can = NonNullable<Backend['can']>;

const YES_NO = (flag: boolean): string => (flag ? 'yes' : 'no');

const ISOLATION = {
  vm: 'virtual machine',
  'user-space-kernel': 'user-space kernel',
  'shared-kernel': 'shared kernel',
} as const satisfies Record<Can['isolation'], string>;

/** As `hutch backends` prints them, and docs/backends.md. */
export const ROWS: readonly (readonly [string, (can: Can) => string])[] = [
  ['isolation', ({ isolation }) => ISOLATION[isolation]],
  ['security boundary', ({ securityBoundary }) => (securityBoundary ? 'yes' : 'NO')],
  ['acceleration', ({ acceleration }) => acceleration],
  ['pause', ({ pause }) => YES_NO(pause)],
  ['suspend', ({ suspend }) => YES_NO(suspend)],
  ['fork', ({ fork }) => YES_NO(fork)],
  ['snapshot', ({ snapshot, fork }) => (snapshot && !fork ? 'disk only' : YES_NO(snapshot))],
  ['disk as an image', ({ diskSnapshot }) => YES_NO(diskSnapshot)],
  ['host directories', ({ hostDirectories }) => YES_NO(hostDirectories)],
  ['volumes', ({ volumes }) => YES_NO(volumes)],
  ['devices', ({ devices }) => YES_NO(devices)],
  ['limit cpu', ({ limits }) => limits.cpu],
  ['limit memory', ({ limits }) => limits.memory],
  ['limit disk', ({ limits }) => limits.disk],
  ['limit processes', ({ limits }) => limits.processes],
  ['change cpus', ({ changes }) => changes.cpus],
  ['change memory', ({ changes }) => changes.memory],
  ['change disk', ({ changes }) => changes.disk],
  ['change processes', ({ changes }) => changes.processes],
  ['change network', ({ changes }) => changes.network],
  ['networks', ({ networks }) => networks.join(', ')],
];

export async function run(context: Context): Promise<number> {
  const list = await ask(context, 'backends.list', {});
  await context.io.out(context.json ? json(list) : text(list));
  return 0;
}

export function text({ default: preferred, backends }: List): string {
  const head = ['', ...backends.map(({ name }) => `${name}${name === preferred ? ' *' : ''}`)];
  const works = ['works here', ...backends.map(({ can }) => YES_NO(can !== null))];
  const rows = ROWS.map(([label, cell]) => [label, ...backends.map(({ can }) => (can === null ? '-' : cell(can)))]);
  const notes = backends.flatMap(({ name, can, why, fix }) =>
    can === null ? [`${name}: ${why ?? ''}`, ...(fix === null ? [] : [`  fix: ${fix}`])] : can.notes.map((note) => `${name}: ${note}`),
  );
  return `${table(head, [works, ...rows])}\n${notes.map((note) => `${safe(note)}\n`).join('')}`;
}
