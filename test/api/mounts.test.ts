// Directories of this machine in a sandbox: which may be mounted, by whom, and what becomes of a sandbox whose directory is gone.
import { createHash } from 'node:crypto';
import { mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { newId } from '../../src/domain/ids.ts';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const refusal = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof ApiError ? `${error.message} [${error.body.hint}]` : Promise.reject(error as Error)),
  );
const from = (path: string) => ({ headers: { 'Hutch-Client-Directory': encodeURIComponent(path) } });
/** The daemon's user has its home there. */
const inHome = async (name: string): Promise<string> => {
  const dir = join(daemon.home, name);
  await mkdir(dir, { recursive: true });
  return dir;
};
const mount = (source: string, target = '/mnt/dir', readOnly = false) => ({ start: false, mounts: [{ source, target, readOnly }] });
const tried = (source: string, options = {}): Promise<string> => refusal(daemon.call('sandbox.create', mount(source), options));

test('a directory of this machine is seen inside, and can be written unless that is refused', async () => {
  const [open, closed] = [await inHome('open'), await inHome('closed')];
  await writeFile(join(closed, 'note'), 'from here\n');
  await symlink(open, join(daemon.home, 'link'));
  const { id, mounts } = await daemon.call('sandbox.create', {
    name: 'sees',
    mounts: [
      { source: join(daemon.home, 'link'), target: '/mnt/open' },
      { source: closed, target: '/mnt/closed', readOnly: true },
    ],
  });
  // What the link leads to is what is kept: it may lead elsewhere tomorrow.
  expect(mounts).toEqual([
    { source: open, volumeId: null, target: '/mnt/open', readOnly: false },
    { source: closed, volumeId: null, target: '/mnt/closed', readOnly: true },
  ]);
  const { stdout, exitCode } = await daemon.run(id, [
    'sh',
    '-c',
    'cat /mnt/closed/note; echo in > /mnt/open/new; echo no > /mnt/closed/note',
  ]);
  expect([stdout, exitCode]).toEqual(['from here\n', expect.any(Number)]);
  expect(exitCode).not.toBe(0);
  expect(await readFile(join(open, 'new'), 'utf8')).toBe('in\n');
  expect(await readFile(join(closed, 'note'), 'utf8')).toBe('from here\n');
});

test('a directory that is gone, or is another one, keeps a sandbox from its start, and says so', async () => {
  const dir = await inHome('going');
  const { id } = await daemon.call('sandbox.create', { name: 'bereft', ...mount(dir), start: true });
  await rename(dir, `${dir}.away`);
  expect(await refusal(daemon.call('sandbox.restart', { ref: id }))).toMatch(
    /^failed_precondition: sandbox bereft has .*\/going at \/mnt\/dir, .*there is no directory .*\[put the directory back, then: hutch start bereft\]$/,
  );
  expect((await daemon.call('sandbox.get', { ref: id })).state).toBe('running'); // nothing was stopped for it
  await daemon.call('sandbox.stop', { ref: id });
  await symlink('/usr', dir);
  expect(await refusal(daemon.call('sandbox.start', { ref: id }))).toMatch(/^failed_precondition: .* leads to \/usr by now/);
  await rm(dir);
  await writeFile(dir, '');
  expect(await refusal(daemon.call('sandbox.start', { ref: id }))).toMatch(/^failed_precondition: .* is no directory/);
  await rm(dir);
  await rename(`${dir}.away`, dir);
  expect((await daemon.call('sandbox.start', { ref: id })).state).toBe('running');
});

