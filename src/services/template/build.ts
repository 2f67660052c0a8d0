// Building a template: the one builder does its steps, a sandbox of the image begins its start command and becomes ready, and is
// written down. The tag moves in the commit that records the snapshot: until then, and when anything fails, the old one serves.
import type { Backend } from '../../backends/backend.ts';
import type { HutchError } from '../../domain/errors.ts';
import { isName, newId, type ProjectId, type SandboxId } from '../../domain/ids.ts';
import type { SandboxSpec } from '../../domain/sandbox.ts';
import type { NewSnapshot } from '../../domain/snapshot.ts';
import { padding } from '../../domain/tar/entry.ts';
import { TAR_END, tarHeader } from '../../domain/tar/header.ts';
import { dockerfileOf, type Steps, stepAtLine, stepsRefusal, type Template } from '../../domain/template.ts';
import type { Operation } from '../../host/operation.ts';
import { OWN_DOCKERFILE } from '../../images/build/own.ts';
import type { BuildRecord } from '../build-record.ts';
import type { Running } from '../build-records.ts';
import { BUILD_LABEL, removeBuildSandbox } from '../build-sandbox.ts';
import type { Builds } from '../builds.ts';
import type { Call } from '../call.ts';
import { Claims } from '../claims.ts';
import type { Core } from '../core.ts';
import { checkLimits } from '../create.ts';
import type { Handlers } from '../handlers.ts';
import { kernelFor } from '../kernels.ts';
import type { Run } from '../run.ts';
import { snapshotsOf, takeSnapshot } from '../snapshots.ts';
import { READY_MS_MAX } from '../verbs/template.ts';
import type { Parsed } from '../verbs.ts';
import { type Ready, type Stage, StartCommand, scrub, shownArgv, shownCheck, untilReady } from './ready.ts';

export type Recipe = Omit<Parsed<'template.build'>, 'name' | 'noCache' | 'image'> & { readonly image: string };

const WITHOUT_MEMORY = 'make an image, which has everything but the process that runs: hutch build';

/** One that has a start command and no check has this: a command that cannot run has failed by then. */
const SETTLED: Ready = { waitMs: 1_000, timeoutMs: READY_MS_MAX };
const SYNC_MS = 60_000;
/** Longer than any build: what ends it ends its sandbox. */
const LONG_MS = 7 * 24 * 60 * 60_000;

type Asked = {
  readonly name: string;
  readonly recipe: Recipe;
  /** Null: whatever is there is replaced. Else only this one is, and its steps are done. */
  readonly of: Template | null;
  readonly noCache: boolean;
};

/** What is told by the one who asks: by the way they are called. */
type Parts = { readonly core: Core; readonly handlers: Pick<Handlers, 'sandbox.create' | 'sandbox.delete'>; readonly builds: Builds };

export class TemplateBuilder {
  readonly #parts: Parts;
  readonly #claims = new Claims();
  /** Called when a tag has moved, with what it was on before. */
  readonly #onBuilt: (call: Call, template: Template, before: Template | null) => Promise<void>;
  readonly #building = new Map<string, string>();

  constructor(parts: Parts, onBuilt: (call: Call, template: Template, before: Template | null) => Promise<void>) {
    this.#parts = parts;
    this.#onBuilt = onBuilt;
  }

  /** The build that is under way. */
  building(projectId: ProjectId, name: string): string | null {
    return this.#building.get(`${projectId}/${name}`) ?? null;
  }

  /** It goes on by itself. @throws HutchError for what is refused before anything is built. */
  async begin(call: Call, { name, recipe, of, noCache }: Asked): Promise<{ readonly record: BuildRecord; readonly over: Promise<void> }> {
    const { op, caller } = call;
    const { builds } = this.#parts;
    if (!isName(name))
      throw op.error(
        'invalid_argument',
        `name must be lower-case letters, digits and inner hyphens, at most 63; '${name.slice(0, 63)}' is not`,
      );
    const key = `${caller.projectId}/${name}`;
    const other = this.#building.get(key);
    if (other !== undefined)
      throw op.error('conflict', `template ${name} is being built already${other === '' ? '' : ` (${other})`}`, {
        hint: other === '' ? 'try again' : `follow it: hutch image build-logs -f ${other}; end it: hutch image build-cancel ${other}`,
      });
    this.#building.set(key, '');
    const over = Promise.withResolvers<void>();
    try {
      const backend = await this.#backend(call, recipe);
      const steps = of === null ? await this.#steps(op, backend, recipe) : null;
      const { cpus, memoryMiB, diskMiB } = recipe;
      const record = await builds.begin(call, {
        input: { dockerfile: name, backend: backend.name, noCache, cpus, memoryMiB, diskMiB },
        source: steps === null ? null : contextOf(dockerfileOf(steps)),
        ...{ names: [], template: name, counts: of === null, stepsMore: stepsOf(recipe).length },
        next: (own, now, image) => this.#make(own, now, { name, recipe, of, backend, image: image?.id ?? of?.imageId ?? recipe.image }),
        over: () => {
          this.#building.delete(key);
          over.resolve();
        },
        ...(steps === null ? {} : { reworded: (failing: Operation, error: HutchError) => stepNamed(failing, error, name, steps) }),
      });
      if (this.#building.has(key)) this.#building.set(key, record.id);
      return { record, over: over.promise };
    } catch (error) {
      this.#building.delete(key);
      throw error;
    }
  }

  async #backend(call: Call, recipe: Recipe): Promise<Backend> {
    const { op } = call;
    const { core } = this.#parts;
    const { settings } = core.deps;
    const backend = await core.templates.backend(op, recipe.backend);
    for (const claim of ['snapshot', 'fork'] as const) await this.#claims.need(op, backend, claim, WITHOUT_MEMORY);
    const { cpus, memoryMiB, diskMiB } = recipe;
    checkLimits(call, settings.limits, {
      ...{ cpus: cpus ?? settings.cpus, memoryMiB: memoryMiB ?? settings.memoryMiB, diskMiB: diskMiB ?? settings.diskMiB },
    });
    await core.templates.checkAsked(op, backend, recipe);
    return backend;
  }

