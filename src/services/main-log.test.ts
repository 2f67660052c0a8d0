import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { LogRecords } from '../guest/log-records.ts';
import { nodeHost } from '../host/node-host.ts';
import { encodeRecord, MAIN_LOG_BYTES_MAX, MainLog } from './main-log.ts';

const op = testOperation();
const host = nodeHost();
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-main-log-'));
});
afterEach(() => rm(dir, { recursive: true }));

const open = () => MainLog.open(op, host, dir);
const record = (text: string) => encodeRecord('stdout', 1_000, Buffer.from(text));
const append = (log: MainLog, run: number, text: string) => {
  const bytes = record(text);
  return log.append(op, run, log.agentEnd(run) ?? 0, bytes, { stdout: text.length, stderr: 0 });
};

async function textOf(log: MainLog, offset = 0): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of log.read(op, Math.max(offset, log.start))) chunks.push(chunk);
  return [...new LogRecords(0).push(Buffer.concat(chunks))].map((piece) => Buffer.from(piece.bytes).toString()).join('');
}

test('what was appended is read back, also by the next daemon', async () => {
  const log = await open();
  await append(log, 1, 'one ');
  await append(log, 1, 'two');
  expect(await textOf(log)).toBe('one two');
  const again = await open();
  expect([await textOf(again), again.end, again.agentEnd(1), again.counts.stdout]).toEqual(['one two', log.end, log.end, 7]);
});

test('a record that was cut by a crash is cut off, and the copy goes on before it', async () => {
  const log = await open();
  await append(log, 1, 'whole');
  const whole = log.end;
  await append(log, 1, 'torn');
  const [name] = await readdir(dir);
  await truncate(join(dir, name ?? ''), log.end - 2);
  const again = await open();
  expect([await textOf(again), again.end, again.agentEnd(1)]).toEqual(['whole', whole, whole]);
});

test('a part that holds something else is cut where it begins', async () => {
  const log = await open();
  await append(log, 1, 'good');
  const [name] = await readdir(dir);
  await writeFile(join(dir, name ?? ''), Buffer.concat([record('good'), Buffer.alloc(100)]));
  expect(await textOf(await open())).toBe('good');
});

test('each run has its own parts, and offsets count over all of them', async () => {
  const log = await open();
  await append(log, 1, 'first');
  const second = log.end;
  await log.append(op, 2, 500, record('second'), { stdout: 6, stderr: 0 });
  expect([log.agentEnd(1), log.agentEnd(2), log.lastRun()]).toEqual([
    null,
    500 + record('second').byteLength,
    { run: 2, from: second, stdout: 0, stderr: 0 },
  ]);
  expect([await textOf(log), await textOf(log, second)]).toEqual(['firstsecond', 'second']);
});

test('it is bounded, and its oldest part goes first', async () => {
  const log = await open();
  const large = 'x'.repeat(1_000_000);
  for (let count = 0; count < 45; count += 1) await append(log, 1, large);
  expect(log.end - log.start).toBeLessThanOrEqual(MAIN_LOG_BYTES_MAX * 4);
  expect(log.start).toBeGreaterThan(0);
  expect((await textOf(log)).length % large.length).toBe(0);
  expect(log.lastRun()?.stdout).toBeGreaterThan(0);
});

test('a reader whose next record was dropped is told, and nothing is skipped', async () => {
  const log = await open();
  const large = 'x'.repeat(1_000_000);
  for (let count = 0; count < 15; count += 1) await append(log, 1, large);
  const reading = log.read(op, 0);
  await reading.next();
  for (let count = 0; count < 45; count += 1) await append(log, 1, large);
  const rest = (async () => {
    for await (const _ of reading);
  })();
  await expect(rest).rejects.toMatchObject({ code: 'resource_exhausted' });
});

test('the tail begins with a whole record, and is never less than was asked for', async () => {
  const log = await open();
  for (const text of ['aaaa', 'bbbb', 'cccc']) await append(log, 1, text);
  const size = record('aaaa').byteLength;
  expect(await Promise.all([0, 1, size, size + 1, 1_000].map((bytes) => log.tail(op, bytes)))).toEqual([
    3 * size,
    2 * size,
    2 * size,
    size,
    0,
  ]);
});

test('a follower is woken by what comes, and by the end', async () => {
  const log = await open();
  const end = Promise.withResolvers<void>();
  const waiting = log.more(op, 0, end.promise);
  await append(log, 1, 'news');
  await waiting;
  const last = log.more(op, log.end, end.promise);
  end.resolve();
  await last;
});

test('whoever reads goes on when its files have moved', async () => {
  const log = await open();
  await append(log, 1, 'one');
  const elsewhere = `${dir}-moved`;
  await host.rename(op, dir, elsewhere);
  log.moved(elsewhere);
  expect(await textOf(log)).toBe('one');
  await host.rename(op, elsewhere, dir);
});

test('any records, with any restarts between them, come back whole and in order', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.string({ minLength: 1, maxLength: 50 }), fc.boolean(), fc.integer({ min: 0, max: 2 })), { maxLength: 20 }),
      async (steps) => {
        for (const name of await readdir(dir)) await rm(join(dir, name));
        let log = await open();
        let run = 1;
        let expected = '';
        for (const [text, restart, newRun] of steps) {
          if (restart) log = await open();
          if (newRun === 2) run += 1;
          const bytes = Buffer.from(text);
          await log.append(op, run, log.agentEnd(run) ?? 77, encodeRecord('stderr', 1, bytes), { stdout: 0, stderr: bytes.byteLength });
          expected += text;
        }
        expect(await textOf(log)).toBe(expected);
        expect((await open()).end).toBe(log.end);
      },
    ),
    { numRuns: 40, seed: Number(process.env['HUTCH_TEST_SEED'] ?? 1) },
  );
});
