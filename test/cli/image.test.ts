// Images from a registry on the command line, run in real machines: what a user does with them from the
// first pull to the last byte that goes.
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { digestOf, image, tar } from '../images/archives.ts';
import { place } from '../images/place.ts';
import { type FakeRegistry, fakeRegistry } from '../images/registry.ts';
import { takesUploads } from '../images/uploads.ts';
import { testOperation } from '../support/operation.ts';
import { MACHINES, World } from './world.ts';

let world: World;
let registry: FakeRegistry;
let app: string;
let base: Buffer;

const APP = (version: number) =>
  tar(
    { path: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\nweb:x:70:71::/srv:/bin/sh\n' },
    { path: 'srv/', type: 'directory', uid: 70, gid: 71 },
    {
      path: 'srv/main',
      mode: 0o755,
      content: `#!/bin/sh\necho version ${version} "$@" $GREETING\nid -u\npwd\ncat /etc/gone 2>/dev/null\nexit 3\n`,
    },
    { path: 'etc/.wh.gone' },
  );
const CONFIG = { Entrypoint: ['/srv/main'], Cmd: ['one', 'two'], Env: ['GREETING=hello', 'PATH=/bin'], User: 'web', WorkingDir: '/srv' };

beforeAll(async () => {
  world = await World.make(MACHINES);
  registry = await fakeRegistry();
  app = `${registry.name}/team/app:1`;
  base = tar(
    { path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') },
    ...['sh', 'cat', 'id', 'echo', 'pwd', 'true', 'stat'].map((name) => ({
      path: `bin/${name}`,
      type: 'symlink' as const,
      link: 'busybox',
    })),
    { path: 'etc/gone', content: 'of the layer below' },
  );
  registry.put('team/app', '1', image([base, APP(1)], { config: CONFIG }));
}, 120_000);

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
}, 120_000);

type Image = { id: string; name: string | null; names: string[]; digest: string; usedBy: string[] };
const images = async () => (await world.json<{ images: Image[] }>('image', 'ls')).images;

test('run --image pulls what is not here and runs what the image is made for, as the image says', { timeout: 240_000 }, async () => {
  const first = await world.run(['run', '--name', 'web', '--image', app]);
  expect([first.code, first.stdout]).toEqual([3, 'version 1 one two hello\n70\n/srv\n']);
  expect(first.stderr).toContain('pulling the image');
  registry.asked.length = 0;
  const second = await world.run(['run', '--rm', '--user', 'root', '--env', 'GREETING=mine', '--image', app, '--', '/srv/main', 'own']);
  expect([second.code, second.stdout]).toEqual([3, 'version 1 own mine\n0\n/srv\n']);
  expect(registry.asked).toEqual([]);
  const third = await world.run(['run', '--rm', '--image', app, 'own', 'way']);
  expect(third.stderr).toContain('in place of the image’s ENTRYPOINT; behind it: hutch run … -- /srv/main own way');
  expect(third.code).toBe(127);
  expect(await images()).toMatchObject([{ names: [app], usedBy: ['web'] }]);
});

test('a name that moves on is another image; the old one stays as long as it is used, and goes with prune', {
  timeout: 240_000,
}, async () => {
  const made = image([base, APP(2)], { config: CONFIG });
  registry.put('team/app', '1', made);
  const before = (await images())[0];
  expect(await world.ok('image', 'pull', app)).toBe(digestOf(made.config));
  expect((await images()).map(({ names, usedBy }) => [names, usedBy])).toEqual([
    [[app], []],
    [[], ['web']],
  ]);
  expect(await world.ok('image', 'prune')).toBe('0 B freed');
  const refused = await world.run(['image', 'rm', before?.id ?? '']);
  expect([refused.code, refused.stderr]).toEqual([expect.any(Number), expect.stringMatching(/is used by sandbox web.*hutch rm web/s)]);
  expect(refused.code).not.toBe(0);
  // It goes on running, and is what it was.
  expect((await world.run(['start', 'web'])).code).toBe(0);
  await world.ok('rm', '-f', 'web');
  expect(await world.ok('image', 'prune', '--stale')).toBe('0 B freed');
  expect(await world.ok('image', 'prune', '--dry-run')).toMatch(new RegExp(`${before?.id}.*no name, no sandbox and no lease`));
  expect(await images()).toHaveLength(2);
  expect(await world.ok('image', 'prune')).toContain(before?.id);
  expect((await images()).map(({ names }) => names)).toEqual([[app]]);
});

