import fc from 'fast-check';
import { expect, test } from 'vitest';
import { HutchError } from '../../src/domain/errors.ts';
import { ledgerEntries } from '../../src/domain/ledger.ts';
import { newSandbox } from '../../src/domain/sandbox.ts';
import { anyHistory, replay } from '../support/histories.ts';
import { testOperation } from '../support/operation.ts';
import { expectConsistent } from './support/consistency.ts';
import { someSandboxId, someSpec } from './support/sandboxes.ts';
import { tempStore } from './support/stores.ts';

const op = testOperation();

test('whatever happens to sandboxes, the store says what the rules say, and its ledger adds up', async () => {
  await using store = await tempStore();
  const { defaultProjectId: projectId } = store;
  let made = 0;
  await fc.assert(
    fc.asyncProperty(anyHistory, async (wishes) => {
      made += 1;
      // Names are unique among the living, and histories choose the same few.
      const events = wishes.map((event) => (event.type === 'renamed' ? { ...event, name: `${event.name}-${made}` } : event));
      const id = someSandboxId();
      const spec = someSpec(`web-${made}`);
      const born = newSandbox({ id, projectId, spec, atMs: 10, opId: op.id });
      await store.commit(op, [{ change: 'createSandbox', id, projectId, spec, atMs: 10 }]);
      const outcomes = await Promise.allSettled(events.map((event) => store.commit(op, [{ change: 'applyEvent', sandboxId: id, event }])));
      const steps = replay(born, events);
      expect(outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value[0]] : []))).toEqual(
        steps.map(({ after }) => after),
      );
      for (const outcome of outcomes) {
        if (outcome.status === 'rejected') expect(outcome.reason instanceof HutchError && outcome.reason.code).toBe('failed_precondition');
      }
      expect(await store.query('sandbox', { id })).toEqual(steps.at(-1)?.after ?? born);
      const wanted = [
        ...ledgerEntries(null, born, { type: 'created', atMs: 10, opId: op.id }),
        ...steps.flatMap(({ before, after, event }) => ledgerEntries(before, after, event)),
      ];
      expect(await store.query('ledger', { after: 0, sandboxId: id })).toMatchObject(wanted);
    }),
    { numRuns: 60 },
  );
  await expectConsistent(store);
});

test('a generation that is not the expected one refuses the change', async () => {
  await using store = await tempStore();
  const id = someSandboxId();
  await store.commit(op, [{ change: 'createSandbox', id, projectId: store.defaultProjectId, spec: someSpec('web'), atMs: 1 }]);
  const rename = {
    change: 'applyEvent',
    sandboxId: id,
    expectGeneration: 1,
    event: { type: 'renamed', name: 'other', atMs: 2, opId: op.id },
  } as const;
  await store.commit(op, [rename]);
  await expect(store.commit(op, [{ ...rename, event: { ...rename.event, name: 'third' } }])).rejects.toMatchObject({
    code: 'failed_precondition',
    message: `sandbox other (${id}) was changed meanwhile: it is created`,
  });
});
