// An Engine behind TCP with TLS that shares no file with us: everything goes over the network's API, the agent is
// put in as an archive, and its stream is an attached container's.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import * as z from 'zod';
import { Engine } from '../../src/backends/docker/engine.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { openssl, selfSigned } from '../support/certificate.ts';
import { freePort } from '../support/free-port.ts';
import { testOperation } from '../support/operation.ts';
import { DockerWorld } from './world.ts';

const op = testOperation();
let dir: string;
let kept: string;
let port: number;
let world: DockerWorld;

/** `ca.pem`, `cert.pem` and `key.pem` in a directory, the certificate signed by the authority of that name. */
function certify(name: string, authority: string, extension: string): void {
  const at = join(dir, name);
  const ca = join(dir, authority);
  execFileSync('mkdir', ['-p', at, ca]);
  if (!existsSync(join(ca, 'ca.pem'))) selfSigned({ name: authority, key: join(ca, 'ca.key'), certificate: join(ca, 'ca.pem') });
  openssl('req', '-newkey', 'rsa:2048', '-nodes', '-subj', `/CN=${name}`, '-keyout', join(at, 'key.pem'), '-out', join(at, 'csr'));
  execFileSync('sh', ['-c', 'printf "%s" "$0" > "$1"', extension, join(at, 'ext')]);
  const signed = ['-CA', join(ca, 'ca.pem'), '-CAkey', join(ca, 'ca.key'), '-CAcreateserial', '-days', '2', '-extfile', join(at, 'ext')];
  openssl('x509', '-req', '-in', join(at, 'csr'), ...signed, '-out', join(at, 'cert.pem'));
  if (at !== ca) execFileSync('cp', [join(ca, 'ca.pem'), join(at, 'ca.pem')]);
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-tls-'));
  certify('server', 'ours', 'subjectAltName=IP:127.0.0.1');
  certify('client', 'ours', 'extendedKeyUsage=clientAuth');
  certify('stranger', 'theirs', 'extendedKeyUsage=clientAuth');
  port = await freePort();
  const at = (name: string) => join(dir, 'server', name);
  // Where its own /tmp hides ours, its certificates must lie elsewhere.
  kept = await mkdtemp('/var/tmp/hutch-tls-');
  await cp(join(dir, 'server'), kept, { recursive: true });
  await rm(at('csr'));
  world = await DockerWorld.start({
    elsewhere: 'files',
    args: [
      '--host',
      `tcp://127.0.0.1:${port}`,
      '--tlsverify',
      ...['cacert=ca', 'cert=cert', 'key=key'].map((pair) => `--tls${pair.replace('=', `=${kept}/`)}.pem`),
    ],
    env: { DOCKER_HOST: `tcp://127.0.0.1:${port}`, DOCKER_TLS_VERIFY: '1', DOCKER_CERT_PATH: join(dir, 'client') },
  });
}, 300_000);
afterAll(async () => {
  await world?.[Symbol.asyncDispose]();
  for (const made of [dir, kept]) await rm(made, { recursive: true, force: true });
}, 120_000);

test('over TLS a sandbox runs, is used, and is adopted, as it is over a socket', { timeout: 180_000 }, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { name: 'far' });
  expect((await engine.ask('GET', `/containers/${(await world.container(id)).Id}/json`)).body).toMatchObject({ Mounts: [] });
  expect((await daemon.run(id, ['hostname'])).stdout).toBe('far\n');
  const made = await daemon.run(id, ['sh', '-c', 'head -c 4000000 /dev/urandom > /tmp/x; sha256sum < /tmp/x']);
  const copy = await daemon.send('GET', `/v1/sandboxes/${id}/files?path=/tmp/x`);
  expect(createHash('sha256').update(copy.body).digest('hex')).toBe(made.stdout.split(' ')[0]);
  await daemon.kill9();
  await daemon.startAgain();
  expect((await daemon.run(id, ['echo', 'adopted'])).stdout).toBe('adopted\n');
  await daemon.call('sandbox.stop', { ref: id, force: true });
  await daemon.call('sandbox.delete', { ref: id });
  expect(await engine.containers()).toEqual([]);
  const { backends } = await daemon.call('backends.list', {});
  const can = backends.find(({ name }) => name === 'docker')?.can;
  expect(can?.notes.join()).not.toMatch(/in the clear/);
  expect(can).toMatchObject({ hostDirectories: false, volumes: false, devices: false });
  expect(can?.notes.join()).toContain(`devices: the Engine is reached at tcp://127.0.0.1:${port}`);
});

