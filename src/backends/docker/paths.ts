// The files of one sandbox.
import { join } from 'node:path';
import type { SandboxPlan } from '../backend.ts';

/** Which container is this sandbox's: written when it was made, so that a name means nothing. */
export const markPath = (plan: Pick<SandboxPlan, 'dataDir'>): string => join(plan.dataDir, 'container.json');
/** Seen by the container, and by nobody else but us. */
export const socketDir = (plan: Pick<SandboxPlan, 'runDir'>): string => join(plan.runDir, 'agent');
export const agentSocketPath = (plan: Pick<SandboxPlan, 'runDir'>): string => join(socketDir(plan), 'agent.sock');
export const logPath = (plan: Pick<SandboxPlan, 'logDir'>): string => join(plan.logDir, 'vmm.log');
