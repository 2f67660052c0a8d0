// gVisor for a daemon that is not root: as the user `nobody`, to whom a private view of /etc grants users of its own, and to
// whom a private view of /dev gives the device that a network takes. This machine itself is not changed.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { chmod, chown, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { image, tar } from '../images/archives.ts';
import { fakeRegistry } from '../images/registry.ts';
import { eventually } from '../support/eventually.ts';
import { isRoot } from '../support/users.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const NOBODY = 65_534;
const FIRST = 1_800_000_000;
const NEEDED = ['/usr/bin/runsc', '/usr/bin/newuidmap', '/usr/bin/rdsquashfs', '/usr/bin/setpriv', '/bin/busybox'];
const VIEW = `mount -t overlay hutch-test -o lowerdir=/etc,upperdir="$1/etc",workdir="$1/work" /etc
if [ -e "$1/tun" ]; then mount --bind "$1/tun" /dev/net/tun; fi
echo ready
exec sleep 1000000`;

type Said = { readonly code: number; readonly stdout: string; readonly stderr: string };

const why = ((): string | null => {
  if (!isRoot) return 'the conformance suite runs as this user';
  const missing = NEEDED.find((path) => !existsSync(path));
  return missing === undefined ? null : `there is no ${missing}`;
})();

let dir = '';
let view: ChildProcess | null = null;

function run(argv: readonly string[]): Promise<Said> {
  const [program = '', ...args] = argv;
  return new Promise((done) =>
    execFile(program, args, { cwd: '/', maxBuffer: 2 ** 22 }, (error, stdout, stderr) =>
      done({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : 255, stdout, stderr }),
    ),
  );
}

/** The CLI as nobody, whose daemon starts by itself. */
function hutch(where: 'granted' | 'as it is', ...args: readonly string[]): Promise<Said> {
  const home = join(dir, where === 'granted' ? 'g' : 'n');
  const env = [`PATH=${process.env['PATH']}`, `HOME=${home}`, `HUTCH_HOME=${home}/h`, 'HUTCH_DAEMON_LISTEN=off'];
  const user = ['setpriv', '--reuid', `${NOBODY}`, '--regid', `${NOBODY}`, '--clear-groups', 'env', '-i', ...env];
  const inside = where === 'granted' ? ['nsenter', '--mount', `--target=${view?.pid}`] : [];
  return run([...inside, ...user, process.execPath, join(ROOT, 'src/cli/main.ts'), ...args]);
}

async function ok(...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await hutch('granted', ...args);
  if (code !== 0) throw new Error(`hutch ${args.join(' ')} ended with ${code}: ${stderr}`);
  return stdout;
}

type Backend = { name: string; why?: string; fix?: string; can?: { limits: Record<string, string>; networks: string[] } };

async function gvisorOf(where: 'granted' | 'as it is'): Promise<Backend> {
  const { stdout } = await hutch(where, 'backends', '--json');
  const { backends } = JSON.parse(stdout) as { readonly backends: readonly Backend[] };
  return backends.find(({ name }) => name === 'gvisor') ?? { name: 'none' };
}

beforeAll(async () => {
  if (why !== null) return;
  dir = await mkdtemp(join(tmpdir(), 'hutch-nobody-'));
  await chmod(dir, 0o755);
  for (const name of ['etc', 'work', 'g', 'n']) await mkdir(join(dir, name));
  for (const name of ['subuid', 'subgid']) await writeFile(join(dir, 'etc', name), `nobody:${FIRST}:65536\n`);
  for (const name of ['g', 'n']) await chown(join(dir, name), NOBODY, NOBODY);
  if (existsSync('/dev/net/tun')) await run(['mknod', '-m', '666', join(dir, 'tun'), 'c', '10', '200']);
  view = spawn('unshare', ['--mount', 'sh', '-ec', VIEW, 'sh', dir], { stdio: ['ignore', 'pipe', 'inherit'] });
  await Promise.race([
    once(view.stdout ?? view, 'data'),
    once(view, 'exit').then(() => Promise.reject(new Error('there is no private view of /etc'))),
  ]);
});

afterAll(async () => {
  if (view === null) return;
  await hutch('granted', 'daemon', 'stop');
  await hutch('as it is', 'daemon', 'stop');
  view.kill('SIGKILL');
  await rm(dir, { recursive: true, force: true });
}, 60_000);

