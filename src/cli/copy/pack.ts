// Files of ours as a tar stream, as they are read: modes, times to the nanosecond's first digits,
// symbolic links as links. What means nothing elsewhere (sockets, pipes, devices) is told and left out.
import { createReadStream, type Stats } from 'node:fs';
import { lstat, readdir, readlink, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type Header, type Pack, pack } from 'tar-stream';
import { HutchError } from '../../domain/errors.ts';

const PAGE_BYTES = 4_096;
const MADE_BYTES_MAX = 16 * 1024 * 1024;

type NewHeader = Partial<Header> & Pick<Header, 'name'>;

export type Source = {
  readonly path: string;
  /** Its name in the archive; null: the directory's content without itself. */
  readonly name: string | null;
};

/** A tar stream of the sources. `onSkipped` hears what was left out. */
export function packTree(sources: readonly Source[], onSkipped: (path: string) => void): AsyncIterable<Uint8Array> {
  const archive = pack();
  void (async () => {
    for (const { path, name } of sources) await addTree(archive, path, name, onSkipped);
    archive.finalize();
  })().catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))));
  return archive as AsyncIterable<Uint8Array>;
}

/** A path with a slash at its end means what a link leads to. */
export async function lookAt(path: string): Promise<Stats> {
  return /(?:\/|(?:^|\/)\.{1,2})$/.test(path) ? await stat(path) : await lstat(path);
}

async function addTree(archive: Pack, path: string, name: string | null, onSkipped: (path: string) => void): Promise<void> {
  const info = await lookAt(path);
  if (!info.isDirectory()) return await addOne(archive, path, name ?? path, info, onSkipped);
  if (name !== null) await entry(archive, { ...headerOf(info), name: `${name}/`, type: 'directory' });
  const children = await readdir(path, { encoding: 'buffer' });
  for (const raw of children.sort(Buffer.compare)) {
    const child = raw.toString('utf8');
    if (!Buffer.from(child, 'utf8').equals(raw)) {
      throw new HutchError({
        code: 'invalid_argument',
        message: `a name in ${path} is no UTF-8: ${JSON.stringify(raw.toString('latin1'))}`,
        hint: 'pack it with tar, and give the archive to: hutch cp - SANDBOX:DIR',
      });
    }
    await addTree(archive, join(path, child), name === null ? child : `${name}/${child}`, onSkipped);
  }
}

async function addOne(archive: Pack, path: string, name: string, info: Stats, onSkipped: (path: string) => void): Promise<void> {
  if (info.isSymbolicLink()) return await entry(archive, { ...headerOf(info), name, type: 'symlink', linkname: await readlink(path) });
  if (!info.isFile()) return onSkipped(path);
  if (info.blocks === 0 && info.size <= PAGE_BYTES) return await addMade(archive, path, name, info);
  const sink = archive.entry({ ...headerOf(info), name, type: 'file', size: info.size });
  // A file that grows meanwhile is cut where it ended; one that shrinks breaks the archive, loudly.
  const content = info.size === 0 ? Readable.from([]) : createReadStream(path, { end: info.size - 1, highWaterMark: 256 * 1024 });
  await pipeline(content, sink as unknown as NodeJS.WritableStream).catch((error: unknown) => {
    const shrank = error instanceof Error && error.message === 'Size mismatch';
    throw shrank ? new HutchError({ code: 'conflict', message: `${path} became shorter while it was copied`, hint: 'try again' }) : error;
  });
}

/** What the kernel makes as it is read: files in /proc say that they have no bytes, those in /sys a page. */
async function addMade(archive: Pack, path: string, name: string, info: Stats): Promise<void> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of createReadStream(path) as AsyncIterable<Buffer>) {
    pieces.push(piece);
    bytes += piece.byteLength;
    if (bytes > MADE_BYTES_MAX)
      throw new HutchError({
        code: 'invalid_argument',
        message: `${path} does not say its size and has more than ${MADE_BYTES_MAX} bytes`,
        hint: `pipe it: hutch exec -i SANDBOX -- sh -c 'cat > FILE' < ${path}`,
      });
  }
  await new Promise<void>((resolve, reject) => {
    archive.entry({ ...headerOf(info), name, type: 'file', size: bytes }, Buffer.concat(pieces), (error) =>
      error ? reject(error) : resolve(),
    );
  });
}

async function entry(archive: Pack, header: NewHeader): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    archive.entry(header, (error) => (error ? reject(error) : resolve()));
  });
}

/** The seconds in the header proper, their part in a PAX record, which newer readers prefer. */
function headerOf(info: Stats): Omit<NewHeader, 'name'> {
  const pax = { mtime: (info.mtimeMs / 1_000).toFixed(6) };
  return { mode: info.mode & 0o7777, mtime: new Date(Math.floor(info.mtimeMs / 1_000) * 1_000), uid: info.uid, gid: info.gid, pax };
}
