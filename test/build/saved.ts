// What is in an image that was saved to a file, whoever saved it: its configuration, and every file with all that it is.
import { createHash } from 'node:crypto';
import { gunzipSync } from 'node:zlib';
import { TarReader } from '../../src/domain/tar/reader.ts';
import { applyLayer, flattened, type LayerSource } from '../../src/images/build/flatten.ts';
import { Tree } from '../../src/images/layers/tree.ts';

export type Saved = {
  readonly config: {
    readonly config: Record<string, unknown>;
    readonly history: readonly { readonly created_by?: string; readonly empty_layer?: boolean }[];
  };
  readonly layers: readonly Buffer[];
  /** By path: type, mode, owner, link, attributes, content. */
  readonly files: ReadonlyMap<string, string>;
  /** By path: when it was written, in seconds. */
  readonly times: ReadonlyMap<string, number>;
};

const GZIP = 0x1f8b;

export async function readSaved(archive: Buffer): Promise<Saved> {
  const parts = new Map<string, Buffer>();
  const links = new Map<string, string>();
  await using reader = new TarReader(chunks(archive));
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    if (entry.type === 'symlink') links.set(entry.path, new URL(entry.link, `file:///${entry.path}`).pathname.slice(1));
    if (entry.type === 'file') parts.set(entry.path, await contentOf(reader));
  }
  const part = (path: string): Buffer => {
    const found = parts.get(links.get(path) ?? path);
    if (found === undefined) throw new Error(`${path} is not in the archive`);
    return found;
  };
  const [image] = JSON.parse(part('manifest.json').toString()) as [{ Config: string; Layers: string[] }];
  const layers = image.Layers.map(part).map((layer) => (layer.readUInt16BE() === GZIP ? gunzipSync(layer) : layer));
  return { config: JSON.parse(part(image.Config).toString()) as Saved['config'], layers, ...(await readLayers(layers)) };
}

export async function listingOf(layers: readonly Buffer[]): Promise<ReadonlyMap<string, string>> {
  return (await readLayers(layers)).files;
}

async function readLayers(layers: readonly Buffer[]): Promise<Pick<Saved, 'files' | 'times'>> {
  const sources: LayerSource[] = layers.map((layer) => () => chunks(layer));
  const tree = new Tree();
  for (const [at, source] of sources.entries()) await applyLayer(tree, at, source);
  const files = new Map<string, string>();
  const times = new Map<string, number>();
  await using reader = new TarReader(flattened(tree, sources));
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const content =
      entry.type === 'file'
        ? createHash('sha256')
            .update(await contentOf(reader))
            .digest('hex')
            .slice(0, 12)
        : '';
    const xattrs = [...(entry.xattrs ?? [])].map(([name, value]) => `${name}=${value.toString('hex')}`);
    const path = entry.path.replace(/^\.?\/|\/$/g, '');
    times.set(path, entry.mtimeSeconds);
    files.set(path, [entry.type, entry.mode.toString(8), `${entry.uid}:${entry.gid}`, entry.link, content, ...xattrs].join(' '));
  }
  return { files, times };
}

async function contentOf(reader: TarReader): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of reader.content()) pieces.push(Buffer.from(piece));
  return Buffer.concat(pieces);
}

async function* chunks(bytes: Buffer): AsyncGenerator<Uint8Array> {
  yield bytes;
}
