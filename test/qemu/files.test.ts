// `hutch-files` (rust/files) as a hostile guest meets it: raw messages over its socket, as the machine's process passes them on.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { link, lstat, mkdir, mkdtemp, readdir, readFile, realpath, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';

const PROGRAM = join(import.meta.dirname, '../../prebuilt/x86_64/hutch-files');
const OPCODES = {
  ...{ lookup: 1, getattr: 3, setattr: 4, readlink: 5, symlink: 6, mknod: 8, mkdir: 9, unlink: 10, rmdir: 11, rename: 12, link: 13 },
  ...{ open: 14, read: 15, write: 16, statfs: 17, fsync: 20, init: 26, opendir: 27, readdir: 28, create: 35, fallocate: 43, lseek: 46 },
  ...{ readdirplus: 44, inside: 0x4855_0002, tell: 0x4855_0003 },
} as const;
/** In place of a request's number. */
const CHANGED = (3n << 62n) | 1n;
const AHEAD = (3n << 62n) | 2n;
const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EEXIST: 17,
  ENOTDIR: 20,
  EINVAL: 22,
  EROFS: 30,
  ELOOP: 40,
  ESTALE: 116,
  ENOSYS: 38,
  EXDEV: 18,
} as const;
const ROOT_NODE = 1n;

type Reply = { readonly errno: number; readonly body: Buffer };

class Guest implements AsyncDisposable {
  readonly top: string;
  /** What it serves; beside it lies `outside`. */
  readonly dir: string;
  readonly outside: string;
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  readonly #replies = new Map<bigint, (reply: Reply) => void>();
  /** What it was told without having asked. */
  readonly told: { readonly unique: bigint; readonly body: Buffer }[] = [];
  #unique = 0n;
  #unread = Buffer.alloc(0);

