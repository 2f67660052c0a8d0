// Puts artifacts into a registry: blobs first, each once, and what names them last, so that nobody ever
// finds a manifest whose parts are missing. Whatever a manifest lists can be pushed: images, and later more.
import { createHash } from 'node:crypto';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import { nameOf, type Repository, readAll } from './answers.ts';
import type { Connection } from './connection.ts';
import { type Patience, retrying } from './patience.ts';

const ANSWER_BYTES_MAX = 64 * 1024;
const BLOBS_AT_ONCE = 3;
const ABANDON_MS = 5_000;

export type BlobToPush = {
  readonly digest: string;
  readonly sizeBytes: number;
  /** Its bytes from there on. */
  readonly open: (offset: number) => AsyncIterable<Uint8Array>;
  /** Repositories of the same registry that may have it. */
  readonly mayBeIn?: readonly string[];
};
export type ArtifactToPush = {
  readonly manifest: Buffer;
  readonly mediaType: string;
  /** All that the manifest lists. */
  readonly blobs: readonly BlobToPush[];
};

/** How a blob came to be there. */
export type Pushed = 'existed' | 'mounted' | 'uploaded';
export type PushResult = { readonly digest: string; readonly blobs: readonly { readonly digest: string; readonly how: Pushed }[] };
export type OnBytes = (blob: number, total: number) => void;

export type UploadParts = { readonly connection: Connection; readonly patience: Patience };

/** `name`: a tag or a digest. @throws HutchError `permission_denied`, `unavailable`, `failed_precondition`. */
export async function pushArtifact(
  op: Operation,
  parts: UploadParts,
  repository: Repository,
  name: string,
  { manifest, mediaType, blobs }: ArtifactToPush,
  onBytes: OnBytes = () => {},
): Promise<PushResult> {
  const how = new Map<string, Pushed>();
  const waiting = [...new Map(blobs.map((blob, at) => [blob.digest, { blob, at }])).values()];
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const { blob, at } = next;
      how.set(blob.digest, await pushBlob(op, parts, repository, blob, (total) => onBytes(at, total)));
    }
  };
  // All end before this one does: what they read may go then.
  const ended = await Promise.allSettled(Array.from({ length: BLOBS_AT_ONCE }, work));
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
  const digest = await putManifest(op, parts, repository, name, manifest, mediaType);
  return { digest, blobs: blobs.map((blob) => ({ digest: blob.digest, how: how.get(blob.digest) ?? 'existed' })) };
}

async function pushBlob(
  op: Operation,
  parts: UploadParts,
  repository: Repository,
  blob: BlobToPush,
  onBytes: (total: number) => void,
): Promise<Pushed> {
  /** One that broke off, to be gone on with. */
  const upload: { at: URL | null } = { at: null };
  try {
    return await retrying(op, parts.patience, `${nameOf(repository)} ${blob.digest}`, async () => {
      const goesOn = upload.at === null ? null : await resumed(op, parts, repository, upload.at, blob.sizeBytes);
      upload.at = goesOn?.at ?? null;
      if (upload.at === null) {
        if (await isThere(op, parts, repository, blob)) return 'existed';
        const begun = await begin(op, parts, repository, blob);
        if (begun === 'mounted') return 'mounted';
        upload.at = begun;
      }
      await send(op, parts, repository, blob, upload, goesOn?.offset ?? 0, onBytes);
      upload.at = null;
      return 'uploaded';
    });
  } finally {
    if (upload.at !== null) await abandon(op, parts, repository, upload.at);
  }
}

async function isThere(op: Operation, { connection }: UploadParts, repository: Repository, { digest }: BlobToPush): Promise<boolean> {
  try {
    using _answer = await connection.send(op, repository, { method: 'HEAD', path: `blobs/${digest}`, asked: 'write' });
    return true;
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return false;
    throw error;
  }
}

/** Where to upload it; not at all where the registry takes it from another repository of its own. */
async function begin(op: Operation, parts: UploadParts, repository: Repository, blob: BlobToPush): Promise<URL | 'mounted'> {
  const { connection } = parts;
  for (const from of blob.mayBeIn ?? []) {
    const query = new URLSearchParams({ mount: blob.digest, from });
    const question = { method: 'POST', path: `blobs/uploads/?${query}`, body: '', asked: 'write', from } as const;
    try {
      using answer = await connection.send(op, repository, question);
      if (answer.status === 201) return 'mounted';
      const begun = await locationOf(op, connection, repository, answer.headers);
      if (from === blob.mayBeIn?.at(-1)) return begun;
      await abandon(op, parts, repository, begun);
    } catch (error) {
      // Perhaps we may not read there; then it is uploaded.
      if (!(error instanceof HutchError) || !['permission_denied', 'not_found', 'failed_precondition'].includes(error.code)) throw error;
    }
  }
  using answer = await connection.send(op, repository, { method: 'POST', path: 'blobs/uploads/', body: '', asked: 'write' });
  return await locationOf(op, connection, repository, answer.headers);
}

