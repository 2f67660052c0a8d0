// Images as a user sees them: names and users are the store's, files the library's. A name is changed in
// one commit; an image is taken out of the record before its files go, so that what is on record is there.
import { HutchError } from '../domain/errors.ts';
import type { ImageId } from '../domain/ids.ts';
import { ENGINE_REFERENCE, type NamedImage, REGISTERED } from '../domain/image.ts';
import { HUB, type ImageReference, parseImageReference, requireImageReference, shownReference } from '../domain/image-reference.ts';
import { requireReference, resolveDigest } from '../domain/reference.ts';
import { letGoOfUsed } from '../host/large-buffers.ts';
import type { Operation } from '../host/operation.ts';
import { DEFAULT_IMAGE } from '../images/default-image.ts';
import type { PreparedImage } from '../images/image.ts';
import type { ImageLibrary } from '../images/library.ts';
import type { Store } from '../store/contract.ts';
import { BEGINNING } from './build-beginning.ts';
import { type BuildCacheKeeping, lostItsName, surplusOf, unusedSince } from './build-cache.ts';
import type { Call } from './call.ts';
import { dropCommitted } from './committed.ts';
import type { Core } from './core.ts';
import { begunDownload } from './download.ts';
import type { Download, Handlers } from './handlers.ts';
import { preparedKernel } from './kernels.ts';
import { isOperator, requireOperator, requireOwnImage, requireOwnNames } from './operator.ts';
import { imageView, userText } from './present.ts';
import type { Output } from './verbs.ts';

/** Each that has it not costs a question. */
const MOUNTS_TRIED_MAX = 4;
/** The daemon has one of a registry, for all projects. */
const LOGINS = 'logins of registries are kept and forgotten';

/** Why what backends have of an image goes. */
const IS_NO_MORE = 'its image is no more';

/** But for the one that is about a sandbox (commit.ts), and those about files of this machine (registered.ts). */
type ImageVerbs = Exclude<Extract<keyof Handlers, `image.${string}`>, 'image.commit' | 'image.register' | 'image.promote'>;

