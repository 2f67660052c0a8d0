// A sandbox that begins where another one was: with its memory, its processes and its disk, and as itself. Whatever two
// machines must not share is made anew before its link goes up: names, addresses, machine-id, boot id, host keys, entropy.
import type { Started } from '../backends/backend.ts';
import type { Forced } from '../backends/snapshots.ts';
import { HutchError } from '../domain/errors.ts';
import type { FileSync } from '../domain/file-sync.ts';
import { newId } from '../domain/ids.ts';
import type { PublishedPort } from '../domain/published-port.ts';
import { newSandbox, type Sandbox, type SandboxSpec, type SnapshotSource } from '../domain/sandbox.ts';
import type { Agent } from '../guest/agent.ts';
import type { Found } from '../guest/messages.ts';
import type { Operation } from '../host/operation.ts';
import { type BringUp, type Configured, configurationOf, putDown, type Terminal, type Up } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { creating } from './creating.ts';
import { type Boot, placesOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import { inGuest } from './in-guest.ts';
import type { Run } from './run.ts';
import { reachStarted } from './runs.ts';
import { keepSecrets, type Secrets } from './secrets.ts';
import { inPlace, startUp } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import { tellGuest } from './tell-guest.ts';
import { removeUnmade } from './unmade.ts';
import { withVolumes } from './volumes.ts';

const CONFIGURE_MS = 180_000;
const IDENTITY_MS = 180_000;
const RELEASE_MS = 60_000;

export type CloneOf = {
  readonly spec: SandboxSpec;
  readonly boot: Boot;
  readonly secrets: Secrets;
  readonly source: SnapshotSource;
  /** What its backend wrote (`Snapshots.take`). */
  readonly dir: string;
  /** `spent`: it is for this one alone, and goes (`Snapshots.create`). */
  readonly use?: 'spent' | 'kept';
  /** Without memory it starts as a new one, with that disk. */
  readonly hasMemory: boolean;
  /** Also where its memory was written down on another kind of machine. */
  readonly forced?: Forced;
  readonly publish?: readonly PublishedPort[];
  /** Of its owner's, that it is to get. */
  readonly files?: readonly FileSync[];
  /** Of its main process, where it has one that begins now. */
  readonly terminal?: Terminal | undefined;
  readonly attach?: boolean;
};

/** On failure nothing of it is left. */
export async function makeClone(core: Core, supervisor: Supervisor, call: Call, of: CloneOf): Promise<Sandbox> {
  const { op } = call;
  const { deps } = core;
  const { host } = deps;
  const { spec, boot, secrets, source, dir } = of;
  const { projectId } = call.caller;
  const id = newId('sbx', (count) => host.randomBytes(count));
  core.runs.checkRoom(op);
  await requireFreeSpace(op, deps);
  const make = async (): Promise<Sandbox> => {
    const intent = creating(projectId, id, spec, host.nowMs());
    const { uids } = deps.settings;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => core.publisher.close(id));
    const { intentId, uid } = await core.publisher.reserve(op, id, of.publish ?? [], async (ports) => {
      const reserving = ports.length === 0 ? [] : ([{ change: 'reservePorts', sandboxId: id, ports }] as const);
      if (uids === null) return { intentId: (await call.commit([intent, ...reserving], 'relaxed'))[0].id, uid: null };
      const [begun, own] = await call.commit([intent, { change: 'allocateUid', sandboxId: id, uids }, ...reserving], 'relaxed');
      return { intentId: begun.id, uid: own };
    });
    const run = core.runs.open(op, { id, projectId, spec }, boot.files, uid);
    const { snapshots } = run.backend;
    if (snapshots === undefined) throw new Error(`the backend ${spec.backend} makes no snapshots`);
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await removeUnmade(core, late, run, [intentId]).catch((cause: unknown) =>
        op.log.warn(
          { sandbox: id, cause },
          'a clone that could not be made left something behind; the next start of the daemon removes it',
        ),
      );
    });
    await core.publisher.open(op, run);
    await host.makeDir(op, placesOf(deps.places, id).dir, 0o711);
    await snapshots.create(op, run.plan, dir, of.use);
    // Its memory is gone with this host's, its disk is not: it is there before there is a record of it.
    const settled = settle(core, op, run);
    await keepSecrets(op, host, placesOf(deps.places, id).secretsPath, secrets);
    const bare = newSandbox({ id, projectId, spec, atMs: host.nowMs(), opId: op.id });
    const what: BringUp = { sandbox: bare, boot, secrets, terminal: of.terminal };
    const up = of.hasMemory
      ? await inPlace(core, op, () =>
          goOn(core, op, run, what, 'another', (late) => snapshots.start(late, run.plan, dir, { forced: of.forced ?? false })),
        )
      : null;
    return await startUp(core, supervisor, call, run, what, {
      reason: 'clone',
      attach: of.attach ?? false,
      undo,
      files: of.files ?? [],
      ...(up === null ? {} : { up }),
      async record(event) {
        await settled;
        const [, , sandbox] = await call.commit([
          { change: 'finishIntent', id: intentId },
          { change: 'createSandbox', id, projectId, spec, atMs: event.atMs, source },
          { change: 'applyEvent', sandboxId: id, event: { ...event, source } },
        ]);
        return sandbox;
      },
    });
  };
  return await core.turns.take(op, id, () => withVolumes(core, op, spec, make));
}

/** Puts its disk on this host's. Does not reject until somebody waits for it. */
export function settle({ deps }: Pick<Core, 'deps'>, op: Operation, { backend, plan }: Run): Promise<void> {
  const path = backend.diskPath?.(plan) ?? null;
  const settled = path === null ? Promise.resolve() : deps.host.sync(op, path);
  settled.catch(() => {});
  return settled;
}