const asked = async (env: object): Promise<unknown> =>
  await new Engine(nodeHost(), env).json(op, z.object({ ApiVersion: z.string() }), { method: 'GET', path: '/version' });

test('who cannot be trusted, on either side, is refused with what to do about it', async () => {
  const over = { DOCKER_HOST: `tcp://127.0.0.1:${port}`, DOCKER_TLS_VERIFY: '1' };
  await expect(asked({ ...over, DOCKER_CERT_PATH: join(dir, 'client') })).resolves.toMatchObject({});
  // An Engine whose authority is not ours, and one that is not at the address in its certificate.
  await expect(asked({ ...over, DOCKER_CERT_PATH: join(dir, 'stranger') })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining(`tcp://127.0.0.1:${port}`),
    hint: expect.stringContaining('ca.pem'),
  });
  await expect(asked({ ...over, DOCKER_HOST: `tcp://localhost:${port}`, DOCKER_CERT_PATH: join(dir, 'client') })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('ALTNAME'),
  });
  // A client whose authority is not the Engine's.
  await cp(join(dir, 'ours/ca.pem'), join(dir, 'stranger/ca.pem'));
  await expect(asked({ ...over, DOCKER_CERT_PATH: join(dir, 'stranger') })).rejects.toMatchObject({
    code: 'permission_denied',
    hint: expect.stringContaining('cert.pem'),
  });
  // TLS where the Engine wants it and we do not speak it, and the other way round.
  await expect(asked({ DOCKER_HOST: `tcp://127.0.0.1:${port}` })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('wants TLS'),
  });
  const clear = createServer((socket) =>
    socket
      .resume()
      .on('error', () => {})
      .end('HTTP/1.1 400 Bad Request\r\n\r\n'),
  );
  clear.listen({ host: '127.0.0.1', port: 0 });
  await once(clear, 'listening');
  const clearPort = (clear.address() as { port: number }).port;
  await expect(
    asked({ ...over, DOCKER_HOST: `tcp://127.0.0.1:${clearPort}`, DOCKER_CERT_PATH: join(dir, 'client') }),
  ).rejects.toMatchObject({ code: 'failed_precondition', hint: 'does it speak TLS at that port?' });
  clear.close();
  await once(clear, 'close');
  await expect(asked({ DOCKER_HOST: `tcp://127.0.0.1:${clearPort}` })).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringContaining(`tcp://127.0.0.1:${clearPort}`),
  });
});

test('a context with certificates of its own is used with them, and TCP in the clear as well', async () => {
  const home = join(dir, 'home');
  const id = createHash('sha256').update('far').digest('hex');
  await mkdir(join(home, '.docker/contexts/meta', id), { recursive: true });
  await writeFile(
    join(home, '.docker/contexts/meta', id, 'meta.json'),
    JSON.stringify({ Name: 'far', Endpoints: { docker: { Host: `tcp://127.0.0.1:${port}`, SkipTLSVerify: false } } }),
  );
  await cp(join(dir, 'client'), join(home, '.docker/contexts/tls', id, 'docker'), { recursive: true });
  expect(await asked({ HOME: home, DOCKER_CONTEXT: 'far' })).toMatchObject({ ApiVersion: expect.stringMatching(/^1\./) });

  const relay = createServer((socket) => {
    const engine = connect({ path: world.engine.socketPath });
    for (const one of [socket, engine]) one.on('error', () => socket.destroy());
    socket.pipe(engine).pipe(socket);
  });
  relay.listen({ host: '127.0.0.1', port: 0 });
  await once(relay, 'listening');
  const address = relay.address() as { port: number };
  expect(await asked({ DOCKER_HOST: `tcp://127.0.0.1:${address.port}` })).toMatchObject({ ApiVersion: expect.any(String) });
  relay.close();
});
