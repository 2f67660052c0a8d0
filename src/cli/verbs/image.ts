// hutch image: images of this machine, and the registries that they come from.
import { resolve } from 'node:path';
import { text as readText } from 'node:stream/consumers';
import { HUB } from '../../domain/image-reference.ts';
import type { Output } from '../../services/verbs.ts';
import { fileToSend, keepReceived, refuseTerminal } from '../archive-file.ts';
import { type Args, usage as usageError } from '../args.ts';
import { ask, type Context, change } from '../context.ts';
import { forEachRef } from '../many.ts';
import { clock, json, roughAge, roughSize, safe, table } from '../output.ts';
import { askSecret } from '../secret.ts';

type Image = Output<'image.pull'>;

const SHORT_DIGEST_CHARS = 12;

export async function list(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'image.list', {});
  if (context.json) await context.io.out(json(answer));
  else if (args.has('quiet')) await context.io.out(answer.images.map(({ id }) => `${id}\n`).join(''));
  else await context.io.out(table(['NAME', 'ID', 'DIGEST', 'SIZE', 'HERE FOR', 'USED BY'], answer.images.flatMap(rowsOf)));
  return 0;
}

/** One for each name. */
function rowsOf({ id, names, digest, sizeBytes, createdAtMs, usedBy }: Image): string[][] {
  const users = usedBy.length === 0 ? '-' : String(usedBy.length);
  const rest = [id, digest.slice(7, 7 + SHORT_DIGEST_CHARS), roughSize(sizeBytes), roughAge(Date.now() - createdAtMs), users];
  return (names.length === 0 ? ['-'] : names).map((name) => [name, ...rest]);
}

export async function pull(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (name) => change(context, 'image.pull', { name }), {
    text: ({ digest }) => `${digest}\n`,
  });
}

export async function push(context: Context, args: Args): Promise<number> {
  const [image = '', name, ...more] = args.positionals;
  if (more.length > 0) throw usageError('an image is pushed to one place', 'more of them: once more with another NAME');
  const answer = await change(context, 'image.push', { image, ...(name === undefined ? {} : { name }) });
  await context.io.out(context.json ? json(answer) : `${answer.digest}\n`);
  return 0;
}

export async function importFile(context: Context, args: Args): Promise<number> {
  const name = args.value('name');
  const source = await fileToSend(context, args.first(), { step: 'import', after: 'unpacking' });
  const { signal } = context.interrupts;
  const answer = await context.client
    .upload('image.import', name === undefined ? {} : { name }, source, { signal })
    .finally(() => context.progress.clear());
  const lines = answer.images.map(({ digest, names }) => `${digest}${names.length === 0 ? '' : `  ${names.map(safe).join(' ')}`}\n`);
  lines.push(...answer.kernels.map(({ digest, version }) => `${digest}  kernel ${safe(version)}\n`));
  await context.io.out(context.json ? json(answer) : lines.join(''));
  if (!context.json)
    for (const { digest } of answer.images.filter(({ names }) => names.length === 0))
      await context.io.err(`note: ${digest.slice(0, 19)} has no name; give it one with: hutch image tag ${digest.slice(0, 19)} NAME\n`);
  return 0;
}

export async function register(context: Context, args: Args): Promise<number> {
  const [name = '', rootfs = '', ...more] = args.positionals;
  if (more.length > 0) throw usageError('an image is made of one root file system', 'like: hutch image register base:1 ROOTFS');
  const here = (flag: string): { [key: string]: string } => {
    const path = args.value(flag);
    return path === undefined ? {} : { [flag]: resolve(path) };
  };
  const kernelRef = args.value('kernel-ref');
  const image = await change(context, 'image.register', {
    name,
    rootfs: resolve(rootfs),
    ...here('kernel'),
    ...here('modules'),
    ...here('initrd'),
    ...(kernelRef === undefined ? {} : { kernelRef }),
  });
  await context.io.out(context.json ? json(image) : `${image.id}  ${image.names.map(safe).join(' ')}\n`);
  return 0;
}

export async function promote(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (image) => change(context, 'image.promote', { image }), {
    text: ({ id, digest }) => `${id}  ${digest}\n`,
  });
}

export async function exportFile(context: Context, args: Args): Promise<number> {
  const output = args.value('output');
  const { signal } = context.interrupts;
  refuseTerminal(context, output, 'hutch image export -o FILE IMAGE');
  const kernels = args.values('kernel');
  if (args.positionals.length + kernels.length === 0) throw usageError('hutch image export needs IMAGE or --kernel');
  // One image is asked for as daemons of before know it.
  const [image = ''] = args.positionals;
  const { bytes } =
    args.positionals.length === 1 && kernels.length === 0
      ? await context.client.download('image.export', { image }, { signal })
      : await context.client.download('image.bundle', { image: [...args.positionals], kernel: [...kernels] }, { signal });
  await keepReceived(context, bytes, output, { step: 'export' });
  return 0;
}

export async function inspect(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (image) => ask(context, 'image.get', { image }), {
    text: (image) => `${JSON.stringify(image, null, 2)}\n`,
  });
}

