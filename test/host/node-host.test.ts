import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { TEMP_NAME } from '../../src/host/files.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
let dir: string;

beforeEach(async () => {
  dir = await fs.mkdtemp(join(tmpdir(), 'hutch-host-'));
});
afterEach(async () => {
  await fs.rm(dir, { recursive: true });
});

const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytes = (length: number, fill = 7): Uint8Array => new Uint8Array(length).fill(fill);

test('an errno becomes the code that the contract names, and stays in the cause', async () => {
  const op = testOperation();
  await expect(host.readFile(op, join(dir, 'absent'), 10)).rejects.toMatchObject({
    code: 'not_found',
    opId: op.id,
    cause: { code: 'ENOENT' },
  });
  await fs.writeFile(join(dir, 'file'), 'x');
  await expect(host.list(op, join(dir, 'file'))).rejects.toMatchObject({ code: 'internal', cause: { code: 'ENOTDIR' } });
  await expect(host.chmod(op, '/proc/self/stat', 0o777)).rejects.toMatchObject({ code: 'permission_denied' });
  await expect(host.writeFileAtomic(op, '/proc/none', 'x', 0o600)).rejects.toMatchObject({ code: 'not_found' });
});

test('a file is read up to its bound and refused beyond it, also where the size is not known before', async () => {
  const op = testOperation();
  await fs.writeFile(join(dir, 'ten'), bytes(10));
  expect(await host.readFile(op, join(dir, 'ten'), 10)).toHaveLength(10);
  await expect(host.readFile(op, join(dir, 'ten'), 9)).rejects.toMatchObject({ code: 'payload_too_large' });
  expect(text(await host.readFile(op, '/proc/self/stat', 4096))).toContain(String(process.pid));
  await expect(host.readFile(op, '/proc/self/stat', 4)).rejects.toMatchObject({ code: 'payload_too_large' });
  expect((await host.readFile(op, '/proc/kallsyms', 64 * 1024 * 1024)).byteLength).toBeGreaterThan(0);
});

test('an atomic write replaces the content, sets the mode whatever the umask, and leaves nothing beside', async () => {
  const op = testOperation();
  const path = join(dir, 'state.json');
  await host.writeFileAtomic(op, path, 'old', 0o644);
  await host.writeFileAtomic(op, path, 'new', 0o666);
  expect(await fs.readFile(path, 'utf8')).toBe('new');
  expect((await host.stat(op, path))?.mode).toBe(0o666);
  expect(await host.list(op, dir)).toEqual(['state.json']);
});

test('a failed atomic write keeps the old content and removes its temporary file', async () => {
  const op = testOperation();
  await fs.mkdir(join(dir, 'taken'));
  await fs.writeFile(join(dir, 'taken', 'inside'), 'x');
  await expect(host.writeFileAtomic(op, join(dir, 'taken'), 'new', 0o600)).rejects.toMatchObject({ code: 'internal' });
  expect(await host.list(op, dir)).toEqual(['taken']);
});

test('a temporary name is recognised as one', async () => {
  const op = testOperation();
  const watching = host.watchDir(op, dir);
  const names: string[] = [];
  const watcher = fs.watch(dir);
  const written = host.writeFileAtomic(op, join(dir, 'n'.repeat(255)), 'x', 0o600);
  for await (const event of watcher) {
    if (event.filename !== null) names.push(event.filename);
    if (event.filename?.startsWith('n')) break;
  }
  await written;
  expect(names.some((name) => TEMP_NAME.test(name))).toBe(true);
  for await (const _ of watching) break;
});

test('ranges and streams give exactly the bytes asked for', async () => {
  const op = testOperation();
  const path = join(dir, 'data');
  const content = Uint8Array.from({ length: 700_000 }, (_, i) => i % 251);
  await fs.writeFile(path, content);
  expect(await host.readRange(op, path, 100, 50)).toEqual(content.slice(100, 150));
  expect(await host.readRange(op, path, 699_990, 50)).toEqual(content.slice(699_990));
  expect(await host.readRange(op, path, 800_000, 50)).toHaveLength(0);
  // One that is far longer than its file takes no more memory than the file.
  const whole = await host.readRange(op, path, 0, 1024 ** 3);
  expect(whole).toEqual(content);
  expect(whole.buffer.byteLength).toBeLessThan(1024 ** 2);
  expect((await host.readRange(op, '/proc/self/status', 0, 1024 ** 3)).byteLength).toBeGreaterThan(100);
  const streamed = await Array.fromAsync(host.readStream(op, path, 5));
  expect(Buffer.concat(streamed).equals(content.subarray(5))).toBe(true);
  await host.appendFile(op, path, bytes(3));
  expect((await host.stat(op, path))?.sizeBytes).toBe(700_003);
  expect(await host.sha256(op, path)).toMatch(/^[0-9a-f]{64}$/);
});

