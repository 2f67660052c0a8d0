// hutch kernel: the kernels that virtual machines boot.
import { constants, createReadStream } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage as usageError } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { packTree } from '../copy/pack.ts';
import { forEachRef } from '../many.ts';
import { json, roughAge, roughSize, safe, table } from '../output.ts';

type Kernel = Output<'kernel.get'>;

export async function list(context: Context, args: Args): Promise<number> {
  if (args.has('available')) return await available(context);
  const answer = await ask(context, 'kernel.list', {});
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.kernels.map(({ id }) => `${id}\n`).join(''));
  else await context.io.out(table(['', 'VERSION', 'ID', 'VIRTIO', 'SIZE', 'HERE FOR', 'USED BY'], answer.kernels.map(rowOf)));
  return 0;
}

function rowOf({ isDefault, version, id, config, sizeBytes, createdAtMs, usedBy }: Kernel): string[] {
  const virtio = config['VIRTIO_MMIO'] === 'builtin' ? 'built in' : 'module';
  const users = usedBy.length === 0 ? '-' : String(usedBy.length);
  return [isDefault ? '*' : '', version, id, virtio, roughSize(sizeBytes), roughAge(Date.now() - createdAtMs), users];
}

async function available(context: Context): Promise<number> {
  const answer = await ask(context, 'kernel.available', {});
  const rows = answer.kernels.map(({ version, packageVersion, sizeBytes, isHere }) => [
    version,
    packageVersion,
    roughSize(sizeBytes),
    isHere ? 'yes' : '-',
  ]);
  await context.io.out(context.json ? json(answer) : table(['VERSION', 'PACKAGE', 'SIZE', 'HERE'], rows));
  return 0;
}

export async function pull(context: Context, args: Args): Promise<number> {
  const wanted = args.positionals;
  const makeDefault = args.has('default');
  if (makeDefault && wanted.length > 1) throw usageError('only one of them can be the default');
  const asking = (version: string) =>
    change(context, 'kernel.pull', { ...(version === '' ? {} : { wanted: version }), ...(makeDefault ? { makeDefault } : {}) });
  return await forEachRef(context, wanted.length === 0 ? [''] : wanted, asking, { text: line });
}

export async function importFile(context: Context, args: Args): Promise<number> {
  const path = args.first();
  const modules = args.value('modules');
  const { signal } = context.interrupts;
  if (path === '-' && modules !== undefined) throw usageError('--modules goes with a file, not with -');
  if (path !== '-') await mustRead(path);
  const kernel = await context.client
    .upload('kernel.import', {}, modules === undefined ? plain(path) : await withModules(path, modules), { signal })
    .finally(() => context.progress.clear());
  await context.io.out(context.json ? json(kernel) : line(kernel));
  return 0;
}

function plain(path: string): AsyncIterable<Uint8Array> {
  return path === '-' ? process.stdin : createReadStream(path);
}

/** The kernel with its modules, as one archive. */
async function withModules(path: string, modules: string): Promise<AsyncIterable<Uint8Array>> {
  if (!(await stat(modules).catch(() => null))?.isDirectory()) throw usageError(`--modules: ${modules} is no directory`);
  await mustRead(join(modules, 'modules.order'));
  const left: string[] = [];
  return packTree(
    [
      { path, name: 'vmlinuz' },
      { path: `${modules}/`, name: 'modules' },
    ],
    (skipped) => left.push(skipped),
  );
}

async function mustRead(path: string): Promise<void> {
  await access(path, constants.R_OK).catch(() => {
    throw usageError(`${path} cannot be read`);
  });
}

export async function setDefault(context: Context, args: Args): Promise<number> {
  const [kernel] = args.positionals;
  if (args.has('reset') === (kernel !== undefined)) throw usageError('name a kernel, or --reset', 'see: hutch kernel ls');
  const now = await change(context, 'kernel.setDefault', { kernel: kernel ?? null });
  await context.io.out(context.json ? json(now) : line(now));
  return 0;
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (kernel) => ask(context, 'kernel.get', { kernel }), {
    text: (kernel) => `${JSON.stringify(kernel, null, 2)}\n`,
  });
}

export async function remove(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (kernel) => change(context, 'kernel.remove', { kernel }), {
    text: ({ version }) => `${safe(version)}\n`,
  });
}

export async function verify(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (kernel) => ask(context, 'kernel.verify', { kernel }), {
    text: ({ digest }, ref) => `${safe(ref)}: is what it was (${digest})\n`,
  });
}

function line({ id, version }: Pick<Kernel, 'id' | 'version'>): string {
  return `${id}  ${safe(version)}\n`;
}
