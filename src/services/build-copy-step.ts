import { ArchiveError } from '../domain/archive-error.ts';
import { Ignored } from '../domain/dockerignore.ts';
import type { Operation } from '../host/operation.ts';
import { CopyError, type CopyPlan, copyTree, LayerTree, modeChange, type Owner } from '../images/build/copy.ts';
import type { Of } from '../images/build/dockerfile.ts';
import { applyLayer, type LayerSource } from '../images/build/flatten.ts';
import { keyOf } from '../images/build/keys.ts';
import { lookUp } from '../images/build/look.ts';
import { variablesOf } from '../images/build/state.ts';
import { expandText } from '../images/build/words.ts';
import { type Inode, Tree } from '../images/layers/tree.ts';
import { fetchedFile, nameInUrl, URL_SOURCE } from './build-fetch.ts';
import { contentOf, contentsOf, sourceOf } from './build-sources.ts';
import type { StageNow } from './build-stage-now.ts';

const MAGIC_BYTES = 6;
const ROOT: Owner = { uid: 0, gid: 0 };

export async function workdirStep(op: Operation, now: StageNow, step: Of<'WORKDIR'>): Promise<void> {
  const value = now.text(step, step.value);
  const before = now.state.config.WorkingDir || '/';
  const path = `/${lookUpNames(value.startsWith('/') ? value : `${before}/${value}`)}`;
  now.state = { ...now.state, config: { ...now.state.config, WorkingDir: path } };
  await now.layer(op, `WORKDIR ${path}`, keyOf('workdir', now.key, path), async () => {
    const stage = await now.root.tree(op);
    if (lookUp(stage, path, 'follow').inode?.type === 'directory') return null;
    const tree = new LayerTree(stage, await userOf(op, now), timeOf(now));
    await now.copying(step, async () => tree.directory(path));
    return await now.write(op, tree, []);
  });
}

/** Of what a step makes out of nothing, in seconds: as with BuildKit. */
function timeOf({ parts: { request, sandbox } }: StageNow): number {
  return request.epochSeconds ?? Math.floor(sandbox.core.deps.host.nowMs() / 1_000);
}

/** Whose the directories are that WORKDIR makes: those of the stage's USER, as with BuildKit. */
async function userOf(op: Operation, now: StageNow): Promise<Owner> {
  const user = now.state.config.User ?? '';
  try {
    return user === '' ? ROOT : await now.owner(op, user);
  } catch (error) {
    if (error instanceof CopyError) return ROOT; // made by a later step, or never
    throw error;
  }
}

export async function copyStep(op: Operation, now: StageNow, step: Of<'COPY'> | Of<'ADD'>): Promise<void> {
  const { request, dockerfile } = now.parts;
  const { flags } = step;
  const text = (word: string) => now.text(step, word);
  const sources = step.sources.map(text);
  const target = text(step.target);
  const [chown, chmod] = [flags.chown, flags.chmod].map((flag) => (flag === null ? null : text(flag)));
  const source = isOfUrl(step, sources) ? urlOf(op, now, step, sources[0] ?? '') : await filesOf(op, now, step, sources);
  const exclude = flags.exclude.map(text);
  const workdir = now.state.config.WorkingDir || '/';
  const excluded = new Ignored(exclude);
  const isIgnored = (path: string) => source.isIgnored(path) || (exclude.length > 0 && excluded.has(path));
  const inline = step.inline.map(({ name, content, expand }) => ({
    name,
    content: expand ? expandText(content, variablesOf(now.state), dockerfile.escapeChar) : content,
  }));
  const shape = keyOf(
    ...[
      'copy',
      now.key,
      step.name,
      sources,
      target,
      workdir,
      chown ?? '-',
      chmod ?? '-',
      String(flags.parents),
      exclude,
      String(request.epochSeconds),
    ],
    inline.flatMap(({ name, content }) => [name, content]),
  );
  const said = Object.entries({ from: flags.from, chown, chmod }).flatMap(([flag, value]) => (value == null ? [] : [`--${flag}=${value}`]));
  if (flags.parents) said.push('--parents');
  const shown = [step.name, ...said, ...sources, ...inline.map(({ name }) => `<<${name}`), target].join(' ');
  // What is the same stage gives the same files: they need not be looked at.
  const quick = source.key === null ? null : keyOf('copied', shape, source.key);
  const known = quick === null || request.noCache ? null : await now.parts.cache.get(op, quick);
  if (known?.as !== undefined) return await now.layer(op, shown, known.as, async () => known.layer);
  await now.copying(step, async () => {
    const { tree, layers, hashes } = await source.files();
    const contents = await contentsOf(tree, layers, source.names, isIgnored, hashes);
    const key = keyOf('copied', shape, contents);
    await now.layer(op, shown, key, async () => {
      const stage = await now.root.tree(op);
      const owner = chown === null || chown === undefined ? (flags.from === null ? { uid: 0, gid: 0 } : null) : await now.owner(op, chown);
      const archives: LayerSource[] = [];
      const plan: CopyPlan = {
        ...{ source: tree, isIgnored, sources: source.names, target, workdir, owner, parents: flags.parents },
        mode: chmod === null || chmod === undefined ? null : modeChange(chmod),
        clampMtimeSeconds: request.epochSeconds,
        nowSeconds: timeOf(now),
        unpacked: step.name === 'ADD' && source.mayBeArchives ? async (inode) => await archiveOf(op, now, inode, layers, archives) : null,
      };
      const out = await copyTree(stage, plan);
      const all = [...layers, ...archives];
      if (inline.length > 0) all.push(await inlineLayer(now, out, stage, inline, plan, all.length));
      return await now.write(op, out, all);
    });
    if (quick !== null) await now.parts.cache.put(op, quick, { layer: now.root.layers.at(-1) ?? null, atMs: now.atMs, as: key });
  });
}

