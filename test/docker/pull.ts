// Images that an Engine pulls from a registry that wants a login: with the user's own, and with nobody else's.
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'vitest';
import { Engine } from '../../src/backends/docker/engine.ts';
import { pullImage } from '../../src/backends/docker/image.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Progress } from '../../src/host/operation.ts';
import { LOGIN, Registry } from '../support/debian-registry.ts';
import { testOperation } from '../support/operation.ts';
import { importTool } from './tool-image.ts';
import { type DockerWorld, dockerConfigOf } from './world.ts';

export async function pullsWithLogin(world: DockerWorld): Promise<void> {
  const { engine, daemon } = world;
  await using registry = await Registry.start();
  const repository = `${registry.name}/team/tool`;
  const configDir = dockerConfigOf(engine);
  const configure = async (config: object): Promise<void> => {
    await mkdir(configDir, { recursive: true });
    await writeFile(join(configDir, 'config.json'), JSON.stringify(config));
  };
  const forget = async (name: string): Promise<void> => void (await engine.ask('DELETE', `/images/${name}?force=1`));
  const auth = (password: string): string => Buffer.from(`${LOGIN.username}:${password}`).toString('base64');

  await importTool(engine, repository, '1');
  const digest = await engine.push(repository, '1', LOGIN);
  await forget(`${repository}:1`);

  const reference = `docker://${repository}:1`;
  const main = { argv: ['sh', '-c', 'echo $FROM_IMAGE'] };
  const create = (image: string = reference) => daemon.call('sandbox.create', { image, main });
  for (const config of [
    {},
    { auths: { [registry.name]: { auth: auth('wrong') } } },
    { auths: { 'other.example': { auth: auth(LOGIN.password) } } },
  ]) {
    await configure(config);
    await expect(create(), JSON.stringify(config)).rejects.toMatchObject({
      code: 'permission_denied',
      body: { message: expect.stringContaining(repository), hint: expect.stringContaining('docker login') },
    });
  }

  await configure({ auths: { [registry.name]: { auth: auth(LOGIN.password) } } });
  const { id } = await create();
  expect((await daemon.call('sandbox.wait', { ref: id })).exitCode).toBe(0);
  expect((await daemon.send('GET', `/v1/sandboxes/${id}/logs`)).body.toString('latin1')).toContain('yes\n');
  await daemon.call('sandbox.delete', { ref: id, force: true });
  await forget(`${repository}:1`);
  await expect(create(`docker://${repository}:2`)).rejects.toMatchObject({ code: 'not_found' });
  await expect(create(`docker://${repository}@sha256:${'0'.repeat(64)}`)).rejects.toMatchObject({ code: 'not_found' });
  // A name that nobody has: not of the image is it said that it is nowhere.
  await expect(create('docker://registry.invalid/team/tool:1')).rejects.toMatchObject({
    code: 'unavailable',
    body: { message: expect.stringMatching(/does not reach the registry of registry\.invalid\/team\/tool:1/) },
  });

  // By digest, with progress, and with a login that a helper of the user's keeps.
  const helper = join(configDir, 'docker-credential-kept');
  const answer = `{"ServerURL":"${registry.name}","Username":"${LOGIN.username}","Secret":"${LOGIN.password}"}`;
  await writeFile(helper, `#!/bin/sh\n[ "$1" = get ] && [ "$(cat)" = "${registry.name}" ] && echo '${answer}'\n`, { mode: 0o755 });
  const host = nodeHost({ env: { PATH: `${configDir}:/usr/bin:/bin` } });
  const env = { DOCKER_HOST: `unix://${engine.socketPath}`, DOCKER_CONFIG: configDir };
  for (const config of [{ credsStore: 'kept' }, { credHelpers: { [registry.name]: 'kept' } }]) {
    await configure(config);
    const seen: Progress[] = [];
    const op = testOperation({ onProgress: (progress) => seen.push(progress) });
    const pulled = await pullImage(op, { host, env }, new Engine(host, env), `docker://${repository}@${digest}`);
    expect(pulled.config).toMatchObject({ workdir: '/work', user: 'tool', env: { FROM_IMAGE: 'yes' } });
    expect(pulled.detail['repoDigests']).toEqual([`${repository}@${digest}`]);
    expect(seen.map(({ detail }) => detail)).toContainEqual(expect.stringMatching(/Pull complete/));
    expect(seen.some(({ done, unit }) => unit === 'bytes' && (done ?? 0) > 0)).toBe(true);
    await forget(`${repository}@${digest}`);
  }
  await rm(configDir, { recursive: true });
}
