// What a registry or an archive says of an image: index, manifest and configuration, by the OCI image
// specification and in Docker's older form of the same. Each is parsed once, here, with bounds.

import * as z from 'zod';
import type { HutchError } from '../../domain/errors.ts';
import { type Architecture, type ImageConfig, imageConfigOf } from '../../domain/image.ts';
import type { Operation } from '../../host/operation.ts';

export const LAYERS_MAX = 512;
export const CONFIG_BYTES_MAX = 4 * 1024 * 1024;
/** An index may list indexes; nobody has a reason for more than one below another. */
export const INDEX_DEPTH_MAX = 4;

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json';
export const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json';
export const INDEX_TYPE = 'application/vnd.oci.image.index.v1+json';
const MANIFESTS = [MANIFEST_TYPE, 'application/vnd.docker.distribution.manifest.v2+json'];
const INDEXES = [INDEX_TYPE, 'application/vnd.docker.distribution.manifest.list.v2+json'];
const CONFIGS = [CONFIG_TYPE, 'application/vnd.docker.container.image.v1+json'];
const LAYER =
  /^application\/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?|docker\.image\.rootfs\.(diff|foreign\.diff)\.tar(\.gzip|\.zstd)?)$/;

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hex digits');
const descriptor = z.object({
  mediaType: z.string().max(255).default(''),
  digest,
  size: z.int().nonnegative(),
});
export type Descriptor = z.infer<typeof descriptor>;

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().max(255).optional(),
  config: descriptor,
  layers: z.array(descriptor).max(LAYERS_MAX),
});
export type Manifest = z.infer<typeof manifestSchema>;

const platform = z.object({ architecture: z.string().max(64), os: z.string().max(64), variant: z.string().max(64).optional() });
const indexSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().max(255).optional(),
  manifests: z
    .array(descriptor.extend({ platform: platform.nullish(), annotations: z.record(z.string(), z.string()).optional() }))
    .max(1_024),
});
export type Index = z.infer<typeof indexSchema>;