/**
 * From memory. `another`: that was the memory of another sandbox, or is gone on with elsewhere; `itself`: one that goes back.
 * `down`: nobody has it yet, so no packet leaves it. On failure there is no process.
 */
export async function goOn(
  core: Pick<Core, 'deps'>,
  op: Operation,
  run: Run,
  what: Configured,
  as: 'another' | 'itself',
  start: (op: Operation) => Promise<Started>,
  link: 'up' | 'down' = 'up',
): Promise<Up> {
  const { host } = core.deps;
  await using undo = new AsyncDisposableStack();
  undo.defer(async () => {
    using late = op.releasing(RELEASE_MS);
    await putDown(late, run);
  });
  const startedAtMs = host.nowMs();
  const started = await start(op);
  using limited = op.within(CONFIGURE_MS, 'making a clone itself');
  const agent = await reachStarted(limited, what.sandbox.spec.name, run);
  const ofMemory = { cutConnections: started.network !== null, look: true };
  const configuration = { ...configurationOf(host, what, started, run.backend), ...ofMemory };
  const { bootId = null, ...goingOn } = configuration;
  const found = await tellGuest(limited, host, run, agent, as === 'itself' ? goingOn : configuration); // its boot goes on
  await becomeItself(limited, run, agent, as === 'itself' ? null : bootId, found);
  if (started.network !== null && link === 'up') await run.backend.linkUp(limited, run.plan);
  undo.move();
  return { started, startedAtMs };
}

const BOOT_ID = '/proc/sys/kernel/random/boot_id';
const UUID_BYTES = 64;
/** Either of them is there only where somebody has put it. */
const TOLD = { keys: '/etc/ssh', hooks: '/etc/hutch/after-restore.d' } as const;

/** Host keys of its own, in the guest's own shell: who has any has that. */
const NEW_KEYS = `
for key in ${TOLD.keys}/ssh_host_*; do
  [ -e "$key" ] || continue
  rm -f ${TOLD.keys}/ssh_host_*
  ssh-keygen -q -A
  break
done
`;

/** The word to whoever wants to know. */
const TELL = `
for hook in ${TOLD.hooks}/*; do
  [ -x "$hook" ] && "$hook" < /dev/null > /dev/null 2>&1
done
exit 0
`;

/**
 * What the agent's `configure` does not do, or an agent of an older release has not done. A program costs a guest that has just been
 * restored more than all else here, so none is run that has nothing to do. `bootId` null: it keeps the one that it has.
 */
async function becomeItself(op: Operation, run: Run, agent: Agent, bootId: string | null, found: Found | null): Promise<void> {
  using limited = op.within(IDENTITY_MS, 'giving a clone its own identity');
  const { bootId: shown, hostKeys, hooks } = found ?? (await lookedFor(limited, agent));
  // A kernel in user space shows none.
  if (bootId !== null && shown !== null && shown !== bootId) await bindBootId(limited, run, agent, bootId);
  const script = `${bootId !== null && hostKeys ? NEW_KEYS : ''}${hooks ? TELL : ''}`;
  // Of each start another: the guest may remember that of an earlier one.
  if (script !== '') await inGuest(limited, run, `identity-${op.id}`, ['sh', '-c', script]);
}

/** By an agent that an older release has put there, which tells nothing of it by itself. */
async function lookedFor(op: Operation, agent: Agent): Promise<Found> {
  const [bootId, hostKeys, hooks] = await Promise.all([
    bootIdOf(op, agent),
    hasAny(op, agent, TOLD.keys, /^ssh_host_/),
    hasAny(op, agent, TOLD.hooks, /^[^.]/),
  ]);
  return { bootId, hostKeys, hooks };
}

/** What its programs see; null: there is none. */
async function bootIdOf(op: Operation, agent: Agent): Promise<string | null> {
  try {
    const { bytes } = await agent.file.read(op, { path: BOOT_ID, user: 'root', length: UUID_BYTES });
    const said: Uint8Array[] = [];
    for await (const chunk of bytes) said.push(chunk);
    return Buffer.concat(said).toString('utf8').trim();
  } catch (error) {
    if (error instanceof HutchError && error.code === 'not_found') return null;
    throw error;
  }
}

/** A release before bound a file of its own there, which is above the agent's. */
async function bindBootId(op: Operation, run: Run, agent: Agent, bootId: string): Promise<void> {
  // A file of its own: that of the machine that it comes from may be mounted there, and a file that is replaced cannot be mounted over.
  const path = `/run/hutch/boot_id-${run.id}`;
  await agent.file.mkdir(op, { path: '/run/hutch', user: 'root', mode: 0o755, parents: true });
  await agent.file.write(op, { path, user: 'root', mode: 0o444 }, once(`${bootId}\n`));
  await inGuest(op, run, `boot-id-${run.id}`, ['mount', '--bind', path, BOOT_ID]);
}

async function hasAny(op: Operation, agent: Agent, path: string, named: RegExp): Promise<boolean> {
  try {
    for await (const entries of agent.file.list(op, { path, user: 'root', depth: 1 })) {
      if (entries.some(({ name }) => named.test(typeof name === 'string' ? name : Buffer.from(name).toString('latin1')))) return true;
    }
  } catch (error) {
    // No directory has nothing in it.
    if (!(error instanceof HutchError) || (error.code !== 'not_found' && error.code !== 'invalid_argument')) throw error;
  }
  return false;
}

async function* once(text: string): AsyncGenerator<Uint8Array> {
  yield new TextEncoder().encode(text);
}
