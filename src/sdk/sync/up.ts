// Files of ours as a tar stream for a sandbox: what each was when it was read, and only that, counts as having travelled.
import { once } from 'node:events';
import { finished } from 'node:stream/promises';
import { type Pack, pack } from 'tar-stream';
import { Changed, type Here } from './here.ts';
import type { Node } from './tree.ts';

const DIRECTORY_MODE = 0o755;

/** `travelled` is complete when the stream has ended. What changes while it is read is left for the next look. */
export function tarOf(
  here: Here,
  nodes: readonly (readonly [string, Node])[],
): { readonly stream: AsyncIterable<Uint8Array>; readonly travelled: Map<string, Node> } {
  const archive = pack();
  const travelled = new Map<string, Node>();
  void (async () => {
    for (const [path, node] of nodes) {
      const went = await addOne(archive, here, path, node);
      if (went !== null) travelled.set(path, went);
    }
    archive.finalize();
  })().catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))));
  return { stream: archive as AsyncIterable<Uint8Array>, travelled };
}

async function addOne(archive: Pack, here: Here, path: string, node: Node): Promise<Node | null> {
  if (node.type === 'directory') {
    await header(archive, { name: `${path}/`, type: 'directory', mode: DIRECTORY_MODE });
    return node;
  }
  if (node.type === 'symlink') {
    await header(archive, { name: path, type: 'symlink', linkname: node.target, mode: 0o777 });
    return node;
  }
  await using file = await here.read(path);
  if (file === null) return null;
  const { size, mode } = file.node;
  const seconds = file.mtimeNs / 1_000_000_000n;
  const pax = { mtime: `${seconds}.${String(file.mtimeNs % 1_000_000_000n).padStart(9, '0')}` };
  const sink = archive.entry({ name: path, type: 'file', size, mode, mtime: new Date(Number(seconds) * 1_000), pax });
  let left = size;
  try {
    for await (const chunk of file.bytes()) {
      left -= chunk.byteLength;
      if (!sink.write(chunk)) await once(sink, 'drain');
    }
  } catch (error) {
    if (!(error instanceof Changed)) throw error;
    // The archive says how long it is: the rest is zeros, and the next look sends it again.
    for (; left > 0; left -= Math.min(left, 65_536)) if (!sink.write(Buffer.alloc(Math.min(left, 65_536)))) await once(sink, 'drain');
    await ended(sink);
    return null;
  }
  await ended(sink);
  return file.node;
}

async function ended(sink: NodeJS.WritableStream): Promise<void> {
  sink.end();
  await finished(sink);
}

async function header(archive: Pack, entry: Parameters<Pack['entry']>[0]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    archive.entry(entry, (error) => (error ? reject(error) : resolve()));
  });
}
