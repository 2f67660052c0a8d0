// A place for images of its own, without a daemon; and what is in the file system of one.
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { requireImageReference } from '../../src/domain/image-reference.ts';
import type { TarEntry } from '../../src/domain/tar/entry.ts';
import { TarReader } from '../../src/domain/tar/reader.ts';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Operation } from '../../src/host/operation.ts';
import { BUILD_LIMITS, type BuildLimits } from '../../src/images/build.ts';
import type { PreparedImage } from '../../src/images/image.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { ImageLibrary } from '../../src/images/library.ts';
import { type Mirror, Registry } from '../../src/images/registry/client.ts';
import { Credentials } from '../../src/images/registry/credentials.ts';
import type { Patience } from '../../src/images/registry/patience.ts';
import { type ImagePolicy, NO_POLICY } from '../../src/images/trust/policy.ts';
import { testOperation } from '../support/operation.ts';

export type Place = AsyncDisposable & {
  readonly dir: string;
  readonly host: Host;
  readonly library: ImageLibrary;
  pull(name: string, op?: Operation): Promise<PreparedImage>;
  /** What lies in staging, and the images and blobs that are there. */
  left(): Promise<{ staging: string[]; images: string[]; blobs: string[] }>;
};

export type PlaceOptions = {
  readonly limits?: Partial<BuildLimits>;
  readonly patience?: Partial<Patience>;
  readonly host?: (host: Host) => Host;
  readonly caPath?: string;
  readonly caPaths?: ReadonlyMap<string, string>;
  readonly mirrors?: readonly Mirror[];
  readonly insecure?: readonly string[];
  readonly policy?: Partial<ImagePolicy>;
  /** Where credential helpers are. */
  readonly programs?: string;
  /** One that is there already, and stays. */
  readonly dir?: string;
};

/** Waits for nothing longer than a test should take. */
const PATIENCE: Patience = { idleMs: 10_000, tries: 3, pauseMs: 1, retryAfterMsMax: 1_000, slowMs: 60_000, slowBytes: 1 };

export async function place({
  limits = {},
  patience = {},
  host: wrap = (host) => host,
  caPath,
  caPaths,
  mirrors = [],
  insecure = [],
  policy = {},
  programs,
  dir: shared,
}: PlaceOptions = {}): Promise<Place> {
  const dir = shared ?? (await mkdtemp(join(tmpdir(), 'hutch-images-')));
  const host = wrap(nodeHost());
  const credentials = new Credentials(host, { HOME: dir, ...(programs === undefined ? {} : { PATH: programs }) });
  const registry = new Registry({
    host,
    credentials,
    insecure,
    caPath: caPath ?? null,
    ...(caPaths === undefined ? {} : { caPaths }),
    mirrors,
    proxy: {},
    patience: { ...PATIENCE, ...patience },
  });
  const paths = imagePaths(join(dir, 'data'));
  const library = new ImageLibrary({
    host,
    paths,
    registry,
    credentials,
    limits: { ...BUILD_LIMITS, ...limits },
    policyOf: async () => ({ ...NO_POLICY, ...policy }),
  });
  const names = async (path: string) => await readdir(path).catch(() => []);
  return {
    dir,
    host,
    library,
    pull: async (name, op = testOperation()) => await library.pull(op, requireImageReference(name)),
    left: async () => ({
      staging: (await names(paths.staging)).filter((name) => !name.endsWith('.lock')),
      images: await names(paths.images),
      blobs: await names(paths.blobs),
    }),
    async [Symbol.asyncDispose]() {
      if (shared === undefined) await rm(dir, { recursive: true, force: true });
    },
  };
}

export type Seen = Omit<TarEntry, 'path' | 'sparse'> & { readonly content: Buffer };

/** Everything in an image's file system, by path, as sqfs2tar tells it. */
export async function treeOf(image: Pick<PreparedImage, 'path'>): Promise<ReadonlyMap<string, Seen>> {
  const { stdout, exitCode, stderr } = await nodeHost().run(testOperation(), ['sqfs2tar', image.path], {
    outputBytesMax: 256 * 1024 * 1024,
  });
  if (exitCode !== 0) throw new Error(Buffer.from(stderr).toString());
  return await readTree(stdout);
}

export async function readTree(tar: Uint8Array): Promise<ReadonlyMap<string, Seen>> {
  await using reader = new TarReader(
    (async function* () {
      yield tar;
    })(),
  );
  const found = new Map<string, Seen>();
  for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
    const { path, sparse: _sparse, ...rest } = entry;
    const chunks: Buffer[] = [];
    for await (const chunk of reader.content()) chunks.push(Buffer.from(chunk));
    found.set(path.replace(/^\.?\/+/, '').replace(/\/$/, ''), { ...rest, content: Buffer.concat(chunks) });
  }
  return found;
}
