// The Engine is asked to start a container; what it says of a layer that it cannot mount is told apart.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { AgentDoors } from '../agent-door.ts';
import type { SandboxPlan } from '../backend.ts';
import { damagedDisk } from '../damaged.ts';
import { type Dead, describe } from '../dead.ts';
import { START_MS } from './config.ts';
import type { Engine } from './engine.ts';

/** Of its storage driver, never of the runtime, which names files below the same directories for other reasons. */
const LAYER_LOST =
  /error creating overlay mount|failed to mount [^:]*overlay|\/overlay2\/[^ ]*: (?:no such file|structure needs cleaning|input\/output)/i;
const OF_THE_RUNTIME = /OCI runtime|runc/;

export async function startContainer(op: Operation, engine: Engine, plan: SandboxPlan, containerId: string): Promise<void> {
  try {
    await engine.call(op, { method: 'POST', path: `/containers/${containerId}/start` }, START_MS);
  } catch (cause) {
    if (!(cause instanceof HutchError) || !LAYER_LOST.test(cause.message) || OF_THE_RUNTIME.test(cause.message)) throw cause;
    throw damagedDisk(op, { name: plan.name, path: null, hasSnapshots: false, why: cause.message, cause });
  }
}

/** From the start of a container until its agent has connected: thirty at once on two cores take their time. */
const ARRIVE_MS = 60_000;

/** Until the agent stands at the door; a container that ends before that says so at once. */
export async function agentArrives(
  op: Operation,
  doors: AgentDoors,
  plan: SandboxPlan,
  ended: (op: Operation, plan: SandboxPlan) => Promise<Dead>,
): Promise<void> {
  using limited = op.within(ARRIVE_MS, "the agent's arrival");
  const settled = new AbortController();
  const watching = { ...limited, signal: AbortSignal.any([limited.signal, settled.signal]) };
  const death = ended(watching, plan).then((dead) => {
    throw op.error('unavailable', `its container ended while it was started (${describe(dead)})`);
  });
  death.catch(() => {}); // heard by the race, or too late
  try {
    await Promise.race([doors.arrived(watching, plan.id), death]);
  } finally {
    settled.abort();
  }
}
