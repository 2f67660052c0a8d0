// Snapshots that leave this machine and come to it: as a file, and as an artifact in a registry.
import { named } from '../images/build.ts';
import { archiveBytes, readArchive, writeArchive } from '../images/snapshot/archive.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { begunDownload } from './download.ts';
import type { Handlers } from './handlers.ts';
import { type Arrived, takeIn } from './snapshot-arrival.ts';
import { packSnapshot } from './snapshot-packing.ts';
import { findSnapshot, shown } from './snapshots.ts';
import type { Output } from './verbs.ts';

export function snapshotTravelVerbs(core: Core): Pick<Handlers, 'snapshot.export' | 'snapshot.import'> {
  const claims = new Claims();

  async function arrivedView({ snapshot, secretNames, misfit }: Arrived): Promise<Output<'snapshot.import'>> {
    const { stillMs: _, ...view } = await shown(core, snapshot);
    return { ...view, secretNames: [...secretNames], misfit };
  }

  return {
    'snapshot.export': async (call, { snapshot: text }) => {
      const { op } = call;
      const snapshot = await findSnapshot(core, op, call.caller.projectId, text);
      call.target(snapshot.id);
      const packed = await packSnapshot(core, op, snapshot);
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
    'snapshot.import': async (call, { name }, source) => {
      const what = 'the archive';
      return await arrivedView(
        await named(call.op, what, () => takeIn(core, claims, call, name, (receiver) => readArchive(source, receiver))),
      );
    },
  };
}