/** How far it came; null when it is gone, or the registry does not say. */
async function resumed(
  op: Operation,
  { connection }: UploadParts,
  repository: Repository,
  at: URL,
  sizeBytes: number,
): Promise<{ readonly at: URL; readonly offset: number } | null> {
  try {
    using answer = await connection.send(op, repository, { path: at, asked: 'write' });
    const end = /^(?:bytes=)?0-(\d{1,15})$/.exec(answer.headers['range'] ?? '')?.[1];
    const offset = end === undefined ? 0 : Number(end) + 1;
    if (answer.status !== 204 || offset <= 1 || offset > sizeBytes) return null;
    return { at: await locationOf(op, connection, repository, answer.headers), offset };
  } catch (error) {
    if (error instanceof HutchError && error.code !== 'unavailable' && !op.signal.aborted) return null;
    throw error;
  }
}

/** In one piece, as every registry takes it, and then by its digest; `upload` moves on as the registry says. */
async function send(
  op: Operation,
  { connection }: UploadParts,
  repository: Repository,
  blob: BlobToPush,
  upload: { at: URL | null },
  offset: number,
  onBytes: (total: number) => void,
): Promise<void> {
  const { at } = upload;
  if (at === null) return;
  const last = blob.sizeBytes - 1;
  try {
    if (blob.sizeBytes > offset) {
      using answer = await connection.send(op, repository, {
        method: 'PATCH',
        path: at,
        headers: {
          'Content-Type': 'application/octet-stream',
          ...(offset === 0 ? {} : { 'Content-Range': `${offset}-${last}` }),
        },
        body: () => ({ sizeBytes: blob.sizeBytes - offset, chunks: checked(op, repository, blob, offset, onBytes) }),
        asked: 'write',
      });
      upload.at = await locationOf(op, connection, repository, answer.headers);
    }
    const done = new URL(upload.at ?? at);
    done.searchParams.set('digest', blob.digest);
    using answer = await connection.send(op, repository, { method: 'PUT', path: done, body: '', asked: 'write' });
    await readAll(op, answer, ANSWER_BYTES_MAX, 'the answer to an upload');
  } catch (error) {
    if (offset === 0 || !(error instanceof HutchError) || !['not_found', 'failed_precondition'].includes(error.code)) throw error;
    // It said how far it was, and then would not go on: from the beginning.
    upload.at = null;
    throw op.error('unavailable', error.message, { cause: error });
  }
}

/** What is on disk may have changed since it came here: the registry must not be the first who notices. */
async function* checked(
  op: Operation,
  repository: Repository,
  { digest, sizeBytes, open }: BlobToPush,
  offset: number,
  onBytes: (total: number) => void,
): AsyncGenerator<Uint8Array> {
  const hash = offset === 0 ? createHash('sha256') : null;
  let total = offset;
  for await (const chunk of open(offset)) {
    hash?.update(chunk);
    total += chunk.byteLength;
    if (total > sizeBytes) break;
    if (total === sizeBytes && hash !== null && `sha256:${hash.digest('hex')}` !== digest) break;
    yield chunk;
    onBytes(total);
    if (total === sizeBytes) return;
  }
  throw op.error('failed_precondition', `${nameOf(repository)} ${digest} is not what it should be: it has changed on disk`);
}

async function putManifest(
  op: Operation,
  { connection, patience }: UploadParts,
  repository: Repository,
  name: string,
  manifest: Buffer,
  mediaType: string,
): Promise<string> {
  const digest = `sha256:${createHash('sha256').update(manifest).digest('hex')}`;
  const what = `${nameOf(repository)} ${name}`;
  return await retrying(op, patience, what, async () => {
    using answer = await connection.send(op, repository, {
      method: 'PUT',
      path: `manifests/${name}`,
      headers: { 'Content-Type': mediaType },
      body: manifest,
      asked: 'write',
    });
    const said = answer.headers['docker-content-digest'];
    if (said === undefined || said === digest) return digest;
    throw op.error('failed_precondition', `${repository.registry} keeps ${what} as ${said.slice(0, 100)}, and not as what was pushed`);
  });
}

/** Best effort: a registry removes what nobody goes on with. */
async function abandon(op: Operation, { connection }: UploadParts, repository: Repository, at: URL): Promise<void> {
  using late = op.releasing(ABANDON_MS);
  try {
    using _answer = await connection.send(late, repository, { method: 'DELETE', path: at, asked: 'write' });
  } catch {} // it is the registry's to clear up
}

async function locationOf(
  op: Operation,
  connection: Connection,
  repository: Repository,
  { location }: Readonly<Record<string, string>>,
): Promise<URL> {
  if (location !== undefined) return await connection.located(op, repository, location);
  throw op.error('failed_precondition', `${repository.registry} does not say where to upload`);
}