test('what is Hutch’s own or the machine’s is never mounted, whatever leads to it', async () => {
  const dir = await inHome('links');
  const cases: readonly (readonly [string, RegExp])[] = [
    ['/', /^permission_denied: \/ is never mounted/],
    ['/proc/self', /^permission_denied: \/proc\/.* is never mounted: \/proc is the machine's own/],
    ['/etc', /^permission_denied: \/etc is never mounted/],
    ['/etc/ssl', /^permission_denied: \/etc\/ssl is never mounted/],
    ['/sys', /is never mounted/],
    ['/run', /is never mounted/],
    [join(daemon.home, 'data'), /^permission_denied: .* is never mounted: it is Hutch's own/],
    [join(daemon.home, 'data/sandboxes'), /is never mounted: .*data is Hutch's own/],
    [daemon.home, /is never mounted: in it .* is Hutch's own/],
    [join(daemon.home, 'run'), /is never mounted/],
  ];
  for (const [path, said] of cases) {
    expect(await tried(path), path).toMatch(said);
    await rm(join(dir, 'link'), { force: true });
    await symlink(path, join(dir, 'link'));
    expect(await tried(join(dir, 'link')), `a link to ${path}`).toMatch(/is never mounted/);
  }
});

test('a client that is the daemon’s own user may mount what lies where it stands, and nobody else', async () => {
  expect(await tried('/usr/share')).toMatch(
    /^permission_denied: \/usr\/share may not be mounted: .*\(volumes\.allow\).*\[volumes\] allow = \["\/[^"]+","\/usr\/share"\], the whole list/,
  );
  expect(await tried('/usr/share', from('/usr'))).toBe('ok');
  expect(await tried('/usr/share', from('/usr/share/doc'))).toMatch(/^permission_denied/);
  expect(await tried('/usr/share', from('/'))).toMatch(/^permission_denied/); // that would be everything
  expect(await tried('/usr/share', { ...from('/usr'), via: 'tcp' })).toMatch(/^permission_denied/);
  expect(await tried('/usr/share', from('usr'))).toMatch(/^invalid_argument: Hutch-Client-Directory/);
});

test('what is wrong with a mount is told with its place in the request', async () => {
  const dir = await inHome('fine');
  await writeFile(join(daemon.home, 'file'), '');
  expect(await tried(join(daemon.home, 'none'))).toMatch(/^not_found: there is no directory .*none on this machine \[make it: mkdir -p/);
  expect(await tried(join(daemon.home, 'file'))).toMatch(/^invalid_argument: .*file is no directory.*hutch cp/);
  // What is no path is a volume.
  expect(await tried('fine')).toMatch(/^not_found: there is no volume 'fine'/);
  const both = (...targets: string[]) =>
    refusal(daemon.call('sandbox.create', { mounts: targets.map((target) => ({ source: dir, target })) }));
  expect(await both('/a', '/etc')).toMatch(/^invalid_argument: mounts\.1\.target must not be \/etc/);
  expect(await both('/a', '/a')).toMatch(/^invalid_argument: mounts: \/a is mounted twice/);
  expect(await both('/a', '/a/b')).toMatch(/^invalid_argument: mounts: .*lie in one another/);
  expect(await both(...Array.from({ length: 33 }, (_, at) => `/m${at}`))).toMatch(/^invalid_argument: .*mounts/);
  expect(await refusal(daemon.call('sandbox.create', { mounts: [{ source: dir, target: '/a', mode: 'ro' } as never] }))).toMatch(
    /^invalid_argument: .*mode/,
  );
});

test('the configuration says which directories, of this project and of another; then only those', async () => {
  const other = newId('prj', (count) => new Uint8Array(count).fill(7));
  const key = `e2b_${'7'.repeat(40)}`;
  await daemon.terminate();
  {
    using db = new DatabaseSync(join(daemon.home, 'data/hutch.db'));
    db.prepare('INSERT INTO projects (id, name, created_at_ms) VALUES (?, ?, 1)').run(other, 'other');
    db.prepare('INSERT INTO api_keys (id, project_id, name, sha256, created_at_ms) VALUES (?, ?, ?, ?, 1)').run(
      ...[newId('key', (count) => new Uint8Array(count).fill(7)), other, 'theirs', createHash('sha256').update(key).digest('hex')],
    );
  }
  const theirs = { headers: { Authorization: `Bearer ${key}`, ...from('/').headers } };
  const home = await inHome('home');
  await daemon.startAgain();
  // Who has a key of another project is not this daemon's user, wherever it connects.
  expect(await tried(home, theirs)).toMatch(new RegExp(`^permission_denied: .*allow = \\["…","${other}=`));
  expect(await tried('/usr/share', { headers: { ...theirs.headers, ...from('/usr').headers } })).toMatch(/^permission_denied/);
  await daemon.terminate();
  await daemon.startAgain({ env: { HUTCH_VOLUMES_ALLOW: `/usr/share,${other}=/usr/lib` } });
  expect(await tried('/usr/share/doc')).toBe('ok');
  expect(await tried('/usr/lib')).toMatch(/^permission_denied/);
  expect(await tried(home, from(daemon.home))).toMatch(/^permission_denied/);
  expect(await tried('/usr/lib', theirs)).toBe('ok');
  expect(await tried('/usr/share', theirs)).toMatch(/^permission_denied/);
  const { sandboxes } = await daemon.call('sandbox.list', {}, theirs);
  for (const { id } of sandboxes) await daemon.call('sandbox.delete', { ref: id }, theirs);
});
