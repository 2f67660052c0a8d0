// hutch set: what is in force at once, and what is kept until the next start. Everything is judged before anything is done.
import type { Capabilities } from '../backends/backend.ts';
import { type Pending, type Sandbox, type Shape, type SpecChange, sameShape } from '../domain/sandbox.ts';
import type { Call } from './call.ts';
import { Claims, STOP_WHEN_IDLE } from './claims.ts';
import type { Core } from './core.ts';
import { checkLimits } from './create.ts';
import { backendOf } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { reshapeRunning } from './reshape.ts';
import type { Supervisor } from './supervisor.ts';
import { dropUndo, requireUndo } from './undo.ts';
import { LABELS_MAX } from './verbs/fields.ts';
import type { Output, Parsed } from './verbs.ts';

type Input = Parsed<'sandbox.set'>;
type Name = Output<'sandbox.set'>['now'][number];

/** By the name that `changes` has for it. */
const MACHINE = { cpus: 'cpus', memoryMiB: 'memory', diskMiB: 'disk', pids: 'processes', network: 'network' } as const satisfies {
  readonly [K in keyof Required<Pending>]: keyof Capabilities['changes'];
};

export function setVerb(core: Core, supervisor: Supervisor): Pick<Handlers, 'sandbox.set'> {
  const { deps, sandboxes, turns, presenter, templates } = core;
  const claims = new Claims();

  return {
    'sandbox.set': async (call, { ref, ...input }) => {
      const { id } = await sandboxes.resolve(call.caller.projectId, ref);
      call.target(id);
      const { after, now, atNextStart } = await turns.take(call.op, id, async () => set(call, await sandboxes.get(call.op, id), input));
      return { sandbox: await presenter.sandbox(after, call.op.id), now: [...now], atNextStart: [...atNextStart] };
    },
  };

  async function set(call: Call, sandbox: Sandbox, input: Omit<Input, 'ref'>) {
    const { op } = call;
    const { spec } = sandbox;
    if (sandbox.state === 'deleted') throw op.error('failed_precondition', `sandbox ${sandbox.id} is deleted; it cannot be changed`);
    const change = policiesOf(call, sandbox, input);
    if (input.idleAction === 'suspend') await claims.need(op, backendOf(deps, op, spec.backend), 'suspend', STOP_WHEN_IDLE);
    if ((input.undo ?? 0) > 0) requireUndo(deps, op, spec);
    const asked = machineOf(input);
    const changes = await judge(call, sandbox, asked);
    const { live, waiting } = parted(sandbox, asked, changes);
    const shape = { ...spec.shape, ...live };
    const run = sandbox.state === 'running' && !sameShape(shape, spec.shape) ? core.runs.of(op, sandbox) : null;
    const nowMs = deps.host.nowMs();
    const deadlineAtMs = input.timeoutMs === undefined ? undefined : input.timeoutMs === null ? null : nowMs + input.timeoutMs;
    const event = {
      type: 'changed',
      atMs: nowMs,
      opId: op.id,
      change: { ...change, ...(run === null ? {} : { shape }), ...(Object.keys(asked).length === 0 ? {} : { pending: waiting }) },
      ...(deadlineAtMs === undefined ? {} : { deadlineAtMs }),
    } as const;
    const after =
      run === null
        ? (await call.commit([{ change: 'applyEvent', sandboxId: sandbox.id, event }]))[0]
        : await reshapeRunning(core, call, run, { sandbox, shape, event });
    sandboxes.changed(after);
    if (input.undo !== undefined) await dropUndo(core, op, sandbox.id, input.undo);
    const known = core.runs.get(sandbox.id);
    if (deadlineAtMs !== undefined && known !== null) supervisor.rearm(known, after);
    const atNextStart = (Object.keys(asked) as Name[]).filter((name) => name in waiting);
    const now = (Object.keys(input) as Name[]).filter((name) => input[name] !== undefined && !atNextStart.includes(name));
    return { after, now, atNextStart };
  }

  /** @throws HutchError naming the field and its bound. */
  async function judge(call: Call, { spec, id }: Sandbox, asked: Pending): Promise<Capabilities['changes'] | null> {
    const { op } = call;
    if (Object.keys(asked).length === 0) return null;
    checkLimits(call, deps.settings.limits, asked);
    if (asked.diskMiB !== undefined && asked.diskMiB < spec.shape.diskMiB) {
      throw op.error('invalid_argument', `diskMiB must be at least ${spec.shape.diskMiB}, which it has: disks only grow`, {
        hint: 'ask for more; a sandbox with a smaller one is a new one: hutch create --disk SIZE',
      });
    }
    const backend = backendOf(deps, op, spec.backend);
    await templates.checkAsked(op, backend, asked);
    if (asked.network !== undefined && asked.network !== spec.network) await templates.network(op, backend, asked.network);
    const can = await templates.can(op, backend);
    if (can === null) throw op.error('failed_precondition', `the backend ${spec.backend} does not work on this machine now`);
    for (const [name, value] of Object.entries(asked) as [keyof Pending, unknown][]) {
      if (can.changes[MACHINE[name]] !== 'no' || value === currentOf(spec.shape, spec.network)[name]) continue;
      throw op.error('failed_precondition', `${name} cannot be changed by the backend ${spec.backend} once a sandbox is made (${id})`, {
        hint: 'what can be changed where: hutch backends',
      });
    }
    return can.changes;
  }
}

