// A release: a directory with everything that Hutch runs of, Node included, named by its version and by what is in it. It is
// made from a checkout or from another release, beside its place, and renamed once it is whole: a directory of that name is
// always a whole release. What it holds never changes afterwards, but for the cache of compiled code.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import * as z from 'zod';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { at, type Layout, releaseDir } from './layout.ts';

const MANIFEST = 'release.json';
const MANIFEST_BYTES_MAX = 1_048_576;
const VERSION = /^[0-9][0-9A-Za-z.+-]{0,63}$/;
export const RELEASE_ID = /^[0-9][0-9A-Za-z.+-]{0,63}-[0-9a-f]{12}$/;
/** In a checkout; a release has it at `bin/node`. */
const NODE_PATH = '.tools/node-path';
const ABOUT_MS = 60_000;

const manifest = z.strictObject({
  format: z.literal(1),
  id: z.string().regex(RELEASE_ID),
  version: z.string().regex(VERSION),
  /** Of the store that its daemon writes. */
  schemaVersion: z.int().min(1),
  node: z.string(),
  files: z.record(z.string(), z.strictObject({ sha256: z.string().regex(/^[0-9a-f]{64}$/), mode: z.int() })),
});
type Manifest = z.output<typeof manifest>;

export type Release = Pick<Manifest, 'id' | 'version' | 'schemaVersion' | 'node'>;

/** A file of a release that is to be made: where it comes from, and where it comes to lie. */
type Part = { readonly from: string; readonly path: string; readonly mode: number; readonly sha256: string };

export type Source = Release & { readonly dir: string; readonly parts: readonly Part[] };

/** What `hutchd --about` says of itself. */
const about = z.object({ version: z.string().regex(VERSION), schemaVersion: z.int().min(1) });

/**
 * Reads what a release would be made of: a checkout that is built, or a release.
 * @throws HutchError `failed_precondition` where something of it is missing, older than its sources, or changed; or
 * when its daemon cannot even say what it is.
 */
export async function readSource(op: Operation, host: Host, dir: string): Promise<Source> {
  const released = await readRelease(op, host, dir);
  const node = released === null ? await nodeOfCheckout(op, host, dir) : join(dir, 'bin/node');
  const wanted = released === null ? await checkoutFiles(op, host, dir, node) : releasedFiles(dir, released);
  const parts: Part[] = [];
  for (const { from, path, mode } of wanted) {
    const sha256 = await host.sha256(op, await host.realPath(op, from));
    const known = released?.files[path]?.sha256;
    if (known !== undefined && known !== sha256)
      throw op.error('failed_precondition', `the release ${dir} is damaged: ${path} does not have its checksum`, {
        hint: 'take a fresh copy of it',
      });
    parts.push({ from: await host.realPath(op, from), path, mode, sha256 });
  }
  parts.sort((left, right) => (left.path < right.path ? -1 : 1));
  const said = await askAbout(op, host, dir, await host.realPath(op, node));
  const id = `${said.version}-${digestOf(parts).slice(0, 12)}`;
  return { dir, parts, id, version: said.version, schemaVersion: said.schemaVersion, node: said.node };
}

/** Where a file of it lies now. */
export function partOf(op: Operation, { dir, parts }: Source, path: string): string {
  const part = parts.find((one) => one.path === path);
  if (part !== undefined) return part.from;
  throw op.error('failed_precondition', `${dir} is not whole: it has no ${path}`, { hint: 'take a fresh copy of Hutch' });
}

function digestOf(parts: readonly Part[]): string {
  const hash = createHash('sha256');
  for (const { path, sha256, mode } of parts) hash.update(`${path}\0${sha256}\0${mode}\n`);
  return hash.digest('hex');
}

