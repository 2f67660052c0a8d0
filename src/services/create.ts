import type { Backend } from '../backends/backend.ts';
import { HutchError } from '../domain/errors.ts';
import { isName, newId, type SandboxId } from '../domain/ids.ts';
import { ownCommandOf } from '../domain/image.ts';
import type { PublishedPort } from '../domain/published-port.ts';
import { withinBound } from '../domain/quota.ts';
import { newSandbox, type Sandbox, type SandboxSpec, type Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { BringUp } from './bring-up.ts';
import { BUILD_LABEL } from './build-sandbox.ts';
import type { Call } from './call.ts';
import { Claims, STOP_WHEN_IDLE } from './claims.ts';
import type { Core } from './core.ts';
import { creating } from './creating.ts';
import { type Boot, backendOf, placesOf } from './deps.ts';
import { resolveDevices } from './devices.ts';
import { filesFor } from './file-sync.ts';
import { requireFreeSpace } from './free-space.ts';
import { createFrom, type Usable } from './from-snapshot.ts';
import { checkImage, handOut } from './hand-out.ts';
import type { Handlers } from './handlers.ts';
import { kernelFor } from './kernels.ts';
import { mountedOf, resolveMounts } from './mounts.ts';
import { madeUpName } from './names.ts';
import { creation, rollBack, started } from './put-on-record.ts';
import { keepSecrets } from './secrets.ts';
import type { Supervisor } from './supervisor.ts';
import { requireUndo } from './undo.ts';
import { DISK_MIB_MIN, MEMORY_MIB_MIN } from './verbs/fields.ts';
import type { Parsed } from './verbs.ts';
import { withVolumes } from './volumes.ts';
import type { Taken } from './warm.ts';
import type { Kind } from './warm-member.ts';

type Input = Parsed<'sandbox.create'>;

export function createVerb(core: Core, supervisor: Supervisor, usable: Usable): Pick<Handlers, 'sandbox.create'> {
  const { deps, templates } = core;
  const claims = new Claims();
  const seen = new WeakSet<Boot>();

  /** Everything that has to be there before a sandbox of this kind starts quickly. */
  async function prepare(call: Call, input: Input): Promise<{ boot: Boot; spec: SandboxSpec }> {
    const { op } = call;
    const { settings, host } = deps;
    const backend = await templates.backend(op, input.backend ?? (await backendOfKernel(input)));
    const bounds = await core.quotaBounds.of(call.caller.projectId);
    const shape = {
      cpus: input.cpus ?? withinBound(settings.cpus, bounds.cpus, 1),
      memoryMiB: input.memoryMiB ?? withinBound(settings.memoryMiB, bounds.memoryMiB, MEMORY_MIB_MIN),
      diskMiB: input.diskMiB ?? withinBound(settings.diskMiB, bounds.diskMiB, DISK_MIB_MIN),
      ...(input.pids === undefined ? {} : { pids: input.pids }),
    };
    checkLimits(call, settings.limits, shape);
    await templates.checkAsked(op, backend, input);
    await templates.tellUnlimited(op, backend);
    const { mounts: wanted = [] } = input;
    const mounts = wanted.length === 0 ? [] : await resolveMounts(deps, call, claims, backend, wanted);
    const devices = await resolveDevices(deps, call, claims, backend, input.devices ?? []);
    // What is built is for others too: none of the owner's files may be in it.
    const fileSync = input.labels?.[BUILD_LABEL] === undefined ? await filesFor(deps, call, input.fileSync ?? []) : [];
    if (input.idleAction === 'suspend') await claims.need(op, backend, 'suspend', STOP_WHEN_IDLE);
    if ((input.undo ?? 0) > 0) requireUndo(deps, op, { name: input.name ?? 'without a name yet', backend: backend.name, mounts });
    const boot = await deps.boots.prepare(op, input.image ?? settings.image, backend, await kernelFor(core, op, backend, input.kernel));
    // One that is remembered has brought no image, so no name has moved.
    if (!seen.has(boot)) core.presenter.forgetImages();
    seen.add(boot);
    const argv = input.main === undefined ? null : (input.main.argv ?? ownCommand(call, boot));
    await requireFreeSpace(op, deps);
    if (input.start !== false) core.runs.checkRoom(op);
    if (input.start !== false && !mayFollow(backend, input)) await templates.ready(op, backend, shape, boot, mountedOf(mounts));
    const { main, secrets = {} } = input;
    const clash = Object.keys(secrets).find((name) => input.env !== undefined && name in input.env);
    if (clash !== undefined) throw op.error('invalid_argument', `secrets.${clash} is given in env as well`);
    return {
      boot,
      spec: {
        name: input.name ?? madeUpName((count) => host.randomBytes(count)),
        backend: backend.name,
        imageId: boot.image.id,
        kernelId: boot.kernelId,
        shape,
        network: await templates.network(op, backend, input.network),
        ...(mounts.length === 0 ? {} : { mounts }),
        ...(devices.length === 0 ? {} : { devices }),
        ...(fileSync.length === 0 ? {} : { fileSync }),
        env: input.env ?? {},
        secretNames: Object.keys(secrets).sort(),
        labels: input.labels ?? {},
        workdir: input.workdir ?? null,
        user: input.user ?? null,
        main: main === undefined || argv === null ? null : { argv, tty: main.tty, stdin: main.stdin },
        autoRemove: input.autoRemove ?? false,
        timeoutMs: input.timeoutMs ?? settings.timeoutMs,
        ...(input.restart === undefined || input.restart === 'no' ? {} : { restart: input.restart }),
        ...(input.idleMs === undefined ? {} : { idleMs: input.idleMs }),
        ...(input.idleAction === undefined || input.idleAction === 'stop' ? {} : { idleAction: input.idleAction }),
        ...(input.undo === undefined || input.undo === 0 ? {} : { undo: input.undo }),
      },
    };
  }

  /** Who asks for a kernel, or for an image that brings one, means a backend that boots one. */
  async function backendOfKernel({ kernel, image }: Input): Promise<Input['backend']> {
    if (deps.settings.backend !== 'auto') return undefined;
    if (kernel === undefined && (image === undefined || !(await deps.boots.ownKernel(image)))) return undefined;
    return deps.backends.find(({ needs }) => needs === 'machine')?.name;
  }

  async function create(call: Call, input: Input): Promise<Sandbox> {
    const { op } = call;
    if (input.name !== undefined) checkName(call, input.name);
    if (input.from !== undefined || input.template !== undefined)
      return await createFrom(core, supervisor, call, input, { usable, claims });
    if (input.force === true) throw op.error('invalid_argument', 'force is about a snapshot, and none is named', { hint: 'see: from' });
    const { host } = deps;
    const { boot, spec } = await prepare(call, input);
    const warm = await takeWarm(op, input, kindOf(op, spec, boot));
    const to = { boot, spec, secrets: input.secrets ?? {}, terminal: input.main?.terminal, attach: input.main?.attach ?? false };
    const woken = warm === null ? null : await handOut(core, supervisor, call, warm, to);
    if (woken !== null) return woken;
    const id = newId('sbx', (count) => host.randomBytes(count));
    call.target(id);
    const mounted = input.start === false ? { ...spec, mounts: [] } : spec;
    const make = async (): Promise<Sandbox> => {
      await using undo = new AsyncDisposableStack();
      undo.defer(() => core.publisher.close(id));
      const begun = await begin(call, id, spec, input.publish ?? []);
      const run = core.runs.open(op, { id, projectId: call.caller.projectId, spec }, boot.files, begun.uid);
      undo.defer(() => rollBack(core, call, run, begun.intentId));
      // From now on it cannot be removed: what is being made uses it.
      await checkImage(core, op, spec);
      if (input.start !== false) await core.publisher.open(op, run);
      op.progress({ step: 'making the disk' });
      await run.backend.create(op, run.plan);
      const { secrets = {} } = input;
      await keepSecrets(op, host, placesOf(deps.places, id).secretsPath, secrets);
      const atMs = host.nowMs();
      const bare = newSandbox({ id, projectId: call.caller.projectId, spec, atMs, opId: op.id });
      if (input.start === false) {
        await call.conclude(creation(begun.intentId, bare), await core.presenter.sandbox(bare, op.id));
        undo.move();
        await core.publisher.close(id);
        core.runs.forget(run);
        return bare;
      }
      const what: BringUp = { sandbox: bare, boot, secrets, terminal: input.main?.terminal };
      const { intentId } = begun;
      return await started(core, supervisor, call, { run, what, bare, intentId, attach: input.main?.attach ?? false, undo });
    };
    return await core.turns.take(op, id, () => withVolumes(core, op, mounted, make));
  }

  async function takeWarm(op: Operation, input: Input, kind: Kind): Promise<Taken | null> {
    if (isUsual(input)) return await core.warm.take(op, kind);
    return input.labels?.[BUILD_LABEL] === undefined ? null : await core.warm.takeForBuild(op, kind);
  }

  /** Whether it wants what warm sandboxes are kept for; a port of its own must be held before anything is. */
  function isUsual({ start, image, kernel, cpus, memoryMiB, diskMiB, network, backend, publish = [], mounts = [] }: Input): boolean {
    const { settings } = deps;
    const same = <T>(asked: T | undefined, usual: T): boolean => asked === undefined || asked === usual;
    return (
      start !== false &&
      publish.length === 0 &&
      mounts.length === 0 &&
      kernel === undefined &&
      same(image, settings.image) &&
      same(cpus, settings.cpus) &&
      same(memoryMiB, settings.memoryMiB) &&
      same(diskMiB, settings.diskMiB) &&
      same(network, settings.network) &&
      same<string>(backend, settings.backend)
    );
  }

  function kindOf(op: Operation, { backend, shape, network }: SandboxSpec, boot: Boot): Kind {
    return { backend: backendOf(deps, op, backend), shape, network, boot, origin: null };
  }

  async function begin(
    call: Call,
    id: SandboxId,
    spec: SandboxSpec,
    publish: readonly PublishedPort[],
  ): Promise<{ intentId: number; uid: number | null }> {
    return await core.publisher.reserve(call.op, id, publish, (ports) => record(call, id, spec, ports));
  }

  async function record(call: Call, id: SandboxId, spec: SandboxSpec, ports: readonly PublishedPort[]) {
    const intent = creating(call.caller.projectId, id, spec, deps.host.nowMs());
    const reserving = ports.length === 0 ? [] : ([{ change: 'reservePorts', sandboxId: id, ports }] as const);
    // What a power loss takes is gone with all that it is about; a killed daemon takes nothing.
    const { uids } = deps.settings;
    if (uids === null) return { intentId: (await call.commit([intent, ...reserving], 'relaxed'))[0].id, uid: null };
    const [{ id: intentId }, uid] = await call.commit([intent, { change: 'allocateUid', sandboxId: id, uids }, ...reserving], 'relaxed');
    return { intentId, uid };
  }

  return {
    'sandbox.create': async (call, input) => {
      for (let tries = 1; ; tries += 1) {
        try {
          return await core.presenter.sandbox(await create(call, input), call.op.id);
        } catch (error) {
          // A name that we made up is taken: make up another.
          const isOurs =
            input.name === undefined && error instanceof HutchError && error.code === 'conflict' && /^the name/.test(error.message);
          if (!isOurs || tries === 3) throw error;
        }
      }
    },
  };
}

/** Whether the template may come after the first start. What is built stands on one, as what others come from is stored once. */
function mayFollow({ startsUnprepared }: Backend, { labels }: Input): boolean {
  return startsUnprepared === true && labels?.[BUILD_LABEL] === undefined;
}

/** @throws HutchError `resource_exhausted`, naming the field, its bound and where that stands. */
export function checkLimits({ op }: Call, limits: Shape, shape: Partial<Shape>): void {
  for (const [key, unit] of [
    ['cpus', ''],
    ['memoryMiB', ' MiB'],
    ['diskMiB', ' MiB'],
  ] as const) {
    if ((shape[key] ?? 0) <= limits[key]) continue;
    throw op.error('resource_exhausted', `${key} must be at most ${limits[key]}${unit} here`, {
      hint: `limits.${key.replace('MiB', '')} in the configuration`,
    });
  }
}

function ownCommand({ op }: Call, { image }: Boot): readonly string[] {
  const argv = ownCommandOf(image.config);
  if (argv.length > 0) return argv;
  throw op.error('invalid_argument', 'main.argv is missing, and the image has neither ENTRYPOINT nor CMD', {
    hint: 'say what to run, such as: hutch run --image IMAGE -- sh',
  });
}

function checkName(call: Call, name: string): void {
  if (isName(name)) return;
  throw call.op.error(
    'invalid_argument',
    `name must be lower-case letters, digits and inner hyphens, at most 63, and not look like an id; '${name}' is not`,
  );
}
