// A sandbox that begins where another one was: with its memory, its processes and its disk, and as itself. Whatever two
// machines must not share is made anew before its link goes up: names, addresses, machine-id, boot id, host keys, entropy.
import { randomUUID } from 'node:crypto';
import type { Forced, Started } from '../backends/backend.ts';
import type { FileSync } from '../domain/file-sync.ts';
import { newId } from '../domain/ids.ts';
import type { PublishedPort } from '../domain/published-port.ts';
import { newSandbox, type Sandbox, type SandboxSpec, type SnapshotSource } from '../domain/sandbox.ts';
import type { Agent } from '../guest/agent.ts';
import type { Operation } from '../host/operation.ts';
import { type BringUp, type Configured, configurationOf, putDown, type Terminal, type Up } from './bring-up.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { creating } from './creating.ts';
import { type Boot, placesOf } from './deps.ts';
import { requireFreeSpace } from './free-space.ts';
import { inGuest } from './in-guest.ts';
import type { Run } from './run.ts';
import { reach } from './runs.ts';
import { keepSecrets, type Secrets } from './secrets.ts';
import { inPlace, startUp } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import { removeUnmade } from './unmade.ts';
import { withVolumes } from './volumes.ts';

const CONFIGURE_MS = 180_000;
const IDENTITY_MS = 90_000;
const RELEASE_MS = 60_000;

export type CloneOf = {
  readonly spec: SandboxSpec;
  readonly boot: Boot;
  readonly secrets: Secrets;
  readonly source: SnapshotSource;
  /** What its backend wrote (`Snapshots.take`). */
  readonly dir: string;
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
    await snapshots.create(op, run.plan, dir);
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
  const agent = await reach(limited, what.sandbox.spec.name, run);
  const configuration = configurationOf(host, what, started, run.backend);
  const { bootId: _, ...goingOn } = configuration; // its boot goes on
  const { warnings } = await agent.configure(limited, as === 'itself' ? goingOn : configuration);
  if (warnings.length > 0) op.log.warn({ sandbox: run.id, warnings }, 'the guest had warnings while it was configured');
  await becomeItself(limited, run, agent, as);
  if (started.network !== null && link === 'up') await run.backend.linkUp(limited, run.plan);
  undo.move();
  return { started, startedAtMs };
}

const BOOT_ID = '/proc/sys/kernel/random/boot_id';
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

/** What the agent's `configure` does not do. A program costs a restored guest far more than a call of its agent. */
async function becomeItself(op: Operation, run: Run, agent: Agent, as: 'another' | 'itself'): Promise<void> {
  using limited = op.within(IDENTITY_MS, 'giving a clone its own identity');
  await agent.file.mkdir(limited, { path: '/run/hutch', mode: 0o755, parents: true });
  const isThere = async (path: string): Promise<boolean> =>
    await agent.file.stat(limited, { path, follow: true }).then(
      () => true,
      () => false,
    );
  // A kernel in user space has none.
  if (as === 'another' && (await isThere(BOOT_ID))) {
    // A file of its own: that of the machine that it comes from may be mounted there, and a file that is replaced cannot be mounted over.
    const ownBootId = `/run/hutch/boot_id-${run.id}`;
    await agent.file.write(limited, { path: ownBootId, mode: 0o444 }, once(`${randomUUID()}\n`));
    await inGuest(limited, run, `boot-id-${run.id}`, ['mount', '--bind', ownBootId, BOOT_ID]);
  }
  const [hasKeys, hasHooks] = await Promise.all([as === 'another' && isThere(TOLD.keys), isThere(TOLD.hooks)]);
  const script = `${hasKeys ? NEW_KEYS : ''}${hasHooks ? TELL : ''}`;
  // Of each start another: the guest may remember that of an earlier one.
  if (script !== '') await inGuest(limited, run, `identity-${op.id}`, ['sh', '-c', script]);
}

async function* once(text: string): AsyncGenerator<Uint8Array> {
  yield new TextEncoder().encode(text);
}
