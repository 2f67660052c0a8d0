// Waiting for the end of a container: whoever waits looks whenever the Engine may have news.
import { HutchError } from '../../domain/errors.ts';
import type { Operation } from '../../host/operation.ts';
import type { ProcessEvidence } from '../backend.ts';
import type { Dead } from '../dead.ts';

export type Look = { readonly evidence: ProcessEvidence; readonly isOver: boolean };

export async function waitForEnd(op: Operation, hints: AsyncIterable<void>, look: () => Promise<Look>): Promise<Dead> {
  for await (const _ of hints) {
    try {
      const { evidence, isOver } = await look();
      if (isOver) return evidence as Dead;
    } catch (error) {
      // An Engine that is away says nothing about the container: it is asked again when it is back.
      const isAway = error instanceof HutchError && ['unavailable', 'not_found', 'deadline_exceeded', 'internal'].includes(error.code);
      if (op.signal.aborted || !isAway) throw error;
    }
  }
  throw op.error('internal', 'the hints of a container have ended');
}