export function imageVerbs(core: Core, buildCache: BuildCacheKeeping): Pick<Handlers, ImageVerbs> {
  const { store, host } = core.deps;

  const library = (op: Operation): ImageLibrary => imageLibrary(core, op);
  const find = (text: string) => findImage(store, text);
  const users = () => imageUsers(store);

  /** By layer, the other repositories of a registry whose images, as they are called here, have it. */
  async function repositoriesIn(op: Operation, { registry, repository }: ImageReference): Promise<ReadonlyMap<string, readonly string[]>> {
    const found = new Map<string, string[]>();
    for (const { digest, names } of await store.query('images', {})) {
      const references = names.map(parseImageReference).filter((name) => name !== null);
      const theirs = references.flatMap((name) => (name.registry === registry && name.repository !== repository ? [name.repository] : []));
      if (theirs.length === 0) continue;
      for (const layer of await library(op).layers(op, digest)) {
        found.set(layer.digest, [...new Set([...(found.get(layer.digest) ?? []), ...theirs])].slice(0, MOUNTS_TRIED_MAX));
      }
    }
    return found;
  }

  async function shown(image: NamedImage) {
    return imageView(image, (await users()).get(image.id) ?? []);
  }

  /** Out of the record, then off the disk. @throws HutchError `failed_precondition` with its users. */
  async function drop(op: Operation, image: NamedImage): Promise<void> {
    const off = async (): Promise<void> => {
      await store.commit(op, [{ change: 'removeImage', id: image.id }]);
      core.presenter.forgetImages();
    };
    if (core.deps.images === null) await off();
    else await core.deps.images.unrecord(op, image.digest, off);
    await dropCommitted(core, op, image);
    await core.warm.imageGone(image.id);
  }

  /** Without a name, a user and a lease. */
  async function unused(): Promise<readonly NamedImage[]> {
    const using = await users();
    const leased = new Set((await store.query('leases', { atMs: host.nowMs() })).map(({ assetId }) => assetId));
    return (await store.query('images', {})).filter(({ id, names }) => names.length === 0 && !using.has(id) && !leased.has(id));
  }

  async function staleImages(op: Operation): Promise<readonly (NamedImage & { readonly why: string })[]> {
    const [named, beginnings]: [NamedImage[], NamedImage[]] = [[], []];
    for (const image of await unused()) {
      const made = await library(op).open(op, image.digest);
      if (lostItsName(made)) (made?.record.name === BEGINNING ? beginnings : named).push(image);
    }
    const uses = await store.query('assetUses', {});
    const beforeMs = host.nowMs() - core.deps.settings.retention.cacheMs;
    const surplus = surplusOf(beginnings, uses, host.nowMs());
    const began = beginnings.filter((image) => !surplus.includes(image));
    const because = (why: string) => (image: NamedImage) => ({ ...image, why });
    return [
      ...unusedSince(named, uses, beforeMs).map(because('a newer image took its name, and nothing has used it for retention.cache')),
      ...unusedSince(began, uses, beforeMs).map(because('builds began with it, and nothing has used it for retention.cache')),
      ...surplus.map(because('builds began with it, and with others since')),
    ];
  }

  /** Digests of the root file systems of images; every sandbox that is not deleted, and every one that is being made, keeps its image. */
  async function rootsKept(op: Operation, but: ReadonlySet<ImageId>): Promise<{ has(digest: string): boolean }> {
    const kept = new Set<string>();
    for (const { id, digest, detail } of await store.query('images', {})) {
      if (but.has(id) || ENGINE_REFERENCE in detail) continue;
      const image = await library(op).open(op, digest);
      if (image === null) return { has: () => true }; // damaged: what sandboxes of it stand on is not known
      kept.add(image.rootDigest);
    }
    return kept;
  }

  /** What backends unpacked, or gave to their engine, of images that are no more. Gives what went, or would. */
  async function dropUnpacked(op: Operation, but: ReadonlySet<ImageId>, really: boolean) {
    const dropped: { digest: string; sizeBytes: number }[] = [];
    for (const { roots } of core.deps.backends) {
      if (roots === undefined) continue;
      // Listed before it is asked what is kept: what comes in between is of an image that is kept then.
      const there = await roots.list(op);
      const kept = await rootsKept(op, but);
      for (const root of there) {
        if (!kept.has(root.digest) && (!really || (await roots.remove(op, root.digest)))) dropped.push({ ...root });
      }
    }
    return dropped;
  }

  return {
    'image.list': async () => {
      const using = await users();
      return { images: (await store.query('images', {})).map((image) => imageView(image, using.get(image.id) ?? [])) };
    },
    'image.get': async ({ op }, { image: text }) => {
      const { image } = await find(text);
      const layers = await library(op).layers(op, image.digest);
      const config = await library(op).config(op, image.digest);
      return {
        ...(await shown(image)),
        layers: layers.map((layer) => ({ ...layer })),
        labels: { ...config?.config?.Labels },
        detail: { ...image.detail },
      };
    },
    'image.pull': async (call, { name }) => {
      const { op } = call;
      const reference = requireImageReference(name);
      const stored = await record(call, () => library(op).pull(op, reference), [shownReference(reference)]);
      return await shown((await store.query('image', { id: stored.id })) ?? stored);
    },
    'image.push': async (call, { image: text, name }) => {
      const { op } = call;
      const { image, name: calledBy } = await find(text);
      call.target(image.id);
      const wanted = name ?? calledBy ?? image.names[0];
      if (wanted === undefined) {
        throw op.error('invalid_argument', 'the image has no name that says where to push it', {
          hint: `name the place: hutch image push ${image.id} registry.example/team/web:1`,
        });
      }
      const to = taggable(wanted);
      const { digest, blobs, sizes } = await library(op).push(op, image.digest, to, await repositoriesIn(op, to));
      return { name: shownReference(to), digest, blobs: blobs.map((blob) => ({ ...blob, sizeBytes: sizes.get(blob.digest) ?? 0 })) };
    },
    'image.import': async (call, { name }, source) => {
      const { op } = call;
      const given = name === undefined ? null : shownReference(taggable(name));
      await requireOwnNames(store, call, given === null ? [] : [given]);
      const { images: imported, kernels } = await library(op).import(op, letGoOfUsed(source), given);
      if (kernels.length > 0) await call.commit(kernels.map(({ record }) => ({ change: 'putKernel', kernel: record }) as const));
      const images: Output<'image.import'>['images'] = [];
      for (const { image, names: said } of imported) {
        const names = said.includes(DEFAULT_IMAGE) && !(await mayBeDefault(call)) ? said.filter((one) => one !== DEFAULT_IMAGE) : said;
        await requireOwnNames(store, call, given === null ? names : []);
        const { id } = await record(call, once(op, image), given === null ? names : [given]);
        const stored = await store.query('image', { id });
        if (stored !== null) images.push(await shown(stored));
      }
      return { images, kernels: kernels.map(({ record: { id, digest, version } }) => ({ id, digest, version })) };
    },
    'image.export': async (call, { image }) => await bundle(call, [image], []),
    'image.bundle': async (call, { image, kernel }) => await bundle(call, listed(image), listed(kernel)),
    'image.history': async ({ op }, { image: text }) => {
      const { image } = await find(text);
      const config = await library(op).config(op, image.digest);
      const sizes = (await library(op).layers(op, image.digest)).map(({ sizeBytes }) => sizeBytes);
      const steps = (config?.history ?? []).map(({ created, created_by, comment, empty_layer }) => ({
        created: created ?? null,
        createdBy: created_by ?? '',
        comment: comment || null,
        sizeBytes: empty_layer === true ? 0 : (sizes.shift() ?? 0),
      }));
      return { steps: steps.reverse() };
    },
    'image.sbom': async ({ op }, { image: text }) => {
      const { image } = await find(text);
      return await library(op).sbom(op, image.digest, image.names[0] ?? image.digest, `hutch-${core.deps.versions.daemon}`);
    },
    'image.tag': async (call, { image: text, name }) => {
      const { image } = await find(text);
      call.target(image.id);
      const wanted = shownReference(taggable(name));
      await requireOwnNames(store, call, [wanted]);
      const [named] = await call.commit([{ change: 'nameImage', id: image.id, name: wanted, atMs: host.nowMs() }]);
      core.presenter.forgetImages();
      return await shown(named);
    },
    'image.remove': async (call, { image: text }) => {
      const { op } = call;
      const { image, name } = await find(text);
      call.target(image.id);
      await requireOwnImage(store, call, image);
      if (name !== null && image.names.length > 1) {
        const [left] = await call.commit([{ change: 'unnameImage', id: image.id, name }]);
        core.presenter.forgetImages();
        // Where others took its further names meanwhile, this one is its last.
        if (!left.names.includes(name)) return { id: image.id, removed: false, names: [...left.names] };
      }
      await drop(op, image);
      return { id: image.id, removed: true, names: [] };
    },
    'image.usage': async ({ op }) => {
      const images = await store.query('images', {});
      const free = await unused();
      const kept = await layersKept(core, op, new Set());
      const layers = await library(op).blobs.list(op);
      const loose = layers.filter(({ digest }) => !kept.has(digest));
      const cached = await buildCache.cachedLayers(op);
      const mounts = await buildCache.mounts(op);
      const unpacked = (await Promise.all(core.deps.backends.map(async ({ roots: own }) => (await own?.list(op)) ?? []))).flat();
      const roots = await rootsKept(op, new Set());
      const cache = loose.filter(({ digest }) => cached.has(digest));
      return {
        images: { count: images.length, bytes: sum(images.filter(isOurs)), reclaimableBytes: sum(free.filter(isOurs)) },
        layers: { count: layers.length - cache.length, bytes: sum(layers) - sum(cache), reclaimableBytes: sum(loose) - sum(cache) },
        buildCache: {
          count: cache.length + mounts.length,
          bytes: sum(cache) + sum(mounts),
          reclaimableBytes: sum(cache) + sum(mounts),
        },
        unpacked: {
          count: unpacked.length,
          bytes: sum(unpacked),
          reclaimableBytes: sum(unpacked.filter(({ digest }) => !roots.has(digest))),
        },
      };
    },
    'image.prune': async (call, { dryRun, layers, stale }) => {
      requireOperator(store, call, 'images, and what is kept of builds, are cleared up');
      const { op } = call;
      const really = dryRun !== true;
      if (stale === true) {
        const old: (NamedImage & { readonly why: string })[] = [];
        for (const image of await staleImages(op)) if (!really || (await dropped(op, image))) old.push(image);
        const but = new Set(old.map(({ id }) => id));
        const gone = await buildCache.sweep(op, await layersKept(core, op, but), really);
        const roots = await dropUnpacked(op, but, really);
        return {
          images: old.map(({ id, digest, sizeBytes, why }) => ({ id, digest, sizeBytes, why })),
          unpacked: roots.map((root) => ({ ...root, why: IS_NO_MORE })),
          bytes: sum(old.filter(isOurs)) + sum(gone) + sum(roots),
          layers: gone.flatMap(({ kind, name, sizeBytes, why }) => (kind === 'layer' ? [{ digest: name, sizeBytes, why }] : [])),
          mounts: gone.flatMap(({ kind, name, sizeBytes, why }) => (kind === 'mount' ? [{ name, sizeBytes, why }] : [])),
        };
      }
      const gone: NamedImage[] = [];
      for (const image of await unused()) {
        if (!really || (await dropped(op, image))) gone.push(image);
      }
      const ofImages = await layersKept(core, op, new Set(gone.map(({ id }) => id)));
      const cached = await buildCache.cachedLayers(op);
      const loose = await library(op).dropLayers(op, layers === true ? new Set() : ofImages, really);
      const mounts = await buildCache.clear(op, really);
      const whyOf = (digest: string) =>
        ofImages.has(digest) ? 'all layers are to go' : cached.has(digest) ? 'only later builds need it' : 'no image has it';
      const unpacked = await dropUnpacked(op, new Set(gone.map(({ id }) => id)), really);
      return {
        images: gone.map(({ id, digest, sizeBytes }) => ({ id, digest, sizeBytes, why: 'it has no name, no sandbox and no lease' })),
        layers: loose.map((layer) => ({ ...layer, why: whyOf(layer.digest) })),
        unpacked: unpacked.map((root) => ({ ...root, why: IS_NO_MORE })),
        mounts: mounts.map(({ name, sizeBytes }) => ({ name, sizeBytes, why: 'a cache mount: only later builds need it' })),
        bytes: sum(gone.filter(isOurs)) + sum(loose) + sum(unpacked) + sum(mounts),
      };
    },
    'image.verify': async ({ op }, { image: text }) => {
      const { image } = await find(text);
      return { id: image.id, digest: image.digest, files: await library(op).verify(op, image.digest) };
    },
    'image.login': async (call, { registry, username, password }) => {
      requireOperator(store, call, LOGINS);
      const { op } = call;
      const name = registryOf(op, registry);
      const { registry: client, credentials } = library(op);
      await client.checkLogin(op, name, { username, password });
      const keptIn = await credentials.keep(op, name, { username, password });
      client.forget(name);
      return { registry: name, keptIn };
    },
    'image.logout': async (call, { registry }) => {
      requireOperator(store, call, LOGINS);
      const { op } = call;
      const name = registryOf(op, registry);
      const wasKept = await library(op).credentials.forget(op, name);
      library(op).registry.forget(name);
      return { registry: name, wasKept };
    },
  };

  /** As with kernels: one that is brought is the default of a machine that had none. */
  async function mayBeDefault(call: Call): Promise<boolean> {
    return isOperator(store, call) && !(await store.query('images', {})).some(({ names }) => names.includes(DEFAULT_IMAGE));
  }

  /** On record under these names, or gone again. */
  async function record(call: Call, make: () => Promise<PreparedImage>, names: readonly string[]): Promise<NamedImage> {
    const put = async ({ record: image }: PreparedImage): Promise<NamedImage> => {
      call.target(image.id);
      const [stored] = await call.commit([
        { change: 'putImage', image: { ...image, name: null } },
        ...names.map((name) => ({ change: 'nameImage', id: image.id, name, atMs: host.nowMs() }) as const),
      ]);
      core.presenter.forgetImages();
      return stored;
    };
    return await library(call.op).record(call.op, make, { put, isOnRecord: async (id) => (await store.query('image', { id })) !== null });
  }

  async function bundle({ op }: Call, images: readonly string[], kernels: readonly string[]): Promise<Download> {
    if (images.length + kernels.length === 0) throw op.error('invalid_argument', 'name an image or a kernel that is to be exported');
    const found = new Map<ImageId, NamedImage>();
    for (const text of images) {
      const { image } = await find(text);
      found.set(image.id, image);
    }
    const prepared = await Promise.all(kernels.map((text) => preparedKernel(core, op, text)));
    const named = [...new Map(prepared.map((one) => [one.record.id, one])).values()];
    const bytes = await library(op).export(op, [...found.values()], named);
    return await begunDownload({ contentType: 'application/x-tar', headers: {} }, bytes);
  }

  /** False when somebody began to use it meanwhile. */
  async function dropped(op: Operation, image: NamedImage): Promise<boolean> {
    try {
      await drop(op, image);
      return true;
    } catch (error) {
      if (error instanceof HutchError && error.code === 'failed_precondition') return false;
      throw error;
    }
  }
}

