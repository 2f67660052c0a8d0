// Kernels as a user sees them. Those that lie here whole are the list; who uses one, and which is the default,
// the store knows. One is taken out of the record before its files go, and never while a sandbox has it.
import type { Backend } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import type { KernelId } from '../domain/ids.ts';
import type { Kernel } from '../domain/image.ts';
import { requireReference, resolveDigest } from '../domain/reference.ts';
import type { Operation } from '../host/operation.ts';
import type { PreparedKernel } from '../images/kernel.ts';
import type { KernelConfig } from '../images/kernel-config.ts';
import type { KernelLibrary } from '../images/kernels.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { KernelChoice } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { requireOperator } from './operator.ts';
import { userText } from './present.ts';
import type { Output } from './verbs.ts';

type KernelVerbs = Extract<keyof Handlers, `kernel.${string}`>;
type KernelView = Output<'kernel.get'>;

/** All projects boot them. */
const CHANGED = 'kernels are brought, chosen and removed';
/** Tries to put on record what somebody removed between its making and that. */
const TRIES_MAX = 3;

/** What a new sandbox boots: the kernel that is asked for, else the default that somebody set; null: the one that Hutch chose, or none. */
export async function kernelFor(
  core: Core,
  op: Operation,
  backend: Pick<Backend, 'name' | 'needs'>,
  asked: string | undefined,
): Promise<KernelChoice | null> {
  const isMachine = backend.needs === 'machine';
  if (asked !== undefined && !isMachine) {
    throw op.error('failed_precondition', `a sandbox of the backend ${backend.name} boots no kernel of its own`, {
      hint: 'leave --kernel out, or take --backend qemu',
    });
  }
  if (asked !== undefined) return { kernel: await kernelHere(core, op, asked), by: 'asked' };
  const id = isMachine ? await core.deps.store.query('defaultKernel', {}) : null;
  const kernel = id === null ? null : await core.deps.store.query('kernel', { id });
  return kernel === null ? null : { kernel, by: 'default' };
}

/** @throws HutchError `not_found`, `conflict`. */
export async function kernelHere(core: Core, op: Operation, asked: string): Promise<Kernel> {
  return (await preparedKernel(core, op, asked)).record;
}

/** @throws HutchError `not_found`, `conflict`. */
export async function preparedKernel(core: Core, op: Operation, asked: string): Promise<PreparedKernel> {
  return find(asked, await kernelLibrary(core, op).here(op));
}

