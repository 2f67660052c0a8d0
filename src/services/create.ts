// Making a sandbox. What is about to be done is written down first; when anything fails or the call is
// cancelled, all of it is undone and only the logs of the boot stay.
import { HutchError } from '../domain/errors.ts';
import { isName, newId, type SandboxId } from '../domain/ids.ts';
import { ownCommandOf } from '../domain/image.ts';
import type { PublishedPort } from '../domain/published-port.ts';
import { newSandbox, type Sandbox, type SandboxSpec, type Shape, transition } from '../domain/sandbox.ts';
import type { BringUp } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { type Boot, placesOf } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { madeUpName } from './names.ts';
import type { Run } from './run.ts';
import { keepSecrets } from './secrets.ts';
import { startUp } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import type { Parsed } from './verbs.ts';

type Input = Parsed<'sandbox.create'>;

const RELEASE_MS = 60_000;

export function createVerb(core: Core, supervisor: Supervisor): Pick<Handlers, 'sandbox.create'> {
  const { deps, templates } = core;

  /** Everything that has to be there before a sandbox of this kind starts quickly. */
  async function prepare(call: Call, input: Input): Promise<{ boot: Boot; spec: SandboxSpec }> {
    const { op } = call;
    const { settings, host } = deps;
    if (input.name !== undefined) checkName(call, input.name);
    const backend = await templates.backend(op, input.backend);
    const shape = {
      cpus: input.cpus ?? settings.cpus,
      memoryMiB: input.memoryMiB ?? settings.memoryMiB,
      diskMiB: input.diskMiB ?? settings.diskMiB,
    };
    checkLimits(call, shape);
    await templates.checkAsked(op, backend, input);
    const boot = await deps.boots.prepare(op, input.image ?? settings.image, backend);
    core.presenter.forgetImages();
    const argv = input.main === undefined ? null : (input.main.argv ?? ownCommand(call, boot));
    if (input.start !== false) core.runs.checkRoom(op);
    if (input.start !== false) await templates.ready(op, backend, shape, boot);
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
        env: input.env ?? {},
        secretNames: Object.keys(secrets).sort(),
        labels: input.labels ?? {},
        workdir: input.workdir ?? null,
        user: input.user ?? null,
        main: main === undefined || argv === null ? null : { argv, tty: main.tty, stdin: main.stdin },
        autoRemove: input.autoRemove ?? false,
        timeoutMs: input.timeoutMs ?? settings.timeoutMs,
      },
    };
  }

  function checkLimits({ op }: Call, shape: Shape): void {
    const { limits } = deps.settings;
    for (const [key, unit] of [
      ['cpus', ''],
      ['memoryMiB', ' MiB'],
      ['diskMiB', ' MiB'],
    ] as const) {
      if (shape[key] <= limits[key]) continue;
      throw op.error('resource_exhausted', `${key} must be at most ${limits[key]}${unit} here`, {
        hint: `limits.${key.replace('MiB', '')} in the configuration`,
      });
    }
  }

  async function create(call: Call, input: Input): Promise<Sandbox> {
    const { op } = call;
    const { host } = deps;
    const { boot, spec } = await prepare(call, input);
    const id = newId('sbx', (count) => host.randomBytes(count));
    call.target(id);
    return await core.turns.take(op, id, async () => {
      await using undo = new AsyncDisposableStack();
      undo.defer(() => core.publisher.close(id));
      const begun = await begin(call, id, spec, input.publish ?? []);
      const run = core.runs.open(op, { id, projectId: call.caller.projectId, spec }, boot.files, begun.uid);
      undo.defer(() => rollBack(call, run, begun.intentId));
      // From now on it cannot be removed: what is being made uses it.
      if ((await deps.store.query('image', { id: spec.imageId })) === null) {
        throw op.error('failed_precondition', `image ${spec.imageId} was removed a moment ago`, { hint: 'run the same command again' });
      }
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
      return await started(call, run, what, bare, begun.intentId, input.main?.attach ?? false, undo);
    });
  }

  async function started(
    call: Call,
    run: Run,
    what: BringUp,
    bare: Sandbox,
    intentId: number,
    attach: boolean,
    undo: AsyncDisposableStack,
  ): Promise<Sandbox> {
    const { op } = call;
    core.presenter.sandbox(bare).catch(() => {}); // the name of its image, so that it is known when it is wanted
    return await startUp(core, supervisor, call, run, what, {
      reason: 'boot',
      attach,
      undo,
      async record(event) {
        const running = transition(bare, event);
        if ('illegal' in running) throw new Error('a new sandbox cannot be started');
        const changes = [...creation(intentId, bare), { change: 'applyEvent', sandboxId: bare.id, event }] as const;
        const [, , sandbox] = await call.conclude(changes, await core.presenter.sandbox(running, op.id));
        return sandbox;
      },
    });
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
    const intent = {
      change: 'addIntent',
      kind: 'create',
      projectId: call.caller.projectId,
      sandboxId: id,
      reserveName: spec.name,
      atMs: deps.host.nowMs(),
      detail: { backend: spec.backend, imageId: spec.imageId, kernelId: spec.kernelId },
    } as const;
    const reserving = ports.length === 0 ? [] : ([{ change: 'reservePorts', sandboxId: id, ports }] as const);
    // What a power loss takes is gone with all that it is about; a killed daemon takes nothing.
    const { uids } = deps.settings;
    if (uids === null) return { intentId: (await call.commit([intent, ...reserving], 'relaxed'))[0].id, uid: null };
    const [{ id: intentId }, uid] = await call.commit([intent, { change: 'allocateUid', sandboxId: id, uids }, ...reserving], 'relaxed');
    return { intentId, uid };
  }

  async function rollBack(call: Call, run: Run, intentId: number): Promise<void> {
    const { op } = call;
    using late = op.releasing(RELEASE_MS);
    core.runs.forget(run);
    const places = placesOf(deps.places, run.id);
    try {
      await run.backend.kill(late, run.plan, 'now');
      await run.backend.remove(late, run.plan);
      await Promise.all([deps.host.remove(late, places.dir), deps.host.remove(late, places.runDir)]);
      await keepFailedLogs(core, call, places.logDir);
      await deps.store.commit(
        late,
        [
          { change: 'finishIntent', id: intentId },
          { change: 'releaseUid', sandboxId: run.id },
          { change: 'releasePorts', sandboxId: run.id },
        ],
        'relaxed',
      );
      await core.publisher.released(run.id);
    } catch (cause) {
      op.log.warn(
        { sandbox: run.id, cause },
        'a sandbox that could not be made left something behind; the next start of the daemon removes it',
      );
    }
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

function creation(intentId: number, { id, projectId, spec, createdAtMs }: Sandbox) {
  return [
    { change: 'finishIntent', id: intentId },
    { change: 'createSandbox', id, projectId, spec, atMs: createdAtMs },
  ] as const;
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

/** Kept under the operation's id, for whoever wants to know why it failed. */
async function keepFailedLogs(core: Core, call: Call, logDir: string): Promise<void> {
  const { host, places } = core.deps;
  using late = call.op.releasing(RELEASE_MS);
  if ((await host.stat(late, logDir)) === null) return;
  if ((await host.list(late, logDir)).length === 0) return await host.remove(late, logDir);
  await host.makeDir(late, `${places.logDir}/failed`, 0o700);
  await host.rename(late, logDir, `${places.logDir}/failed/${call.op.id}`);
}