test('names come and go; an image goes with its last one', { timeout: 120_000 }, async () => {
  await world.ok('image', 'tag', app, 'mine:1');
  expect((await images())[0]?.names).toEqual([app, 'mine:1']);
  expect(await world.ok('image', 'rm', 'mine:1')).toBe(`mine:1: it stays as ${app}`);
  expect(await world.ok('image', 'verify', app)).toContain('3 files are what they were');
  expect(await world.ok('image', 'history', app)).toMatch(/step 2\n.*step 1$/s);
  const shown = await world.json<{ config: object; digest: string; layers: { isHere: boolean }[] }>('image', 'inspect', app);
  expect(await world.json('image', 'inspect', shown.digest.slice(7, 19)), 'as `image ls` shows it').toMatchObject({ digest: shown.digest });
  expect(shown.config).toMatchObject({ entrypoint: ['/srv/main'], command: ['one', 'two'], user: 'web', workdir: '/srv' });
  expect(shown.layers.map(({ isHere }) => isHere)).toEqual([true, true]);
  expect(await world.json('image', 'sbom', app)).toMatchObject({
    spdxVersion: 'SPDX-2.3',
    name: app,
    packages: [{ versionInfo: expect.any(String) }],
  });
  const used = await world.json<{ layers: { count: number; reclaimableBytes: number } }>('image', 'df');
  expect(used.layers).toMatchObject({ count: 2, reclaimableBytes: 0 });
  await world.ok('image', 'rm', app);
  expect(await images()).toEqual([]);
  const after = await world.json<{ layers: { bytes: number; reclaimableBytes: number } }>('image', 'df');
  expect(after.layers.reclaimableBytes).toBe(after.layers.bytes);
  await world.ok('image', 'prune');
  expect((await world.json<{ layers: { count: number } }>('image', 'df')).layers.count).toBe(0);
});

test('an image goes into a file and comes back as what it was; a root file system becomes one', { timeout: 120_000 }, async () => {
  const pulled = await world.ok('image', 'pull', app);
  await world.ok('image', 'export', '-o', join(world.dir, 'app.tar'), app);
  const piped = await world.run(['image', 'export', app]);
  expect(piped.bytes.equals(await readFile(join(world.dir, 'app.tar')))).toBe(true);
  await world.ok('image', 'rm', app);
  await world.ok('image', 'prune');
  expect(await world.ok('image', 'import', join(world.dir, 'app.tar'))).toBe(`${pulled}  ${app}`);
  expect((await world.run(['image', 'import', '--name', 'root:1', '-'], { input: gzipSync(base) })).stdout).toMatch(
    /^sha256:\w{64} {2}root:1\n$/,
  );
  expect((await images()).map(({ names }) => names)).toEqual([['root:1'], [app]]);
  // At once, and one of them is then its last.
  const several = Array.from({ length: 6 }, (_, at) => `root:${at + 2}`);
  for (const name of several) await world.ok('image', 'tag', 'root:1', name);
  await world.ok('image', 'rm', app, 'root:1', ...several);
  expect(await images()).toEqual([]);
  const none = await world.run(['image', 'import', 'nowhere.tar']);
  expect([none.code, none.stderr]).toEqual([2, expect.stringContaining('nowhere.tar cannot be read')]);
  const tree = await world.run(['image', 'import', world.dir]);
  expect([tree.code, tree.stderr]).toEqual([2, expect.stringContaining(`${world.dir} is a directory\nhint: an archive of it is wanted`)]);
  const noise = await world.run(['image', 'import', '-'], { input: 'noise '.repeat(500) });
  expect([noise.code === 0, noise.stderr]).toEqual([false, expect.stringContaining('no tar archive')]);
});