test('stat tells the kinds of entries apart, and nothing is null', async () => {
  const op = testOperation();
  await fs.symlink('nowhere', join(dir, 'link'));
  expect((await host.stat(op, join(dir, 'link')))?.type).toBe('symlink');
  expect((await host.stat(op, dir))?.type).toBe('directory');
  expect((await host.stat(op, '/dev/null'))?.type).toBe('other');
  expect(await host.stat(op, join(dir, 'absent'))).toBeNull();
  expect(await host.stat(op, '/dev/null/absent')).toBeNull();
});

test('directories are made with their parents and removed with their content, both again without error', async () => {
  const op = testOperation();
  const path = join(dir, 'a', 'b');
  await host.makeDir(op, path, 0o711);
  await host.makeDir(op, path, 0o700);
  expect((await host.stat(op, path))?.mode).toBe(0o711);
  await fs.writeFile(join(path, 'x'), 'x');
  await host.remove(op, join(dir, 'a'));
  await host.remove(op, join(dir, 'a'));
  expect(await host.list(op, dir)).toEqual([]);
});

test('a directory that cannot be made is an error at once, also where the kernel says that its parent is missing', async () => {
  const op = testOperation();
  await expect(host.makeDir(op, '/proc/hutch/data', 0o711)).rejects.toMatchObject({ code: 'not_found' });
  await fs.writeFile(join(dir, 'file'), '');
  await expect(host.makeDir(op, join(dir, 'file'), 0o711)).rejects.toMatchObject({ cause: { code: 'EEXIST' } });
  await expect(host.makeDir(op, join(dir, 'file', 'below'), 0o711)).rejects.toMatchObject({ cause: { code: 'ENOTDIR' } });
});

test('a copy of a sparse file has the same bytes, takes no more room, and is writable', async () => {
  const op = testOperation();
  const from = join(dir, 'seed');
  const to = join(dir, 'disk');
  await host.truncate(op, from, 8 * 2 ** 30);
  await using file = await fs.open(from, 'r+');
  for (let i = 0; i < 64; i += 1) await file.write(bytes(24_576, i + 1), 0, 24_576, i * 128 * 2 ** 20);
  await host.sync(op, from);
  await host.chmod(op, from, 0o400);
  await host.cloneFile(op, from, to);
  const copy = await host.stat(op, to);
  expect(copy?.sizeBytes).toBe(8 * 2 ** 30);
  expect(copy?.allocatedBytes).toBeLessThanOrEqual(3 * 2 ** 20);
  expect(copy?.mode).toBe(0o600);
  expect(await host.readRange(op, to, 63 * 128 * 2 ** 20, 2)).toEqual(bytes(2, 64));
  expect(await host.list(op, dir)).toEqual(['disk', 'seed']);
  await expect(host.cloneFile(op, join(dir, 'absent'), to)).rejects.toMatchObject({ code: 'not_found' });
  expect(await host.list(op, dir)).toEqual(['disk', 'seed']);
});

test('a sparse file has its pieces, holes between them, and replaces what was there', async () => {
  const op = testOperation();
  const path = join(dir, 'disk');
  await fs.writeFile(path, 'old');
  await host.writeSparse(op, path, 8 * 2 ** 30, [
    { offset: 4096, bytes: bytes(10) },
    { offset: 7 * 2 ** 30, bytes: bytes(3, 9) },
  ]);
  const info = await host.stat(op, path);
  expect([info?.sizeBytes, info?.mode]).toEqual([8 * 2 ** 30, 0o600]);
  expect(info?.allocatedBytes).toBeLessThan(2 ** 20);
  expect(await host.readRange(op, path, 4095, 12)).toEqual(Uint8Array.from([0, ...bytes(10), 0]));
  expect(await host.readRange(op, path, 7 * 2 ** 30, 3)).toEqual(bytes(3, 9));
  expect(await host.list(op, dir)).toEqual(['disk']);
});

test('a file system tells its name and its room', async () => {
  const op = testOperation();
  const info = await host.fileSystem(op, '/proc');
  expect(info.type).toMatch(/./);
  expect((await host.fileSystem(op, dir)).totalBytes).toBeGreaterThan((await host.fileSystem(op, dir)).freeBytes);
});

