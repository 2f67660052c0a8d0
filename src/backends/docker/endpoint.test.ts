import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { testOperation } from '../../../test/support/operation.ts';
import { nodeHost } from '../../host/node-host.ts';
import { Credentials } from '../../images/registry/credentials.ts';
import { registryAuth, registryOf } from './credentials.ts';
import { findEndpoint } from './endpoint.ts';
import { sshArguments } from './ssh.ts';

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
  const where = async (env: object) => {
    const endpoint = await findEndpoint(op, host, { HOME: home, ...env });
    return endpoint.kind === 'unix' ? endpoint.socketPath : endpoint;
  };
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
  for (const DOCKER_HOST of [
    'npipe:////./pipe/docker',
    'tcp://10.0.0.1:99999',
    'tcp://',
    'ssh://',
    'ssh://-oProxyCommand=x',
    'ssh://me@-oProxyCommand=x',
    'ssh://-l@far',
    'ssh://me:password@far',
    'ssh://far:99999',
    'ssh://far/run/$(id).sock',
    'ssh://far/run/a b',
  ]) {
    await expect(where({ DOCKER_HOST }), DOCKER_HOST).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(/DOCKER_HOST names .*; a Docker Engine is reached over unix:\/\/, tcp:\/\//),
    });
  }
});

test('an Engine behind ssh is reached by the user’s own ssh, which takes what we give it and asks nothing', async () => {
  const where = async (DOCKER_HOST: string) => {
    const endpoint = await findEndpoint(op, host, { HOME: home, DOCKER_HOST });
    if (endpoint.kind !== 'ssh') throw new Error(`it is ${endpoint.kind}`);
    return endpoint;
  };
  const full = await where('ssh://me@far.example:2222/run/user/1000/docker.sock');
  expect(full).toMatchObject({ user: 'me', host: 'far.example', port: 2222, socketPath: '/run/user/1000/docker.sock' });
  expect(await where('ssh://far')).toMatchObject({ user: null, host: 'far', port: null, socketPath: null });
  expect(await where('ssh://[fd00::1]/')).toMatchObject({ host: 'fd00::1', socketPath: null });
  await context('far', 'ssh://me@far');
  expect(await findEndpoint(op, host, { HOME: home, DOCKER_CONTEXT: 'far' })).toMatchObject({ kind: 'ssh', source: 'the context far' });

  const argv = sshArguments(full, home);
  const at = argv.indexOf('--');
  expect(argv.slice(at + 1)).toEqual(['far.example', 'docker', '--host', 'unix:///run/user/1000/docker.sock', 'system', 'dial-stdio']);
  // OpenSSH itself says what it makes of it.
  const { stdout } = await promisify(execFile)('ssh', ['-G', '-F', 'none', ...argv.slice(0, at + 2)]);
  for (const line of [
    'user me',
    'hostname far.example',
    'port 2222',
    'batchmode yes',
    'controlmaster auto',
    'controlpersist 60',
    'requesttty no',
  ])
    expect(stdout.split('\n').map((said) => said.replace('requesttty false', 'requesttty no'))).toContain(line);
  // Where its socket's path would be too long, each connection is one of its own.
  expect(sshArguments(full, `/${'x'.repeat(80)}`).join(' ')).not.toContain('Control');
});