test('the default image of an archive has its name where there is none, and is what sandboxes without an image run', {
  timeout: 120_000,
}, async () => {
  const archive = await defaultImageOf('of another machine\n');
  const id = (await world.run(['image', 'import', '-'], { input: archive })).stdout;
  expect(id).toMatch(/^sha256:\w{64} {2}debian\n$/);
  expect((await world.run(['run', '--rm', '--backend', 'gvisor', '--', 'cat', '/motd'])).stdout).toBe('of another machine\n');
  // A user whose shell lets nobody in, as the users of many an image are: a login says what opens one.
  await world.ok('run', '-d', '--name', 'svc', '--backend', 'gvisor', '--', 'sleep', '1000');
  for (const verb of ['ssh', 'shell']) {
    const { code, stderr } = await world.run([verb, '-u', 'svc', 'svc'], { input: '' });
    expect([code, stderr], verb).toEqual([1, expect.stringContaining('the shell of user svc is /bin/false, which lets nobody in')]);
    expect(stderr).toContain('as root: hutch shell -u root svc; as svc: hutch exec -it -u svc svc -- sh');
  }
  const kept = await world.run(['image', 'commit', 'svc']);
  expect([kept.code, kept.stderr]).toEqual([
    4,
    expect.stringMatching(/backend gvisor cannot .*\nhint: keep it as a snapshot: hutch snapshot create/),
  ]);
  await world.ok('rm', '-f', 'svc');
  // A second one is another image, and takes nothing from the first.
  const other = (await world.run(['image', 'import', '-'], { input: await defaultImageOf('of a third\n') })).stdout;
  expect(other).toMatch(/^sha256:\w{64}\n$/);
  expect((await images()).flatMap(({ names }) => names)).toEqual(['debian']);
  await world.ok('image', 'rm', 'debian', other.trim());
});

