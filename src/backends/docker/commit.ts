// The disk of a container as an image in the Engine: one that a user keeps, named after its own digest so that nothing that looks for
// images without a name takes it away, or what a snapshot stands on.
import * as z from 'zod';
import type { Operation } from '../../host/operation.ts';
import type { CommittedDisk } from '../backend.ts';
import { IMAGE_MS, LABEL, RELEASE_MS, REQUEST_MS } from './config.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { findImage, type ImageAnswer } from './image.ts';
import { removeIfThere } from './remove.ts';

const REPOSITORY = 'hutch/disk';
const made = z.object({ Id: z.string().regex(/^sha256:[0-9a-f]{64}$/) });

export async function commitContainer(op: Operation, engine: Engine, instance: string, container: Container): Promise<CommittedDisk> {
  // What it was made from may be a snapshot's, which this one is not.
  const labels = { [LABEL.instance]: instance, [LABEL.snapshot]: '', [LABEL.below]: '', [LABEL.layerBytes]: '' };
  const image = await keepDisk(op, engine, container, { labels });
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => await dropped(op, engine, image.Id));
  using named = op.releasing(REQUEST_MS);
  await engine.call(named, {
    method: 'POST',
    path: `/images/${image.Id}/tag`,
    query: { repo: REPOSITORY, tag: image.Id.replace('sha256:', '') },
  });
  undo.move();
  return { digest: image.Id, sizeBytes: image.Size, reference: `docker://${REPOSITORY}:${image.Id.replace('sha256:', '')}` };
}

/** Its processes stand still meanwhile: it is of one instant. On failure nothing is left. */
export async function keepDisk(
  op: Operation,
  engine: Engine,
  container: Container,
  how: {
    readonly labels: Readonly<Record<string, string>>;
    /** From its first moment on. */
    readonly name?: { readonly repo: string; readonly tag: string };
    /** When it goes on. */
    readonly onGoesOn?: () => void;
  },
): Promise<ImageAnswer> {
  refuseVolumes(op, container);
  op.progress({ step: 'commit', detail: 'the disk of the container' });
  // To the end, whoever gives up: the Engine would go on, and keep what nobody knows of.
  using whole = op.releasing(IMAGE_MS);
  const labels = Object.entries(how.labels).map(([key, value]) => `${key}="${value}"`);
  const { Id } = await engine.json(
    whole,
    made,
    {
      method: 'POST',
      path: '/commit',
      query: {
        ...{ container: container.Id, pause: true, changes: `LABEL ${labels.join(' ')}`, comment: 'the disk of a sandbox of Hutch' },
        ...how.name,
      },
      body: {},
    },
    IMAGE_MS,
  );
  how.onGoesOn?.();
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => await dropped(op, engine, Id));
  const image = await findImage(whole, engine, Id);
  if (image === null) throw op.error('internal', 'the Docker Engine made an image, and does not have it');
  if (op.signal.aborted) throw op.signal.reason;
  undo.move();
  return image;
}

async function dropped(op: Operation, engine: Engine, id: string): Promise<void> {
  using late = op.releasing(RELEASE_MS);
  await dropImage(late, engine, id).catch((cause: unknown) => op.log.warn({ image: id, cause }, 'an image was left in the Docker Engine'));
}

/** What an image declares as a volume the Engine keeps beside the container's disk, and no image of that has it. */
function refuseVolumes(op: Operation, { Mounts }: Container): void {
  const targets = (Mounts ?? [])
    .filter(({ Type }) => Type === 'volume')
    .map(({ Destination }) => Destination.replaceAll(/[^\x20-\x7e]/g, '?'));
  if (targets.length === 0) return;
  throw op.error(
    'failed_precondition',
    `its image has the Docker Engine keep a volume of its own at ${targets.join(', ').slice(0, 300)}, which no copy of its disk would have`,
    { hint: 'copy what lies there: hutch cp; or make the sandbox of an image without VOLUME' },
  );
}

/** With all its names. What it stands on stays, whoever's it is. */
export async function dropImage(op: Operation, engine: Engine, digest: string): Promise<void> {
  await removeIfThere(op, engine, { path: `/images/${digest}`, query: { force: true, noprune: true } });
}
