// A sandbox that begins with a named snapshot: as that was, and as itself; what is asked for beside it comes on top.
import type { Forced } from '../backends/snapshots.ts';
import { HutchError } from '../domain/errors.ts';
import type { TemplateId } from '../domain/ids.ts';
import type { Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Template } from '../domain/template.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Claims } from './claims.ts';
import { type CloneOf, makeClone } from './clone.ts';
import type { Core } from './core.ts';
import { type Boot, backendOf } from './deps.ts';
import { filesFor } from './file-sync.ts';
import { handOut } from './hand-out.ts';
import { resolveMounts } from './mounts.ts';
import { madeUpName } from './names.ts';
import { settleHoldings } from './settle-holdings.ts';
import { findSnapshot, readSnapshotFiles, snapshotDir, snapshotsOf } from './snapshots.ts';
import type { Supervisor } from './supervisor.ts';
import { findTemplate } from './template/find.ts';
import type { Parsed } from './verbs.ts';
import type { Kind } from './warm-member.ts';

type Input = Parsed<'sandbox.create'>;

/** Sees to it that a template can be started from: `TemplateKeeper.usable`. */
export type Usable = (
  op: Operation,
  template: Template,
  snapshot: Snapshot,
  spec: SandboxSpec,
) => Promise<{ readonly template: Template; readonly forced: Forced }>;

/** What a sandbox is to begin with, and how that is called. */
type Origin = { readonly snapshot: Snapshot; readonly template: Template | null; readonly what: string; readonly flag: string };

export async function createFrom(
  core: Core,
  supervisor: Supervisor,
  call: Call,
  input: Input,
  { usable, claims }: { readonly usable: Usable; readonly claims: Claims },
): Promise<Sandbox> {
  const { op } = call;
  if (input.from !== undefined && input.template !== undefined)
    throw op.error('invalid_argument', 'template and from exclude each other', { hint: 'leave out one of them' });
  const { origin, forced, reading } = await held(core, call, input, usable);
  using _reading = reading;
  const { snapshot } = origin;
  const bare = specFrom(core, call, origin, input);
  const mounts = await mountsFrom(core, call, claims, origin, input);
  const files = await filesFor(core.deps, call, input.fileSync ?? []);
  const spec = { ...bare, ...(mounts.length === 0 ? {} : { mounts }), ...(files.length === 0 ? {} : { fileSync: files }) };
  const beginning = await beginningOf(core, op, snapshot, spec, forced);
  const woken = await handedOut(core, supervisor, call, input, origin, beginning);
  if (woken !== null) return woken;
  const sandbox = await makeClone(core, supervisor, call, {
    ...beginning,
    secrets: input.secrets ?? {},
    files,
    publish: input.publish ?? [],
    terminal: input.main?.terminal,
    attach: input.main?.attach ?? false,
  });
  await settleHoldings(core, op, snapshot);
  return sandbox;
}

/** One of the template that waits, where this is all that is wanted; a port of its own must be held before anything is. */
async function handedOut(
  core: Core,
  supervisor: Supervisor,
  call: Call,
  { publish = [], secrets = {}, main }: Input,
  { template, snapshot }: Origin,
  { spec, boot, source, dir, forced = false }: Beginning,
): Promise<Sandbox | null> {
  const { op } = call;
  if (template === null || publish.length > 0 || (spec.mounts ?? []).length > 0 || spec.network !== snapshot.spec.network) return null;
  core.runs.checkRoom(op);
  const warm = await core.warm.take(op, kindOf(core, op, template.id, snapshot, boot, dir, forced));
  if (warm === null) return null;
  const to = { boot, spec, secrets, terminal: main?.terminal, attach: main?.attach ?? false, source };
  return await handOut(core, supervisor, call, warm, to);
}

/** What a sandbox of a template starts from. */
export function kindOf(
  core: Core,
  op: Operation,
  templateId: TemplateId,
  { id, spec }: Snapshot,
  boot: Boot,
  dir: string,
  forced: Forced,
): Kind {
  const { shape, network, env, user, workdir } = spec;
  const origin = { templateId, snapshotId: id, dir, forced, spec: { env, user, workdir } };
  return { backend: backendOf(core.deps, op, spec.backend), shape, network, boot, origin };
}

const TRIES_MAX = 5;

/** What it begins with stays as long as it is held, also where its tag moves on. */
async function held(
  core: Core,
  call: Call,
  input: Input,
  usable: Usable,
): Promise<{ readonly origin: Origin; readonly forced: Forced; readonly reading: Disposable }> {
  const { op } = call;
  for (let tries = 1; ; tries += 1) {
    try {
      const origin = await originOf(core, call, input);
      const { template, snapshot } = origin;
      if (template === null) return { origin, forced: input.force ?? false, reading: readSnapshotFiles(core, op, snapshot) };
      if (input.force === true)
        throw op.error('invalid_argument', 'force is about a snapshot, and a template is named', { hint: 'see: from' });
      const now = await usable(op, template, snapshot, snapshot.spec);
      if (now.template.snapshotId === snapshot.id) return { origin, forced: now.forced, reading: readSnapshotFiles(core, op, snapshot) };
    } catch (error) {
      const isGone = error instanceof HutchError && error.code === 'not_found' && error.message.endsWith('is being removed');
      if (!isGone || tries === TRIES_MAX) throw error;
    }
    if (tries === TRIES_MAX) throw op.error('unavailable', 'the template is built anew all the time', { hint: 'try again' });
  }
}

