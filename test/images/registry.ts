// A registry in this process, for what a real one does not do: whatever a test wants is its answer.
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { digestOf, type MadeImage, TYPES } from './archives.ts';

export type Answer = (request: IncomingMessage, response: ServerResponse) => boolean | undefined;

export type FakeRegistry = AsyncDisposable & {
  /** `127.0.0.1:PORT`. */
  readonly name: string;
  /** Paths that were asked for, with their method. */
  readonly asked: string[];
  /** Authorization of each, by path. */
  readonly secrets: { path: string; authorization: string | undefined }[];
  put(repository: string, tag: string, image: MadeImage): string;
  putManifest(repository: string, tag: string, manifest: Buffer, mediaType?: string): string;
  /** Asked first; true when it has answered. */
  answer: Answer | null;
};

export async function fakeRegistry(): Promise<FakeRegistry> {
  const blobs = new Map<string, Buffer>();
  const manifests = new Map<string, { bytes: Buffer; mediaType: string }>();
  const asked: string[] = [];
  const secrets: FakeRegistry['secrets'] = [];
  const server = createServer((request, response) => {
    const path = request.url ?? '';
    asked.push(`${request.method} ${path}`);
    secrets.push({ path, authorization: request.headers.authorization });
    if (registry.answer?.(request, response) === true) return;
    if (path === '/v2/') return void response.end('{}');
    const [, kind = '', name = ''] = /^\/v2\/.+\/(manifests|blobs)\/([^/]+)$/.exec(path) ?? [];
    const repository = path.slice('/v2/'.length, path.indexOf(`/${kind}/`));
    const manifest = manifests.get(`${repository} ${name}`);
    if (kind === 'manifests' && manifest !== undefined) {
      return void response.writeHead(200, { 'Content-Type': manifest.mediaType }).end(manifest.bytes);
    }
    const blob = blobs.get(name);
    if (kind === 'blobs' && blob !== undefined) {
      const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
      if (from > 0) response.writeHead(206, { 'Content-Range': `bytes ${from}-${blob.byteLength - 1}/${blob.byteLength}` });
      return void response.end(blob.subarray(from));
    }
    response.writeHead(404).end(JSON.stringify({ errors: [{ code: 'MANIFEST_UNKNOWN', message: 'manifest unknown' }] }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const registry: FakeRegistry = {
    name: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    secrets,
    answer: null,
    put(repository, tag, image) {
      for (const [digest, bytes] of image.blobs) blobs.set(digest, bytes);
      return this.putManifest(repository, tag, image.manifest);
    },
    putManifest(repository, tag, bytes, mediaType = TYPES.manifest) {
      const digest = digestOf(bytes);
      for (const name of [tag, digest]) manifests.set(`${repository} ${name}`, { bytes, mediaType });
      return digest;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return registry;
}
