// The code that V8 compiled of the command line: made by the first command of a verb, used by the next, and never in anybody's way.

import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { CODE_FILES_MAX } from '../../src/cli/code-cache.ts';
import { type Checkout, checkout } from './checkout.ts';

const ROOT = join(import.meta.dirname, '../..');
const OLD_FILES = CODE_FILES_MAX + 6;
/** The whole of Hutch is built. */
const WHOLE = { timeout: 240_000 };

const placeOf = ({ dir }: Checkout): string => join(dir, '.tools/compile-cache');

function kept(copy: Checkout): readonly string[] {
  return existsSync(placeOf(copy)) ? readdirSync(placeOf(copy)).filter((name) => name.startsWith('cli-')) : [];
}

/** The one file of a verb, and which one it is: what is written anew has another inode. */
function only(copy: Checkout, verb = 'version'): { readonly path: string; readonly inode: number; readonly content: Buffer } {
  const names = kept(copy).filter((name) => name.includes(`-${verb}.`));
  expect(names).toHaveLength(1);
  const path = join(placeOf(copy), names[0] ?? '');
  return { path, inode: statSync(path).ino, content: readFileSync(path) };
}

/** A checkout that is built, and whose command has not run. */
async function built(): Promise<Checkout> {
  const copy = checkout();
  await copy.run([join(copy.dir, 'hutch'), 'fail', '3']);
  return copy;
}

const version = (copy: Checkout) => copy.run([join(copy.dir, 'hutch'), 'version']);
const RAN = { code: 0, stdout: '["version"]\n', stderr: '' };

test('the first command of a verb keeps its code, and the next uses it', async () => {
  using copy = await built();
  expect(await version(copy)).toEqual(RAN);
  const first = only(copy);
  expect(first.path).toMatch(/-version\.code$/);
  expect(await version(copy)).toEqual(RAN);
  expect(only(copy)).toEqual(first);
  await copy.run([join(copy.dir, 'hutch'), 'ls']);
  expect(kept(copy).map((name) => name.replace(/.*-/, ''))).toEqual(expect.arrayContaining(['ls.code', 'version.code']));
});

test('the real command line keeps its code before it changes the flags of V8, so that the next command takes it', WHOLE, async () => {
  using copy = checkout();
  cpSync(join(ROOT, 'src'), join(copy.dir, 'src'), { recursive: true });
  expect(await copy.run([join(copy.dir, 'hutch'), 'version'])).toMatchObject({ code: 0 });
  const first = await copy.run([join(copy.dir, 'hutch'), 'help']);
  expect(first).toMatchObject({ code: 0, stderr: '' });
  const code = only(copy, 'help');
  expect(await copy.run([join(copy.dir, 'hutch'), 'help'])).toEqual(first);
  expect(only(copy, 'help')).toEqual(code);
});

test('until a verb has asked the daemon, it loads none of the modules of Node that take as long as all the rest', WHOLE, async () => {
  using copy = checkout();
  cpSync(join(ROOT, 'src'), join(copy.dir, 'src'), { recursive: true });
  writeFileSync(join(copy.dir, 'Dockerfile'), 'FROM scratch');
  const hook = join(copy.dir, 'hook.cjs');
  writeFileSync(hook, `process.on('exit', () => process._rawDebug('loaded:', process.moduleLoadList.join(' ')));`);
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  const env = { HUTCH_HOME: join(copy.dir, 'home'), HUTCH_NO_START: '1', NODE_OPTIONS: `--require ${hook}` };
  for (const argv of [['build', copy.dir], ['ls'], ['exec', 'some', '--', 'true']]) {
    const { stderr } = await copy.run([join(copy.dir, 'hutch'), ...argv], { env });
    const loaded = stderr.slice(stderr.indexOf('loaded:')).matchAll(/NativeModule (\S+)/g);
    const large = [...loaded].map(([, name]) => name).filter((name) => /^(?:crypto|https|tls|zlib|child_process)$/.test(name ?? ''));
    expect({ argv, large }).toEqual({ argv, large: [] });
    expect(stderr).toMatch(/loaded: .*NativeModule net/);
  }
});

test('a verb that speaks with a program in a sandbox does so without loading ciphers', WHOLE, async () => {
  using copy = checkout();
  cpSync(join(ROOT, 'src'), join(copy.dir, 'src'), { recursive: true });
  const hook = join(copy.dir, 'hook.cjs');
  writeFileSync(hook, `process.on('exit', () => process._rawDebug('loaded:', process.moduleLoadList.join(' ')));`);
  await copy.run([join(copy.dir, 'hutch'), 'version']);
  await using undo = new AsyncDisposableStack();
  const server = createServer((_, response) => response.writeHead(404).end('{}')).listen(0, '127.0.0.1');
  undo.defer(() => void server.close());
  await once(server, 'listening');
  const sockets = new WebSocketServer({ server });
  undo.defer(() => {
    for (const client of sockets.clients) client.terminate();
  });
  const error = { code: 'not_found', message: 'a server of WebSockets has none', retryable: false };
  sockets.on('connection', (socket) => socket.send(JSON.stringify({ type: 'error', error }), () => socket.close(1011)));
  const { port } = server.address() as AddressInfo;
  const env = { HUTCH_API_URL: `http://127.0.0.1:${port}`, HUTCH_API_KEY: 'key', NODE_OPTIONS: `--require ${hook}` };
  const { stderr } = await copy.run([join(copy.dir, 'hutch'), 'exec', 'some', '--', 'true'], { env });
  expect(stderr).toContain(error.message); // its digest was looked at
  expect(stderr).toMatch(/loaded: .*NativeModule http /);
  expect(stderr).not.toContain('NativeModule crypto ');
});

