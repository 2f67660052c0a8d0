import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { registryAuth, registryOf } from './credentials.ts';
import { findEndpoint } from './endpoint.ts';

const host = nodeHost();
const op = testOperation();
let home: string;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'hutch-dockerhome-'));
  await mkdir(join(home, '.docker'));
});
afterEach(async () => {
  await rm(home, { recursive: true });
});

async function configure(config: object): Promise<void> {
  await writeFile(join(home, '.docker/config.json'), JSON.stringify(config));
}

async function context(name: string, address: string): Promise<void> {
  const dir = join(home, '.docker/contexts/meta', createHash('sha256').update(name).digest('hex'));
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, 'meta.json'), JSON.stringify({ Name: name, Endpoints: { docker: { Host: address } } }));
}

test('the Engine is found as docker finds it: DOCKER_HOST, DOCKER_CONTEXT, the chosen context, the usual socket', async () => {
  const where = async (env: object) => (await findEndpoint(op, host, { HOME: home, ...env })).socketPath;
  expect(await where({})).toBe('/var/run/docker.sock');
  await context('work', 'unix:///run/work.sock');
  await context('rootless', 'unix:///run/user/1000/docker.sock');
  await configure({ currentContext: 'work', unknown: true });
  expect(await where({})).toBe('/run/work.sock');
  expect(await where({ DOCKER_CONTEXT: 'rootless' })).toBe('/run/user/1000/docker.sock');
  expect(await where({ DOCKER_CONTEXT: 'default' })).toBe('/var/run/docker.sock');
  expect(await where({ DOCKER_CONTEXT: 'rootless', DOCKER_HOST: 'unix:///own.sock' })).toBe('/own.sock');
  await expect(where({ DOCKER_CONTEXT: 'nowhere' })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: /nowhere does not exist/,
  });
  const refusals = [
    ['tcp://10.0.0.1:2376', '10.0.0.1'],
    ['ssh://me@far.example:2222', 'me@far.example'],
    ['npipe:////./pipe/docker', 'HOST'],
  ] as const;
  for (const [DOCKER_HOST, target] of refusals) {
    await expect(where({ DOCKER_HOST })).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(/DOCKER_HOST names .*; only a Docker Engine behind a unix socket is used/),
      hint: expect.stringContaining(`/var/run/docker.sock ${target}, and`),
    });
  }
});

test('the login for a registry is the user’s own, and goes only to that registry', async () => {
  const auth = Buffer.from('me:pass:word').toString('base64');
  await configure({ auths: { 'ghcr.io': { auth }, 'https://index.docker.io/v1/': { identitytoken: 'token' } } });
  const of = async (name: string): Promise<unknown> => {
    const header = await registryAuth(op, host, { HOME: home }, name);
    return header === null ? null : JSON.parse(Buffer.from(header, 'base64url').toString());
  };
  expect(await of('ghcr.io/owner/name:1')).toEqual({ username: 'me', password: 'pass:word', serveraddress: 'ghcr.io' });
  expect(await of('alpine:3')).toEqual({ identitytoken: 'token', serveraddress: 'https://index.docker.io/v1/' });
  expect(await of('quay.io/other/name:1')).toBeNull();
  expect(['alpine', 'library/alpine', 'localhost/x', 'localhost:5000/x', 'a.b/c'].map(registryOf)).toEqual([
    'https://index.docker.io/v1/',
    'https://index.docker.io/v1/',
    'localhost',
    'localhost:5000',
    'a.b',
  ]);
});