/** That it can be started at all is found out before anything is touched. */
async function askAbout(
  op: Operation,
  host: Host,
  dir: string,
  node: string,
): Promise<{ version: string; schemaVersion: number; node: string }> {
  using limited = op.within(ABOUT_MS, `${node} --version`);
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  const version = await host.run(limited, [node, '--version']);
  const said = await host.run(limited, [node, join(dir, 'dist/hutchd.mjs'), '--about']);
  const parsed = said.exitCode === 0 ? about.safeParse(parseJson(text(said.stdout))) : null;
  if (version.exitCode === 0 && parsed?.success === true) return { ...parsed.data, node: text(version.stdout).replace(/^v/, '') };
  const why = text(said.stderr) || text(version.stderr) || `it ended with ${said.exitCode}`;
  throw op.error('failed_precondition', `the daemon in ${dir} does not run: ${why.split('\n')[0] ?? why}`, {
    hint: 'take a fresh copy of Hutch, or another release',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

type Wanted = Pick<Part, 'from' | 'path' | 'mode'>;

function releasedFiles(dir: string, { files }: Manifest): readonly Wanted[] {
  return Object.entries(files).map(([path, { mode }]) => ({ from: join(dir, path), path, mode }));
}

const NEEDED = ['dist/hutch.cjs', 'dist/hutchd.mjs', 'dist/store-worker.mjs', 'packaging/bin/hutch', 'packaging/bin/hutchd'] as const;
const WHOLE_DIRS = ['dist', 'docs', 'prebuilt/x86_64', 'packaging/systemd'] as const;
const SINGLE_FILES = ['LICENSE', 'CHANGELOG.md', 'README.md', 'packaging/config.toml'] as const;

async function checkoutFiles(op: Operation, host: Host, dir: string, node: string): Promise<readonly Wanted[]> {
  for (const path of NEEDED)
    if ((await host.stat(op, join(dir, path))) === null)
      throw op.error('failed_precondition', `${dir} is no release, nor a checkout of Hutch that is built: it has no ${path}`, {
        hint: `name a release, or build the checkout: ${join(dir, 'hutch')} version`,
      });
  await refuseStale(op, host, dir);
  const found: Wanted[] = [
    { from: node, path: 'bin/node', mode: 0o755 },
    { from: join(dir, 'packaging/bin/hutch'), path: 'bin/hutch', mode: 0o755 },
    { from: join(dir, 'packaging/bin/hutchd'), path: 'bin/hutchd', mode: 0o755 },
  ];
  for (const name of WHOLE_DIRS) {
    if ((await host.stat(op, join(dir, name))) === null) continue;
    for (const file of await host.list(op, join(dir, name))) {
      const info = await host.stat(op, join(dir, name, file));
      // When it was built; `stamp` is what older checkouts call it.
      if (info?.type !== 'file' || file === 'built' || file === 'stamp') continue;
      found.push({ from: join(dir, name, file), path: `${name}/${file}`, mode: (info.mode & 0o111) === 0 ? 0o644 : 0o755 });
    }
  }
  for (const path of SINGLE_FILES)
    if ((await host.stat(op, join(dir, path)))?.type === 'file') found.push({ from: join(dir, path), path, mode: 0o644 });
  return found;
}

/** As ./hutch looks itself: a bundle that is older than a source is not what the checkout says it is. */
async function refuseStale(op: Operation, host: Host, dir: string): Promise<void> {
  const built = join(dir, 'dist/built');
  if ((await host.stat(op, built)) === null || (await host.stat(op, join(dir, 'src'))) === null) return;
  const { stdout } = await host.run(op, ['find', join(dir, 'src'), '-newer', built, '-print', '-quit']);
  if (stdout.byteLength === 0) return;
  throw op.error('failed_precondition', `the sources in ${dir} are newer than what was built of them`, {
    hint: `build it: ${join(dir, 'hutch')} version`,
  });
}

async function nodeOfCheckout(op: Operation, host: Host, dir: string): Promise<string> {
  const named = join(dir, NODE_PATH);
  if ((await host.stat(op, named)) === null) return process.execPath;
  const path = new TextDecoder().decode(await host.readFile(op, named, 4_096)).trim();
  return path.startsWith('/') && (await host.stat(op, path)) !== null ? path : process.execPath;
}

/** What a directory says that it is; null where it is no release. @throws HutchError where it says something that cannot be read. */
async function readRelease(op: Operation, host: Host, dir: string): Promise<Manifest | null> {
  const path = join(dir, MANIFEST);
  if ((await host.stat(op, path)) === null) return null;
  const parsed = manifest.safeParse(parseJson(new TextDecoder().decode(await host.readFile(op, path, MANIFEST_BYTES_MAX))));
  if (parsed.success) return parsed.data;
  throw op.error('failed_precondition', `${path} cannot be read: ${parsed.error.issues[0]?.message ?? ''}`, {
    hint: 'take a fresh copy of it',
  });
}

/** The release of that id, or null where there is none. */
export async function installedRelease(op: Operation, host: Host, layout: Layout, id: string): Promise<Release | null> {
  return await readRelease(op, host, at(layout, releaseDir(layout, id)));
}

/** Whether each of its files is there as it was made. */
export async function isWhole(op: Operation, host: Host, layout: Layout, id: string): Promise<boolean> {
  const dir = at(layout, releaseDir(layout, id));
  const known = await readRelease(op, host, dir).catch(() => null);
  if (known === null) return false;
  for (const [path, { sha256, mode }] of Object.entries(known.files)) {
    const info = await host.stat(op, join(dir, path));
    if (info?.type !== 'file' || (info.mode & 0o777) !== mode || (await host.sha256(op, join(dir, path))) !== sha256) return false;
  }
  return true;
}

/** Makes the release from its source, unless it is there and whole. `not` is a release whose equal files need no second place on the disk. */
export async function stage(op: Operation, host: Host, layout: Layout, source: Source, not: string | null): Promise<'made' | 'there'> {
  const place = at(layout, releaseDir(layout, source.id));
  if (await isWhole(op, host, layout, source.id)) return 'there';
  const beside = at(layout, `${layout.releases}/.new-${source.id}`);
  await host.remove(op, beside);
  for (const dir of ['', 'cache', ...dirsOf(source.parts)]) await host.makeDir(op, join(beside, dir), 0o755);
  const old = not === null ? null : await readRelease(op, host, at(layout, releaseDir(layout, not))).catch(() => null);
  for (const [index, { from, path, mode, sha256 }] of source.parts.entries()) {
    op.progress({ step: 'copying the release', detail: path, done: index, total: source.parts.length, unit: 'items' });
    const target = join(beside, path);
    if (not !== null && old?.files[path]?.sha256 === sha256 && old.files[path].mode === mode) {
      await host.link(op, at(layout, `${releaseDir(layout, not)}/${path}`), target);
    } else {
      await host.cloneFile(op, from, target);
      await host.chmod(op, target, mode);
      await host.sync(op, target);
    }
    // Of the copy: what changed while it was copied is not the release that was named.
    if ((await host.sha256(op, target)) !== sha256)
      throw op.error('conflict', `${from} changed while it was copied`, { hint: 'try again when nobody builds there' });
  }
  const files = Object.fromEntries(source.parts.map(({ path, sha256, mode }) => [path, { sha256, mode }]));
  const { id, version, schemaVersion, node } = source;
  const written: Manifest = { format: 1, id, version, schemaVersion, node, files };
  await host.writeFileAtomic(op, join(beside, MANIFEST), `${JSON.stringify(written, null, 1)}\n`, 0o644);
  // One that is damaged is in its place.
  await host.remove(op, place);
  await host.rename(op, beside, place);
  return 'made';
}

/** With their parents, outer ones first. */
function dirsOf(parts: readonly Part[]): readonly string[] {
  const dirs = new Set<string>();
  for (const { path } of parts) {
    const names = path.split('/').slice(0, -1);
    for (let depth = 1; depth <= names.length; depth += 1) dirs.add(names.slice(0, depth).join('/'));
  }
  return [...dirs].toSorted();
}

/** The releases that are here, and what an interruption has left of others. */
export async function listReleases(
  op: Operation,
  host: Host,
  layout: Layout,
): Promise<{ readonly ids: readonly string[]; readonly halves: readonly string[] }> {
  const dir = at(layout, layout.releases);
  if ((await host.stat(op, dir)) === null) return { ids: [], halves: [] };
  const names = await host.list(op, dir);
  return { ids: names.filter((name) => RELEASE_ID.test(name)), halves: names.filter((name) => name.startsWith('.new-')) };
}

/** All but these, and what was half made. */
export async function removeOthers(op: Operation, host: Host, layout: Layout, keep: readonly (string | null)[]): Promise<void> {
  const { ids, halves } = await listReleases(op, host, layout);
  for (const name of [...ids.filter((id) => !keep.includes(id)), ...halves])
    await host.remove(op, at(layout, `${layout.releases}/${name}`));
}

/** The release that the link names; null where there is none. */
export async function currentRelease(op: Operation, host: Host, layout: Layout): Promise<string | null> {
  const path = at(layout, layout.current);
  if ((await host.stat(op, path))?.type !== 'symlink') return null;
  const id = (await host.readLink(op, path)).replace(/^releases\//, '');
  return RELEASE_ID.test(id) ? id : null;
}

/** In one step: whoever starts meanwhile gets the one or the other. */
export async function switchTo(op: Operation, host: Host, layout: Layout, id: string): Promise<void> {
  const path = at(layout, layout.current);
  const beside = `${path}.new`;
  await host.remove(op, beside);
  await host.symlink(op, `releases/${id}`, beside);
  await host.rename(op, beside, path);
}