test('a place in the bundle is told as it is, with kept code as without', async () => {
  using copy = checkout();
  const source = join(copy.dir, 'src/cli/main.ts');
  writeFileSync(source, "function inner() { return new Error('here').stack; }\nconsole.log(inner());");
  const first = await version(copy);
  expect(first.stdout).toMatch(/^Error: here\n {4}at \w+ \(\S+\/dist\/cli\.cjs:\d+:\d+\)\n/);
  expect(await version(copy)).toEqual({ ...first, stderr: '' });
  expect(kept(copy)).toHaveLength(1);
});

/** Turns one bit over. */
function wrongAt(content: Buffer, at: number): Buffer {
  content.writeUInt8(content.readUInt8(at) ^ 1, at);
  return content;
}

test.for<readonly [string, (content: Buffer) => Buffer]>([
  ['a wrong bit', (content) => wrongAt(content, content.length >> 2)],
  ['a wrong bit in its second half', (content) => wrongAt(content, content.length - 9)],
  ['its end missing', (content) => content.subarray(0, content.length - 4_096)],
  ['half of it missing', (content) => content.subarray(0, content.length / 2)],
  ['nothing in it', () => Buffer.alloc(0)],
  ['zeros in it', (content) => Buffer.alloc(content.length)],
  ['something else in it', () => Buffer.from('code'.repeat(50_000))],
])('kept code with %s is not used, and is made anew', async ([, damage]) => {
  using copy = await built();
  await version(copy);
  const { path, content } = only(copy);
  const damaged = damage(Buffer.from(content));
  writeFileSync(path, damaged);
  expect(await version(copy)).toEqual(RAN);
  const mended = only(copy);
  expect(mended.content.equals(damaged)).toBe(false);
  expect(await version(copy)).toEqual(RAN);
  expect(only(copy)).toEqual(mended);
});

test('code of another bundle is not used, though it has the same length', async () => {
  using copy = checkout();
  const source = join(copy.dir, 'src/cli/main.ts');
  for (const [at, word] of ['here', 'next'].entries()) {
    writeFileSync(source, `console.log('${word}');`);
    const later = new Date(Date.now() + (at + 1) * 5_000);
    utimesSync(source, later, later);
    rmSync(join(copy.dir, 'dist'), { recursive: true, force: true });
    expect((await version(copy)).stdout).toBe(`${word}\n`);
  }
  expect(kept(copy)).toHaveLength(2);
});

test('where nothing can be kept, a command runs all the same', async () => {
  using copy = await built();
  const place = placeOf(copy);
  mkdirSync(place, { recursive: true });
  const readOnly = `mount -t tmpfs -o ro none '${place}' && exec '${join(copy.dir, 'hutch')}' version`;
  expect(await copy.run(['sh', '-c', readOnly])).toEqual(RAN);
  expect(kept(copy)).toEqual([]);
  rmSync(place, { recursive: true });
  writeFileSync(place, 'a file in the place of the directory');
  expect(await version(copy)).toEqual(RAN);
  expect(await copy.run([join(copy.dir, 'hutch'), 'version'], { env: { NODE_DISABLE_COMPILE_CACHE: '1' } })).toEqual(RAN);
});

test('a release keeps its code where it has a directory for it, and makes none', async () => {
  using copy = await built();
  const release = join(copy.dir, 'release');
  cpSync(join(copy.dir, 'dist'), join(release, 'dist'), { recursive: true });
  const start = () => copy.run([process.execPath, join(release, 'dist/hutch.cjs'), 'version']);
  expect(await start()).toEqual(RAN);
  expect(readdirSync(release)).toEqual(['dist']);
  mkdirSync(join(release, 'cache'));
  expect(await start()).toEqual(RAN);
  expect(readdirSync(join(release, 'cache')).filter((name) => name.endsWith('-version.code'))).toHaveLength(1);
});

test('commands that start at once are fine, and leave one file', async () => {
  using copy = await built();
  const all = await Promise.all(Array.from({ length: 4 }, () => version(copy)));
  expect(all).toEqual(all.map(() => RAN));
  const made = only(copy);
  expect(await version(copy)).toEqual(RAN);
  expect(only(copy)).toEqual(made);
});

test('what failed keeps nothing, nor does what is no verb', async () => {
  using copy = await built();
  expect((await copy.run([join(copy.dir, 'hutch'), 'fail', '7'])).code).toBe(7);
  for (const word of ['--version', '../x', 'UP', 'a'.repeat(40)]) await copy.run([join(copy.dir, 'hutch'), word]);
  expect(kept(copy)).toEqual([]);
});

test('the newest files stay, and what a killed command left goes with the old', async () => {
  using copy = await built();
  const place = placeOf(copy);
  mkdirSync(place, { recursive: true });
  writeFileSync(join(place, 'of-somebody-else'), '');
  for (let nth = 0; nth < OLD_FILES; nth += 1) {
    const path = join(place, `cli-${String(nth).padStart(16, '0')}-v1-x64-ls.code${nth % 2 === 0 ? '' : '.4711'}`);
    writeFileSync(path, 'old');
    utimesSync(path, 1_000 + nth, 1_000 + nth);
  }
  expect(await version(copy)).toEqual(RAN);
  const names = kept(copy);
  expect(names).toHaveLength(CODE_FILES_MAX);
  expect(names.some((name) => name.endsWith('-version.code'))).toBe(true);
  expect(names.filter((name) => /^cli-0{15}[0-6]-/.test(name))).toEqual([]);
  expect(existsSync(join(place, 'of-somebody-else'))).toBe(true);
});
