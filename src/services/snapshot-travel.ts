// Snapshots that leave this machine and come to it: as a file, and as an artifact in a registry.
import type { ImageReference } from '../domain/image-reference.ts';
import { requireImageReference, shownReference } from '../domain/image-reference.ts';
import { secretsOf } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import { named } from '../images/build.ts';
import { MANIFEST_TYPE } from '../images/oci/manifest.ts';
import { archiveBytes, eachOnce, type Receiver, readArchive, writeArchive } from '../images/snapshot/archive.ts';
import { CONFIG_BYTES_MAX, parseManifest, parseSnapshotConfig } from '../images/snapshot/artifact.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { begunDownload } from './download.ts';
import type { Handlers } from './handlers.ts';
import { imageLibrary, taggable } from './images.ts';
import { type Arrived, takeIn } from './snapshot-arrival.ts';
import { packSnapshot, stagingFor } from './snapshot-packing.ts';
import { findSnapshot, shown } from './snapshots.ts';
import type { Output } from './verbs.ts';

type TravelVerbs = 'snapshot.export' | 'snapshot.import' | 'snapshot.push' | 'snapshot.pull';

export function snapshotTravelVerbs(core: Core): Pick<Handlers, TravelVerbs> {
  const { host } = core.deps;
  const claims = new Claims();

  async function arrivedView({ snapshot, secretNames, misfit }: Arrived): Promise<Output<'snapshot.import'>> {
    return { ...(await shown(core, snapshot)), secretNames: [...secretNames], misfit };
  }

  /** From a registry, each part as a file first: a connection that breaks is gone on with. */
  async function fetched<T>(op: Operation, from: ImageReference, manifest: Buffer, receiver: Receiver<T>): Promise<T> {
    const { registry } = imageLibrary(core, op);
    const described = parseManifest(manifest);
    const config = parseSnapshotConfig(await registry.smallBlob(op, from, described.config, CONFIG_BYTES_MAX), described);
    const place = await receiver.begin(config, described);
    await using staged = await stagingFor(core, op, 'pull');
    for (const { part, at, also } of eachOnce(described.parts)) {
      if (!receiver.wants(place, at)) continue;
      const { name } = config.parts[at] ?? { name: '' };
      const path = `${staged.dir}/${at}`;
      await registry.blob(op, from, part, path, (done) =>
        op.progress({ step: 'pull snapshot', detail: name, done, total: part.sizeBytes, unit: 'bytes' }),
      );
      await receiver.part(place, at, host.readStream(op, path, 0, 'in-place'), also);
      await host.remove(op, path);
    }
    return place;
  }

  return {
    'snapshot.export': async (call, { snapshot: text, carry }) => {
      const { op } = call;
      const snapshot = await findSnapshot(core, op, call.caller.projectId, text);
      call.target(snapshot.id);
      const packed = await packSnapshot(core, op, snapshot, carry ?? 'needed');
      const { artifact, parts } = packed;
      const headers = { 'Content-Length': String(archiveBytes(artifact, parts)), 'Hutch-Snapshot-Digest': artifact.manifestDigest };
      return await begunDownload(
        { contentType: 'application/x-tar', headers },
        (async function* () {
          await using _packed = packed;
          yield* writeArchive(artifact, parts);
        })(),
      );
    },
    'snapshot.import': async (call, { name }, source) =>
      await arrivedView(
        await named(call.op, 'the archive', () => takeIn(core, claims, call, name, (receiver) => readArchive(source, receiver))),
      ),
    'snapshot.push': async (call, { snapshot: text, name, carry }) => {
      const { op } = call;
      const { registry } = imageLibrary(core, op);
      const to = taggable(name);
      const snapshot = await findSnapshot(core, op, call.caller.projectId, text);
      call.target(snapshot.id);
      await using packed = await packSnapshot(core, op, snapshot, carry ?? 'needed');
      const { artifact, parts } = packed;
      const { manifest } = artifact;
      const all = [...parts, { digest: artifact.configDigest, sizeBytes: artifact.config.byteLength, open: () => once(artifact.config) }];
      const names = [...packed.names, 'description'];
      const { digest, blobs } = await registry.push(
        op,
        to,
        to.tag ?? 'latest',
        { manifest, mediaType: MANIFEST_TYPE, blobs: all },
        (at, done) => op.progress({ step: 'push snapshot', detail: names[at] ?? '', done, total: all[at]?.sizeBytes ?? 0, unit: 'bytes' }),
      );
      return {
        name: shownReference(to),
        digest,
        parts: blobs.map(({ digest: own, how }, at) => ({ name: names[at] ?? '', digest: own, sizeBytes: all[at]?.sizeBytes ?? 0, how })),
        secretNames: [...secretsOf(snapshot)],
      };
    },
    'snapshot.pull': async (call, { name, as }) => {
      const { op } = call;
      const from = requireImageReference(name);
      const what = shownReference(from);
      op.progress({ step: 'pull snapshot', detail: what });
      const { bytes, digest } = await imageLibrary(core, op).artifact(op, from);
      const arrived = await named(op, what, () => takeIn(core, claims, call, as, (receiver) => fetched(op, from, bytes, receiver)));
      return { ...(await arrivedView(arrived)), from: what, digest };
    },
  };
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
