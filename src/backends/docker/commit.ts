// The disk of a container as an image in the Engine, named after its own digest, so that nothing that looks
// for images without a name takes it away.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { CommittedDisk } from '../backend.ts';
import { IMAGE_MS, LABEL, RELEASE_MS } from './config.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { findImage } from './image.ts';

const REPOSITORY = 'hutch/disk';
const made = z.object({ Id: z.string().regex(/^sha256:[0-9a-f]{64}$/) });

export async function commitContainer(op: Operation, engine: Engine, instance: string, container: Container): Promise<CommittedDisk> {
  op.progress({ step: 'commit', detail: 'the disk of the container' });
  // To the end, whoever gives up: the Engine would go on, and keep what nobody knows of.
  using whole = op.releasing(IMAGE_MS);
  const { Id } = await engine.json(
    whole,
    made,
    {
      method: 'POST',
      path: '/commit',
      // Its processes stand still meanwhile: it is of one instant.
      query: {
        container: container.Id,
        pause: true,
        changes: `LABEL ${LABEL.instance}=${instance}`,
        comment: 'the disk of a sandbox of Hutch',
      },
      body: {},
    },
    IMAGE_MS,
  );
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await dropImage(late, engine, Id).catch((cause: unknown) =>
      op.log.warn({ image: Id, cause }, 'an image was left in the Docker Engine'),
    );
  });
  const tag = Id.replace('sha256:', '');
  await engine.call(whole, { method: 'POST', path: `/images/${Id}/tag`, query: { repo: REPOSITORY, tag } });
  const image = await findImage(whole, engine, Id);
  if (image === null) throw op.error('internal', 'the Docker Engine made an image, and does not have it');
  if (op.signal.aborted) throw op.signal.reason;
  undo.move();
  return { digest: Id, sizeBytes: image.Size, reference: `docker://${REPOSITORY}:${tag}` };
}

/** With all its names. */
export async function dropImage(op: Operation, engine: Engine, digest: string): Promise<void> {
  try {
    await engine.call(op, { method: 'DELETE', path: `/images/${digest}`, query: { force: true } });
  } catch (error) {
    if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
  }
}
