// Images in the Engine's store. One of Hutch's own is imported under its digest, unchanged; one from a
// registry is pulled by the Engine, with the login that the user's own Docker has for it.
import { join } from 'node:path';
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { type Architecture, imageConfigOf } from '../../domain/image.ts';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { FetchedImage, RootFiles } from '../backend.ts';
import { type DockerConfig, IMAGE_MS, LABEL, RELEASE_MS } from './config.ts';
import { registryAuth } from './credentials.ts';
import type { Engine } from './engine.ts';
import { lines } from './lines.ts';

const SCHEME = 'docker://';
const REFERENCE = /^[a-z0-9][a-z0-9._\-/:]*(@sha256:[0-9a-f]{64})?$/;

const texts = z.array(z.string()).nullish();
export const imageAnswer = z.object({
  Id: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  Architecture: z.string(),
  Os: z.string(),
  Size: z.number(),
  RepoDigests: texts,
  RootFS: z.object({ Layers: z.array(z.string()).nullish() }).nullish(),
  Config: z
    .object({
      Env: texts,
      Entrypoint: texts,
      Cmd: texts,
      WorkingDir: z.string().nullish(),
      User: z.string().nullish(),
      StopSignal: z.string().nullish(),
      ExposedPorts: z.record(z.string(), z.unknown()).nullish(),
      Labels: z.record(z.string(), z.string()).nullish(),
    })
    .nullish(),
});
export type ImageAnswer = z.infer<typeof imageAnswer>;

const progressLine = z.object({
  status: z.string().optional(),
  id: z.string().optional(),
  error: z.string().optional(),
  progressDetail: z.object({ current: z.number().optional(), total: z.number().optional() }).optional(),
});

/** The name under which an image of ours lies in the Engine. */
export function ownImageName(digest: string): string {
  return `hutch/img:${digest.replace(/^sha256:/, '')}`;
}

/** Null where the Engine has no such image. */
export async function findImage(op: Operation, engine: Engine, name: string): Promise<ImageAnswer | null> {
  try {
    return await engine.json(op, imageAnswer, { method: 'GET', path: `/images/${name}/json` });
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return null;
    throw error;
  }
}

/** The Engine has the image when this returns; its name there. */
export async function importImage(op: Operation, config: DockerConfig, engine: Engine, root: RootFiles): Promise<string> {
  const name = ownImageName(root.imageDigest);
  const there = await findImage(op, engine, name);
  if (there !== null) {
    if (there.Config?.Labels?.[LABEL.image] === root.imageDigest) return name;
    throw op.error('failed_precondition', `the Docker Engine has an image ${name} that Hutch has not made`, {
      hint: `remove it, and it is made anew: docker rmi ${name}`,
    });
  }
  const { host } = config;
  op.progress({ step: 'load', detail: 'the image, into the Docker Engine (once)' });
  const tar = join(config.workDir, `image-${op.id}.tar`);
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await host.remove(late, tar).catch((cause: unknown) => op.log.warn({ tar, cause }, 'an unpacked image was left behind'));
  });
  await unpack(op, host, root.imagePath, tar);
  using limited = op.within(IMAGE_MS, 'importing the image into the Docker Engine');
  const answer = await engine.stream(limited, {
    method: 'POST',
    path: '/images/create',
    query: {
      fromSrc: '-',
      repo: 'hutch/img',
      tag: root.imageDigest.replace(/^sha256:/, ''),
      changes: `LABEL ${LABEL.image}=${root.imageDigest} ${LABEL.importer}=${config.instance}`,
      message: 'a root file system of Hutch',
    },
    content: { type: 'application/x-tar', chunks: host.readStream(limited, tar) },
  });
  await follow(limited, answer, 'load', (cause) =>
    limited.error('internal', `the Docker Engine does not take the image: ${cause.message}`, { cause }),
  );
  return name;
}

async function unpack(op: Operation, host: Host, imagePath: string, tar: string): Promise<void> {
  if ((await host.which(op, 'sqfs2tar')) === null) {
    throw op.error('failed_precondition', 'sqfs2tar is not installed', { hint: 'install it: apt-get install squashfs-tools-ng' });
  }
  // The shell only opens the output; all names are arguments of its own, never part of the command.
  const { exitCode, stderr } = await host.run(op, ['sh', '-c', 'exec sqfs2tar "$0" > "$1"', imagePath, tar]);
  if (exitCode === 0) return;
  throw op.error('internal', `the image cannot be unpacked: ${new TextDecoder().decode(stderr).trim().slice(0, 300)}`);
}

