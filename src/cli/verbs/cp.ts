// hutch cp: files into a sandbox, out of one, or a tar stream either way. Streamed: nothing is held whole.
import { stat } from 'node:fs/promises';
import { HutchError } from '../../domain/errors.ts';
import { Files } from '../../sdk/files.ts';
import type { Output } from '../../services/verbs.ts';
import { type Args, usage } from '../args.ts';
import type { Context } from '../context.ts';
import { type Kind, type Place, parsePlace, type Target, targetOf } from '../copy/place.ts';
import { json, roughSize, safe } from '../output.ts';

/** As `archive.put` says it. */
type Copied = Output<'archive.put'>;

const NOTHING_COPIED: Copied = { entries: 0, bytes: 0 };

type Inside = Extract<Place, { type: 'sandbox' }>;

export async function run(context: Context, args: Args): Promise<number> {
  const places = args.positionals.map(parsePlace);
  const target = places.pop();
  if (target === undefined || places.length === 0)
    throw usage('hutch cp needs what to copy, and where to', 'like: hutch cp notes.txt dev:/work/');
  const inside = places.filter((place) => place.type === 'sandbox');
  if (target.type === 'stream' && context.json) throw usage('the archive goes to stdout, and so would --json', 'leave out --json');
  let copied: Copied;
  if (target.type === 'sandbox') {
    if (inside.length > 0)
      throw usage('both places are in sandboxes', 'copy out first, then in; or pipe: hutch cp A:DIR - | hutch cp - B:DIR');
    copied = await copyIn(context, places, target, userOf(args));
  } else {
    if (inside.length !== places.length) throw usage('neither place is in a sandbox', 'write it SANDBOX:PATH');
    copied = await copyOut(context, inside, target, userOf(args));
  }
  if (context.json) await context.io.out(json(copied));
  return 0;
}

function userOf(args: Args): { user?: string } {
  const user = args.value('user');
  return user === undefined ? {} : { user };
}

async function copyIn(context: Context, sources: readonly Place[], target: Inside, as: { user?: string }): Promise<Copied> {
  const { signal } = context.interrupts;
  const files = new Files(context.client, target.ref);
  const kind = await kindInside(files, target.path, { ...as, signal });
  if (sources.some(({ type }) => type === 'stream')) {
    if (sources.length > 1) throw usage('`-` must be the only thing to copy');
    if (kind !== 'dir')
      throw new HutchError({
        code: 'not_found',
        message: `there is no directory ${target.path} in ${target.ref}`,
        hint: 'a tar stream is unpacked into a directory that exists',
      });
    const copied = await files.unpack(target.path, counted(context, process.stdin), { ...as, signal });
    context.progress.clear();
    return copied;
  }
  if (sources.length > 1 && kind !== 'dir')
    throw new HutchError({
      code: 'not_found',
      message: `there is no directory ${target.path} in ${target.ref}`,
      hint: 'several things are copied into a directory that exists',
    });
  const { lookAt, packTree } = await import('../copy/pack.ts');
  const plans = await Promise.all(
    sources.map(async (source): Promise<{ readonly path: string; readonly target: Target }> => {
      const path = (source as { readonly path: string }).path;
      const info = await lookAt(path);
      return { path, target: targetOf({ source: path, sourceIsDir: info.isDirectory(), target: target.path, targetKind: kind }) };
    }),
  );
  const [first] = plans;
  if (first === undefined) throw new Error('a copy without sources');
  const skipped: string[] = [];
  const tar = packTree(
    plans.map(({ path, target: { name } }) => ({ path, name })),
    (path) => skipped.push(path),
  );
  const copied = await files.unpack(first.target.dir, counted(context, tar), { ...as, signal });
  context.progress.clear();
  for (const path of skipped) await context.io.err(`left out: ${safe(path)} is no file, directory or link\n`);
  return copied;
}

async function copyOut(context: Context, sources: readonly Inside[], target: Place, as: { user?: string }): Promise<Copied> {
  const { signal } = context.interrupts;
  if (target.type === 'stream') {
    const [source] = sources;
    if (source === undefined || sources.length > 1) throw usage('one thing at a time becomes a tar stream');
    const files = new Files(context.client, source.ref);
    for await (const chunk of await files.archive(source.path, { ...as, includeParent: true, signal })) await context.io.out(chunk);
    return NOTHING_COPIED;
  }
  const { path } = target as { readonly path: string };
  const kind = await kindHere(path);
  if (sources.length > 1 && kind !== 'dir')
    throw new HutchError({
      code: 'not_found',
      message: `there is no directory ${path}`,
      hint: 'several things are copied into a directory that exists',
    });
  let { entries, bytes } = NOTHING_COPIED;
  for (const source of sources) {
    const one = await copyOneOut(context, source, { path, kind }, as);
    entries += one.entries;
    bytes += one.bytes;
  }
  return { entries, bytes };
}

async function copyOneOut(
  context: Context,
  source: Inside,
  target: { readonly path: string; readonly kind: Kind },
  as: { user?: string },
): Promise<Copied> {
  const { signal } = context.interrupts;
  const { unpackTree } = await import('../copy/unpack.ts');
  const files = new Files(context.client, source.ref);
  const entry = await files.stat(source.path, { ...as, follow: source.path.endsWith('/'), signal });
  const sourceIsDir = entry.type === 'dir';
  const { dir, name } = targetOf({ source: source.path, sourceIsDir, target: target.path, targetKind: target.kind });
  if ((await kindHere(dir)) !== 'dir') throw new HutchError({ code: 'not_found', message: `there is no directory ${dir}` });
  // A directory's archive has `.` for itself; a file's has the file's own name.
  const rename = (inArchive: string): string | null => {
    if (!sourceIsDir) return name;
    const below = inArchive === '.' ? '' : inArchive.replace(/^\.\//, '');
    if (name === null) return below === '' ? '.' : below;
    return below === '' ? name : `${name}/${below}`;
  };
  const skipped: string[] = [];
  const archive = { bytes: 0 };
  const { entries } = await unpackTree(counted(context, await files.archive(source.path, { ...as, signal }), archive), {
    dir,
    rename,
    onSkipped: (what, why) => skipped.push(`${what}: ${why}`),
  });
  context.progress.clear();
  for (const what of skipped) await context.io.err(`left out: ${safe(what)}\n`);
  return { entries, bytes: archive.bytes };
}

async function kindInside(files: Files, path: string, options: { readonly user?: string; readonly signal: AbortSignal }): Promise<Kind> {
  try {
    return (await files.stat(path, { ...options, follow: true })).type === 'dir' ? 'dir' : 'file';
  } catch (error) {
    // The sandbox itself may be what is not there: then the copy says so.
    if (error instanceof HutchError && error.code === 'not_found') return 'nothing';
    throw error;
  }
}

async function kindHere(path: string): Promise<Kind> {
  try {
    return (await stat(path)).isDirectory() ? 'dir' : 'file';
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'nothing';
    throw error;
  }
}

/** Passes an archive on and shows how much of it; `so.bytes` says it at the end. */
async function* counted(
  context: Context,
  chunks: AsyncIterable<Uint8Array>,
  so: { bytes: number } = { bytes: 0 },
): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const chunk of chunks) {
    so.bytes += chunk.byteLength;
    context.progress.show({ step: 'copying', detail: roughSize(so.bytes) });
    yield chunk;
  }
}
