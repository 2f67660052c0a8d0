// The disk of a sandbox, kept as an image in its backend's own store: sandboxes start from it as from any other,
// by its id, its digest or the name that it is given.

import type { Image } from '../domain/image.ts';
import { ENGINE_REFERENCE } from '../domain/image.ts';
import { shownReference } from '../domain/image-reference.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { idOfDigest } from '../images/digest.ts';
import { Claims } from './claims.ts';
import { COMMITTED_BY } from './committed.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { taggable } from './images.ts';
import { refuseMounted } from './mounts.ts';
import { requireOwnNames } from './operator.ts';
import { imageView } from './present.ts';
import { runOf } from './release.ts';

const RELEASE_MS = 30_000;

export function commitVerb(core: Core): Pick<Handlers, 'image.commit'> {
  const { deps, sandboxes, turns } = core;
  const claims = new Claims();
  return {
    'image.commit': async (call, { ref, name, withFiles = false }) => {
      const { op } = call;
      const wanted = name === undefined ? null : shownReference(taggable(name));
      await requireOwnNames(deps.store, call, wanted === null ? [] : [wanted]);
      const { id } = await sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      return await turns.take(op, id, async () => {
        const sandbox = await sandboxes.get(op, id);
        if (sandbox.state === 'deleted') throw op.error('failed_precondition', `sandbox ${sandbox.spec.name} is deleted: it has no disk`);
        const run = core.runs.get(id) ?? (await runOf(core, op, sandbox));
        const { backend, plan } = run;
        await claims.need(op, backend, 'diskSnapshot');
        refuseMounted(op, sandbox, 'no image would have it');
        if (!withFiles) refuseFiles(op, sandbox);
        if (backend.commit === undefined) throw new Error(`the backend ${backend.name} claims diskSnapshot, and has no commit`);
        const source = await deps.store.query('image', { id: sandbox.spec.imageId });
        const { digest, sizeBytes, reference } = await backend.commit(op, plan);
        await using undo = new AsyncDisposableStack();
        undo.defer(async () => {
          using late = op.releasing(RELEASE_MS);
          await backend
            .dropCommitted?.(late, digest)
            .catch((cause: unknown) => op.log.warn({ digest, cause }, 'an image that was not recorded was left behind'));
        });
        const image: Image = {
          id: idOfDigest('img', digest),
          name: null,
          digest,
          architecture: source?.architecture ?? 'x86_64',
          sizeBytes,
          config: source?.config ?? EMPTY,
          createdAtMs: deps.host.nowMs(),
          detail: { [ENGINE_REFERENCE]: reference, [COMMITTED_BY]: backend.name, sandboxId: id, imageId: sandbox.spec.imageId },
        };
        const naming = wanted === null ? [] : ([{ change: 'nameImage', id: image.id, name: wanted, atMs: image.createdAtMs }] as const);
        await call.commit([{ change: 'putImage', image }, ...naming]);
        undo.move();
        core.presenter.forgetImages();
        const stored = await deps.store.query('image', { id: image.id });
        if (stored === null) throw new Error('an image was recorded, and is not on record');
        return imageView(stored, []);
      });
    },
  };
}

/** An image goes to others: nobody's keys are in it by accident. */
function refuseFiles(op: Operation, { spec }: Sandbox): void {
  const files = spec.fileSync ?? [];
  if (files.length === 0) return;
  const names = files.map(({ guest }) => guest).join(', ');
  throw op.error('failed_precondition', `files of yours were put into ${spec.name}, and the image would have them: ${names}`, {
    hint: 'if it is to have them: hutch image commit --with-files',
  });
}

const EMPTY = { env: {}, entrypoint: [], command: [], workdir: null, user: null, stopSignal: null, exposedPorts: [] } as const;
