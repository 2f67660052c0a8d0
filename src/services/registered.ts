// Images of files that lie on the daemon's machine: registered they stay the user's, promoted they are copied. What is
// registered can be any file that the daemon can read, so only whoever runs this machine may.
import { REGISTERED } from '../domain/image.ts';
import { shownReference } from '../domain/image-reference.ts';
import type { Operation } from '../host/operation.ts';
import { type GivenFile, given, resolved } from '../images/given.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { findImage, imageLibrary, imageUsers, taggable } from './images.ts';
import { kernelHere, kernelLibrary } from './kernels.ts';
import { requireOperator } from './operator.ts';
import { imageView } from './present.ts';
import type { Parsed } from './verbs.ts';

type Input = Parsed<'image.register'>;

export function registeredVerbs(core: Core): Pick<Handlers, 'image.register' | 'image.promote'> {
  const { store, host } = core.deps;

  /** The kernel that it is to boot, copied where it is a file, and that file. */
  async function kernelOf(op: Operation, { kernel, modules, kernelRef }: Input) {
    if (kernelRef !== undefined) return { record: await kernelHere(core, op, kernelRef), files: [] };
    if (kernel === undefined) return null;
    const image = await resolved(op, host, kernel);
    const dir = modules === undefined ? null : await resolved(op, host, modules);
    if (image.type !== 'file') throw op.error('invalid_argument', `kernel must be a file; ${kernel} is a directory`);
    if (dir !== null && dir.type !== 'directory') throw op.error('invalid_argument', `modules must be a directory; ${modules} is a file`);
    // Seen before they are read: what changes meanwhile is found at the first start.
    const files: GivenFile[] = [await given(op, host, 'kernel', image)];
    if (dir !== null) files.push(await given(op, host, 'modules', dir));
    const { record } = await kernelLibrary(core, op).ofFiles(op, { image: image.path, modules: dir?.path ?? null });
    return { record, files };
  }

  function check(op: Operation, { kernel, modules, kernelRef, initrd }: Input): void {
    if (kernel !== undefined && kernelRef !== undefined) {
      throw op.error('invalid_argument', 'kernel and kernelRef are two kernels: give one of them');
    }
    if (modules !== undefined && kernel === undefined) throw op.error('invalid_argument', 'modules belong to a kernel: give kernel too');
    if (initrd !== undefined && kernel === undefined && kernelRef === undefined) {
      throw op.error('invalid_argument', 'an initrd belongs to a kernel: give kernel or kernelRef too');
    }
  }

  return {
    'image.register': async (call, input) => {
      const { op } = call;
      requireOperator(store, call, 'files of this machine are registered');
      check(op, input);
      const name = shownReference(taggable(input.name));
      const kernel = await kernelOf(op, input);
      const library = imageLibrary(core, op);
      const files = {
        rootfs: input.rootfs,
        initrd: input.initrd ?? null,
        kernel: kernel === null ? null : { digest: kernel.record.digest, files: kernel.files },
      };
      const id = await library.record(op, () => library.register(op, files), {
        async put({ record }) {
          call.target(record.id);
          await call.commit([
            ...(kernel === null ? [] : [{ change: 'putKernel', kernel: kernel.record } as const]),
            { change: 'putImage', image: { ...record, name: null } },
            // The same content may have lain elsewhere before.
            { change: 'describeImage', id: record.id, detail: record.detail },
            { change: 'nameImage', id: record.id, name, atMs: host.nowMs() },
          ]);
          return record.id;
        },
        isOnRecord: async (image) => (await store.query('image', { id: image })) !== null,
      });
      return await shown(op, id);
    },
    'image.promote': async (call, { image: text }) => {
      const { op } = call;
      requireOperator(store, call, 'files of this machine are registered');
      const { image } = await findImage(store, text);
      call.target(image.id);
      const { record } = await imageLibrary(core, op).promote(op, image.digest);
      if (image.detail[REGISTERED] !== undefined) await call.commit([{ change: 'describeImage', id: image.id, detail: record.detail }]);
      return await shown(op, image.id);
    },
  };

  async function shown(op: Operation, id: Parameters<typeof store.query<'image'>>[1]['id']) {
    core.presenter.forgetImages();
    const image = await store.query('image', { id });
    if (image === null) throw op.error('conflict', `image ${id} was removed while it was brought here`);
    return imageView(image, (await imageUsers(store)).get(id) ?? []);
  }
}
