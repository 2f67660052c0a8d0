// Everything that sandboxes are made from, as files with what keeps each of them: sandboxes, names, being the default, leases.
// References are counted when they are asked for, from the records that they come from. What is removed is removed as a user
// would remove it, by the verbs of images and kernels, so that each refuses what somebody has begun to use in the meantime.
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import { isId, newId } from '../domain/ids.ts';
import type { Lease } from '../domain/records.ts';
import { requireReference, resolveDigest } from '../domain/reference.ts';
import type { Operation } from '../host/operation.ts';
import { idOfDigest } from '../images/digest.ts';
import { imageDir } from '../images/image.ts';
import { imagePaths, listOr } from '../images/layout.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { requireOperator } from './operator.ts';
import type { Output } from './verbs.ts';

/** They are everybody's. */
const CHANGED = 'assets are labelled, leased and collected';
/** Of a lease that says no time and is no sandbox's. */
const LEASE_MS = 86_400_000;

type AssetVerbs = Extract<keyof Handlers, `asset.${string}`>;
type Asset = Output<'asset.get'>;
type Reference = Asset['references'][number];
type Found = Omit<Asset, 'labels' | 'leases' | 'lastUsedAtMs'>;

export function assetVerbs(core: Core, handlers: Pick<Handlers, 'image.remove' | 'kernel.remove'>): Pick<Handlers, AssetVerbs> {
  const { store, host, places, kernels, boots } = core.deps;
  const paths = imagePaths(places.dataDir);

  async function all(op: Operation): Promise<readonly Asset[]> {
    const leases = await store.query('leases', { atMs: host.nowMs() });
    const labels = await store.query('assetLabels', {});
    const uses = new Map((await store.query('assetUses', {})).map(({ id, atMs }) => [id, atMs]));
    const found = [...(await kernelAssets(op)), ...(await imageAssets()), ...(await initrdAssets(op)), ...(await diskAssets(op))];
    return found.map((asset) => {
      const own = leases.filter(({ assetId }) => assetId === asset.id);
      const leased = own.map(({ id, holder }): Reference => ({ kind: 'lease', what: `${holder} (${id})` }));
      return {
        ...asset,
        labels: { ...labels[asset.id] },
        lastUsedAtMs: uses.get(asset.id) ?? null,
        references: [...asset.references, ...leased],
        leases: own.map((lease) => ({ ...lease })),
      };
    });
  }

  async function kernelAssets(op: Operation): Promise<readonly Found[]> {
    const here = (await kernels?.here(op)) ?? [];
    const users = await store.query('kernelUsers', {});
    const images = await store.query('kernelImages', {});
    const chosen = (await store.query('defaultKernel', {})) ?? (here.find(({ by }) => by === 'hutch') ?? here[0])?.record.id;
    return here.map(({ record, vmlinuxPath }) => ({
      id: record.id,
      kind: 'kernel',
      name: record.version,
      digest: record.digest,
      sizeBytes: record.sizeBytes,
      path: join(vmlinuxPath, '..'),
      createdAtMs: record.createdAtMs,
      references: [
        ...(record.id === chosen ? [{ kind: 'default', what: 'sandboxes that name no kernel' } as const] : []),
        ...users.filter(({ id }) => id === record.id).map(({ kind, name }): Reference => ({ kind, what: name })),
        ...images.filter(({ id }) => id === record.id).map(({ image }): Reference => ({ kind: 'image', what: image })),
      ],
    }));
  }

  async function imageAssets(): Promise<readonly Found[]> {
    const users = await store.query('imageUsers', {});
    return (await store.query('images', {})).map((image) => ({
      id: image.id,
      kind: 'rootfs',
      name: image.name,
      digest: image.digest,
      sizeBytes: image.sizeBytes,
      path: 'engineReference' in image.detail ? null : imageDir(paths, image.digest),
      createdAtMs: image.createdAtMs,
      references: [
        ...image.names.map((what): Reference => ({ kind: 'name', what })),
        ...users.filter(({ id }) => id === image.id).map(({ kind, name }): Reference => ({ kind, what: name })),
      ],
    }));
  }

  /** Made of a kernel's modules and the agent; made again when one that is gone is wanted. */
  async function initrdAssets(op: Operation): Promise<readonly Found[]> {
    const given = boots.initrds();
    const found: Found[] = [];
    for (const name of await listOr(op, host, paths.initramfs)) {
      const hex = /^([0-9a-f]{64})\.cpio$/.exec(name)?.[1];
      const path = join(paths.initramfs, name);
      const info = hex === undefined ? null : await host.stat(op, path);
      if (hex === undefined || info === null) continue;
      const digest = `sha256:${hex}`;
      found.push({
        id: idOfDigest('ird', digest),
        kind: 'initrd',
        name: null,
        digest,
        sizeBytes: info.sizeBytes,
        path,
        createdAtMs: Number(info.modifiedNs / 1_000_000n),
        references: given.has(path) ? [{ kind: 'daemon', what: 'sandboxes of this daemon boot it' }] : [],
      });
    }
    return found;
  }

  /** Private disks: each its sandbox's, and gone with it. What is sparse is shown as what it takes. */
  async function diskAssets(op: Operation): Promise<readonly Found[]> {
    const found: Found[] = [];
    for (const id of await store.query('liveSandboxIds', {})) {
      const sandbox = await store.query('sandbox', { id });
      const path = join(placesOf(places, id).vmDir, 'disk.img');
      const info = sandbox === null ? null : await host.stat(op, path);
      if (sandbox === null || info === null) continue;
      found.push({
        id,
        kind: 'disk',
        name: sandbox.spec.name,
        digest: null,
        sizeBytes: info.allocatedBytes,
        path,
        createdAtMs: sandbox.createdAtMs,
        references: [{ kind: 'sandbox', what: sandbox.spec.name }],
      });
    }
    return found;
  }

  async function find(op: Operation, text: string): Promise<Asset> {
    const assets = await all(op);
    const byDigest = resolveDigest(text, assets);
    if (byDigest !== null) return byDigest;
    const byId = assets.find(({ id }) => id === text);
    if (byId !== undefined) return byId;
    // Whole names only: a kernel's version may be an image's name, or a sandbox's, and so its disk's.
    const named = assets.filter((asset) => isNamed(asset, text));
    const [only] = named;
    if (only !== undefined && named.length === 1) return only;
    if (only !== undefined) {
      const listed = named.map(({ kind, id }) => `${kind} ${id}`).join(', ');
      throw op.error('conflict', `'${text}' is the name of several: ${listed}`, { hint: 'give the id' });
    }
    const candidates = assets.map((asset) => ({ id: asset.id, name: null, asset }));
    return requireReference('asset', text, candidates).asset;
  }

  /** Only what is on record can be leased and labelled; a kernel that no sandbox had yet is put there. */
  async function recorded(call: Call, asset: Asset): Promise<void> {
    const { op } = call;
    if (asset.kind === 'rootfs') return;
    if (asset.kind !== 'kernel') {
      throw op.error('failed_precondition', `${asset.id} is no kernel and no root file system: ${WHY[asset.kind]}`);
    }
    const kernel = (await kernels?.here(op))?.find(({ record }) => record.id === asset.id);
    if (kernel !== undefined) await call.commit([{ change: 'putKernel', kernel: kernel.record }]);
  }

  const viewOf = (lease: Lease) => ({ ...lease });

  /** False when somebody has begun to use it, or has removed it. */
  async function removed(call: Call, asset: Asset): Promise<boolean> {
    try {
      if (asset.kind === 'rootfs') await handlers['image.remove'](call, { image: asset.id });
      else if (asset.kind === 'kernel') await handlers['kernel.remove'](call, { kernel: asset.id });
      else if (asset.kind === 'initrd' && asset.path !== null && !boots.initrds().has(asset.path)) await host.remove(call.op, asset.path);
      else return false;
      return true;
    } catch (error) {
      if (error instanceof HutchError && (error.code === 'failed_precondition' || error.code === 'not_found')) return false;
      throw error;
    }
  }

  return {
    'asset.list': async ({ op }, { kind, label = [] }) => {
      const wanted = (typeof label === 'string' ? [label] : label).map((text) => text.split('=', 2));
      const isWanted = (asset: Asset): boolean =>
        (kind === undefined || asset.kind === kind) &&
        wanted.every(([key = '', value]) => (value === undefined ? key in asset.labels : asset.labels[key] === value));
      return { assets: (await all(op)).filter(isWanted) };
    },
    'asset.get': async ({ op }, { asset }) => await find(op, asset),
    'asset.label': async (call, { asset: text, set, remove }) => {
      requireOperator(store, call, CHANGED);
      const asset = await find(call.op, text);
      call.target(asset.id);
      await recorded(call, asset);
      const labels = { ...Object.fromEntries(remove.map((key) => [key, null])), ...set };
      await call.commit([{ change: 'labelAsset', id: asset.id, labels }]);
      return await find(call.op, asset.id);
    },
    'asset.acquire': async (call, { asset: text, ttlMs, holder, sandbox }) => {
      requireOperator(store, call, CHANGED);
      const { op, caller } = call;
      const asset = await find(op, text);
      call.target(asset.id);
      await recorded(call, asset);
      const whose = sandbox === undefined ? null : await core.sandboxes.resolve(caller.projectId, sandbox);
      const createdAtMs = host.nowMs();
      const lease: Lease = {
        id: newId('lse', (count) => host.randomBytes(count)),
        assetId: asset.id,
        holder: holder ?? (whose === null ? caller.actor : `sandbox ${whose.spec.name}`),
        sandboxId: whose?.id ?? null,
        createdAtMs,
        expiresAtMs: createdAtMs + (ttlMs ?? (whose === null ? LEASE_MS : 0)),
      };
      const [acquired] = await call.commit([{ change: 'acquireLease', lease }]);
      return viewOf(acquired);
    },
    'asset.renew': async (call, { lease, ttlMs }) => {
      requireOperator(store, call, CHANGED);
      const nowMs = host.nowMs();
      const [renewed] = await call.commit([{ change: 'renewLease', id: leaseId(call.op, lease), atMs: nowMs, expiresAtMs: nowMs + ttlMs }]);
      return viewOf(renewed);
    },
    'asset.release': async (call, { lease }) => {
      requireOperator(store, call, CHANGED);
      await call.commit([{ change: 'releaseLease', id: leaseId(call.op, lease) }]);
      return { id: lease };
    },
    'asset.collect': async (call, { unusedMs, dryRun }) => {
      requireOperator(store, call, CHANGED);
      const before = host.nowMs() - unusedMs;
      const isOld = ({ createdAtMs, lastUsedAtMs }: Asset): boolean => Math.max(createdAtMs, lastUsedAtMs ?? 0) <= before;
      const gone: Asset[] = [];
      for (const asset of await all(call.op)) {
        if (asset.references.length > 0 || !isOld(asset)) continue;
        if (dryRun === true || (await removed(call, asset))) gone.push(asset);
      }
      return {
        removed: gone.map(({ id, kind, name, sizeBytes }) => ({ id, kind, name, sizeBytes })),
        bytes: gone.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      };
    },
  };
}

function isNamed({ name, references }: Asset, text: string): boolean {
  return name === text || references.some(({ kind, what }) => kind === 'name' && what === text);
}

const WHY = {
  initrd: 'an initrd is made again when it is wanted',
  disk: 'a disk is its sandbox’s, and stays as long as that',
} as const;

function leaseId(op: Operation, text: string) {
  if (isId('lse', text)) return text;
  throw op.error('not_found', `'${text.slice(0, 64)}' is no id of a lease`, { hint: 'see: hutch assets ls' });
}