/** As `hutch image export debian` writes it on a machine that made one, but small. */
async function defaultImageOf(motd: string): Promise<Buffer> {
  await using there = await place();
  const root = join(there.dir, 'root.squashfs');
  const files = tar(
    { path: 'motd', content: motd },
    { path: 'bin/busybox', mode: 0o755, content: await readFile('/bin/busybox') },
    ...['sh', 'cat', 'sleep', 'false'].map((name) => ({ path: `bin/${name}`, type: 'symlink' as const, link: 'busybox' })),
    { path: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\nsvc:x:70:70::/:/bin/false\n' },
  );
  expect(spawnSync('sh', ['-c', 'tar2sqfs --quiet --compressor=lz4 "$0"', root], { input: files }).status).toBe(0);
  const op = testOperation();
  const config = { env: {}, entrypoint: [], command: [], workdir: null, user: null, stopSignal: null, exposedPorts: [] };
  const digest = `sha256:${await there.host.sha256(op, root)}`;
  await there.library.takeRootfs(op, { path: root, digest, said: { config, createdAtMs: 7 }, bytesMax: 2 ** 30 });
  const parts: Uint8Array[] = [];
  for await (const chunk of await there.library.export(op, [{ digest, names: ['debian'] }])) parts.push(Buffer.from(chunk));
  return Buffer.concat(parts);
}

test('an image is pushed where its name says, or elsewhere, and can be pulled by what push prints', { timeout: 60_000 }, async () => {
  const pulled = await world.ok('image', 'pull', app);
  await using elsewhere = await fakeRegistry();
  const uploads = takesUploads(elsewhere);
  const digest = await world.ok('image', 'push', app, `${elsewhere.name}/other/app:2`);
  expect(digestOf(Buffer.from(uploads.manifests.get('2') ?? ''))).toBe(digest);
  expect(uploads.blobs.has(pulled)).toBe(true);
  await world.ok('image', 'tag', app, `${elsewhere.name}/other/app:3`);
  const said = await world.json<{ name: string; digest: string; blobs: { how: string }[] }>(
    'image',
    'push',
    `${elsewhere.name}/other/app:3`,
  );
  expect(said).toMatchObject({ name: `${elsewhere.name}/other/app:3`, digest });
  expect(said.blobs.map(({ how }) => how)).toEqual(['existed', 'existed', 'existed']);
  // By its oldest name, to a registry that takes none.
  registry.answer = (_request, response) => {
    response.writeHead(403).end();
    return true;
  };
  const refused = await world.run(['image', 'push', pulled]);
  registry.answer = null;
  expect([refused.code === 0, refused.stderr]).toEqual([false, expect.stringContaining(`${registry.name} does not let us push`)]);
  await world.ok('image', 'rm', `${elsewhere.name}/other/app:3`);
});

test('rules of the configuration are for every pull', { timeout: 60_000 }, async () => {
  await world.ok('daemon', 'stop');
  const env = { HUTCH_IMAGES_ALLOW: `${registry.name}/team/*`, HUTCH_IMAGES_SIGNED: `${registry.name}/team/signed=/nowhere.pub` };
  registry.put('free', '1', image([base]));
  const refused = await world.run(['run', '--image', `${registry.name}/free:1`, '--', 'true'], { env });
  expect([refused.code, refused.stderr]).toEqual([125, expect.stringContaining('images.allow does not list it')]);
  registry.put('team/signed', '1', image([base]));
  const signed = await world.run(['image', 'pull', `${registry.name}/team/signed:1`], { env });
  expect([signed.code === 0, signed.stderr]).toEqual([false, expect.stringMatching(/images\.signed: .*\/nowhere\.pub/)]);
  expect((await world.run(['image', 'pull', app], { env })).code).toBe(0);
  await world.ok('daemon', 'stop');
});

test('a project has rules of its own, also for what another project brought', { timeout: 120_000 }, async () => {
  await world.run(['daemon', 'stop']);
  await mkdir(world.home, { recursive: true, mode: 0o711 });
  const config = join(world.home, 'config.toml');
  await writeFile(config, `[projects.ci.images]\nallow = ["${registry.name}/team/*"]\n`);
  const free = `${registry.name}/free:1`;
  registry.put('free', '1', image([base], { config: { Cmd: ['true'] } }));
  const digest = await world.ok('image', 'pull', free); // the owner's project has no rules
  const env = { HUTCH_API_KEY: await world.ok('keys', 'create', '--project', 'ci', 'runner') };
  const context = async (from: string): Promise<string> => {
    const dir = await mkdtemp(join(world.dir, 'context-'));
    await writeFile(join(dir, 'Dockerfile'), `FROM ${from}\nENV A=b\n`);
    return dir;
  };
  for (const [args, why] of [
    [['image', 'pull', free], 'projects.ci.images.allow does not list it'],
    [['run', '--image', free], 'is here by another project, and cannot be pulled for yours: .* projects.ci.images.allow does not list it'],
    [['run', '--image', digest, '--', 'true'], 'was brought here by another project'],
    [['build', await context(free)], 'is here by another project, .* projects.ci.images.allow does not list it'],
  ] as const) {
    const { code, stderr } = await world.run(args, { env });
    expect([code === 0, stderr], args.join(' ')).toEqual([false, expect.stringMatching(new RegExp(why, 's'))]);
  }
  await world.ok('build', await context(free));
  // What its rules allow it asks the registry for once, and has from then on.
  await world.ok('image', 'pull', app);
  for (const isAsked of [true, false]) {
    registry.asked.length = 0;
    const { code, stderr } = await world.run(['build', await context(app)], { env });
    expect([code, registry.asked.length > 0], stderr).toEqual([0, isAsked]);
  }
  await world.ok('image', 'rm', free);
  await world.ok('keys', 'revoke', 'runner');
  await rm(config);
  await world.ok('daemon', 'stop');
});

test('what all projects have here another project does not take away, move or clear up; what it alone brought it does', {
  timeout: 120_000,
}, async () => {
  await world.ok('image', 'pull', app);
  await world.ok('image', 'tag', app, 'shared:1');
  const lease = await world.ok('assets', 'acquire', 'shared:1');
  const env = { HUTCH_API_KEY: await world.ok('keys', 'create', '--project', 'others', 'other') };
  const context = await mkdtemp(join(world.dir, 'context-'));
  await writeFile(join(context, 'Dockerfile'), `FROM shared:1\nENV C=d\n`);
  const theirs = await world.run(['image', 'import', '--name', 'theirs:1', '-'], { env, input: base });
  expect(theirs.code, theirs.stderr).toBe(0);
  const names = async () => (await world.json<{ images: { names: string[] }[] }>('image', 'ls')).images.flatMap((one) => one.names);
  const before = await names();
  for (const args of [
    ['image', 'rm', 'shared:1'],
    ['image', 'tag', 'theirs:1', 'shared:1'],
    ['image', 'import', '--name', 'shared:1', '-'],
    ['build', '-t', 'shared:1', context],
    ['image', 'prune'],
    ['image', 'logout', registry.name],
    ['assets', 'release', lease],
    ['assets', 'gc', '--unused', '0s'],
    ['kernel', 'default', '--reset'],
  ]) {
    const { code, stderr } = await world.run(args, { env, input: base });
    expect([code === 0, stderr], args.join(' ')).toEqual([
      false,
      expect.stringMatching(/with a key of the project default|choose another name/),
    ]);
  }
  expect(await names()).toEqual(before);
  // What the operator brought they build on. Their word for an image is nobody else's: who asks for that name gets what the registry has.
  const theirBuild = await world.run(['build', context], { env });
  expect(theirBuild.code, theirBuild.stderr).toBe(0);
  await writeFile(join(context, 'Dockerfile'), 'FROM theirs:1\nENV C=d\n');
  expect((await world.run(['build', context])).stderr).toMatch(/'theirs:1' is here by another project, and cannot be pulled for yours/);
  const [own, wanted] = [`${registry.name}/wanted:1`, image([base], { config: { Env: ['WANTED=1'] } })];
  registry.put('wanted', '1', wanted);
  expect(await world.run(['image', 'tag', 'theirs:1', own], { env })).toMatchObject({ code: 0 });
  await writeFile(join(context, 'Dockerfile'), `FROM ${own}\nENV C=d\n`);
  await world.ok('build', context);
  expect((await world.json<{ digest: string }>('image', 'inspect', own)).digest).toBe(digestOf(wanted.config));
  expect(await world.run(['image', 'rm', 'theirs:1'], { env })).toMatchObject({ code: 0 });
  await world.ok('assets', 'release', lease);
  await world.ok('image', 'rm', 'shared:1');
  await world.ok('keys', 'revoke', 'other');
});

test('what is nowhere is one sentence', { timeout: 60_000 }, async () => {
  const none = await world.run(['run', '--image', `${registry.name}/none:1`, '--', 'true']);
  expect([none.code, none.stderr]).toEqual([
    125,
    expect.stringMatching(/there is no image '.*none:1' here, and it cannot be pulled: .* has no/),
  ]);
  const odd = await world.run(['run', '--image', 'Not A Name', '--', 'true']);
  expect([odd.code, odd.stderr]).toEqual([125, expect.stringContaining('it is no name that can be pulled')]);
  registry.put('bare', '1', image([base]));
  const bare = await world.run(['run', '--image', `${registry.name}/bare:1`]);
  expect([bare.code, bare.stderr]).toEqual([125, expect.stringContaining('neither ENTRYPOINT nor CMD')]);
});

test('a login is tried before it is kept, and kept where Docker looks', { timeout: 60_000 }, async () => {
  registry.answer = (request, response) => {
    if (request.headers.authorization === `Basic ${Buffer.from('me:open sesame').toString('base64')}`) return false;
    response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="x"' }).end();
    return true;
  };
  const login = (password: string) =>
    world.run(['image', 'login', registry.name, '-u', 'me', '--password-stdin'], { input: `${password}\n` });
  const wrong = await login('wrong');
  expect([wrong.code === 0, wrong.stderr]).toEqual([false, expect.stringContaining('does not take this login')]);
  expect((await login('open sesame')).stdout).toContain('kept in');
  const kept = JSON.parse(await readFile(`${world.dir}/.docker/config.json`, 'utf8')) as { auths: Record<string, { auth: string }> };
  expect(Buffer.from(kept.auths[registry.name]?.auth ?? '', 'base64').toString()).toBe('me:open sesame');
  await world.ok('image', 'pull', `${registry.name}/bare:1`);
  expect(await world.ok('image', 'logout', registry.name)).toBe(`logged out of ${registry.name}`);
  const after = await world.run(['image', 'pull', `${registry.name}/bare:1`]);
  expect([after.code === 0, after.stderr]).toEqual([false, expect.stringContaining(`hutch image login ${registry.name}`)]);
  registry.answer = null;
});
