// Containers that carry this daemon's label, and those of them that belong to no sandbox.
import * as z from 'zod';
import { HutchError } from '../../domain/errors.ts';
import { isId, type SandboxId } from '../../domain/ids.ts';
import type { Operation } from '../../host/operation.ts';
import { LABEL } from './config.ts';
import type { Engine } from './engine.ts';

const listAnswer = z.array(
  z.object({ Id: z.string(), Names: z.array(z.string()).nullish(), Labels: z.record(z.string(), z.string()).nullish() }),
);

export async function listOurs(op: Operation, engine: Engine, instance: string) {
  return await engine.json(op, listAnswer, {
    method: 'GET',
    path: '/containers/json',
    query: { all: true, filters: JSON.stringify({ label: [`${LABEL.instance}=${instance}`] }) },
  });
}

export async function findLeaks(op: Operation, engine: Engine, instance: string, known: ReadonlySet<SandboxId>) {
  try {
    return (await listOurs(op, engine, instance))
      .filter(({ Labels }) => {
        const id = Labels?.[LABEL.sandbox] ?? '';
        return !isId('sbx', id) || !known.has(id);
      })
      .map(({ Id, Names }) => ({ kind: 'container', what: `${Names?.[0]?.replace(/^\//, '') ?? Id} (docker rm -f ${Id.slice(0, 12)})` }));
  } catch (error) {
    // Without an Engine there is nobody to have any.
    if (error instanceof HutchError && ['unavailable', 'permission_denied', 'failed_precondition'].includes(error.code)) return [];
    throw error;
  }
}
