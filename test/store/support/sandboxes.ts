// Sandboxes and events for tests of the store: valid, small, and with whatever the test wants to say.
import { randomBytes } from 'node:crypto';
import { newId, newOpId, type OpId, type SandboxId } from '../../../src/domain/ids.ts';
import { ACCEPTS, type Ended, type SandboxEvent, type SandboxSpec, type SandboxState } from '../../../src/domain/sandbox.ts';

export const IMAGE_ID = newId('img', () => new Uint8Array(17).fill(1));

export const SANDBOX_STATES_ALL = Object.keys(ACCEPTS) as readonly SandboxState[];

export function someSpec(name: string, more: Partial<SandboxSpec> = {}): SandboxSpec {
  return {
    name,
    backend: 'qemu',
    imageId: IMAGE_ID,
    kernelId: null,
    shape: { cpus: 1, memoryMiB: 512, diskMiB: 8_192 },
    network: 'allow',
    env: {},
    secretNames: [],
    labels: {},
    workdir: null,
    user: null,
    main: null,
    autoRemove: false,
    timeoutMs: null,
    ...more,
  };
}

export function someSandboxId(): SandboxId {
  return newId('sbx', randomBytes);
}

export function someOpId(): OpId {
  return newOpId(randomBytes);
}

export function started(atMs: number, opId: OpId = someOpId()): SandboxEvent {
  return { type: 'started', reason: 'boot', deadlineAtMs: null, atMs, opId };
}

export function stopped(atMs: number, opId: OpId = someOpId()): SandboxEvent {
  const ended: Ended = { cause: 'stopped', exitCode: 0, oomKilled: false, actor: 'daemon', atMs };
  return { type: 'ended', reason: 'stop-user', ended, diedAtMs: atMs, evidence: 'exit.json', atMs, opId };
}

export function deleted(atMs: number, opId: OpId = someOpId()): SandboxEvent {
  return { type: 'deleted', process: null, atMs, opId };
}
