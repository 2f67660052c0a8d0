// Archives and images for tests, made byte by byte: good ones, and such as no honest program would make.
import { createHash } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { padding, type TarEntry } from '../../src/domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../src/domain/tar/header.ts';

export type Member = { readonly path: string } & Partial<Omit<TarEntry, 'sparse'>> & { readonly content?: string | Buffer };

export function member({ content = '', ...said }: Member): Buffer {
  const bytes = Buffer.from(content);
  const isFile = (said.type ?? 'file') === 'file';
  const header = tarHeader({
    type: 'file',
    link: '',
    mode: isFile ? 0o644 : 0o755,
    uid: 0,
    gid: 0,
    mtimeSeconds: 1_700_000_000,
    sizeBytes: bytes.byteLength,
    devMajor: 0,
    devMinor: 0,
    xattrs: null,
    ...said,
  });
  return Buffer.concat([header, bytes, Buffer.alloc(padding(bytes.byteLength))]);
}

export function tar(...members: readonly (Member | Buffer)[]): Buffer {
  return Buffer.concat([...members.map((one) => (Buffer.isBuffer(one) ? one : member(one))), TAR_END]);
}

/** Changes bytes of a header, and makes its checksum right again. */
export function tampered(header: Buffer, at: number, bytes: string | Buffer): Buffer {
  const changed = Buffer.from(header);
  changed.set(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes, at);
  changed.write('        ', 148, 'latin1');
  let sum = 0;
  for (const byte of changed.subarray(0, 512)) sum += byte;
  changed.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return changed;
}

/** A PAX header of these records as they stand, in front of the member. */
export function withPax(records: string, said: Member): Buffer {
  const bytes = Buffer.from(records, 'latin1');
  const header = tampered(member({ path: 'PaxHeader' }).subarray(0, 512), 156, 'x');
  const sized = tampered(header, 124, `${bytes.byteLength.toString(8).padStart(11, '0')}\0`);
  return Buffer.concat([sized, bytes, Buffer.alloc(padding(bytes.byteLength)), member(said)]);
}

export function pax(key: string, value: string): string {
  const body = ` ${key}=${value}\n`;
  let length = body.length + 1;
  while (String(length).length + body.length !== length) length = String(length).length + body.length;
  return `${length}${body}`;
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

export const TYPES = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  index: 'application/vnd.oci.image.index.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  layer: 'application/vnd.oci.image.layer.v1.tar+gzip',
} as const;

export type MadeImage = {
  readonly manifest: Buffer;
  readonly config: Buffer;
  /** All that a registry must have, by digest. */
  readonly blobs: ReadonlyMap<string, Buffer>;
};

export type ImageOptions = {
  readonly config?: object;
  readonly top?: object;
  readonly packed?: (tar: Buffer) => Buffer;
  /** Instead of those of the layers. */
  readonly diffIds?: readonly string[];
  readonly manifest?: (manifest: Record<string, unknown>) => unknown;
};

export function image(layers: readonly Buffer[], options: ImageOptions = {}): MadeImage {
  const { packed = (bytes) => gzipSync(bytes) } = options;
  const files = layers.map(packed);
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      config: options.config ?? {},
      rootfs: { type: 'layers', diff_ids: options.diffIds ?? layers.map(digestOf) },
      history: layers.map((_, at) => ({ created_by: `step ${at + 1}` })),
      ...options.top,
    }),
  );
  const said = {
    schemaVersion: 2,
    mediaType: TYPES.manifest,
    config: { mediaType: TYPES.config, digest: digestOf(config), size: config.byteLength },
    layers: files.map((file) => ({ mediaType: TYPES.layer, digest: digestOf(file), size: file.byteLength })),
  };
  const manifest = Buffer.from(JSON.stringify(options.manifest === undefined ? said : options.manifest(said)));
  return { manifest, config, blobs: new Map([config, ...files].map((bytes) => [digestOf(bytes), bytes])) };
}
