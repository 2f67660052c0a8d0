import { mkdtemp, rm, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import type { Host } from '../../host/host.ts';
import { nodeHost } from '../../host/node-host.ts';
import { MEMORY_FILE, STATE_FILE, writeManifest } from './manifest.ts';
import { type BuildTemplate, TemplateShelf } from './template.ts';
import type { TemplateKey, TemplateRecipe } from './template-key.ts';

const DAY_MS = 86_400_000;
const op = testOperation();
let dir = '';
let laterMs = 0;
const builds: string[] = [];

/** Files keep their real times; only what time it is now can be chosen. */
const host: Host = { ...nodeHost(), nowMs: () => Date.now() + laterMs };

/** What a machine would leave. */
const build: BuildTemplate = async (building, { key }, into) => {
  builds.push(key);
  await host.truncate(building, join(into, MEMORY_FILE), 1024 * 1024);
  await host.chmod(building, join(into, MEMORY_FILE), 0o444);
  const state = new TextEncoder().encode(`state of ${key}`);
  await host.writeFileAtomic(building, join(into, STATE_FILE), state, 0o400);
  await writeManifest(building, host, into, key, state, { sizeBytes: 4096, pieces: [] });
};

const recipe = (digit: string): TemplateRecipe => ({ key: digit.repeat(40) as TemplateKey }) as TemplateRecipe;
const newShelf = () => new TemplateShelf(host, dir, build);
const templates = async () => (await host.list(op, dir)).filter((name) => !name.startsWith('.')).map((name) => name[0]);

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-shelf-'));
  laterMs = 0;
  builds.length = 0;
});

afterEach(async () => rm(dir, { recursive: true, force: true }));

test('a template that nobody has used for long goes, and is built again when it is wanted', async () => {
  const shelf = newShelf();
  await shelf.take(op, recipe('a'));
  await shelf.take(op, recipe('b'));
  expect(await shelf.prune(op, DAY_MS)).toEqual([]);
  laterMs = DAY_MS - 1_000;
  await shelf.take(op, recipe('b'));
  laterMs = DAY_MS + 60_000;
  expect(await shelf.prune(op, DAY_MS)).toMatchObject([{ template: 'a'.repeat(40) }]);
  expect(await templates()).toEqual(['b']);
  expect(await host.list(op, dir)).not.toContain(`.used-${'a'.repeat(40)}`);
  expect(builds).toHaveLength(2);
  expect(await shelf.take(op, recipe('a'))).toMatchObject({ memoryPath: join(dir, 'a'.repeat(40), MEMORY_FILE) });
  expect(builds).toHaveLength(3);
});

test('another daemon knows by the files when a template was used last', async () => {
  await newShelf().take(op, recipe('a'));
  // Made long ago, and used since.
  const longAgo = new Date(Date.now() - 30 * DAY_MS);
  await utimes(join(dir, 'a'.repeat(40)), longAgo, longAgo);
  laterMs = DAY_MS / 2;
  expect(await newShelf().prune(op, DAY_MS)).toEqual([]);
  laterMs = 2 * DAY_MS;
  expect(await newShelf().prune(op, DAY_MS)).toHaveLength(1);
  expect(await newShelf().prune(op, DAY_MS)).toEqual([]);
});

test('a template that somebody is building is left alone', async () => {
  await newShelf().take(op, recipe('a'));
  laterMs = 2 * DAY_MS;
  await using lock = await host.lockFile(op, join(dir, `.lock-${'a'.repeat(40)}`));
  expect(lock).not.toBeNull();
  expect(await newShelf().prune(op, DAY_MS)).toEqual([]);
  expect(await templates()).toEqual(['a']);
});

test('a template that is taken while others go stays', async () => {
  const shelf = newShelf();
  await shelf.take(op, recipe('a'));
  laterMs = 2 * DAY_MS;
  const [removed, template] = await Promise.all([shelf.prune(op, DAY_MS), shelf.take(op, recipe('a'))]);
  expect(removed).toEqual([]);
  expect(await host.stat(op, template.memoryPath)).not.toBeNull();
});

test('what a builder or a removal left that was cut short goes with the next', async () => {
  await newShelf().take(op, recipe('a'));
  const left = join(dir, `.building-${'b'.repeat(40)}`);
  await host.makeDir(op, left, 0o700);
  {
    await using _building = await host.lockFile(op, join(dir, `.lock-${'b'.repeat(40)}`));
    await newShelf().prune(op, DAY_MS);
    expect(await host.stat(op, left)).not.toBeNull();
  }
  await newShelf().prune(op, DAY_MS);
  expect(await host.stat(op, left)).toBeNull();
  expect(await templates()).toEqual(['a']);
});