type Source = {
  /** By which what it has is known without a look at it; null: it has to be looked at. */
  readonly key: string | null;
  readonly names: readonly string[];
  readonly mayBeArchives: boolean;
  isIgnored(path: string): boolean;
  files(): Promise<{ readonly tree: Tree; readonly layers: readonly LayerSource[]; readonly hashes: ReadonlyMap<number, string> | null }>;
};

async function filesOf(op: Operation, now: StageNow, step: Of<'COPY'> | Of<'ADD'>, names: readonly string[]): Promise<Source> {
  const source = await sourceOf(op, now, step, step.flags.from);
  const { key, isIgnored, hashes } = source;
  const files = async () => ({
    tree: source.tree ?? (await source.root.tree(op)),
    layers: source.sources ?? source.root.sources(op),
    hashes,
  });
  return { key, names, mayBeArchives: true, isIgnored, files };
}

function isOfUrl(step: Of<'COPY'> | Of<'ADD'>, sources: readonly string[]): step is Of<'ADD'> {
  return step.name === 'ADD' && URL_SOURCE.test(sources[0] ?? '');
}

/** Fetched when it is asked for: not at all where its digest is said, and the cache has what it gave. */
function urlOf(op: Operation, now: StageNow, step: Of<'ADD'>, url: string): Source {
  const checksum = step.flags.checksum === null ? null : now.text(step, step.flags.checksum);
  const name = nameInUrl(step, url).replace(/[*?[\\]/g, '\\$&');
  const files = async () => await fetchedFile(op, now, step, url, checksum);
  return { key: checksum, names: [name], mayBeArchives: false, isIgnored: () => false, files };
}

/** A file of ADD that is an archive, as a tree; null: it is none. */
async function archiveOf(
  op: Operation,
  now: StageNow,
  inode: Inode,
  layers: readonly LayerSource[],
  archives: LayerSource[],
): Promise<Pick<Tree, 'root'> | null> {
  const layer = inode.place === null ? undefined : layers[inode.place.layer];
  if (layer === undefined) return null;
  const { staging } = now.parts.sandbox;
  const { host } = staging;
  const file = await staging.file(op, `add-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
  await host.appendStream(op, file, contentOf(layer, inode));
  const start = await host.readRange(op, file, 0, MAGIC_BYTES);
  if (!isPacked(start) && !isTar(await host.readRange(op, file, 257, 6))) return null;
  const { unpacked } = await import('../images/layers/unpack.ts');
  const { unpackedOutside } = await import('../images/outside-reader.ts');
  const { layerBytesMax } = (await import('../images/build.ts')).BUILD_LIMITS;
  const tree = new Tree();
  const at = layers.length + archives.length;
  const plain = `${file}.tar`;
  let open: LayerSource = () => unpacked(op, host, file, layerBytesMax);
  try {
    if (await unpackedOutside(op, host, { from: file, to: plain, bytesMax: layerBytesMax, what: 'an archive of ADD' }))
      open = () => unpacked(op, host, plain, layerBytesMax);
    await applyLayer(tree, at, open);
  } catch (error) {
    // A file that is only packed, and no archive, is copied as it is.
    if (error instanceof ArchiveError && isPacked(start)) return null;
    throw error;
  }
  archives.push(open);
  return tree;
}

/** The heredocs of a COPY, as a layer of their own that its tree points into. */
async function inlineLayer(
  now: StageNow,
  out: LayerTree,
  stage: Tree,
  inline: readonly { name: string; content: string }[],
  plan: CopyPlan,
  at: number,
): Promise<LayerSource> {
  const target = plan.target.startsWith('/') ? plan.target : `${plan.workdir}/${plan.target}`;
  const toDirectory = /(^|\/)\.{0,2}$/.test(plan.target) || lookUp(stage, target, 'follow').inode?.type === 'directory';
  const { tarHeader, TAR_END } = await import('../domain/tar/header.ts');
  const { padding } = await import('../domain/tar/entry.ts');
  const pieces: Buffer[] = [];
  const mtimeSeconds = timeOf(now);
  for (const [ordinal, { name, content }] of inline.entries()) {
    const bytes = Buffer.from(content);
    const blank = {
      link: '',
      devMajor: 0,
      devMinor: 0,
      xattrs: null,
      sizeBytes: bytes.byteLength,
      mtimeSeconds,
      ...(plan.owner ?? { uid: 0, gid: 0 }),
    };
    const mode = plan.mode === null ? 0o644 : plan.mode(0o644, false);
    pieces.push(tarHeader({ ...blank, type: 'file', path: name, mode }), bytes, Buffer.alloc(padding(bytes.byteLength)));
    const inode: Inode = { ...blank, type: 'file', mode, place: bytes.byteLength === 0 ? null : { layer: at, ordinal }, children: null };
    out.place(toDirectory ? `${target}/${name}` : target, null, inode);
  }
  const archive = Buffer.concat([...pieces, TAR_END]);
  return async function* () {
    yield archive;
  };
}

function lookUpNames(path: string): string {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.join('/');
}

function isPacked(start: Uint8Array): boolean {
  return /^(1f8b|28b52ffd|fd377a585a00|425a68)/.test(Buffer.from(start).toString('hex'));
}

function isTar(magic: Uint8Array): boolean {
  return Buffer.from(magic).toString('latin1').startsWith('ustar');
}