test('a change between the watch and the wait is not missed; an abort ends the wait', async () => {
  const abort = new AbortController();
  const op = testOperation({ signal: abort.signal });
  const changes = host.watchDir(op, dir)[Symbol.asyncIterator]();
  await fs.writeFile(join(dir, 'new'), 'x');
  expect(await changes.next()).toMatchObject({ done: false });
  const waiting = changes
    .next()
    .then(() => changes.next())
    .then(() => changes.next());
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'cancelled' });
  expect(() => host.watchDir(testOperation(), join(dir, 'absent'))).toThrow(/cannot watch/);
});

test('a lock excludes everyone else until it is disposed', async () => {
  const op = testOperation();
  const path = join(dir, 'lock');
  {
    await using held = await host.lockFile(op, path);
    expect(held).not.toBeNull();
    expect(await host.lockFile(op, path)).toBeNull();
    expect(await fs.readFile(path, 'utf8')).toBe(`${process.pid}\n`);
  }
  await using again = await host.lockFile(op, path);
  expect(again).not.toBeNull();
});

test('a lock ends with kill -9 of its holder, even if the holder had started programs', async () => {
  const op = testOperation();
  const path = join(dir, 'lock');
  const holder = spawn(process.execPath, [join(import.meta.dirname, 'lock-holder.ts'), path], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [said] = await once(holder.stdout, 'data');
  const sleeper = Number(String(said));
  try {
    expect(await host.lockFile(op, path)).toBeNull();
    holder.kill('SIGKILL');
    await once(holder, 'exit');
    await using lock = await host.lockFile(op, path);
    expect(lock).not.toBeNull();
  } finally {
    process.kill(sleeper, 'SIGKILL');
  }
});

test('a program gives its output and exit code, and gets its input and environment', async () => {
  const op = testOperation();
  const result = await host.run(op, ['sh', '-c', 'cat; echo "$COLOUR" >&2; exit 3'], { input: bytes(3, 97), env: { COLOUR: 'green' } });
  expect([result.exitCode, text(result.stdout), text(result.stderr)]).toEqual([3, 'aaa', 'green\n']);
  expect((await host.run(op, ['sh', '-c', 'kill -9 $$'])).exitCode).toBe(137);
  await expect(host.run(op, ['no-such-program'])).rejects.toMatchObject({
    code: 'not_found',
    message: expect.stringContaining('not installed'),
  });
  expect((await host.run(op, ['true'], { input: bytes(1_000_000) })).exitCode).toBe(0);
});

test('nothing of our own environment reaches a program', async () => {
  const op = testOperation();
  expect(Object.keys(process.env).length).toBeGreaterThan(3);
  const { stdout } = await host.run(op, ['env']);
  expect(
    text(stdout)
      .split('\n')
      .map((line) => line.split('=')[0])
      .filter((name) => name !== '')
      .sort(),
  ).toEqual(['HOME', 'LANG', 'PATH']);
});

test('a program that writes too much is ended and is an error, not a truncation', async () => {
  const op = testOperation();
  await expect(host.run(op, ['cat', '/dev/zero'], { outputBytesMax: 100_000 })).rejects.toMatchObject({ code: 'resource_exhausted' });
});

test('an abort ends a program with all that it started, also one that ignores TERM', async () => {
  const op = testOperation();
  let pids: number[] = [];
  using late = op.within(300, 'the stubborn program');
  const script = 'trap "" TERM; sleep 1000 & echo $$ $!; while :; do wait; done';
  await expect(
    host.run(late, ['sh', '-c', script], {
      onOutput: (chunk) => {
        pids = text(chunk).trim().split(' ').map(Number);
      },
    }),
  ).rejects.toMatchObject({ code: 'deadline_exceeded' });
  expect(pids).toHaveLength(2);
  for (const pid of pids) await eventually('it is gone', async () => (await host.processRef(op, pid)) === null);
});

test('what a program leaves behind with its output open does not hold up the result', async () => {
  const op = testOperation();
  const result = await host.run(op, ['setsid', 'sh', '-c', 'sleep 30 & echo $!']);
  const left = await host.processRef(op, Number(text(result.stdout)));
  expect(left).not.toBeNull();
  if (left !== null) await host.kill(op, left, 'SIGKILL');
});

test('a detached program logs to its file and is known by its start time', async () => {
  const op = testOperation();
  const logPath = join(dir, 'log');
  const ref = await host.spawnDetached(op, ['sh', '-c', 'echo out; echo err >&2; exec sleep 1000'], { logPath });
  expect(await host.isAlive(op, ref)).toBe(true);
  expect(await host.processRef(op, ref.pid)).toEqual(ref);
  await eventually('both lines', async () => (await fs.readFile(logPath, 'utf8')) === 'out\nerr\n');
  expect((await host.processUse(op, ref))?.pssBytes).toBeGreaterThan(10_000);
  const stranger = { pid: ref.pid, startTicks: ref.startTicks + 1 };
  expect(await host.isAlive(op, stranger)).toBe(false);
  expect(await host.kill(op, stranger, 'SIGKILL')).toBe(false);
  expect(await host.isAlive(op, ref)).toBe(true);
  expect(await host.kill(op, ref, 'SIGKILL')).toBe(true);
  await eventually('its end', async () => !(await host.isAlive(op, ref)));
  expect(await host.kill(op, ref, 'SIGKILL')).toBe(false);
  expect(await host.processUse(op, ref)).toBeNull();
  await expect(host.spawnDetached(op, ['no-such-program'], { logPath })).rejects.toMatchObject({ code: 'not_found' });
  await expect(host.spawnDetached(op, ['true'], { logPath: join(dir, 'no', 'log') })).rejects.toMatchObject({ code: 'not_found' });
});

test('what a program, its children and those that have ended wrote to the disk is counted', async () => {
  const op = testOperation();
  const write = (name: string) => `dd if=/dev/zero of=${join(dir, name)} bs=1M count=1 conv=fsync 2>/dev/null`;
  const script = `(${write('child')}); (${write('living')}; exec sleep 1000) & ${write('own')}; wait`;
  const ref = await host.spawnDetached(op, ['sh', '-c', script], { logPath: join(dir, 'log') });
  await eventually('all three', async () => ((await host.processTraffic(op, ref))?.writtenBytes ?? 0) >= 3 * 2 ** 20);
  expect(await host.processTraffic(op, { ...ref, startTicks: ref.startTicks + 1 })).toBeNull();
  process.kill(-ref.pid, 'SIGKILL');
  await eventually('its end', async () => !(await host.isAlive(op, ref)));
  expect(await host.processTraffic(op, ref)).toBeNull();
});

test('a detached program that ends at once is still one that was started', async () => {
  const op = testOperation();
  const refs = await Promise.all(Array.from({ length: 10 }, () => host.spawnDetached(op, ['true'], { logPath: join(dir, 'log') })));
  for (const ref of refs) await eventually('its end', async () => !(await host.isAlive(op, ref)));
});

test('programs are found on the search path alone', async () => {
  const op = testOperation();
  expect(await host.which(op, 'sh')).toMatch(/^\/(usr\/)?bin\/sh$/);
  expect(await host.which(op, 'no-such-program')).toBeNull();
  expect(await host.which(op, '/etc/passwd')).toBeNull();
});

test('every call of an aborted operation is refused with the reason of its signal', async () => {
  const abort = new AbortController();
  const op = testOperation({ signal: abort.signal });
  abort.abort();
  const path = join(dir, 'x');
  const calls = [
    host.readFile(op, path, 1),
    host.writeFileAtomic(op, path, 'x', 0o600),
    host.appendFile(op, path, bytes(1)),
    host.readRange(op, path, 0, 1),
    Array.fromAsync(host.readStream(op, path)),
    host.stat(op, path),
    host.list(op, dir),
    host.makeDir(op, path, 0o700),
    host.remove(op, path),
    host.rename(op, path, path),
    host.chmod(op, path, 0o600),
    host.chown(op, path, 0, 0),
    host.truncate(op, path, 1),
    host.cloneFile(op, path, path),
    host.sync(op, path),
    host.fileSystem(op, dir),
    host.sha256(op, path),
    host.lockFile(op, path),
    host.run(op, ['true']),
    host.spawnDetached(op, ['true'], { logPath: path }),
    host.processRef(op, 1),
    host.isAlive(op, { pid: 1, startTicks: 0 }),
    host.kill(op, { pid: 1, startTicks: 0 }, 'SIGCONT'),
    host.processUse(op, { pid: 1, startTicks: 0 }),
    host.which(op, 'sh'),
    host.connectUnix(op, path),
    host.writeSparse(op, path, 1, []),
    host.receiveUnix(op, path, 1),
    host.listenUnix(op, path, 0o600),
  ];
  const outcomes = await Promise.allSettled(calls);
  expect(outcomes.map((outcome) => (outcome.status === 'rejected' ? outcome.reason.code : 'done'))).toEqual(calls.map(() => 'cancelled'));
  expect(() => host.watchDir(op, dir)).toThrow(/cancelled/);
  expect(await fs.readdir(dir)).toEqual([]);
});

test('the clocks run, and this boot has a name', () => {
  expect(host.monotonicMs()).toBeLessThanOrEqual(host.monotonicMs());
  expect(Math.abs(host.nowMs() - Date.now())).toBeLessThan(10_000);
  expect(host.bootId()).toMatch(/^[0-9a-f-]{36}$/);
  expect(host.randomBytes(16)).not.toEqual(host.randomBytes(16));
});
