// From where a COPY, an ADD or a bind mount takes its files: the context, a stage before, or an image; and what of them decides the result.

import { ArchiveError } from '../domain/archive-error.ts';
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { pick } from '../images/build/copy.ts';
import type { Instruction } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import type { LayerSource } from '../images/build/flatten.ts';
import { originOf } from '../images/build/graph.ts';
import { fileLine } from '../images/build/keys.ts';
import { hashesOf } from '../images/build/layers.ts';
import { below } from '../images/build/look.ts';
import type { Inode, Tree } from '../images/layers/tree.ts';
import type { StageNow } from './build-stage-now.ts';

/** Where the sources of a COPY are. */
export async function sourceOf(op: Operation, now: StageNow, step: Instruction, from: string | null) {
  const { context, dockerfile } = now.parts;
  if (from === null) {
    return {
      key: null,
      tree: context.tree,
      sources: [context.layer],
      isIgnored: (path: string) => context.ignored.has(path),
      hashes: context.hashes,
    };
  }
  const origin = originOf(dockerfile, now.globally(step, from), now.stage.index);
  if (origin.kind === 'scratch') throw new DockerfileError(step.line, step.name, '--from=scratch: there is nothing in it');
  const built = origin.kind === 'stage' ? await now.parts.stage(origin.index) : await imageOf(op, now, step, origin.name);
  return { key: built.key, root: built.root, isIgnored: () => false, hashes: null } as const;
}

/** What no stage before is called is an image; a word alone was perhaps meant as a stage. */
async function imageOf(op: Operation, now: StageNow, step: Instruction, name: string) {
  try {
    return await now.base(op, step, name);
  } catch (error) {
    if (!(error instanceof HutchError) || op.signal.aborted || /[/:.@]/.test(name)) throw error;
    const { stages } = now.parts.dockerfile;
    const before = stages.slice(0, now.stage.index).flatMap(({ from: { as }, index }) => as ?? String(index));
    const known = before.length === 0 ? 'there is none before this one' : `before this one there is ${before.join(', ')}`;
    throw op.error(error.code, `${error.message}; nor is there a stage of that name: ${known}`, {
      ...(error.hint === null ? {} : { hint: error.hint }),
      cause: error,
    });
  }
}

/** A line for each file that is picked. */
export async function contentsOf(
  tree: Tree,
  layers: readonly LayerSource[],
  sources: readonly string[],
  isIgnored: (path: string) => boolean,
  hashes: ReadonlyMap<number, string> | null,
): Promise<readonly string[]> {
  const found: (readonly [string, Inode])[] = [];
  for (const { path, inode } of pick(tree, sources, isIgnored).flat()) {
    found.push([path, inode]);
    if (inode.children === null) continue;
    for (const [name, each] of below(inode)) {
      const whole = path === '' ? name : `${path}/${name}`;
      if (!isIgnored(whole)) found.push([whole, each]);
    }
  }
  const read =
    hashes === null
      ? await hashesOf(
          found.map(([, inode]) => inode),
          layers,
        )
      : null;
  return found.map(([path, inode]) =>
    fileLine(path, inode, (read === null ? hashes?.get(inode.place?.ordinal ?? -1) : read.get(inode)) ?? ''),
  );
}

/** The content of one file of a layer. */
export async function* contentOf(layer: LayerSource, inode: Inode): AsyncGenerator<Uint8Array> {
  const { TarReader } = await import('../domain/tar/reader.ts');
  await using reader = new TarReader(layer());
  for (let ordinal = 0; ; ordinal += 1) {
    if ((await reader.next()) === null) throw new ArchiveError('a layer is not what it was a moment ago');
    if (ordinal !== inode.place?.ordinal) continue;
    for await (const piece of reader.content()) yield Buffer.from(piece);
    return;
  }
}
