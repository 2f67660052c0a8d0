// What a build says is told once to each who reads, whenever they come and wherever they go on.
import { mkdir, mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { BuildId } from '../domain/ids.ts';
import { nodeHost } from '../host/node-host.ts';
import { BuildLog, type LogLine } from './build-log.ts';
import { BuildRecords, type Running } from './build-records.ts';

const op = testOperation();
const ID = 'bld00000000000000000' as BuildId;

async function made() {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-build-records-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const records = new BuildRecords(nodeHost(), dir);
  await mkdir(records.dirOf(ID));
  const log = new BuildLog(op, nodeHost(), records.logPath(ID));
  records.running.set(ID, { log } as Running);
  const end = async (): Promise<void> => {
    await log.flush();
    records.running.delete(ID);
    await log.end();
  };
  return { records, log, end };
}

test('who joins in the middle of a build hears each line once, to the last', async () => {
  const { records, log, end } = await made();
  const count = 600;
  const readers: { readonly after: number; readonly heard: Promise<LogLine[]> }[] = [];
  for (let at = 1; at <= count; at += 1) {
    log.note('build', `line ${at}`);
    if (at % 50 !== 0) continue;
    // One that goes on where it was, one from the beginning, one from a line that is still to come.
    for (const after of [at - 7, 0, at + 20]) readers.push({ after, heard: Array.fromAsync(records.lines(op, ID, after, true)) });
    await (at % 100 === 0 ? log.flush() : sleep(1));
  }
  await end();
  for (const { after, heard } of readers) {
    const lines = await heard;
    expect(lines.map(({ cursor, text }) => [cursor, text])).toEqual(
      Array.from({ length: Math.max(0, count - after) }, (_, at) => [after + at + 1, `line ${after + at + 1}`]),
    );
  }
});

test('a long log is kept to its bound and read to its end, in pieces', { timeout: 60_000 }, async () => {
  const { records, log, end } = await made();
  const output = log.output('build', [], () => {});
  const long = Buffer.from(`${'━'.repeat(16_000)}\n`);
  log.step('build', 'x'.repeat(600_000), null); // longer than a piece
  for (let at = 0; at < 1_500; at += 1) {
    output.write('stdout', long);
    if (at % 100 === 0) await log.flush();
  }
  await end();
  const { size } = await stat(records.logPath(ID));
  expect(size).toBeGreaterThan(32 * 1024 * 1024);
  expect(size).toBeLessThan(33 * 1024 * 1024);
  let last: LogLine | null = null;
  let count = 0;
  for await (const line of records.lines(op, ID, 0, false)) {
    count += 1;
    expect(line.cursor).toBe(count);
    last = line;
  }
  expect(last).toMatchObject({ type: 'note', text: expect.stringMatching(/^more than 33554432 bytes of output/) });
  expect(count).toBe((await readFile(records.logPath(ID), 'utf8')).split('\n').length - 1);
});
