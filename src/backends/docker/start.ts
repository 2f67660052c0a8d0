// The Engine is asked to start a container; what it says of a layer that it cannot mount is told apart.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { damagedDisk } from '../damaged.ts';
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
