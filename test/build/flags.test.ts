// Flags of hutch build that people know from docker build: what each does, and what those say that there are not.
import { execFileSync } from 'node:child_process';
import { lstat, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { image, tar } from '../images/archives.ts';
import { type FakeRegistry, fakeRegistry } from '../images/registry.ts';
import { readSaved } from './saved.ts';

let world: World;
let registry: FakeRegistry;
let root: string;
beforeAll(async () => {
  world = await World.make(MACHINES);
  registry = await fakeRegistry();
  root = await mkdtemp(join(tmpdir(), 'hutch-build-flags-'));
}, 120_000);
afterAll(async () => {
  await rm(root, { recursive: true, force: true });
  await registry?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
}, 120_000);

const base = (content: string) => image([tar({ path: 'said', content })]);
const build = async (dockerfile: string, ...flags: string[]) => await world.run(['build', ...flags, '-'], { input: dockerfile });

test('--pull asks registries anew for what a build stands upon, whatever is here', { timeout: 120_000 }, async () => {
  const [from, other] = [`${registry.name}/team/from:1`, `${registry.name}/team/other:1`];
  registry.put('team/from', '1', base('first'));
  registry.put('team/other', '1', base('first'));
  const dockerfile = `FROM ${from}\nCOPY --from=${other} /said /other\n`;
  const digestOf = async (...flags: string[]) => {
    const { code, stdout, stderr } = await build(dockerfile, '-q', ...flags);
    expect(code, stderr).toBe(0);
    return stdout;
  };
  const first = await digestOf();
  registry.asked.length = 0;
  expect(await digestOf('--pull')).toBe(first);
  expect(registry.asked.filter((path) => path.includes('/manifests/'))).toHaveLength(2);
  registry.put('team/from', '1', base('second'));
  expect(await digestOf()).toBe(first);
  const second = await digestOf('--pull');
  expect(second).not.toBe(first);
  expect(await digestOf(), 'the name is that of the new one').toBe(second);
  registry.put('team/other', '1', base('second'));
  expect(await digestOf('--pull')).not.toBe(second);

  const { images } = await world.json<{ images: { digest: string; names: string[] }[] }>('image', 'ls');
  const exact = images.find(({ names }) => names.includes(from))?.digest ?? '';
  registry.asked.length = 0;
  expect(await build(`FROM ${exact}\n`, '-q', '--pull')).toMatchObject({ code: 0 });
  expect(registry.asked, 'a digest does not move').toEqual([]);

  const own = `${registry.name}/team/own:1`;
  await world.ok('image', 'tag', from, own);
  const refused = await build(`FROM ${own}\n`, '--pull');
  expect(refused.code).not.toBe(0);
  expect(refused.stderr).toMatch(/Dockerfile:1: FROM: image '.*own:1' is here, and cannot be pulled anew: .*\n.*without --pull/s);
  expect(await build(`FROM ${own}\n`, '-q')).toMatchObject({ code: 0 });
});

test('--label, --platform, --iidfile, -q and several -t are what docker build makes of them', { timeout: 120_000 }, async () => {
  const file = join(root, 'image.txt');
  const dockerfile = 'FROM scratch\nLABEL a=file b=file\n';
  const labels = ['--label', 'b=own=2', '--label', 'c', '--label', 'd='];
  const { code, stdout, stderr } = await build(
    dockerfile,
    ...['-q', '--platform', 'linux/amd64', '--iidfile', file, '-t', 'one:1', '-t', 'two:1', ...labels],
  );
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(/^sha256:[0-9a-f]{64}\n$/);
  expect([await readFile(file, 'utf8'), await readdir(root)]).toEqual([stdout.trim(), ['image.txt']]);
  const shown = await world.json<{ images: { digest: string; names: string[]; labels: object }[] }>('image', 'inspect', 'two:1');
  expect(shown).toMatchObject({ digest: stdout.trim(), names: ['one:1', 'two:1'], labels: { a: 'file', b: 'own=2', c: '', d: '' } });
  const { config } = await readSaved((await world.run(['image', 'export', 'one:1'])).bytes);
  expect(config.config['Labels']).toEqual({ a: 'file', b: 'own=2', c: '', d: '' });

  // What is no file is written to, and stays what it is.
  execFileSync('mkfifo', [join(root, 'pipe')]);
  const [, read] = await Promise.all([build(dockerfile, '-q', '--iidfile', join(root, 'pipe')), readFile(join(root, 'pipe'), 'utf8')]);
  expect(read).toMatch(/^sha256:[0-9a-f]{64}$/);
  expect((await lstat(join(root, 'pipe'))).isFIFO()).toBe(true);
  await rm(join(root, 'pipe'));
  // What is there after a build that failed is of no build.
  expect((await build('FROM scratch\nCOPY nothing /\n', '--iidfile', file)).code).not.toBe(0);
  expect(await readdir(root)).toEqual([]);
  for (const [flags, said] of [
    [
      ['--platform', 'linux/arm64'],
      /platform: linux\/arm64 does not run here: this machine builds linux\/amd64 .*\n.*on a machine of that kind/,
    ],
    [['--platform', 'linux/amd64,linux/arm64'], /platform: linux\/amd64,linux\/arm64 are several platforms/],
    [['--label', '=x'], /label: "=x" is no KEY=VALUE/],
    [['--iidfile', join(root, 'no/such')], /no\/such cannot be written: there is no directory .*no/],
    [['--iidfile', root], / is no file/],
    [['-d', '--iidfile', file], /--iidfile and --detach exclude each other/],
    [['--load'], /hutch build has no flag --load.*\n.*the image is here when the build is done/],
    [['--cache-from=x:1'], /has no flag --cache-from.*\n.*by its content/],
    [['--platfrom', 'x'], /has no flag --platfrom.*\n.*did you mean --platform\?/],
  ] as const) {
    const refused = await build(dockerfile, ...flags);
    expect([refused.code, refused.stderr], flags.join(' ')).toEqual([2, expect.stringMatching(said)]);
  }
  for (const platform of ['amd64', 'linux/x86_64', 'linux/amd64/v2', 'linux'])
    expect((await build(`FROM --platform=${platform} scratch\nLABEL a=1\n`, '-q', '--platform', platform)).code, platform).toBe(0);
});