  /** Null: it has no steps, and begins with the image as it is. */
  async #steps(op: Operation, backend: Backend, { image, kernel, steps = [], env = {}, workdir, user }: Recipe): Promise<Steps | null> {
    const { core } = this.#parts;
    const why = stepsRefusal({ env, workdir: workdir ?? null, steps });
    if (why !== null) throw op.error('invalid_argument', why);
    // What cannot be had is found out before anything is built.
    const boot = await core.deps.boots.prepare(op, image, backend, await kernelFor(core, op, backend, kernel));
    if (steps.length === 0) return null;
    return { image, user: user ?? boot.image.config.user ?? 'root', env, workdir: workdir ?? null, steps };
  }

  async #make(
    call: Call,
    now: Running,
    of: { readonly name: string; readonly recipe: Recipe; readonly of: Template | null; readonly backend: Backend; readonly image: string },
  ): Promise<NonNullable<BuildRecord['snapshot']>> {
    const { op, caller } = call;
    const { core, handlers } = this.#parts;
    const { name, recipe } = of;
    const steps = stepsOf(recipe);
    const step = begun(now, steps);
    step('boot');
    const id = await this.#sandbox(call, now.record.id, of);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => removeBuildSandbox({ core, handlers, caller }, op, id));
    const run = core.runs.get(id);
    if (run === null) throw op.error('unavailable', 'the sandbox of the template has ended');
    const stage: Stage = { name, buildId: now.record.id, run, log: now.log };
    if (recipe.start !== undefined) step('start');
    using start = recipe.start === undefined ? null : await StartCommand.begin(op, stage, recipe.start);
    const ready = recipe.ready ?? (recipe.start === undefined ? undefined : SETTLED);
    if (recipe.ready !== undefined) step('ready');
    if (ready !== undefined) await untilReady(op, stage, ready, start);
    if (recipe.scrub === true) {
      step('scrub');
      await scrub(op, stage);
    }
    step('snapshot');
    start?.check(op);
    start?.[Symbol.dispose]();
    return await this.#keep(call, run, now, of);
  }

  /** The sandbox that it is written down of: removed by the next daemon, where this one dies. */
  async #sandbox(
    call: Call,
    buildId: string,
    { recipe, backend, image }: { readonly recipe: Recipe; readonly backend: Backend; readonly image: string },
  ): Promise<SandboxId> {
    const { core, handlers } = this.#parts;
    const { kernel, cpus, memoryMiB, diskMiB, pids, network, env, user, workdir } = recipe;
    const ask = { verb: 'sandbox.create', caller: call.caller, reads: false, signal: call.op.signal } as const;
    const made = await core.operations.run(ask, (own) =>
      handlers['sandbox.create'](own, {
        ...{ name: `template-${buildId.slice(3)}`, image, backend: backend.name, labels: { [BUILD_LABEL]: buildId } },
        ...{ kernel, cpus, memoryMiB, diskMiB, pids, network, env, user, workdir },
        ...{ timeoutMs: LONG_MS, idleMs: 0 },
      }),
    );
    return made.id as SandboxId;
  }

  /** Writes it down, and moves the tag in the same commit. */
  async #keep(
    call: Call,
    run: Run,
    now: Running,
    {
      name,
      recipe,
      of,
      backend,
    }: { readonly name: string; readonly recipe: Recipe; readonly of: Template | null; readonly backend: Backend },
  ): Promise<NonNullable<BuildRecord['snapshot']>> {
    const { op } = call;
    const { core } = this.#parts;
    const { host, store, settings } = core.deps;
    using syncing = op.within(SYNC_MS, 'writing what the guest has not yet written');
    await (await run.link.agent(syncing)).sync(syncing);
    const before = (await store.query('templates', { projectId: call.caller.projectId })).find((each) => each.name === name) ?? null;
    let digest = '';
    const tag = async (snapshot: NewSnapshot, dir: string) => {
      digest = `sha256:${await snapshotsOf(core, op, snapshot).digest(op, dir)}`;
      const atMs = host.nowMs();
      const template: Template = {
        ...{ id: newId('tpl', (count) => host.randomBytes(count)), projectId: snapshot.projectId, name, recipe: { ...recipe } },
        ...{ imageId: snapshot.spec.imageId, snapshotId: snapshot.id, digest, warm: { min: 0, max: 0 } },
        ...{ createdAtMs: atMs, builtAtMs: atMs, buildId: now.record.id },
      };
      const only = of === null ? [] : ([{ change: 'requireTemplate', id: of.id, snapshotId: of.snapshotId }] as const);
      return [...only, { change: 'putTemplate', template } as const];
    };
    const snapshot = await core.turns.take(op, run.id, async () => {
      const sandbox = await core.sandboxes.get(op, run.id);
      if (sandbox.state !== 'running') throw op.error('unavailable', 'the sandbox of the template has ended');
      const spec = (own: SandboxSpec) => specOf(own, name, settings.timeoutMs);
      return (await takeSnapshot(core, this.#claims, call, sandbox, { name: null, kind: 'template', diskOnly: false, spec, also: tag }))
        .snapshot;
    });
    now.record = { ...now.record, stepsDone: now.record.stepsTotal };
    now.log.note('template', `${name} is ${digest} (${snapshot.id}), made by ${backend.name}`);
    const template = (await store.query('templates', { projectId: snapshot.projectId })).find((each) => each.snapshotId === snapshot.id);
    // It is built: what is done about the one before can be done later as well.
    if (template !== undefined)
      await this.#onBuilt(call, template, before).catch((cause: unknown) =>
        op.log.warn({ cause }, 'the template before was left; it goes later'),
      );
    return { id: snapshot.id, digest };
  }
}

