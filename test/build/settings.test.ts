// What RUN sees of this machine's package settings, and that nothing of them stays.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { placesOf } from '../../src/config/places.ts';
import { Hutch } from '../../src/sdk/hutch.ts';
import { readOwnerKey } from '../../src/sdk/owner-key.ts';
import type { World } from '../cli/world.ts';
import { tar } from '../images/archives.ts';
import { selfSigned } from '../support/certificate.ts';
import { eventually } from '../support/eventually.ts';
import { contextTar } from './talk.ts';
import { BuildWorld } from './world.ts';

let here: BuildWorld;
let world: World;
beforeAll(async () => {
  here = await BuildWorld.make();
  world = here.world;
}, 120_000);
afterAll(async () => await here?.[Symbol.asyncDispose](), 120_000);

test('package settings of this machine are seen by RUN alone: no layer, history, log or key has them', {
  timeout: 180_000,
}, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const home = await here.context({
    '.npmrc':
      'registry=https://npm-mirror.example/\n//npm-mirror.example/:_authToken=npm-t0ken\n//registry.npmjs.org/:_authToken=publishing\n',
    '.config/pip/pip.conf': '[global]\nindex-url = https://pip-mirror.example/simple\n',
  });
  selfSigned({ name: 'ca.example', certificate: join(home, 'ca.pem'), key: join(home, 'ca.key'), extensions: [] });
  const env = {
    HOME: home,
    https_proxy: 'http://me:pr0xy-pass@proxy.example:3128',
    HTTP_PROXY: 'http://127.0.0.1:3128',
    SSL_CERT_FILE: join(home, 'ca.pem'),
  };
  const dir = await here.context({
    Dockerfile: `FROM base:1
RUN echo "proxy $https_proxy" && test "\${#https_proxy}" = 39 && test -z "$HTTP_PROXY" && touch /seen
USER app
RUN cat "$PIP_CONFIG_FILE" "$NPM_CONFIG_GLOBALCONFIG" && grep -q npm-mirror "$NPM_CONFIG_GLOBALCONFIG" && ! grep publishing "$NPM_CONFIG_GLOBALCONFIG" && \\
  grep -q CERTIFICATE "$SSL_CERT_FILE" && test "$SSL_CERT_FILE" = "$CURL_CA_BUNDLE"
`,
  });
  const first = await world.run(['build', '--backend', 'gvisor', '-t', 'lent:1', dir], { env });
  expect(first.code, first.stderr).toBe(0);
  expect(first.stderr).toContain('note: not given to the build: HTTP_PROXY is an address of this machine itself');
  expect(first.stderr).toContain('proxy ***');
  const { files, layers, config } = await here.saved('lent:1');
  expect(files.get('seen')).toMatch(/^file/);
  const id = (await here.builds())[0]?.id ?? '';
  const kept = [
    ...layers,
    Buffer.from(JSON.stringify(config)),
    Buffer.from(await world.ok('image', 'build-logs', id)),
    Buffer.from(first.stderr),
  ];
  for (const text of ['pr0xy-pass', '-mirror.example', 'npm-t0ken', 'BEGIN CERTIFICATE'])
    expect(
      kept.some((part) => part.includes(text)),
      text,
    ).toBe(false);
  // The same key: who has no settings, or says so, finds it made.
  const without = await world.run(['build', '--backend', 'gvisor', '--no-package-settings', dir], { env });
  expect(without.stdout).toBe(first.stdout);
  expect(without.stderr).not.toContain('done in');
  const bare = await world.run(['build', '--no-cache', '--backend', 'gvisor', '--no-package-settings', dir], { env });
  expect(bare.stderr).toContain('Dockerfile:2: RUN: exit code 1');
  const leak = await here.context({ Dockerfile: 'FROM base:1\nRUN mkdir /deep && env > /deep/leak\n' });
  const refused = await world.run(['build', '--backend', 'gvisor', leak], { env });
  expect(refused.code).not.toBe(0);
  expect(refused.stderr).toMatch(/Dockerfile:2: RUN: it wrote a password or token of this machine's package settings to \/deep\/leak/);
});

test('package settings may come when a RUN waits for them, and what the cache knows waits for none', { timeout: 120_000 }, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const { socketPath, ownerKeyPath } = placesOf({ env: { HUTCH_HOME: world.home }, uid: process.getuid?.() ?? 0 });
  using hutch = Hutch.connect({ url: `unix:${socketPath}`, apiKey: readOwnerKey(ownerKeyPath) });
  const { api } = hutch;
  const dir = await here.context({ Dockerfile: 'FROM base:1\nRUN test "$GOPROXY" = https://later.example && touch /had-them\n' });
  const context = await contextTar(dir);
  const start = () => api.upload('build.start', { backend: 'gvisor', settings: 'later', waitMs: 60_000 }, context);
  const { id: build, state } = await start();
  expect(state).toBe('running'); // long before its time: it is asked for them
  const settings = (content: string) => tar({ path: '.hutch-build/settings.json', content });
  for (const bad of [Buffer.from('no archive'), settings('{"env":{"a b":""}}'), tar({ path: 'other', content: 'x' })])
    await expect(api.upload('build.settings', { build }, bad)).rejects.toMatchObject({ code: 'invalid_argument' });
  await api.upload('build.settings', { build }, settings('{"env":{"GOPROXY":"https://later.example"},"aptMirrors":[]}'));
  await eventually('the build to end', async () => (await api.call('build.get', { build })).state !== 'running', 60_000);
  expect((await api.call('build.get', { build })).state).toBe('done');
  expect((await start()).state).toBe('done');
});

test('apt fetches from the mirror of this machine while a RUN lasts, and its lists are the image’s own again after it', {
  timeout: 120_000,
}, async (ctx) => {
  const missing = await here.why('gvisor');
  if (missing !== null) return ctx.skip(missing);
  const list = 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n';
  const context = tar(
    { path: '.hutch-build/settings.json', content: JSON.stringify({ env: {}, aptMirrors: [{ of: 'debian', uri: 'http://m.example/d' }] }) },
    { path: 'untouched.sources', content: list },
    { path: 'added.sources', content: list },
    {
      path: 'Dockerfile',
      content: `FROM base:1
COPY untouched.sources added.sources /etc/apt/sources.list.d/
RUN test "$(cat /etc/apt/sources.list.d/*.sources | grep -c '^URIs: http://m.e''xample/d$')" = 2 && echo '# mine' >> /etc/apt/sources.list.d/added.sources
RUN cat /etc/apt/sources.list.d/added.sources && touch /second
`,
    },
  );
  const built = await world.run(['build', '--backend', 'gvisor', '--no-cache', '--no-package-settings', '-t', 'apt:1', '-'], {
    input: context,
  });
  expect(built.code, built.stderr).toBe(0);
  expect(built.stderr).toContain('URIs: ***');
  const { files, layers } = await here.saved('apt:1');
  const [untouched = '', added = ''] = ['untouched', 'added'].map((name) => files.get(`etc/apt/sources.list.d/${name}.sources`));
  const hash = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 12);
  expect(untouched).toContain(hash(list));
  expect(added).toContain(hash(`${list}# mine\n`));
  expect(layers.some((layer) => layer.includes('m.example'))).toBe(false);
  // A list that the command left alone is in no layer of its own.
  expect(layers.filter((layer) => layer.includes('untouched.sources'))).toHaveLength(1);
});
