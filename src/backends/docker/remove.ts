// Taking away something of ours in an Engine.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { Engine } from './engine.ts';

type What = Pick<Parameters<Engine['call']>[1], 'path' | 'query'>;

/** Of what is gone already there is nothing to say. */
export async function removeIfThere(op: Operation, engine: Engine, what: What, ms?: number): Promise<void> {
  try {
    await engine.call(op, { method: 'DELETE', ...what }, ms);
  } catch (error) {
    if (!(error instanceof HutchError && error.code === 'not_found')) throw error;
  }
}