const texts = z.array(z.string().max(131_072)).max(10_000).nullish();
const configSchema = z.object({
  architecture: z.string().max(64),
  os: z.string().max(64).default('linux'),
  created: z.string().max(64).nullish(),
  config: z
    .object({
      Env: texts,
      Entrypoint: texts,
      Cmd: texts,
      WorkingDir: z.string().max(4096).nullish(),
      User: z.string().max(256).nullish(),
      StopSignal: z.string().max(64).nullish(),
      ExposedPorts: z.record(z.string().max(64), z.unknown()).nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
  rootfs: z.object({ type: z.string().max(64).optional(), diff_ids: z.array(digest).max(LAYERS_MAX) }),
  history: z
    .array(
      z.object({
        created: z.string().max(64).nullish(),
        created_by: z.string().nullish(),
        comment: z.string().nullish(),
        empty_layer: z.boolean().nullish(),
      }),
    )
    .max(10_000)
    .nullish(),
});
export type OciConfig = z.infer<typeof configSchema>;

/** A manifest, or an index of them. @throws HutchError `failed_precondition` for all else. */
export function parseManifest(op: Operation, bytes: Buffer, mediaType: string, what: string): { manifest: Manifest } | { index: Index } {
  const json = parseJson(op, bytes, `the manifest of ${what}`);
  const own =
    typeof json === 'object' && json !== null && 'mediaType' in json && typeof json.mediaType === 'string' ? json.mediaType : null;
  if (own !== null && mediaType !== '' && own !== mediaType && isKnown(own) && isKnown(mediaType)) {
    throw bad(op, `the manifest of ${what} says that it is ${own}, and the registry that it is ${mediaType}`);
  }
  const schemaVersion = typeof json === 'object' && json !== null && 'schemaVersion' in json ? json.schemaVersion : null;
  if (schemaVersion === 1 || mediaType.includes('distribution.manifest.v1+')) {
    throw bad(
      op,
      `${what} is stored in the form "schema 1", which has not been made since 2017`,
      'push it again with a newer Docker, podman or skopeo',
    );
  }
  const type = own ?? (isKnown(mediaType) ? mediaType : null);
  const shape = typeof json === 'object' && json !== null ? json : {};
  if (type === null ? 'manifests' in shape : INDEXES.includes(type))
    return { index: checked(op, indexSchema, json, `the index of ${what}`) };
  if (type === null ? 'layers' in shape : MANIFESTS.includes(type)) {
    const manifest = checked(op, manifestSchema, json, `the manifest of ${what}`);
    checkKinds(op, manifest, what);
    return { manifest };
  }
  throw bad(op, `${what} is no image: its manifest is of the type ${(type ?? (mediaType || 'unknown')).slice(0, 100)}`);
}

function isKnown(mediaType: string): boolean {
  return MANIFESTS.includes(mediaType) || INDEXES.includes(mediaType);
}

function checkKinds(op: Operation, { config, layers }: Manifest, what: string): void {
  if (config.mediaType !== '' && !CONFIGS.includes(config.mediaType)) {
    throw bad(op, `${what} is no image of a file system: its configuration is of the type ${config.mediaType.slice(0, 100)}`);
  }
  const odd = layers.find(({ mediaType }) => mediaType !== '' && !LAYER.test(mediaType));
  if (odd !== undefined) throw bad(op, `${what} has a layer of the type ${odd.mediaType.slice(0, 100)}, which is no file system`);
}

export function runsHere({ os, architecture }: z.infer<typeof platform>): boolean {
  return os === 'linux' && architecture === 'amd64';
}

/** The one that runs here. */
export function ownPlatform(op: Operation, { manifests }: Pick<Index, 'manifests'>, what: string): Descriptor {
  const images = manifests.filter(({ platform: of }) => of?.os !== 'unknown'); // attestations say that of themselves
  const own =
    images.find(({ platform: of }) => of != null && runsHere(of)) ??
    (images.length === 1 && images[0]?.platform == null ? images[0] : undefined);
  if (own !== undefined) return own;
  const there = [...new Set(images.map(({ platform: of }) => (of == null ? 'unknown' : `${of.os}/${of.architecture}`)))].join(', ');
  throw bad(op, `${what} is not there for linux/amd64${there === '' ? '' : `; it is for ${there.slice(0, 300)}`}`);
}

export function parseConfig(op: Operation, bytes: Buffer, what: string): OciConfig {
  const config = checked(op, configSchema, parseJson(op, bytes, `the configuration of ${what}`), `the configuration of ${what}`);
  architectureOf(op, config, what);
  return config;
}

function architectureOf(op: Operation, config: OciConfig, what: string): Architecture {
  if (runsHere(config)) return 'x86_64';
  const { os, architecture } = config;
  throw bad(op, `${what} is for ${os} on ${architecture}, which does not run here`);
}

/** What a sandbox takes from it. */
export function runConfig(op: Operation, { config }: OciConfig, what: string): ImageConfig {
  const found = imageConfigOf(config ?? {});
  const tooLong = found.entrypoint.length + found.command.length > 4_096 || Object.keys(found.env).length > 1_000;
  if (tooLong) throw bad(op, `the configuration of ${what} has a command or an environment that is too long`);
  return found;
}

function parseJson(op: Operation, bytes: Buffer, what: string): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch (cause) {
    throw op.error('failed_precondition', `${what} is damaged: it is no JSON`, { cause });
  }
}

function checked<T>(op: Operation, schema: z.ZodType<T>, json: unknown, what: string): T {
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw bad(op, `${what} is damaged: ${issue?.path.join('.').slice(0, 100) || 'it'}: ${issue?.message.slice(0, 200)}`);
}

function bad(op: Operation, message: string, hint?: string): HutchError {
  return op.error('failed_precondition', message, hint === undefined ? {} : { hint });
}