async function originOf(core: Core, { op, caller }: Call, { from, template: text = from ?? '', template: asked }: Input): Promise<Origin> {
  if (asked === undefined) {
    const none = (error: unknown): null => {
      if (error instanceof HutchError && error.code === 'not_found') return null;
      throw error;
    };
    const snapshot = await findSnapshot(core, op, caller.projectId, text).catch(none);
    if (snapshot !== null) {
      const name = snapshot.name ?? snapshot.id;
      return { snapshot, template: null, what: `snapshot ${name}`, flag: `--from ${name}` };
    }
    if ((await findTemplate(core, caller.projectId, text).catch(none)) === null) await findSnapshot(core, op, caller.projectId, text);
  }
  const template = await findTemplate(core, caller.projectId, text);
  const snapshot = await core.deps.store.query('snapshot', { id: template.snapshotId });
  // Its tag has just moved on, or it is going.
  if (snapshot === null) throw op.error('not_found', `template ${template.name} is being removed`);
  return { snapshot, template, what: `template ${template.name}`, flag: `--template ${template.name}` };
}

type Beginning = Pick<CloneOf, 'spec' | 'boot' | 'dir' | 'hasMemory' | 'source' | 'forced'>;

/**
 * What a sandbox like that begins with there. `forced`: also where it was made on another kind of machine, as `Snapshots.fits` says.
 * @throws HutchError `failed_precondition` where its memory cannot go on here.
 */
export async function beginningOf(core: Core, op: Operation, snapshot: Snapshot, spec: SandboxSpec, forced: Forced): Promise<Beginning> {
  const { deps } = core;
  const boot = await deps.boots.of(op, spec, backendOf(deps, op, spec.backend).needs);
  const dir = snapshotDir(core, snapshot.id);
  const { name, shape, network } = spec;
  if (snapshot.contents !== 'disk')
    await snapshotsOf(core, op, snapshot).fits?.(op, { name, shape, network, boot: boot.files }, dir, { forced });
  const source = { snapshotId: snapshot.id, parentId: snapshot.sandboxId };
  return { spec, boot, dir, hasMemory: snapshot.contents !== 'disk', source, forced };
}

const FIXED = ['image', 'kernel', 'cpus', 'memoryMiB', 'diskMiB', 'pids', 'backend', 'devices'] as const;

function specFrom(core: Core, { op }: Call, origin: Origin, input: Input): SandboxSpec {
  const { snapshot, what } = origin;
  const { spec } = snapshot;
  const its: Input = { backend: spec.backend, ...spec.shape };
  const fixed = FIXED.find((key) => input[key] !== undefined && input[key] !== its[key]);
  if (fixed !== undefined) throw op.error('invalid_argument', `${fixed} is that of ${what}: it cannot be chosen`, { hint: 'leave it out' });
  if (input.start === false) {
    throw op.error('invalid_argument', 'a sandbox from a snapshot or a template is started at once', {
      hint: 'without start: false (--no-start)',
    });
  }
  const hasMemory = snapshot.contents !== 'disk';
  const main = mainFrom(op, origin, input);
  const { env = {}, secrets = {}, labels = {} } = input;
  const clash = Object.keys(secrets).find((name) => name in env);
  if (clash !== undefined) throw op.error('invalid_argument', `secrets.${clash} is given in env as well`);
  const { fileSync: _, ...kept } = spec; // those that it gets now are another matter
  return {
    ...kept,
    name: input.name ?? madeUpName((count) => core.deps.host.randomBytes(count)),
    network: input.network ?? spec.network,
    env: without({ ...spec.env, ...env }, Object.keys(secrets)),
    secretNames: Object.keys(secrets).sort(),
    labels: { ...spec.labels, ...labels },
    workdir: input.workdir ?? spec.workdir,
    user: input.user ?? spec.user,
    main: main ?? (hasMemory ? spec.main : null),
    autoRemove: input.autoRemove ?? false,
    timeoutMs: input.timeoutMs ?? spec.timeoutMs,
    ...(input.restart === undefined ? {} : { restart: input.restart }),
    ...(input.idleMs === undefined ? {} : { idleMs: input.idleMs }),
    ...(input.idleAction === undefined ? {} : { idleAction: input.idleAction }),
    ...(input.undo === undefined ? {} : { undo: input.undo }),
  };
}

/** What goes on in memory has what was mounted then: nothing. */
async function mountsFrom(core: Core, call: Call, claims: Claims, origin: Origin, { mounts: wanted = [] }: Input) {
  const { contents, spec } = origin.snapshot;
  const { op } = call;
  if (wanted.length === 0) return [];
  if (contents !== 'disk')
    throw op.error('failed_precondition', `what goes on in the memory of ${origin.what} cannot be given mounts`, {
      hint: 'take it of the disk alone: hutch snapshot create --disk-only',
    });
  return await resolveMounts(core.deps, call, claims, backendOf(core.deps, op, spec.backend), wanted);
}

/** Its own command goes on with its memory; another one may only be the first. */
function mainFrom(op: Call['op'], { snapshot: { spec, contents }, what, flag }: Origin, { main }: Input): SandboxSpec['main'] {
  if (main === undefined) return null;
  const { argv, tty, stdin } = main;
  if (argv === undefined)
    throw op.error('invalid_argument', `a sandbox from ${what} needs to be told what to run`, {
      hint: `hutch run ${flag} -- COMMAND; without a command: hutch create ${flag}`,
    });
  if (contents !== 'disk' && spec.main !== null) {
    throw op.error('failed_precondition', `in ${what} a main process runs, and goes on in each sandbox that is made from it`, {
      hint: `make one, then run in it: hutch create ${flag} --name NAME && hutch exec NAME -- COMMAND`,
    });
  }
  return { argv, tty, stdin };
}

function without(env: Readonly<Record<string, string>>, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !names.includes(name)));
}
