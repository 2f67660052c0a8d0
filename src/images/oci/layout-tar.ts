// An OCI layout as a tar archive: files that are nobody's and of no time, so that the same content gives the same bytes.
import { padding } from '../../domain/tar/entry.ts';
import { tarHeader } from '../../domain/tar/header.ts';

export const LAYOUT = Buffer.from('{"imageLayoutVersion":"1.0.0"}');

export function* file(path: string, content: Buffer): Generator<Uint8Array> {
  yield header(path, content.byteLength);
  yield content;
  yield Buffer.alloc(padding(content.byteLength));
}

export function header(path: string, sizeBytes: number): Buffer {
  const nobody = { mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, devMajor: 0, devMinor: 0 } as const;
  return tarHeader({ type: 'file', path, link: '', sizeBytes, xattrs: null, ...nobody });
}

export function blobPath(digest: string): string {
  return `blobs/sha256/${digest.slice(7)}`;
}
