// What is kept of a build, beside its log.
import { z } from 'zod';
import type { BuildId, OpId, ProjectId } from '../domain/ids.ts';

const short = z.string().max(1024);
export const buildRecord = z.object({
  id: short,
  projectId: short,
  state: z.enum(['running', 'done', 'failed', 'cancelled']),
  names: z.array(short).max(100),
  target: short.nullable(),
  backend: z.enum(['qemu', 'gvisor', 'docker', 'firecracker', 'cloud-hypervisor']).nullable(),
  step: z.string().nullable(),
  stepsDone: z.int(),
  stepsTotal: z.int(),
  error: z.any(),
  logTail: z.array(z.string()).max(100).default([]),
  image: z.object({ id: short, digest: short, sizeBytes: z.number() }).nullable(),
  template: short.nullable().default(null),
  snapshot: z.object({ id: short, digest: short }).nullable().default(null),
  createdAtMs: z.int(),
  endedAtMs: z.int().nullable(),
  opId: short.nullable(),
});
export type BuildRecord = z.output<typeof buildRecord> & {
  readonly id: BuildId;
  readonly projectId: ProjectId;
  readonly opId: OpId | null;
};
