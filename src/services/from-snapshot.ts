// A sandbox that begins with a named snapshot: as that was, and as itself; what is asked for beside it comes on top.
import type { Sandbox, SandboxSpec } from '../domain/sandbox.ts';
import type { Snapshot } from '../domain/snapshot.ts';
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import { type CloneOf, makeClone } from './clone.ts';
import type { Core } from './core.ts';
import { backendOf } from './deps.ts';
import { filesFor } from './file-sync.ts';
import { resolveMounts } from './mounts.ts';
import { madeUpName } from './names.ts';
import { findSnapshot, readSnapshotFiles, snapshotDir, snapshotsOf } from './snapshots.ts';
import type { Supervisor } from './supervisor.ts';
import type { Parsed } from './verbs.ts';

type Input = Parsed<'sandbox.create'> & { readonly from: string };

export async function createFrom(core: Core, supervisor: Supervisor, call: Call, input: Input): Promise<Sandbox> {
  const { op, caller } = call;
  const snapshot = await findSnapshot(core, op, caller.projectId, input.from);
  using _reading = readSnapshotFiles(core, op, snapshot);
  const bare = specFrom(core, call, snapshot, input);
  const mounts = await mountsFrom(core, call, snapshot, input);
  const files = await filesFor(core.deps, call, input.fileSync ?? []);
  const spec = { ...bare, ...(mounts.length === 0 ? {} : { mounts }), ...(files.length === 0 ? {} : { fileSync: files }) };
  return await makeClone(core, supervisor, call, {
    ...(await beginningOf(core, op, snapshot, spec, input.force ?? false)),
    secrets: input.secrets ?? {},
    files,
    publish: input.publish ?? [],
    terminal: input.main?.terminal,
    attach: input.main?.attach ?? false,
  });
}

/**
 * What a sandbox like that begins with there. `forced`: also where it was made on another kind of machine.
 * @throws HutchError `failed_precondition` where its memory cannot go on here.
 */
export async function beginningOf(
  core: Core,
  op: Operation,
  snapshot: Snapshot,
  spec: SandboxSpec,
  forced: boolean,
): Promise<Pick<CloneOf, 'spec' | 'boot' | 'dir' | 'hasMemory' | 'source' | 'forced'>> {
  const { deps } = core;
  const boot = await deps.boots.of(op, spec, backendOf(deps, op, spec.backend).needs);
  const dir = snapshotDir(core, snapshot.id);
  const { name, shape, network } = spec;
  if (snapshot.contents !== 'disk')
    await snapshotsOf(core, op, snapshot).fits?.(op, { name, shape, network, boot: boot.files }, dir, { forced });
  const source = { snapshotId: snapshot.id, parentId: snapshot.sandboxId };
  return { spec, boot, dir, hasMemory: snapshot.contents !== 'disk', source, forced };
}

const FIXED = ['image', 'kernel', 'cpus', 'memoryMiB', 'diskMiB', 'pids', 'backend'] as const;

function specFrom(core: Core, { op }: Call, snapshot: Snapshot, input: Input): SandboxSpec {
  const { spec } = snapshot;
  const what = snapshot.name ?? snapshot.id;
  const fixed = FIXED.find((key) => input[key] !== undefined);
  if (fixed !== undefined)
    throw op.error('invalid_argument', `${fixed} is that of snapshot ${what}: it cannot be chosen`, { hint: 'leave it out' });
  if (input.start === false) {
    throw op.error('invalid_argument', 'a sandbox from a snapshot is started at once', { hint: 'without start: false (--no-start)' });
  }
  const hasMemory = snapshot.contents !== 'disk';
  const main = mainFrom(op, snapshot, input, what);
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
async function mountsFrom(core: Core, call: Call, { contents, spec, name, id }: Snapshot, { mounts: wanted = [] }: Input) {
  const { op } = call;
  if (wanted.length === 0) return [];
  if (contents !== 'disk')
    throw op.error('failed_precondition', `what goes on in the memory of snapshot ${name ?? id} cannot be given mounts`, {
      hint: 'take it of the disk alone: hutch snapshot create --disk-only',
    });
  return await resolveMounts(core.deps, call, backendOf(core.deps, op, spec.backend), wanted);
}

/** Its own command goes on with its memory; another one may only be the first. */
function mainFrom(op: Call['op'], { spec, contents }: Snapshot, { main }: Input, what: string): SandboxSpec['main'] {
  if (main === undefined) return null;
  const { argv, tty, stdin } = main;
  if (argv === undefined)
    throw op.error('invalid_argument', `a sandbox from snapshot ${what} needs to be told what to run`, {
      hint: `hutch run --from ${what} -- COMMAND; without a command: hutch create --from ${what}`,
    });
  if (contents !== 'disk' && spec.main !== null) {
    throw op.error('failed_precondition', `in snapshot ${what} a main process runs, and goes on in each sandbox that is made from it`, {
      hint: `make one, then run in it: hutch create --from ${what} --name NAME && hutch exec NAME -- COMMAND`,
    });
  }
  return { argv, tty, stdin };
}

function without(env: Readonly<Record<string, string>>, names: readonly string[]): Record<string, string> {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !names.includes(name)));
}
