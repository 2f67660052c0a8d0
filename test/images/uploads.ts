// The side of a registry that takes uploads, for what Debian's own does not do.
import { digestOf } from './archives.ts';
import type { FakeRegistry } from './registry.ts';

type Upload = { bytes: Buffer };
export type Uploads = {
  readonly blobs: Map<string, Buffer>;
  readonly open: Map<string, Upload>;
  readonly manifests: Map<string, string>;
  readonly cancelled: string[];
};

/** Makes the registry take uploads; `at` is where it says that they go. `breaks`: so many bytes of a PATCH, then the connection ends. */
export function takesUploads(registry: FakeRegistry, at = `http://${registry.name}`, breaks: number[] = []): Uploads {
  const uploads: Uploads = { blobs: new Map(), open: new Map(), manifests: new Map(), cancelled: [] };
  registry.answer = (request, response) => {
    const url = new URL(request.url ?? '', at);
    const id = /\/uploads\/(\w+)$/.exec(url.pathname)?.[1] ?? '';
    const upload = uploads.open.get(id);
    const said = () => ({
      Location: `${at}${url.pathname}?state=${upload?.bytes.byteLength}`,
      Range: `0-${(upload?.bytes.byteLength ?? 0) - 1}`,
    });
    if (request.method === 'HEAD') response.writeHead(uploads.blobs.has(url.pathname.split('/').at(-1) ?? '') ? 200 : 404).end();
    else if (request.method === 'POST') {
      const made = `u${uploads.open.size + 1}`;
      uploads.open.set(made, { bytes: Buffer.alloc(0) });
      response.writeHead(202, { Location: `${at}${url.pathname}${made}` }).end();
    } else if (request.method === 'DELETE') {
      uploads.cancelled.push(id);
      response.writeHead(204).end();
    } else if (upload !== undefined && request.method === 'GET') response.writeHead(204, said()).end();
    else if (upload !== undefined && request.method === 'PATCH') {
      const begin = /^(\d+)-/.exec(request.headers['content-range'] ?? '0-')?.[1];
      if (Number(begin) !== upload.bytes.byteLength) {
        response.writeHead(416).end();
        return true;
      }
      const isLarge = Number(request.headers['content-length']) > 100_000;
      const limit = (isLarge ? breaks.shift() : undefined) ?? Number.POSITIVE_INFINITY;
      let taken = 0;
      request.on('data', (chunk: Buffer) => {
        upload.bytes = Buffer.concat([upload.bytes, chunk]);
        taken += chunk.byteLength;
        if (taken >= limit) response.destroy();
      });
      request.on('end', () => response.writeHead(202, said()).end());
    } else if (upload !== undefined && request.method === 'PUT') {
      const digest = url.searchParams.get('digest') ?? '';
      if (digestOf(upload.bytes) !== digest) {
        response.writeHead(400).end('{"errors":[{"code":"DIGEST_INVALID"}]}');
        return true;
      }
      uploads.blobs.set(digest, upload.bytes);
      response.writeHead(201).end();
    } else if (request.method === 'PUT') {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        // What it names is there, or it is refused.
        const listed = Buffer.concat(chunks).toString();
        const all = [...listed.matchAll(/sha256:[0-9a-f]{64}/g)].every(([digest]) => uploads.blobs.has(digest));
        uploads.manifests.set(url.pathname.split('/').at(-1) ?? '', listed);
        response.writeHead(all ? 201 : 404).end();
      });
    } else return false;
    return true;
  };
  return uploads;
}
