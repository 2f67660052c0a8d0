// `hutch logs` of a log that is larger than what is kept of it, and whose daemon dies.
import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { outcomeOf, World } from './world.ts';

/** By `seq 6000000`. */
const WRITTEN_BYTES = 46_888_896;

let world: World;
beforeAll(async () => {
  world = await World.make();
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

/** Starts it, waits for its first byte, and reads no more. */
async function stuck(args: readonly string[]) {
  const child = world.spawn(args);
  await once(child.stdout, 'readable');
  return child;
}

test('a log that is rotated while it is read slowly says how much is gone, and the rest is whole', async () => {
  await world.ok('run', '-d', '-i', '--name', 'flood', '--', 'sh', '-c', 'seq 300000; read go; seq 300001 6000000');
  await eventually('the first part', async () => (await world.ok('logs', '-n', '1', 'flood')).startsWith('300000'));
  const slow = await stuck(['logs', '-f', 'flood']);
  const inJson = await stuck(['logs', '-f', '--json', 'flood']);
  await world.run(['attach', 'flood'], { input: 'go\n' });
  await world.ok('wait', 'flood');
  const [{ code, stdout, stderr }, said] = await Promise.all([outcomeOf(slow), outcomeOf(inJson)]);
  expect(code).toBe(0);
  expect(stderr).toMatch(/^hutch: [\d.]+ MiB of the log were dropped before they were read: only the last of it is kept\n$/);
  expect([stdout.slice(0, 4), stdout.slice(-16)]).toEqual(['1\n2\n', '5999999\n6000000\n']);
  const documents = said.stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { type?: string; bytes?: number; base64?: string });
  const gaps = documents.filter(({ type }) => type === 'dropped');
  const shown = documents.reduce((sum, { base64 }) => sum + Buffer.from(base64 ?? '', 'base64').byteLength, 0);
  expect([gaps.length, said.stderr]).toEqual([1, '']);
  // The headers of records are counted as well: a small part.
  expect((shown + (gaps[0]?.bytes ?? 0)) / WRITTEN_BYTES).toBeCloseTo(1, 2);
  await world.ok('rm', 'flood');
});

test('the daemon is killed while a large log is read: nothing is missed, nothing comes twice', async () => {
  const count = 300_000;
  await world.ok('run', '-d', '--name', 'long', '--', 'sh', '-c', `seq ${count}; sleep 1000`);
  await eventually('all of it', async () => (await world.ok('logs', '-n', '1', 'long')).startsWith(String(count)));
  const slow = await stuck(['logs', 'long']);
  await world.killDaemon();
  const { code, stdout, stderr } = await outcomeOf(slow);
  const lines = stdout.trimEnd().split('\n');
  expect([code, lines.length, lines.findIndex((line, at) => line !== String(at + 1))], stderr).toEqual([0, count, -1]);
  await world.ok('rm', '-f', 'long');
});
