import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { failNthCall } from '../../../test/support/host-faults.ts';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { Engine } from './engine.ts';

const op = testOperation();
let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-engine-'));
});
afterEach(async () => {
  await rm(dir, { recursive: true });
});

const ASK = { method: 'GET', path: '/info' } as const;

test('a socket that is missing, that nobody listens at, or that is not ours to open is named, with the group or the command that mends it', async () => {
  const socket = join(dir, 'docker.sock');
  const env = { DOCKER_HOST: `unix://${socket}` };
  const away = {
    code: 'unavailable',
    retryable: true,
    message: expect.stringContaining(socket),
    hint: expect.stringContaining('systemctl start docker'),
  };
  await expect(new Engine(nodeHost(), env).call(op, ASK)).rejects.toMatchObject(away);

  const dead = createServer();
  await new Promise<void>((resolve) => dead.listen(socket, resolve));
  // A process that was killed leaves its socket behind.
  const { renameSync } = await import('node:fs');
  renameSync(socket, `${socket}.kept`);
  await new Promise((resolve) => dead.close(resolve));
  renameSync(`${socket}.kept`, socket);
  await expect(new Engine(nodeHost(), env).call(op, ASK)).rejects.toMatchObject({
    ...away,
    message: expect.stringContaining('nobody answers'),
  });

  const error = op.error('permission_denied', 'injected', { cause: Object.assign(new Error('EACCES'), { code: 'EACCES' }) });
  await expect(new Engine(failNthCall(nodeHost(), 1, { error }), env).call(op, ASK)).rejects.toMatchObject({
    code: 'permission_denied',
    message: expect.stringContaining(socket),
    hint: expect.stringContaining('usermod -aG docker'),
  });
});

test('an Engine that is too old, and one that hangs, are told apart from one that is away', async () => {
  const socket = join(dir, 'docker.sock');
  const old = createServer((_request, answer) => answer.setHeader('Api-Version', '1.40').end('OK'));
  await new Promise<void>((resolve) => old.listen(socket, resolve));
  const engine = new Engine(nodeHost(), { DOCKER_HOST: `unix://${socket}` });
  await expect(engine.call(op, ASK)).rejects.toMatchObject({ code: 'failed_precondition', message: expect.stringContaining('1.40') });
  await new Promise((resolve) => old.close(resolve));

  const hanging = createServer(() => {});
  await new Promise<void>((resolve) => hanging.listen(socket, resolve));
  using short = op.within(100, 'patience');
  await expect(engine.call(short, ASK)).rejects.toMatchObject({ code: 'deadline_exceeded' });
  hanging.closeAllConnections();
  hanging.close();
});

test.each([
  ['1.41', '/v1.41/info'],
  ['1.44', '/v1.44/info'],
  // Newer than what this was written against, which it speaks too.
  ['1.99', '/v1.47/info'],
])('an Engine of API %s is asked at %s', async (version, path) => {
  const socket = join(dir, 'docker.sock');
  const asked: string[] = [];
  const server = createServer(({ url = '' }, answer) => {
    asked.push(url);
    answer.setHeader('Api-Version', version).end('OK');
  });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const engine = new Engine(nodeHost(), { DOCKER_HOST: `unix://${socket}` });
  await engine.call(op, ASK);
  await engine.call(op, ASK);
  expect(asked).toEqual(['/_ping', path, path]);
  await new Promise((resolve) => server.close(resolve));
});

test('of requests that fail at once by ssh each says what ssh complained of', async () => {
  await writeFile(join(dir, 'ssh'), '#!/bin/sh\nexec 1>&-\n(sleep 0.2; echo "Permission denied (publickey)." >&2) &\nexit 255\n', {
    mode: 0o755,
  });
  const engine = new Engine(nodeHost(), { DOCKER_HOST: 'ssh://me@far.example', PATH: `${dir}:${process.env['PATH']}` });
  const refusals = await Promise.all(Array.from({ length: 3 }, () => engine.call(op, ASK).catch((error: unknown) => error)));
  for (const refusal of refusals)
    expect(refusal).toMatchObject({
      code: 'permission_denied',
      message: expect.stringContaining('Permission denied (publickey)'),
      hint: expect.stringContaining('ssh me@far.example'),
    });
});