/** Digests of the layers of all images but these. */
export async function layersKept(core: Core, op: Operation, but: ReadonlySet<ImageId>): Promise<Set<string>> {
  const kept = new Set<string>();
  for (const { id, digest } of await core.deps.store.query('images', {})) {
    if (!but.has(id)) for (const layer of await imageLibrary(core, op).layers(op, digest)) kept.add(layer.digest);
  }
  return kept;
}

export function imageLibrary({ deps }: Core, op: Operation): ImageLibrary {
  if (deps.images !== null) return deps.images;
  throw op.error('failed_precondition', 'this daemon keeps no images');
}

/** By name, by digest as lists show it, else by id or a prefix of that. */
export async function findImage(store: Store, text: string): Promise<{ readonly image: NamedImage; readonly name: string | null }> {
  const images = await store.query('images', {});
  const reference = parseImageReference(text);
  const names = new Set([text, ...(reference === null ? [] : [shownReference(reference)])]);
  for (const image of images) {
    const name = image.names.find((own) => names.has(own));
    if (name !== undefined) return { image, name };
  }
  const byDigest = resolveDigest(text, images);
  if (byDigest !== null) return { image: byDigest, name: null };
  const { image } = requireReference(
    'image',
    text,
    images.map((candidate) => ({ id: candidate.id, name: null, image: candidate })),
  );
  return { image, name: null };
}

