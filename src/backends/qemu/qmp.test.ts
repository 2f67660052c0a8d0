import { Duplex } from 'node:stream';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { openQmp, QMP_LINE_CHARS_MAX, type Qmp } from './qmp.ts';

const GREETING = '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}\r\n';
const op = testOperation();

/** The VMM's end of the socket: `answer` gives what it says to each command. */
class FakeVmm extends Duplex {
  readonly commands: { execute: string; id: number; arguments: unknown }[] = [];
  readonly #answer: (command: { execute: string; id: number }) => string | null;

  constructor(
    greeting: string | null = GREETING,
    answer: (command: { execute: string; id: number }) => string | null = ({ id }) => `{"return": {}, "id": ${id}}\n`,
  ) {
    super();
    this.#answer = answer;
    if (greeting !== null) this.push(greeting);
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    for (const line of chunk.toString().split('\n').filter(Boolean)) {
      const command = JSON.parse(line) as { execute: string; id: number; arguments: unknown };
      this.commands.push(command);
      const said = this.#answer(command);
      if (said !== null) this.push(said);
    }
    done();
  }
}

async function opened(vmm: FakeVmm): Promise<Qmp> {
  return await openQmp(op, vmm);
}

test('a command gets its own answer, also when another is answered first', async () => {
  const later: (() => void)[] = [];
  const vmm: FakeVmm = new FakeVmm(GREETING, ({ execute, id }) => {
    const said = `{"return": {"of": "${execute}"}, "id": ${id}}\n`;
    if (execute !== 'slow') return said;
    later.push(() => vmm.push(said));
    return null;
  });
  const qmp = await opened(vmm);
  expect(qmp.version).toBe('7.2.22');
  const slow = qmp.execute(op, 'slow');
  expect(await qmp.execute(op, 'quick', { a: 1 })).toEqual({ of: 'quick' });
  for (const tell of later) tell();
  expect(await slow).toEqual({ of: 'slow' });
  expect(vmm.commands.map(({ execute }) => execute)).toEqual(['qmp_capabilities', 'slow', 'quick']);
});

test('a refusal is an error with its words, and the connection goes on', async () => {
  const qmp = await opened(
    new FakeVmm(GREETING, ({ execute, id }) =>
      execute === 'bad' ? `{"id": ${id}, "error": {"class": "GenericError", "desc": "no such device"}}\n` : `{"return": {}, "id": ${id}}\n`,
    ),
  );
  await expect(qmp.execute(op, 'bad')).rejects.toMatchObject({ code: 'unavailable', message: expect.stringContaining('no such device') });
  expect(await qmp.execute(op, 'good')).toEqual({});
});

test('an event that came before it was waited for is not lost, and is told once', async () => {
  const vmm = new FakeVmm();
  const qmp = await opened(vmm);
  vmm.push('{"event": "STOP", "timestamp": {}}\n{"event": "MIGRATION", "data": {"status": "completed"}}\n');
  const isMigration = ({ name }: { name: string }) => name === 'MIGRATION';
  expect(await qmp.waitFor(op, 'it', isMigration)).toEqual({ name: 'MIGRATION', data: { status: 'completed' } });
  await expect(qmp.waitFor(testOperation({ signal: AbortSignal.timeout(20) }), 'it again', isMigration)).rejects.toMatchObject({
    code: 'cancelled',
  });
});

test('a VMM that says nothing is given up at the deadline', async () => {
  for (const vmm of [new FakeVmm(null), new FakeVmm(GREETING, () => null)]) {
    using short = op.within(20, 'the VMM');
    await expect(openQmp(short, vmm)).rejects.toMatchObject({ code: 'deadline_exceeded' });
    expect(vmm.destroyed).toBe(true);
  }
});

test('a VMM that hangs up ends everything that waits for it', async () => {
  const vmm = new FakeVmm(GREETING, ({ execute, id }) => (execute === 'never' ? null : `{"return": {}, "id": ${id}}\n`));
  const qmp = await opened(vmm);
  const waiting = [qmp.execute(op, 'never'), qmp.waitFor(op, 'it', () => true)].map((each) => each.catch((error: unknown) => error));
  vmm.destroy();
  for (const error of await Promise.all(waiting)) expect(error).toMatchObject({ code: 'unavailable' });
  await expect(qmp.execute(op, 'late')).rejects.toMatchObject({ code: 'unavailable' });
});

test('a VMM that floods without an end of line is hung up on', async () => {
  const vmm = new FakeVmm();
  const qmp = await opened(vmm);
  const waiting = qmp.waitFor(op, 'it', () => true).catch((error: unknown) => error);
  for (let sent = 0; sent <= QMP_LINE_CHARS_MAX; sent += 65_536) vmm.push('x'.repeat(65_536));
  expect(await waiting).toMatchObject({ code: 'unavailable', message: expect.stringContaining('longer than') });
  expect(vmm.destroyed).toBe(true);
});

test('whatever a VMM says, there is an answer or an error, and nothing is thrown elsewhere', async () => {
  const piece = fc.oneof(
    fc.string(),
    fc.json(),
    fc.constantFrom(
      '{"return": {}, "id": 2}\n',
      '{"id": 2, "error": 7}\n',
      '{"event": "X"}\n',
      '{"event": 3}\n',
      GREETING,
      '\n',
      'null\n',
      '{"id": 1e999}\n',
    ),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 12 }), async (pieces) => {
      const vmm = new FakeVmm();
      const qmp = await opened(vmm);
      using short = op.within(20, 'the VMM');
      const asked = qmp.execute(short, 'anything').then(
        () => 'answered',
        (error: unknown) => (error as { code?: string }).code,
      );
      for (const each of pieces) vmm.push(each);
      expect(['answered', 'unavailable', 'deadline_exceeded']).toContain(await asked);
      await qmp[Symbol.asyncDispose]();
    }),
    { numRuns: 60 },
  );
});