  private constructor(top: string, child: ChildProcess, socket: Socket) {
    this.top = top;
    this.dir = join(top, 'served');
    this.outside = join(top, 'outside');
    this.#child = child;
    this.#socket = socket;
    socket.on('data', (bytes) => this.#take(bytes));
    socket.on('error', () => {});
  }

  static async start(): Promise<Guest> {
    const top = await realpath(await mkdtemp(join(tmpdir(), 'hutch-files-')));
    for (const name of ['served', 'outside', 'readable']) await mkdir(join(top, name));
    await writeFile(join(top, 'outside/secret'), 'secret');
    await writeFile(join(top, 'readable/note'), 'note');
    await symlink('../outside', join(top, 'served/way-out'));
    await symlink(join(top, 'outside/secret'), join(top, 'served/leak'));
    await mkdir(join(top, 'served/inner'));
    const served = ['--dir', join(top, 'served'), '--dir-ro', join(top, 'readable')];
    const child = spawn(PROGRAM, ['--listen', 'files.sock', ...served], { cwd: top, stdio: 'ignore' });
    await eventually('it listens', async () => existsSync(join(top, 'files.sock')));
    const socket = connect(join(top, 'files.sock'));
    await once(socket, 'connect');
    const guest = new Guest(top, child, socket);
    for (const mount of [0, 1]) {
      const init = Buffer.concat([numbers(7, 36, 131_072, 0xffff_ffff), Buffer.alloc(48)]);
      expect((await guest.ask('init', 0n, init, mount)).errno).toBe(0);
    }
    return guest;
  }

  get lives(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async ask(what: keyof typeof OPCODES, node: bigint, body: Uint8Array, mount = 0): Promise<Reply> {
    const { promise, resolve } = Promise.withResolvers<Reply>();
    this.#unique += 2n;
    this.#replies.set(this.#unique, resolve);
    const header = Buffer.alloc(44);
    header.writeUInt32LE(mount, 0);
    header.writeUInt32LE(40 + body.byteLength, 4);
    header.writeUInt32LE(OPCODES[what], 8);
    header.writeBigUInt64LE(this.#unique, 12);
    header.writeBigUInt64LE(node, 20);
    this.send(Buffer.concat([header, body]));
    return await promise;
  }

  send(bytes: Uint8Array): void {
    this.#socket.write(bytes);
  }

  async ended(): Promise<void> {
    if (this.lives) await once(this.#child, 'exit');
  }

  #take(bytes: Buffer): void {
    this.#unread = Buffer.concat([this.#unread, bytes]);
    while (this.#unread.byteLength >= 20 && this.#unread.byteLength >= 4 + this.#unread.readUInt32LE(4)) {
      const length = this.#unread.readUInt32LE(4);
      const unique = this.#unread.readBigUInt64LE(12);
      const body = Buffer.from(this.#unread.subarray(20, 4 + length));
      const waits = this.#replies.get(unique);
      if (waits === undefined) this.told.push({ unique, body });
      else waits({ errno: Math.abs(this.#unread.readInt32LE(8)), body });
      this.#replies.delete(unique);
      this.#unread = this.#unread.subarray(4 + length);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.destroy();
    if (this.lives) this.#child.kill('SIGKILL');
    await rm(this.top, { recursive: true, force: true });
  }
}

const text = (...words: readonly (string | Uint8Array)[]): Buffer =>
  Buffer.concat(words.flatMap((word) => [Buffer.from(word as string), Buffer.alloc(1)]));
const numbers = (...values: readonly number[]): Buffer => {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [at, value] of values.entries()) bytes.writeUInt32LE(value, at * 4);
  return bytes;
};
const nodeIn = ({ body }: Reply): bigint => body.readBigUInt64LE(0);

test('no name leads out of the directory: neither dots, slashes nor symlinks', async () => {
  await using guest = await Guest.start();
  for (const name of ['..', '.', '', '../outside', 'inner/../../outside', '/etc', `${guest.outside}/secret`])
    expect((await guest.ask('lookup', ROOT_NODE, text(name))).errno, name).toBe(ERRNO.EINVAL);
  // A symlink is a file of its own: it is read, and nothing is looked up behind it.
  const link = await guest.ask('lookup', ROOT_NODE, text('way-out'));
  expect(link.errno).toBe(0);
  expect((await guest.ask('readlink', nodeIn(link), Buffer.alloc(0))).body.toString()).toBe('../outside');
  expect((await guest.ask('lookup', nodeIn(link), text('secret'))).errno).not.toBe(0);
  expect((await guest.ask('opendir', nodeIn(link), numbers(0, 0))).errno).not.toBe(0);
  expect((await guest.ask('create', nodeIn(link), Buffer.concat([numbers(0o102, 0o100_644, 0, 0), text('new')]))).errno).not.toBe(0);
  const leak = await guest.ask('lookup', ROOT_NODE, text('leak'));
  expect((await guest.ask('read', nodeIn(leak), Buffer.alloc(40, 0x10))).errno).not.toBe(0);
  expect(
    (await guest.ask('write', nodeIn(leak), Buffer.concat([Buffer.alloc(16), numbers(1, 0, 0, 0, 2, 0), Buffer.from('x')]))).errno,
  ).not.toBe(0);
  // One that was a directory when it was found, and is a symlink now.
  const inner = await guest.ask('lookup', ROOT_NODE, text('inner'));
  await rm(join(guest.dir, 'inner'), { recursive: true });
  await symlink('../outside', join(guest.dir, 'inner'));
  expect((await guest.ask('lookup', nodeIn(inner), text('secret'))).errno).not.toBe(0);
  expect((await guest.ask('unlink', nodeIn(inner), text('secret'))).errno).not.toBe(0);
  expect(await readFile(join(guest.outside, 'secret'), 'utf8')).toBe('secret');
});

test('no device is made and no set-user-id bit set, and of what is read-only nothing is changed', async () => {
  await using guest = await Guest.start();
  const made = (mode: number, name: string, mount = 0) =>
    guest.ask('mknod', ROOT_NODE, Buffer.concat([numbers(mode, 0x0801, 0, 0), text(name)]), mount);
  expect((await made(0o060_666, 'disk')).errno).toBe(ERRNO.EPERM);
  expect((await made(0o020_666, 'memory')).errno).toBe(ERRNO.EPERM);
  const file = await made(0o106_755, 'program');
  expect(file.errno).toBe(0);
  expect((await lstat(join(guest.dir, 'program'))).mode & 0o7777).toBe(0o755);
  const chmod = Buffer.alloc(88);
  chmod.writeUInt32LE(1, 0);
  chmod.writeUInt32LE(0o104_755, 68);
  expect((await guest.ask('setattr', nodeIn(file), chmod)).errno).toBe(ERRNO.EPERM);
  chmod.writeUInt32LE(0o100_700, 68);
  expect((await guest.ask('setattr', nodeIn(file), chmod)).errno).toBe(0);
  expect((await lstat(join(guest.dir, 'program'))).mode & 0o7777).toBe(0o700);

  const note = nodeIn(await guest.ask('lookup', ROOT_NODE, text('note'), 1));
  const changes: readonly (readonly [keyof typeof OPCODES, bigint, Buffer])[] = [
    ['mknod', ROOT_NODE, Buffer.concat([numbers(0o100_644, 0, 0, 0), text('new')])],
    ['create', ROOT_NODE, Buffer.concat([numbers(0o102, 0o100_644, 0, 0), text('new')])],
    ['mkdir', ROOT_NODE, Buffer.concat([numbers(0o755, 0), text('new')])],
    ['symlink', ROOT_NODE, text('new', 'target')],
    ['unlink', ROOT_NODE, text('note')],
    ['rmdir', ROOT_NODE, text('note')],
    ['rename', ROOT_NODE, Buffer.concat([numbers(1, 0), text('note', 'other')])],
    ['link', ROOT_NODE, Buffer.concat([numbers(Number(note), 0), text('other')])],
    ['setattr', note, chmod],
    ['write', note, Buffer.concat([Buffer.alloc(16), numbers(1, 0, 0, 0, 2, 0), Buffer.from('x')])],
    ['fallocate', note, Buffer.alloc(32)],
  ];
  for (const [what, node, body] of changes) expect((await guest.ask(what, node, body, 1)).errno, what).toBe(ERRNO.EROFS);
  expect(await readdir(join(guest.top, 'readable'))).toEqual(['note']);
  expect(await readFile(join(guest.top, 'readable/note'), 'utf8')).toBe('note');
});

test('before it hears a guest, the kernel keeps it to its directories and to calls about files', async () => {
  const top = await realpath(await mkdtemp(join(tmpdir(), 'hutch-files-')));
  try {
    await mkdir(join(top, 'served'));
    const at = (name: string): string => join(top, name);
    const calls = 'trace=landlock_create_ruleset,landlock_restrict_self,prctl,seccomp,recvfrom,read';
    const child = spawn('strace', ['-e', calls, '-o', at('log'), PROGRAM, '--listen', at('socket'), '--dir', at('served')]);
    const ended = once(child, 'exit');
    await eventually('it listens', () => existsSync(at('socket')));
    const socket = connect(at('socket'));
    socket.end('x');
    await ended;
    const log = (await readFile(at('log'), 'utf8')).split('\n');
    const [filter, kept, heard] = [/SECCOMP_MODE_FILTER.* = 0$/, /^landlock_restrict_self\(.* = 0$/, /\("x"|"x", /].map((line) =>
      log.findIndex((said) => line.test(said)),
    ) as [number, number, number];
    expect(filter, log.join('\n')).toBeGreaterThanOrEqual(0);
    expect(heard, log.join('\n')).toBeGreaterThan(filter);
    const version = Number(/^landlock_create_ruleset\(NULL.* = (\d+)$/m.exec(log.join('\n'))?.[1] ?? 0); // 0: this kernel has none
    if (version >= 2) expect(kept, log.join('\n')).toBeGreaterThanOrEqual(0);
    expect(filter, log.join('\n')).toBeGreaterThan(kept);
  } finally {
    await rm(top, { recursive: true, force: true });
  }
});

test('whatever it is sent, nothing outside is touched, and it answers or ends', async () => {
  await using guest = await Guest.start();
  const name = fc.oneof(fc.constantFrom('a', 'b', 'inner', 'way-out', 'leak', '..', '.', '', 'a/b', 'x'.repeat(300)), fc.string());
  const request = fc.record({
    what: fc.constantFrom(...(Object.keys(OPCODES) as (keyof typeof OPCODES)[]).filter((what) => what !== 'init')),
    node: fc.oneof(fc.bigInt({ min: 0n, max: 12n }), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })),
    numbers: fc.array(fc.oneof(fc.integer({ min: 0, max: 8 }), fc.nat(2 ** 31)), { maxLength: 24 }),
    names: fc.array(name, { maxLength: 3 }),
    mount: fc.constantFrom(0, 0, 0, 1),
  });
  await fc.assert(
    fc.asyncProperty(request, async ({ what, node, numbers: values, names, mount }) => {
      await guest.ask(what, node, Buffer.concat([numbers(...values), text(...names)]), mount);
      expect(guest.lives).toBe(true);
    }),
    { numRuns: 2_000 },
  );
  expect(await readdir(guest.outside)).toEqual(['secret']);
  expect(await readFile(join(guest.outside, 'secret'), 'utf8')).toBe('secret');
  expect((await readdir(guest.top)).sort()).toEqual(['outside', 'readable', 'served']);
  expect(await readdir(join(guest.top, 'readable'))).toEqual(['note']);
  // What has no length that a message can have ends it, and it takes no memory for it first.
  guest.send(Buffer.concat([numbers(0, 0xffff_fff0), randomBytes(64)]));
  await guest.ended();
});

const create = (name: string): Buffer => Buffer.concat([numbers(0o102, 0o100_644, 0, 0), text(name)]);
const written = (content: string): Buffer =>
  Buffer.concat([Buffer.alloc(16), numbers(content.length, 0, 0, 0, 2, 0), Buffer.from(content)]);
const reading = Buffer.concat([Buffer.alloc(16), numbers(4096, 0), Buffer.alloc(16)]);
/** For how long what leads there is believed, and what it is like; in ms. */
const holdsMs = ({ body }: Reply): readonly [number, number] => [
  Number(body.readBigUInt64LE(16)) * 1000 + body.readUInt32LE(32) / 1e6,
  Number(body.readBigUInt64LE(24)) * 1000 + body.readUInt32LE(36) / 1e6,
];

test('a guest that hears what others change believes for longer what it was told, and hears of that alone', async () => {
  await using guest = await Guest.start();
  await writeFile(join(guest.dir, 'old'), '1');
  const before = holdsMs(await guest.ask('lookup', ROOT_NODE, text('old')));
  await guest.ask('inside', 0n, numbers(0, 0, 1));
  /** All of it, told behind everything that was done before. */
  const heard = async (): Promise<readonly string[]> => {
    const { body } = await guest.ask('tell', 0n, Buffer.alloc(0));
    expect(body.byteLength).toBe(4);
    const all = guest.told.splice(0).filter(({ unique }) => unique === CHANGED);
    const said = all.map(({ body: told }) => `${told.readBigUInt64LE(0)} ${told.readBigUInt64LE(8)} ${told.toString('latin1', 16)}`);
    return [...new Set(said)].toSorted();
  };
  const old = await guest.ask('lookup', ROOT_NODE, text('old'));
  const [name, attributes] = holdsMs(old);
  expect(Math.min(name, attributes)).toBeGreaterThan(Math.max(...before));
  const inner = nodeIn(await guest.ask('lookup', ROOT_NODE, text('inner')));
  // By itself, nothing of it.
  const made = nodeIn(await guest.ask('create', ROOT_NODE, create('own')));
  await guest.ask('write', made, written('of its own'));
  await guest.ask('rename', ROOT_NODE, Buffer.concat([Buffer.from([Number(inner), 0, 0, 0, 0, 0, 0, 0]), text('own', 'moved')]));
  await guest.ask('mkdir', inner, Buffer.concat([numbers(0o755, 0), text('deep')]));
  await guest.ask('setattr', inner, Buffer.concat([numbers(1, 0), Buffer.alloc(60), numbers(0o700), Buffer.alloc(16)]));
  await guest.ask('unlink', inner, text('moved'));
  await guest.ask('rmdir', inner, text('deep'));
  expect(await heard()).toEqual([]);
  // More files than are kept open: those that are closed for others were not changed by anybody.
  for (let nth = 0; nth < 300; nth += 1) {
    const one = nodeIn(await guest.ask('create', inner, create(`${nth}`)));
    await guest.ask('write', one, written('x'));
  }
  expect(await heard()).toEqual([]);
  // By others.
  await writeFile(join(guest.dir, 'old'), '22');
  await writeFile(join(guest.dir, 'inner/new'), '');
  await rm(join(guest.dir, 'inner/7'));
  expect(await heard()).toEqual([`0 ${inner} 7`, `0 ${inner} new`, `${nodeIn(old)} 0 `].toSorted());
  // One with another name is changed by that one without a word.
  await link(join(guest.dir, 'old'), join(guest.outside, 'twin'));
  expect(holdsMs(await guest.ask('lookup', ROOT_NODE, text('old')))[1]).toBe(before[1]);
  expect((await guest.ask('tell', 0n, Buffer.alloc(0))).body.readUInt32LE(0)).toBeGreaterThan(0);
});

test('who reads small files in the order of their list is sent the next ones, of what may be read and has settled', async () => {
  await using guest = await Guest.start();
  await guest.ask('inside', 0n, numbers(0, 0, 1));
  const here = join(guest.dir, 'inner');
  for (let nth = 0; nth < 40; nth += 1) await writeFile(join(here, `${nth}`), `content ${nth}`);
  await writeFile(join(here, 'big'), Buffer.alloc(5000));
  await symlink('/etc/passwd', join(here, 'link'));
  const [directory] = [nodeIn(await guest.ask('lookup', ROOT_NODE, text('inner')))];
  const handle = (await guest.ask('opendir', directory, numbers(0, 0))).body.readBigUInt64LE(0);
  const names = new Map<string, string>();
  const order: { name: string; node: bigint }[] = [];
  for (let offset = 0n; ; ) {
    const from = Buffer.alloc(16);
    from.writeBigUInt64LE(handle, 0);
    from.writeBigUInt64LE(offset, 8);
    const { body } = await guest.ask('readdirplus', directory, Buffer.concat([from, numbers(4096, 0), Buffer.alloc(16)]));
    if (body.byteLength === 0) break;
    for (let at = 0; at < body.byteLength; ) {
      const length = body.readUInt32LE(at + 144);
      const name = body.toString('latin1', at + 152, at + 152 + length);
      offset = body.readBigUInt64LE(at + 136);
      if (!name.startsWith('.')) order.push({ name, node: body.readBigUInt64LE(at) });
      names.set(`${body.readBigUInt64LE(at)}`, name);
      at += 152 + Math.ceil(length / 8) * 8;
    }
  }
  expect(order).toHaveLength(42);
  const files = order.filter(({ name }) => /^\d+$/.test(name));
  // Written just now, they may be written again in the same moment of the file system’s clock.
  const sent = async (): Promise<readonly { readonly name: string | undefined; readonly content: string }[]> => {
    await guest.ask('tell', 0n, Buffer.alloc(0));
    await guest.ask('tell', 0n, Buffer.alloc(0));
    const ahead = guest.told.splice(0).filter(({ unique }) => unique === AHEAD);
    return ahead.map(({ body }) => ({ name: names.get(`${body.readBigUInt64LE(8)}`), content: body.toString('latin1', 16) }));
  };
  const old = new Date(Date.now() - 60_000);
  for (const { name } of files) await utimes(join(here, name), old, old);
  const [young] = files.slice(3);
  await writeFile(join(here, `${young?.name}`), 'young');
  const got = new Map<string, string>();
  let asked = 0;
  for (const { name, node } of files) {
    if (got.has(name)) continue;
    got.set(name, (await guest.ask('read', node, reading)).body.toString());
    asked += 1;
    for (const { name: other, content } of await sent()) {
      expect([young?.name, 'big', 'link']).not.toContain(other);
      got.set(`${other}`, content);
    }
  }
  expect(asked).toBeLessThan(files.length / 2);
  for (const { name } of files) expect(got.get(name)).toBe(name === young?.name ? 'young' : `content ${name}`);
});