/** What an image is needed for, by image, as `userText` says it. */
export async function imageUsers(store: Store): Promise<ReadonlyMap<ImageId, readonly string[]>> {
  const users = Map.groupBy(await store.query('imageUsers', {}), ({ id }) => id);
  return new Map([...users].map(([id, those]) => [id, those.map(userText)]));
}

export function taggable(name: string) {
  const reference = requireImageReference(name);
  if (reference.digest === null) return reference;
  throw new HutchError({ code: 'invalid_argument', message: 'a digest is no name that can be given', hint: 'write it like web:1' });
}

function registryOf(op: Operation, text: string): string {
  const plain = text.replace(/^https?:\/\//, '').replace(/\/(v[12]\/?)?$/, '');
  if (plain === HUB || plain === 'index.docker.io' || plain === 'registry-1.docker.io') return HUB;
  const reference = parseImageReference(`${plain}/x`);
  if (reference !== null && reference.registry === plain) return plain;
  throw op.error('invalid_argument', `'${text.slice(0, 100)}' is no name of a registry`, {
    hint: 'write it like ghcr.io or registry.example:5000',
  });
}

/** What came out of a file, which is read once. */
function once(op: Operation, image: PreparedImage): () => Promise<PreparedImage> {
  let isGiven = false;
  return async () => {
    if (isGiven) throw op.error('conflict', 'the image was removed while it was brought here', { hint: 'run the same command again' });
    isGiven = true;
    return image;
  };
}

/** What a user has registered and is used where it lies takes nothing of ours. */
function isOurs({ detail }: NamedImage): boolean {
  const said = detail[REGISTERED];
  return !(typeof said === 'object' && said !== null && 'inPlace' in said && said.inPlace === true);
}

/** A query has one value as a word. */
function listed(said: string | readonly string[] | undefined): readonly string[] {
  return typeof said === 'string' ? [said] : (said ?? []);
}

function sum(things: readonly { readonly sizeBytes: number }[]): number {
  return things.reduce((total, { sizeBytes }) => total + sizeBytes, 0);
}
