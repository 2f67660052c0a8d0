// Dockerfiles as people write them: what hutch build makes of each is, file by file and word by word of its configuration, what BuildKit
// made of it when that was recorded (record.ts). A sample by the seed; all of them with --long, one by HUTCH_TEST_DOCKERFILE.
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { baseImage, CASES, type Case, filesOf, type Recorded, saidBy, writeContext } from './corpus.ts';
import { readSaved } from './saved.ts';

const RECORDED = JSON.parse(readFileSync(join(import.meta.dirname, '../vectors/dockerfiles.json'), 'utf8')) as Record<string, Recorded>;
const SAMPLE = 5;
/** What was once wrong, and is quiet when it is. */
const ALWAYS = ['a symlink replaced by a directory, and built upon', 'heredocs whose variables are the shell’s'];
const SEED = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now());
const NAMES = Object.keys(CASES);
const only = process.env['HUTCH_TEST_DOCKERFILE'];
const first = SEED % NAMES.length;
/** Of all kinds: every so many-th. */
const sampled = NAMES.filter((name, at) => ALWAYS.includes(name) || (at + first) % Math.ceil(NAMES.length / SAMPLE) === 0);
const tried = only !== undefined ? [only] : process.env['HUTCH_TEST_LONG'] === '1' ? NAMES : sampled;

let world: World;
let root: string;
let missing: string | null = null;
beforeAll(async () => {
  world = await World.make(MACHINES);
  root = await mkdtemp(join(tmpdir(), 'hutch-dockerfiles-'));
  const imported = await world.run(['image', 'import', '--name', 'base:1', '-'], { input: baseImage() });
  if (imported.code !== 0) throw new Error(imported.stderr);
  const { backends } = await world.json<{ backends: { name: string; can: object | null }[] }>('backends');
  if (!backends.some(({ name, can }) => name === 'gvisor' && can !== null)) missing = 'gvisor does not work here';
}, 120_000);
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
  await world?.[Symbol.asyncDispose]();
}, 120_000);

test('every Dockerfile of the corpus has its record, and there are 60', () => {
  expect(Object.keys(RECORDED).sort()).toEqual([...NAMES].sort());
  expect(NAMES.length).toBeGreaterThanOrEqual(60);
});

for (const name of tried) {
  test(`as BuildKit builds it: ${name}`, { timeout: 120_000 }, async (ctx) => {
    if (missing !== null) return ctx.skip(missing);
    const each = CASES[name] as Case;
    const dir = join(await mkdtemp(join(root, 'case-')), 'context');
    await mkdir(dir);
    await writeContext(dir, each);
    const secrets: string[] = [];
    for (const [id, value] of Object.entries(each.secrets ?? {})) {
      await writeFile(`${dir}-${id}`, value);
      secrets.push('--secret', `id=${id},src=${dir}-${id}`);
    }
    const args = Object.entries(each.args ?? {}).flatMap(([key, value]) => ['--build-arg', `${key}=${value}`]);
    const target = each.target === undefined ? [] : ['--target', each.target];
    const built = await world.run([
      ...['build', '--backend', 'gvisor', '--no-package-settings', '-t', 'ours:1'],
      ...[...secrets, ...args, ...target, dir],
    ]);
    const recorded = RECORDED[name] ?? null;
    if (recorded === null) {
      expect(built.code, 'it is refused').not.toBe(0);
      expect(built.stderr).toMatch(/error: Dockerfile:\d+: /);
      return;
    }
    expect(built.code, built.stderr).toBe(0);
    const ours = await readSaved((await world.run(['image', 'export', 'ours:1'])).bytes);
    expect(saidBy(ours)).toEqual(recorded.config);
    expect(await filesOf(ours)).toEqual(recorded.files);
  });
}
