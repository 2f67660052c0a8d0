// Random operations on two sandboxes, compared step by step with the model: same answers, same states,
// same files, whatever the order. HUTCH_TEST_SEED repeats a run; HUTCH_TEST_LONG=1 makes it long.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ApiError } from '../support/daemon-under-test.ts';
import { type Answer, Model, type Op, type Seen, SLOTS, type Slot, sequence } from './model.ts';
import type { Subject } from './subject.ts';

const LONG = process.env['HUTCH_TEST_LONG'] === '1';
/** Shrinking starts sandboxes too: a failure is shown in the shortest form found within this. */
const SHRINK_MS = 120_000;

export function sequences(subject: Subject): void {
  const quick = subject.name === 'reference';
  const numRuns = LONG ? (quick ? 200 : 40) : quick ? 10 : 3;

  test('random sequences: answers, states and files are those of the model', { timeout: LONG ? 3_600_000 : 300_000 }, async () => {
    let tried = 0;
    await fc.assert(
      fc.asyncProperty(sequence(LONG ? 30 : 12), async (ops) => {
        tried += 1;
        await compare(subject, ops);
      }),
      { seed: Number(process.env['HUTCH_TEST_SEED']), numRuns, interruptAfterTimeLimit: LONG ? 3_000_000 : SHRINK_MS },
    );
    expect(tried).toBeGreaterThan(0);
  });
}

async function compare(subject: Subject, ops: readonly Op[]): Promise<void> {
  const model = new Model(subject.can.pause);
  const ids: [string | null, string | null] = [null, null];
  const made: string[] = [];
  try {
    for (const [nth, op] of ops.entries()) {
      const wanted = model.apply(op);
      if (wanted === null) continue;
      const found = await carryOut(subject, op, ids, (slot, sandbox) => {
        made.push(sandbox.id);
        model.named(slot, sandbox.name);
      });
      expect(found, `operation ${nth}: ${JSON.stringify(op)}`).toEqual(wanted);
      for (const slot of SLOTS)
        expect(await seen(subject, ids[slot]), `slot ${slot} after operation ${nth}: ${JSON.stringify(op)}`).toEqual(model.seen(slot));
    }
  } finally {
    await subject.remove(...made);
  }
}

async function seen(subject: Subject, id: string | null): Promise<Seen | null> {
  if (id === null) return null;
  const { state, name, startCount } = await subject.get(id);
  return { state: state as Seen['state'], name, startCount };
}

async function carryOut(
  subject: Subject,
  op: Op,
  ids: [string | null, string | null],
  onMade: (slot: Slot, sandbox: { id: string; name: string }) => void,
): Promise<Answer> {
  try {
    return await ask(subject, op, ids, onMade);
  } catch (error) {
    if (error instanceof ApiError) return { code: error.code as Answer['code'] };
    throw error;
  }
}

async function ask(
  subject: Subject,
  op: Op,
  ids: [string | null, string | null],
  onMade: (slot: Slot, sandbox: { id: string; name: string }) => void,
): Promise<Answer> {
  const { daemon } = subject;
  if (op.do === 'daemon-killed') {
    await daemon.kill9();
    await daemon.startAgain();
    return { code: 'done' };
  }
  if (op.do === 'create') {
    const sandbox = await subject.make({ start: op.start });
    ids[op.slot] = sandbox.id;
    onMade(op.slot, sandbox);
    return { code: 'done' };
  }
  const ref = ids[op.slot] ?? '';
  const path = 'key' in op ? `/root/${op.key}` : '';
  const url = `/v1/sandboxes/${ref}/files?path=${path}`;
  switch (op.do) {
    case 'stop':
    case 'restart':
      await daemon.call(`sandbox.${op.do}`, { ref, graceMs: 0 });
      return { code: 'done' };
    case 'start':
    case 'pause':
    case 'resume':
      await daemon.call(`sandbox.${op.do}`, { ref });
      return { code: 'done' };
    case 'delete':
      await daemon.call('sandbox.delete', { ref, force: op.force });
      return { code: 'done' };
    case 'rename':
      await daemon.call('sandbox.rename', { ref, name: op.name });
      return { code: 'done' };
    case 'crash':
      await subject.sh(ref, 'sync');
      process.kill(await subject.pidOf(ref), 'SIGKILL');
      await daemon.until(ref, 'stopped');
      return { code: 'done' };
    case 'scratch':
      await subject.sh(ref, 'sleep 1000 > /dev/null 2>&1 & true');
      return { code: 'done' };
    case 'scratched':
      return { code: 'done', read: (await subject.sh(ref, 'cat /proc/[0-9]*/comm | grep -q "^sleep$" && echo yes || echo no')).trim() };
    case 'write': {
      if (op.by === 'api') return await raw(subject, 'PUT', url, op.text);
      await subject.sh(ref, `printf %s ${op.text === '' ? "''" : op.text} > ${path}`);
      return { code: 'done' };
    }
    case 'read': {
      if (op.by === 'api') {
        const { body } = await got(subject, 'GET', url);
        return { code: 'done', read: body.toString() };
      }
      const { exitCode, stdout } = await daemon.run(ref, ['cat', path]);
      return { code: 'done', read: exitCode === 0 ? stdout : null };
    }
    case 'remove':
      return await raw(subject, 'DELETE', url);
  }
}

async function raw(subject: Subject, method: string, url: string, body?: string): Promise<Answer> {
  await got(subject, method, url, body);
  return { code: 'done' };
}

async function got(subject: Subject, method: string, url: string, body?: string) {
  const answer = await subject.daemon.send(method, url, body === undefined ? {} : { body });
  if (answer.status !== 200) throw new ApiError(answer.status, JSON.parse(answer.body.toString()) as ApiError['body'], answer.headers);
  return answer;
}