export function kernelVerbs(core: Core): Pick<Handlers, KernelVerbs> {
  const { store } = core.deps;
  /** What puts a kernel on record and what removes one take turns. */
  let last: Promise<unknown> = Promise.resolve();

  async function inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = last.then(work, work);
    last = mine.catch(() => {});
    return await mine;
  }

  async function shown(op: Operation, kernels: readonly PreparedKernel[], all: readonly PreparedKernel[]): Promise<KernelView[]> {
    op.signal.throwIfAborted();
    const users = await store.query('kernelUsers', {});
    const isDefault = await defaultOf(all);
    return kernels.map(({ record, by }) => ({
      id: record.id,
      digest: record.digest,
      version: record.version,
      architecture: record.architecture,
      sizeBytes: record.sizeBytes,
      createdAtMs: record.createdAtMs,
      isDefault: isDefault === record.id,
      by,
      packages: [...(record.detail['packages'] as KernelView['packages'])],
      config: { ...(record.detail['config'] as KernelConfig) },
      modules: [...(record.detail['modules'] as string[])],
      usedBy: users.filter(({ id }) => id === record.id).map(userText),
    }));
  }

  async function one(op: Operation, digest: string): Promise<KernelView> {
    const all = await kernelLibrary(core, op).here(op);
    const [view] = await shown(
      op,
      all.filter(({ record }) => record.digest === digest),
      all,
    );
    if (view === undefined) throw op.error('not_found', `kernel ${digest} was removed a moment ago`);
    return view;
  }

  /** As `findKernel` chooses, unless somebody said otherwise. */
  async function defaultOf(all: readonly PreparedKernel[]): Promise<KernelId | null> {
    const said = await store.query('defaultKernel', {});
    return said ?? (all.find(({ by }) => by === 'hutch') ?? all.find(({ by }) => by === 'user'))?.record.id ?? null;
  }

  /** What `make` gives goes on record, unless somebody removes it in between: then it is made again. */
  async function recorded(call: Call, make: () => Promise<PreparedKernel>, makeDefault: boolean): Promise<KernelView> {
    const { op } = call;
    for (let tries = 1; ; tries += 1) {
      const { record } = await make();
      const isRecorded = await inTurn(async () => {
        const isThere = (await kernelLibrary(core, op).here(op)).some((kernel) => kernel.record.id === record.id);
        if (!isThere) return false;
        const makingDefault = makeDefault ? ([{ change: 'setDefaultKernel', id: record.id }] as const) : [];
        await call.commit([{ change: 'putKernel', kernel: record }, ...makingDefault]);
        return true;
      });
      call.target(record.id);
      if (isRecorded) return await one(op, record.digest);
      if (tries === TRIES_MAX) throw op.error('conflict', `kernel ${record.version} is removed again and again while it is brought here`);
    }
  }

  return {
    'kernel.list': async ({ op }) => {
      const all = await kernelLibrary(core, op).here(op);
      return { kernels: await shown(op, all, all) };
    },
    'kernel.available': async ({ op }) => {
      const here = new Set((await kernelLibrary(core, op).here(op)).map(({ record }) => record.version));
      const offered = await kernelLibrary(core, op).available(op);
      return { kernels: offered.map((kernel) => ({ ...kernel, isHere: here.has(kernel.version) })) };
    },
    'kernel.get': async ({ op }, { kernel }) => {
      const all = await kernelLibrary(core, op).here(op);
      return await one(op, find(kernel, all).record.digest);
    },
    'kernel.pull': async (call, { wanted, makeDefault }) => {
      requireOperator(store, call, CHANGED);
      return await recorded(call, () => kernelLibrary(core, call.op).pull(call.op, wanted ?? null), makeDefault ?? false);
    },
    'kernel.import': async (call, _input, source) => {
      requireOperator(store, call, CHANGED);
      let isRead = false;
      return await recorded(
        call,
        async () => {
          if (isRead)
            throw call.op.error('conflict', 'the kernel was removed while it was brought here', { hint: 'run the same command again' });
          isRead = true;
          return await kernelLibrary(core, call.op).import(call.op, source);
        },
        false,
      );
    },
    'kernel.setDefault': async (call, { kernel }) => {
      requireOperator(store, call, CHANGED);
      const { op } = call;
      const all = await kernelLibrary(core, op).here(op);
      const chosen = kernel === null ? null : find(kernel, all).record;
      await inTurn(async () => {
        const recording = chosen === null ? [] : ([{ change: 'putKernel', kernel: chosen }] as const);
        await call.commit([...recording, { change: 'setDefaultKernel', id: chosen?.id ?? null }]);
      });
      const id = await defaultOf(all);
      const now = all.find(({ record }) => record.id === id);
      if (now === undefined) throw op.error('not_found', 'there is no kernel yet', { hint: 'get one: hutch kernel pull' });
      return await one(op, now.record.digest);
    },
    'kernel.remove': async (call, { kernel }) => {
      requireOperator(store, call, CHANGED);
      const { op } = call;
      const all = await kernelLibrary(core, op).here(op);
      const { record } = find(kernel, all);
      call.target(record.id);
      await inTurn(async () => {
        if ((await defaultOf(all)) === record.id) refuseDefault(op, record, all.length);
        // It may lie here without a record: then it has no user either.
        await call.commit([
          { change: 'putKernel', kernel: record },
          { change: 'removeKernel', id: record.id },
        ]);
        await kernelLibrary(core, op).remove(op, record.digest);
      });
      return { id: record.id, version: record.version };
    },
    'kernel.verify': async ({ op }, { kernel }) => {
      const { record } = find(kernel, await kernelLibrary(core, op).here(op));
      await kernelLibrary(core, op).verify(op, record.digest);
      return { id: record.id, digest: record.digest };
    },
  };
}

/** The last one may go: the next machine makes one. */
function refuseDefault(op: Operation, { id, version }: Kernel, count: number): void {
  if (count === 1) return;
  throw op.error('failed_precondition', `kernel ${version} (${id}) is the default: sandboxes that name none boot it`, {
    hint: 'choose another first: hutch kernel default REF',
  });
}

export function kernelLibrary({ deps }: Core, op: Operation): KernelLibrary {
  if (deps.kernels !== null) return deps.kernels;
  throw op.error('failed_precondition', 'this daemon keeps no kernels');
}

/** By id, digest or version, else by a prefix of either. */
function find(text: string, kernels: readonly PreparedKernel[]): PreparedKernel {
  const byDigest = resolveDigest(
    text,
    kernels.map((kernel) => ({ digest: kernel.record.digest, kernel })),
  );
  if (byDigest !== null) return byDigest.kernel;
  const same = kernels.filter(({ record }) => record.version === text);
  if (same.length > 1) {
    throw new HutchError({
      code: 'conflict',
      message: `${same.length} kernels are ${text}: ${same.map(({ record }) => record.id).join(', ')}`,
      hint: 'give the id of one',
    });
  }
  return requireReference(
    'kernel',
    text,
    kernels.map((kernel) => ({ id: kernel.record.id, name: kernel.record.version, kernel })),
  ).kernel;
}
