// A snapshot as an OCI artifact: what it says of itself, and its files, each packed (pieces.ts, zstd) and named by its digest. This is what lies in a
// registry, and, as an OCI layout, in an archive. It comes from anywhere: every part of it is judged here before it is used.
import * as z from 'zod';
import { ArchiveError, shown } from '../../domain/archive-error.ts';
import { BACKENDS } from '../../domain/sandbox.ts';
import { SNAPSHOT_CONTENTS } from '../../domain/snapshot.ts';
import { broughtImageSchema } from '../brought.ts';
import { digestOf } from '../digest.ts';
import { MANIFEST_TYPE } from '../oci/manifest.ts';

/** 2: it brings what it stands on. */
const VERSIONS = [1, 2] as const;
type Version = (typeof VERSIONS)[number];
const typeOf = (version: Version): string => `application/vnd.hutch.snapshot.v${version}+json`;
const OTHER_VERSION = /^application\/vnd\.hutch\.snapshot\.v(\d{1,9})\+json$/;
const PART_TYPE = 'application/vnd.hutch.snapshot.part.v1+zstd';
const TITLE = 'org.opencontainers.image.title';
export const MANIFEST_BYTES_MAX = 1024 * 1024;
export const CONFIG_BYTES_MAX = 4 * 1024 * 1024;
/** Layers of memory and of two disks, and what belongs to them. */
const PARTS_MAX = 256;
const PART_BYTES_MAX = 2 ** 48;

/** The image that Hutch made, as guests mount it. */
export const ROOTFS_PART = 'rootfs';
/** What `hutch image export` writes of its kernel, and of an image that is the same everywhere. */
export const ARCHIVE_PART = 'archive';

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hex digits');
const partSchema = z.strictObject({
  name: z.string().regex(/^[a-z]{1,16}(\/[a-z0-9]{1,16})?$/),
  /** As long as the file is. */
  bytes: z.int().nonnegative().max(PART_BYTES_MAX),
  /** What of it is not zeros, in whole pages. */
  dataBytes: z.int().nonnegative().max(PART_BYTES_MAX),
});

const bringsSchema = z.strictObject({
  rootfs: broughtImageSchema.nullable(),
  archive: z.strictObject({ image: z.boolean(), kernel: z.boolean() }).nullable(),
});
export type Brings = z.output<typeof bringsSchema>;

const configSchema = z
  .strictObject({
    version: z.literal(VERSIONS),
    /** Each is one of the last parts, in this order. */
    brings: bringsSchema.exactOptional(),
    name: z.string().max(63).nullable(),
    backend: z.enum(BACKENDS),
    contents: z.enum(SNAPSHOT_CONTENTS),
    createdAtMs: z.int().nonnegative(),
    /** `travels`: it came from elsewhere, and is the same wherever it is brought. */
    image: z.strictObject({ digest, names: z.array(z.string().max(512)).max(64), travels: z.boolean() }),
    kernel: z.strictObject({ digest, version: z.string().max(256) }).nullable(),
    /** What its sandbox was made as: judged by who makes sandboxes. */
    made: z.record(z.string().max(64), z.unknown()),
    /** Of secrets whose values may be in its memory. */
    secretNames: z.array(z.string().max(128)).max(1_000),
    /** What its backend says of it: judged by that. */
    machine: z.record(z.string().max(64), z.unknown()),
    parts: z.array(partSchema).min(1).max(PARTS_MAX),
  })
  .refine(({ parts }) => new Set(parts.map(({ name }) => name)).size === parts.length, 'two parts have one name')
  .refine(({ version, brings }) => (version === 2) === (brings !== undefined), 'its version does not say what it brings');
export type SnapshotConfig = z.output<typeof configSchema>;
export type PartSaid = z.output<typeof partSchema>;

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.literal(MANIFEST_TYPE).optional(),
  artifactType: z.string().max(255),
  config: z.object({ mediaType: z.enum(VERSIONS.map(typeOf)), digest, size: z.int().positive().max(CONFIG_BYTES_MAX) }),
  layers: z.array(z.object({ mediaType: z.literal(PART_TYPE), digest, size: z.int().positive().max(PART_BYTES_MAX) })).max(PARTS_MAX),
});

export type Packed = { readonly digest: string; readonly sizeBytes: number };
export type Artifact = {
  readonly config: Buffer;
  readonly configDigest: string;
  /** Of the artifact. */
  readonly type: string;
  readonly manifest: Buffer;
  readonly manifestDigest: string;
};

/** `packed`: in the order of its parts. */
export function artifactOf(said: SnapshotConfig, packed: readonly Packed[]): Artifact {
  const config = Buffer.from(JSON.stringify(configSchema.parse(said)));
  const type = typeOf(said.version);
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      artifactType: type,
      config: { mediaType: type, digest: digestOf(config), size: config.byteLength },
      layers: said.parts.map(({ name }, at) => ({
        mediaType: PART_TYPE,
        digest: packed[at]?.digest,
        size: packed[at]?.sizeBytes,
        annotations: { [TITLE]: name },
      })),
    }),
  );
  return { config, configDigest: digestOf(config), type, manifest, manifestDigest: digestOf(manifest) };
}

export type Described = { readonly config: Packed; readonly parts: readonly Packed[] };

/** @throws ArchiveError for what is no snapshot, or one of another version. */
export function parseManifest(bytes: Buffer): Described {
  const json = jsonOf(bytes, 'its manifest');
  const type = typeof json === 'object' && json !== null && 'artifactType' in json ? json.artifactType : null;
  if (typeof type !== 'string') throw new ArchiveError('it is no snapshot');
  if (!VERSIONS.some((version) => type === typeOf(version))) {
    const version = OTHER_VERSION.exec(type)?.[1];
    throw new ArchiveError(
      version === undefined
        ? `it is no snapshot, but ${shown(type)}`
        : `it is of version ${version}; this release of Hutch reads up to version ${VERSIONS.at(-1)}`,
    );
  }
  const { config, layers } = checked(manifestSchema, json, 'its manifest');
  return {
    config: { digest: config.digest, sizeBytes: config.size },
    parts: layers.map(({ digest: own, size }) => ({ digest: own, sizeBytes: size })),
  };
}

/** @throws ArchiveError */
export function parseSnapshotConfig(bytes: Buffer, described: Described): SnapshotConfig {
  const json = jsonOf(bytes, 'its description');
  const version = typeof json === 'object' && json !== null && 'version' in json ? json.version : null;
  if (typeof version === 'number' && version > 2)
    throw new ArchiveError(`it is of version ${version}; this release of Hutch reads up to version ${VERSIONS.at(-1)}`);
  const config = checked(configSchema, json, 'its description');
  if (config.parts.length !== described.parts.length)
    throw new ArchiveError(`its manifest has ${described.parts.length} parts, and its description ${config.parts.length}`);
  const large = config.parts.find(({ dataBytes }, at) => (described.parts[at]?.sizeBytes ?? 0) > packedBytesMax(dataBytes));
  if (large !== undefined) throw new ArchiveError(`its part ${shown(large.name)} is packed into more than it has`);
  return config;
}

/** What does not pack at all, with a head for each of its pages. */
function packedBytesMax(dataBytes: number): number {
  return dataBytes + Math.ceil(dataBytes / 64) + 64 * 1024;
}

function checked<T>(schema: z.ZodType<T>, json: unknown, what: string): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ArchiveError(`${what} is damaged: ${shown(issue?.path.join('.') || 'it')}: ${issue?.message.slice(0, 200)}`);
}

export function jsonOf(bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    throw new ArchiveError(`${what} is damaged: it is no JSON`);
  }
}