test('an Engine behind TCP is found with the certificates that docker would use for it', async () => {
  const where = async (env: object) => await findEndpoint(op, host, { HOME: home, ...env });
  expect(await where({ DOCKER_HOST: 'tcp://10.0.0.1' })).toMatchObject({ kind: 'tcp', host: '10.0.0.1', port: 2375, tls: null });
  expect(await where({ DOCKER_HOST: 'tcp://[fd00::1]:99' })).toMatchObject({ host: 'fd00::1', port: 99 });
  const bytes = (text: string) => Buffer.from(text);
  const put = async (dir: string, names: readonly string[]): Promise<void> => {
    await mkdir(dir, { recursive: true });
    for (const name of names) await writeFile(join(dir, name), `${name} of ${dir}`);
  };
  // With nothing but the wish: the well-known authorities.
  expect(await where({ DOCKER_HOST: 'tcp://far', DOCKER_TLS_VERIFY: '1' })).toMatchObject({ port: 2376, tls: { verify: true } });
  const own = join(home, '.docker');
  await put(own, ['ca.pem']);
  expect(await where({ DOCKER_HOST: 'tcp://far', DOCKER_TLS_VERIFY: '1' })).toMatchObject({
    tls: { ca: bytes(`ca.pem of ${own}`), verify: true },
  });
  const dir = join(home, 'certs');
  const env = { DOCKER_HOST: 'tcp://far:2376', DOCKER_CERT_PATH: dir };
  expect(await where(env)).toMatchObject({ tls: null });
  await expect(where({ ...env, DOCKER_TLS_VERIFY: '1' })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: /has no certificates/,
  });
  await put(dir, ['ca.pem', 'cert.pem']);
  await expect(where({ ...env, DOCKER_TLS_VERIFY: '1' })).rejects.toMatchObject({
    message: expect.stringContaining('cert.pem without key.pem'),
  });
  await put(dir, ['key.pem']);
  const tls = { ca: bytes(`ca.pem of ${dir}`), cert: bytes(`cert.pem of ${dir}`), key: bytes(`key.pem of ${dir}`) };
  expect(await where({ ...env, DOCKER_TLS_VERIFY: '1' })).toMatchObject({ tls: { ...tls, verify: true } });
  expect(await where({ ...env, DOCKER_TLS: '1' })).toMatchObject({ tls: { ...tls, verify: false } });

  await context('far', 'tcp://far:2376');
  expect(await where({ DOCKER_CONTEXT: 'far' })).toMatchObject({ source: 'the context far', tls: null });
  const material = join(home, '.docker/contexts/tls', createHash('sha256').update('far').digest('hex'), 'docker');
  await put(material, ['ca.pem', 'cert.pem', 'key.pem']);
  expect(await where({ DOCKER_CONTEXT: 'far' })).toMatchObject({ tls: { ca: bytes(`ca.pem of ${material}`), verify: true } });
});

test('the login for a registry is the user’s own, and goes only to that registry', async () => {
  const auth = Buffer.from('me:pass:word').toString('base64');
  await configure({ auths: { 'ghcr.io': { auth }, 'https://index.docker.io/v1/': { identitytoken: 'token' } } });
  const of = async (name: string): Promise<unknown> => {
    const header = await registryAuth(op, host, { HOME: home }, name);
    return header === null ? null : JSON.parse(Buffer.from(header, 'base64url').toString());
  };
  expect(await of('ghcr.io/owner/name:1')).toEqual({ username: 'me', password: 'pass:word', serveraddress: 'ghcr.io' });
  expect(await registryAuth(op, host, { HOME: home }, 'ghcr.io/owner/name:1'), 'whole base64').toMatch(
    /^([\w-]{4})*([\w-]{4}|[\w-]{3}=|[\w-]{2}==)$/,
  );
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

test('a credential helper is found where its user keeps his programs, and finds its own there', async () => {
  const dir = join(home, 'bin');
  await mkdir(dir);
  const program = (name: string, script: string) => writeFile(join(dir, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  await program('docker-credential-own', 'test "$1" = get && own-secret "$(cat)"');
  await program('own-secret', `printf '{"ServerURL":"%s","Username":"me","Secret":"of %s"}' "$1" "$HOME"`);
  await configure({ credHelpers: { 'ghcr.io': 'own' } });
  const env = { HOME: home, PATH: `${dir}:/usr/bin:/bin` };
  const header = await registryAuth(op, host, env, 'ghcr.io/owner/name:1');
  expect(JSON.parse(Buffer.from(header ?? '', 'base64url').toString())).toMatchObject({ username: 'me', password: `of ${home}` });
  const credentials = new Credentials(host, env);
  expect(await credentials.of(op, 'ghcr.io')).toEqual({ username: 'me', password: `of ${home}` });
  expect(await registryAuth(op, host, { HOME: home }, 'ghcr.io/owner/name:1'), 'elsewhere there is none').toBeNull();
});