test('without root a sandbox on gVisor has all its users, and goes without leaving anything', { timeout: 180_000 }, async (context) => {
  if (why !== null) return context.skip(why);
  await using registry = await fakeRegistry();
  const rootfs = tar(
    { path: 'bin/busybox', mode: 0o755, content: readFileSync('/bin/busybox') },
    ...['sh', 'cat', 'id', 'stat', 'chown', 'mkdir', 'chmod', 'touch', 'su'].map(
      (name) => ({ path: `bin/${name}`, type: 'symlink', link: 'busybox' }) as const,
    ),
    { path: 'etc/passwd', content: 'root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n' },
    { path: 'etc/group', content: 'root:x:0:\nann:x:1000:\n' },
    { path: 'srv/anns', mode: 0o600, uid: 1000, gid: 1000, content: 'hers\n' },
  );
  registry.put('app', '1', image([rootfs], { config: { Cmd: ['/bin/sh'], Env: ['PATH=/bin'] } }));
  const shape = ['--backend', 'gvisor', '--no-net', '--image', `${registry.name}/app:1`];
  const made = await hutch('granted', 'create', ...shape, '--name', 'one');
  expect(made).toMatchObject({
    code: 0,
    stderr: expect.stringContaining('not limited by gvisor on this machine: cpu, memory, processes, disk'),
  });
  expect(await ok('exec', 'one', '--', 'sh', '-c', 'id -u; stat -c "%u %g %a" /srv/anns; su ann -c "id -u; cat /srv/anns"')).toBe(
    '0\n1000 1000 600\n1000\nhers\n',
  );
  await ok('exec', 'one', '--', 'sh', '-c', 'mkdir /srv/d; touch /srv/d/f; chown 7:8 /srv/d/f; chown 9:9 /srv/d; chmod 000 /srv/d');
  await ok('pause', 'one');
  expect(JSON.parse(await ok('inspect', 'one', '--json'))).toMatchObject({ state: 'paused' });
  await ok('resume', 'one');
  await ok('stop', 'one');
  await ok('start', 'one');
  expect(await ok('exec', 'one', '--', 'stat', '-c', '%u %g %a', '/srv/d', '/srv/d/f')).toBe('9 9 0\n7 8 644\n');
  // The kernel in user space is the most of it, and another user's process.
  expect(await ok('stats', 'one', '--no-stream')).toMatch(/ [1-9]\d+(\.\d)? MiB +\S+ \S+iB\n$/);
  for (const [flag, value, named] of [
    ['--memory', '256M', 'memoryMiB'],
    ['--cpus', '1', 'cpus'],
    ['--pids', '50', 'pids'],
    ['--disk', '1G', 'diskMiB'],
  ] as const) {
    const asked = await hutch('granted', 'create', ...shape, flag, value);
    expect(asked).toMatchObject({
      stderr: expect.stringMatching(new RegExp(`^error: ${flag}( \\(${named}\\))? cannot be limited by the backend gvisor`)),
    });
    expect(asked.code).not.toBe(0);
  }
  await ok('rm', '-f', 'one');
  const { can } = await gvisorOf('granted');
  if (can?.networks.includes('allow') === true) {
    const wired = shape.filter((word) => word !== '--no-net');
    expect(await ok('run', '--rm', ...wired, '--', 'cat', '/proc/net/dev')).toContain('eth0');
  }
  for (const part of ['data', 'run'])
    await eventually(`${part} has nothing of it`, async () => (await readdir(join(dir, `g/h/${part}/sandboxes`))).length === 0);
});

test('without root what is lost is said: no limit holds', { timeout: 120_000 }, async (context) => {
  if (why !== null) return context.skip(why);
  const { can } = await gvisorOf('granted');
  expect(can?.limits).toEqual({ cpu: 'no', memory: 'no', processes: 'no', disk: 'no' });
});

test('without root and without users of its own gVisor says what is missing, and how to get it', { timeout: 120_000 }, async (context) => {
  if (why !== null) return context.skip(why);
  expect(await gvisorOf('as it is')).toMatchObject({
    why: expect.stringContaining('nobody has no users of its own'),
    fix: expect.stringContaining('usermod --add-subuids'),
  });
});