function currentOf(shape: Shape, network: Pending['network']): Pending {
  return { ...shape, ...(network === undefined ? {} : { network }) };
}

function machineOf({ cpus, memoryMiB, diskMiB, pids, network }: Omit<Input, 'ref'>): Pending {
  return {
    ...(cpus === undefined ? {} : { cpus }),
    ...(memoryMiB === undefined ? {} : { memoryMiB }),
    ...(diskMiB === undefined ? {} : { diskMiB }),
    ...(pids === undefined ? {} : { pids }),
    ...(network === undefined ? {} : { network }),
  };
}

/** What can be in force at once, and all that waits, with what waited before. */
function parted(sandbox: Sandbox, asked: Pending, changes: Capabilities['changes'] | null): { live: Partial<Shape>; waiting: Pending } {
  const { spec } = sandbox;
  const current = currentOf(spec.shape, spec.network);
  const names = Object.keys(asked) as (keyof Pending)[];
  const isNow = (name: keyof Pending): boolean =>
    asked[name] === current[name] || (sandbox.state === 'running' && changes?.[MACHINE[name]] === 'live');
  const only = (source: Pending, keep: (name: keyof Pending) => boolean): Pending =>
    Object.fromEntries(Object.entries(source).filter(([name]) => keep(name as keyof Pending)));
  const { network: _, ...live } = only(asked, isNow);
  return { live, waiting: { ...only(spec.pending ?? {}, (name) => !names.includes(name)), ...only(asked, (name) => !isNow(name)) } };
}

/** What every backend has at once. */
function policiesOf(
  { op }: Call,
  { spec }: Sandbox,
  { timeoutMs, labels, restart, idleMs, idleAction, undo }: Omit<Input, 'ref'>,
): SpecChange {
  if (restart !== undefined && restart !== 'no' && spec.autoRemove) {
    throw op.error('invalid_argument', `restart must be no: sandbox ${spec.name} deletes itself when it has ended (--rm)`);
  }
  const merged = Object.entries({ ...spec.labels, ...labels }).filter((pair): pair is [string, string] => pair[1] !== null);
  if (merged.length > LABELS_MAX)
    throw op.error('invalid_argument', `labels: it would have ${merged.length}, at most ${LABELS_MAX} are kept`);
  return {
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
    ...(labels === undefined ? {} : { labels: Object.fromEntries(merged) }),
    ...(restart === undefined ? {} : { restart }),
    ...(idleMs === undefined ? {} : { idleMs }),
    ...(idleAction === undefined ? {} : { idleAction }),
    ...(undo === undefined ? {} : { undo }),
  };
}
