// What is on record of a sandbox that is being made.
import type { ProjectId, SandboxId } from '../domain/ids.ts';
import type { SandboxSpec } from '../domain/sandbox.ts';

/** Written down before any of it is done. */
export function creating(
  projectId: ProjectId,
  sandboxId: SandboxId,
  { name, backend, imageId, kernelId, shape }: SandboxSpec,
  atMs: number,
) {
  const detail = { backend, imageId, kernelId, shape: { ...shape } };
  return { change: 'addIntent', kind: 'create', projectId, sandboxId, reserveName: name, atMs, detail } as const;
}