/** Pulls `docker://REF`. @throws HutchError `invalid_argument`, `not_found`, `permission_denied`. */
export async function pullImage(
  op: Operation,
  config: Pick<DockerConfig, 'host' | 'env'>,
  engine: Engine,
  reference: string,
): Promise<FetchedImage> {
  const name = nameOf(op, reference);
  using limited = op.within(IMAGE_MS, `pulling ${name}`);
  const existing = await findImage(limited, engine, name);
  if (existing === null) {
    const auth = await registryAuth(limited, config.host, config.env, name);
    const [repository, tag] = splitName(name);
    const answer = await engine
      .stream(limited, {
        method: 'POST',
        path: '/images/create',
        query: { fromImage: repository, tag },
        headers: auth === null ? {} : { 'X-Registry-Auth': auth },
      })
      .catch((cause: unknown) => {
        throw cannotPull(op, name, cause);
      });
    await follow(limited, answer, 'pull', (cause) => cannotPull(limited, name, cause));
  }
  const image = existing ?? (await findImage(limited, engine, name));
  if (image === null) throw op.error('not_found', `the Docker Engine pulled ${name}, and does not have it`);
  return fetchedImage(op, name, image);
}

export function fetchedImage(op: Operation, name: string, image: ImageAnswer): FetchedImage {
  const architecture = ({ amd64: 'x86_64', arm64: 'aarch64' } as const satisfies Record<string, Architecture>)[image.Architecture];
  if (image.Os !== 'linux' || architecture === undefined) {
    throw op.error('failed_precondition', `${name} is for ${image.Os} on ${image.Architecture}, which sandboxes cannot run`);
  }
  return {
    digest: image.Id,
    architecture,
    sizeBytes: image.Size,
    config: imageConfigOf(image.Config ?? {}),
    detail: {
      engine: 'docker',
      repoDigests: image.RepoDigests ?? [],
    },
  };
}

function nameOf(op: Operation, reference: string): string {
  const name = reference.startsWith(SCHEME) ? reference.slice(SCHEME.length) : '';
  if (!REFERENCE.test(name)) {
    throw op.error(
      'invalid_argument',
      `image must be like ${SCHEME}alpine:3 or ${SCHEME}ghcr.io/owner/name@sha256:…; it is '${reference.slice(0, 200)}'`,
    );
  }
  return name.includes('@') || /:[^/]*$/.test(name) ? name : `${name}:latest`;
}

/** Repository, and tag or digest. */
function splitName(name: string): [repository: string, tag: string] {
  const at = name.indexOf('@');
  const cut = at >= 0 ? at : name.lastIndexOf(':');
  return [name.slice(0, cut), name.slice(cut + 1)];
}

/** Reads the Engine's report line by line; the last word on a failure is in it, not in the status. */
export async function follow(
  op: Operation,
  answer: AsyncIterable<Uint8Array>,
  step: 'pull' | 'load',
  failed: (cause: HutchError) => unknown,
): Promise<void> {
  for await (const line of lines(op, answer)) {
    const parsed = progressLine.safeParse(JSON.parse(line));
    if (!parsed.success) continue;
    const { status, id, error, progressDetail } = parsed.data;
    if (error !== undefined) throw failed(op.error('internal', error.replaceAll(/[^\x20-\x7e]+/g, ' ').slice(0, 500)));
    if (status === undefined) continue;
    op.progress({
      step,
      detail: [id, status]
        .filter((part) => part !== undefined)
        .join(' ')
        .slice(0, 200),
      ...(progressDetail?.current === undefined ? {} : { done: progressDetail.current, unit: 'bytes' as const }),
      ...(progressDetail?.total === undefined ? {} : { total: progressDetail.total }),
    });
  }
}

function cannotPull(op: Operation, name: string, cause: unknown): unknown {
  if (!(cause instanceof HutchError) || cause.code === 'unavailable' || cause.code === 'cancelled') return cause;
  const { message } = cause;
  if (/unauthorized|authentication required|no basic auth credentials|denied/i.test(message)) {
    return op.error('permission_denied', `the registry does not give out ${name}: ${message}`, {
      hint: 'log in with: docker login',
      cause,
    });
  }
  if (/verification failed for digest|unexpected commit digest|digest mismatch|content digest .* not match/i.test(message)) {
    return op.error('failed_precondition', `what the registry gives for ${name} is not what its digest says: ${message}`, {
      hint: 'nothing of it was kept; ask whoever runs the registry, or what lies between it and the Docker Engine (a mirror, a proxy)',
      cause,
    });
  }
  // Before what follows: "no such host" says nothing of the image.
  if (/dial tcp|no such host|i\/o timeout|handshake|connection (refused|reset)/i.test(message))
    return op.error('unavailable', `the Docker Engine does not reach the registry of ${name}: ${message}`, {
      hint: 'it pulls by itself: its network, its DNS and its proxy count, not ours',
      cause,
    });
  if (/not found|manifest unknown|no such/i.test(message)) return op.error('not_found', `${name} is in no registry: ${message}`, { cause });
  return op.error('unavailable', `${name} could not be had: ${message}`, { cause });
}
