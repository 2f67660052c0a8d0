// ADD of a URL: one file, with the mode and time that BuildKit gives it. What must be is checked against its digest before a step reads it.
import { createHash } from 'node:crypto';
import { HutchError } from '../domain/errors.ts';
import { padding } from '../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../domain/tar/header.ts';
import type { Operation } from '../host/operation.ts';
import type { Of } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import type { LayerSource } from '../images/build/flatten.ts';
import { Tree } from '../images/layers/tree.ts';
import type { StageNow } from './build-stage-now.ts';

export const URL_SOURCE = /^https?:\/\//;
const FETCHED_BYTES_MAX = 8 * 1024 ** 3;
const MODE = 0o600;

/** What the file is called: the last part of the URL's path. @throws DockerfileError where there is none. */
export function nameInUrl(step: Of<'ADD'>, text: string): string {
  const url = URL.parse(text);
  const name = decodeURIComponent(url?.pathname.split('/').at(-1) ?? '');
  if (url !== null && /^[^/\0]{1,255}$/.test(name) && name !== '.' && name !== '..') return name;
  throw new DockerfileError(step.line, 'ADD', `${text.slice(0, 120)} does not say what the file is called: its path ends without a name`);
}

export async function fetchedFile(op: Operation, now: StageNow, step: Of<'ADD'>, text: string, checksum: string | null) {
  const { core, staging } = now.parts.sandbox;
  const { host, images, settings } = core.deps;
  const url = new URL(text);
  op.progress({ step: 'build', detail: `fetching ${url.host}` });
  if (images === null) throw op.error('failed_precondition', 'this daemon keeps no images');
  if (settings.network === 'none')
    throw op.error('permission_denied', `${now.where(step)}: sandboxes have no network here (sandbox.network), and builds fetch nothing`);
  const hash = createHash('sha256');
  try {
    using answer = await images.registry.fetchFile(op, url, { lan: settings.network === 'allow-lan' });
    let bytes = 0;
    async function* counted(): AsyncGenerator<Uint8Array> {
      for await (const chunk of answer.body) {
        bytes += chunk.byteLength;
        if (bytes > FETCHED_BYTES_MAX) throw op.error('resource_exhausted', `it has more than ${FETCHED_BYTES_MAX} bytes`);
        hash.update(chunk);
        yield chunk;
      }
    }
    const file = await staging.file(op, `fetched-${Buffer.from(host.randomBytes(8)).toString('hex')}`);
    await host.appendStream(op, file, counted());
    const modifiedMs = Date.parse(answer.headers['last-modified'] ?? '');
    const digest = hash.digest('hex');
    if (checksum !== null && checksum !== `sha256:${digest}`)
      throw op.error('failed_precondition', `it is not what --checksum says: its digest is sha256:${digest}`);
    return asSource(op, now, { file, name: nameInUrl(step, text), digest, bytes, modifiedMs });
  } catch (error) {
    if (!(error instanceof HutchError) || op.signal.aborted) throw error;
    throw op.error(error.code, `${now.where(step)}: ${url.href.slice(0, 200)} cannot be fetched: ${error.message}`, { cause: error });
  }
}

type Fetched = {
  readonly file: string;
  readonly name: string;
  readonly digest: string;
  readonly bytes: number;
  readonly modifiedMs: number;
};

/** A tree of that file alone. */
function asSource(op: Operation, now: StageNow, { file, name, digest, bytes, modifiedMs }: Fetched) {
  const { host } = now.parts.sandbox.core.deps;
  const entry = {
    ...{
      type: 'file' as const,
      path: name,
      link: '',
      mode: MODE,
      sparse: null,
      uid: 0,
      gid: 0,
      sizeBytes: bytes,
      devMajor: 0,
      devMinor: 0,
      xattrs: null,
    },
    mtimeSeconds: Number.isNaN(modifiedMs) ? 0 : Math.floor(modifiedMs / 1_000),
  } as const;
  const tree = new Tree();
  tree.apply(0, 0, entry);
  const layer: LayerSource = async function* () {
    yield tarHeader(entry);
    if (bytes > 0) yield* host.readStream(op, file);
    yield Buffer.concat([Buffer.alloc(padding(bytes)), TAR_END]);
  };
  return { tree, layers: [layer], hashes: new Map([[0, digest]]) };
}