export async function history(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'image.history', { image: args.first() });
  const rows = answer.steps.map(({ created, createdBy, sizeBytes }) => [
    created === null ? '-' : clockOf(created),
    roughSize(sizeBytes),
    createdBy.replaceAll(/\s+/g, ' ').slice(0, 200),
  ]);
  await context.io.out(context.json ? json(answer) : table(['MADE', 'SIZE', 'BY'], rows));
  return 0;
}

export async function sbom(context: Context, args: Args): Promise<number> {
  const answer = await ask(context, 'image.sbom', { image: args.first() });
  await context.io.out(context.json ? json(answer) : `${JSON.stringify(answer, null, 2)}\n`);
  return 0;
}

function clockOf(said: string): string {
  const ms = Date.parse(said);
  return Number.isNaN(ms) ? said.slice(0, 32) : clock(ms);
}

export async function commit(context: Context, args: Args): Promise<number> {
  const [ref = '', name, ...more] = args.positionals;
  if (more.length > 0) throw usageError('an image is given one name', 'more of them: hutch image tag');
  const withFiles = args.has('with-files');
  const image = await change(context, 'image.commit', {
    ref,
    ...(name === undefined ? {} : { name }),
    ...(withFiles ? { withFiles } : {}),
  });
  await context.io.out(context.json ? json(image) : `${image.id}\n`);
  return 0;
}

export async function tag(context: Context, args: Args): Promise<number> {
  const [image = '', name = ''] = args.positionals;
  const tagged = await change(context, 'image.tag', { image, name });
  if (context.json) await context.io.out(json(tagged));
  return 0;
}

export async function remove(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (image) => change(context, 'image.remove', { image }), {
    text: ({ id, removed, names }, ref) => (removed ? `${id}\n` : `${safe(ref)}: it stays as ${names.map(safe).join(', ')}\n`),
  });
}

export async function usage(context: Context, _args: Args): Promise<number> {
  const answer = await ask(context, 'image.usage', {});
  const row = (kind: string, { count, bytes, reclaimableBytes }: Output<'image.usage'>['images']) => [
    kind,
    String(count),
    roughSize(bytes),
    roughSize(reclaimableBytes),
  ];
  const rows = [
    row('images', answer.images),
    row('layers', answer.layers),
    row('build cache', answer.buildCache),
    row('unpacked', answer.unpacked),
  ];
  await context.io.out(context.json ? json(answer) : table(['KIND', 'COUNT', 'SIZE', 'RECLAIMABLE'], rows));
  return 0;
}

export async function prune(context: Context, args: Args): Promise<number> {
  const dryRun = args.has('dry-run');
  const answer = await change(context, 'image.prune', { dryRun, layers: args.has('layers'), stale: args.has('stale') });
  if (context.json) {
    await context.io.out(json(answer));
    return 0;
  }
  const lines = [
    ...answer.images.map(({ id, sizeBytes, why }) => [id, roughSize(sizeBytes), why]),
    ...answer.layers.map(({ digest, sizeBytes, why }) => [digest, roughSize(sizeBytes), why]),
    ...answer.unpacked.map(({ digest, sizeBytes, why }) => [`${digest} (unpacked)`, roughSize(sizeBytes), why]),
    ...answer.mounts.map(({ name, sizeBytes, why }) => [name.slice(0, 12), roughSize(sizeBytes), why]),
  ];
  if (lines.length > 0) await context.io.out(table([dryRun ? 'WOULD GO' : 'REMOVED', 'SIZE', 'WHY'], lines));
  await context.io.out(`${roughSize(answer.bytes)} ${dryRun ? 'would be freed' : 'freed'}\n`);
  return 0;
}

export async function verify(context: Context, args: Args): Promise<number> {
  return await forEachRef(context, args.positionals, (image) => ask(context, 'image.verify', { image }), {
    text: ({ digest, files }) => `${digest}: ${files === 1 ? '1 file is what it was' : `${files} files are what they were`}\n`,
  });
}

export async function login(context: Context, args: Args): Promise<number> {
  const registry = args.positionals[0] ?? HUB;
  const username = args.value('username');
  if (username === undefined) throw usageError('hutch image login needs a user: -u NAME');
  const fromStdin = args.has('password-stdin');
  if (!fromStdin && !context.io.isTerminal.stdin) {
    throw usageError('there is no terminal to ask for the password', 'give it like: hutch image login -u NAME --password-stdin < FILE');
  }
  // A file that an editor or `echo` wrote ends with a newline that is not part of it.
  const password = fromStdin ? (await readText(process.stdin)).replace(/\r?\n$/, '') : await askSecret(context, 'Password: ');
  const answer = await change(context, 'image.login', { registry, username, password });
  await context.io.out(context.json ? json(answer) : `logged in to ${safe(answer.registry)}; kept in ${safe(answer.keptIn)}\n`);
  return 0;
}

export async function logout(context: Context, args: Args): Promise<number> {
  const answer = await change(context, 'image.logout', { registry: args.positionals[0] ?? HUB });
  const said = answer.wasKept ? `logged out of ${safe(answer.registry)}` : `there was no login for ${safe(answer.registry)}`;
  await context.io.out(context.json ? json(answer) : `${said}\n`);
  return 0;
}
