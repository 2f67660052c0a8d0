// ADD: of a URL, through the proxy that the daemon has, what comes, under what name, and from where nothing does; and of local archives.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MACHINES, World } from '../cli/world.ts';
import { tar } from '../images/archives.ts';
import { readSaved } from './saved.ts';

let world: World;
let root: string;
let env: Record<string, string>;
let port = 0;
const asked: string[] = [];
const ARCHIVE = tar({ path: 'in', content: 'x' });

/** A proxy that has all of it, and what lies on this machine itself. */
const server = createServer((request, answer) => {
  const url = request.url ?? '';
  asked.push(url);
  const path = URL.parse(url, 'http://own/')?.pathname ?? '';
  if (path === '/moved') return void answer.writeHead(302, { Location: '/releases/tool-1.0' }).end();
  if (path === '/inwards') return void answer.writeHead(302, { Location: `http://127.0.0.1:${port}/secret` }).end();
  if (path === '/round') return void answer.writeHead(302, { Location: '/round' }).end();
  if (path === '/broken') return void answer.writeHead(200, { 'Content-Length': '100' }).end('short');
  if (path === '/releases/tool-1.0')
    return void answer.writeHead(200, { 'Last-Modified': 'Tue, 14 Nov 2023 22:13:20 GMT' }).end('the tool\n');
  if (path === '/a.tar') return void answer.writeHead(200).end(ARCHIVE);
  answer.writeHead(path === '/secret' ? 200 : 404).end('secret');
});

beforeAll(async () => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  port = (server.address() as AddressInfo).port;
  env = { http_proxy: `http://127.0.0.1:${port}` };
  world = await World.make(MACHINES);
  root = await mkdtemp(join(tmpdir(), 'hutch-fetch-'));
}, 120_000);
afterAll(async () => {
  server.closeAllConnections();
  server.close();
  await rm(root, { recursive: true, force: true });
  await world?.[Symbol.asyncDispose]();
}, 120_000);

async function build(lines: string, ...args: string[]) {
  await writeFile(join(root, 'Dockerfile'), `FROM scratch\n${lines}\n`);
  return await world.run(['build', '--no-package-settings', '-t', 'fetched:1', ...args, root], { env });
}

const DIGEST = `sha256:${createHash('sha256').update('the tool\n').digest('hex')}`;

test('ADD of a URL brings the file as BuildKit does, checked where its digest is said, and then not fetched twice', {
  timeout: 120_000,
}, async () => {
  const lines = `ARG V=1.0
ADD http://files.example/releases/tool-$V /bin/
ADD --checksum=${DIGEST} --chmod=755 http://files.example/moved /tool
ADD http://files.example/a.tar /`;
  const first = await build(lines);
  expect(first.code, first.stderr).toBe(0);
  const { files } = await readSaved((await world.run(['image', 'export', 'fetched:1'])).bytes);
  const hash = DIGEST.slice(7, 19);
  expect([files.get('bin/tool-1.0'), files.get('tool')]).toEqual([`file 600 0:0  ${hash}`, `file 755 0:0  ${hash}`]);
  expect([files.get('a.tar')?.slice(0, 8), files.get('in')]).toEqual(['file 600', undefined]);
  asked.length = 0;
  const again = await build(lines);
  expect([again.stdout, again.stderr.includes('done in')]).toEqual([first.stdout, false]);
  expect(asked).toEqual(['http://files.example/releases/tool-1.0', 'http://files.example/a.tar']);
});

test('what cannot be fetched, is not what it must be, or lies on this machine ends the build with its line', {
  timeout: 120_000,
}, async () => {
  asked.length = 0;
  for (const [line, said] of [
    [
      `ADD --checksum=${DIGEST.replace(/.$/, (last) => (last === '0' ? '1' : '0'))} http://files.example/moved /tool`,
      /it is not what --checksum says: its digest is sha256:/,
    ],
    ['ADD http://files.example/nothing /x', /files.example answered 404/],
    ['ADD http://files.example/round /x', /redirects more than 10 times/],
    ['ADD http://files.example/broken /x', /http:\/\/files.example\/broken cannot be fetched/],
    ['ADD http://files.example/ /x', /does not say what the file is called/],
    [`ADD http://127.0.0.1:${port}/secret /x`, /cannot be fetched/],
    ['ADD http://files.example/inwards /x', /cannot be fetched/],
    ['ADD http://files.example/a http://files.example/b /x/', /give each URL an ADD of its own/],
    [`ADD --checksum=${DIGEST} Dockerfile /x`, /--checksum is for a URL/],
  ] as const) {
    const { code, stderr } = await build(line);
    expect(code, line).not.toBe(0);
    expect(stderr, line).toMatch(said);
    expect(stderr, line).toMatch(/error: Dockerfile:2: ADD: /);
  }
  expect(asked.filter((url) => url.includes('secret'))).toEqual([]);
});

test('ADD unpacks a local archive whichever way it is packed, and copies what is only packed, or damaged, as it is', {
  timeout: 60_000,
}, async () => {
  const packed = (program: string, bytes: Buffer) => execFileSync(program, ['-c'], { input: bytes });
  const words = packed('xz', Buffer.from('words'));
  await writeFile(join(root, 'words.xz'), words);
  await writeFile(join(root, 'cut.tar.xz'), packed('xz', tar({ path: 'cut', content: 'x' })).subarray(0, 90));
  for (const program of ['gzip', 'zstd', 'xz', 'bzip2'])
    await writeFile(join(root, `${program}.tar`), packed(program, tar({ path: program, mode: 0o4755, uid: 7, content: program })));
  const { code, stderr } = await build('ADD *.tar words.xz cut.tar.xz /to/');
  expect(code, stderr).toBe(0);
  const { files } = await readSaved((await world.run(['image', 'export', 'fetched:1'])).bytes);
  expect([...files.keys()].filter((path) => path.startsWith('to/')).sort()).toEqual(
    ['bzip2', 'cut.tar.xz', 'gzip', 'words.xz', 'xz', 'zstd'].map((name) => `to/${name}`),
  );
  expect(files.get('to/xz')).toMatch(/^file 4755 7:0 /);
});