/** What sandboxes of it are made as: nothing of the sandbox that it was written down of. */
function specOf(
  { idleMs: _idle, idleAction: _action, restart: _restart, undo: _undo, ...spec }: SandboxSpec,
  name: string,
  timeoutMs: number | null,
): SandboxSpec {
  return { ...spec, name, labels: {}, timeoutMs };
}

type Step = { readonly what: 'boot' | 'start' | 'ready' | 'scrub' | 'snapshot'; readonly text: string };

function stepsOf({ start, ready, scrub: scrubs }: Recipe): readonly Step[] {
  return [
    { what: 'boot', text: 'boot' },
    ...(start === undefined ? [] : [{ what: 'start', text: `start: ${shownArgv(start)}` } as const]),
    ...(ready === undefined ? [] : [{ what: 'ready', text: `ready: ${shownCheck(ready)}` } as const]),
    ...(scrubs === true ? [{ what: 'scrub', text: 'scrub' } as const] : []),
    { what: 'snapshot', text: 'snapshot' },
  ];
}

function begun(now: Running, steps: readonly Step[]): (what: Step['what']) => void {
  const before = now.record.stepsDone;
  return (what) => {
    const at = steps.findIndex((each) => each.what === what);
    const text = steps[at]?.text ?? what;
    now.record = { ...now.record, step: text, stepsDone: before + at };
    // What the start command says last may be why nothing is ready.
    now.log.step('template', text, null, {
      number: at + 1,
      count: steps.length,
      ...(what === 'boot' || what === 'start' ? {} : { keepsTail: true }),
    });
  };
}

/** A context of nothing but its Dockerfile. */
async function* contextOf(dockerfile: string): AsyncGenerator<Uint8Array> {
  const bytes = Buffer.from(dockerfile);
  yield tarHeader({
    ...{ type: 'file', path: OWN_DOCKERFILE, link: '', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0 },
    ...{ sizeBytes: bytes.byteLength, devMajor: 0, devMinor: 0, xattrs: null },
  });
  yield bytes;
  yield Buffer.alloc(padding(bytes.byteLength));
  yield TAR_END;
}

/** The builder says where in the Dockerfile it failed: here that is a step. */
function stepNamed(op: Operation, error: HutchError, name: string, steps: Steps): HutchError {
  const found = /^([^:]+):(\d+): (?:[A-Z]+: )?/.exec(error.message);
  if (found === null || found[1] !== name) return error;
  const at = stepAtLine(steps, Number(found[2]));
  const rest = error.message.slice(found[0].length);
  return op.error(error.code, at === null ? `template ${name}: ${rest}` : `step ${at + 1} of template ${name}: ${rest}`, {
    ...(error.hint === null ? {} : { hint: error.hint }),
    cause: error,
  });
}
