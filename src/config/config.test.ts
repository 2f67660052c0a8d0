import { readFile } from 'node:fs/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { HutchError } from '../domain/errors.ts';
import { type ConfigSources, type Flag, loadConfig } from './config.ts';
import { environmentName, KEYS, LEAVES } from './schema.ts';
import { VARIABLES } from './variables.ts';

const PATH = '/etc/hutch/config.toml';

function load({ toml, env = {}, flags = [] }: { toml?: string; env?: Record<string, string>; flags?: readonly Flag[] } = {}) {
  const sources: ConfigSources = {
    paths: ['/home/ada/.config/hutch/config.toml', PATH],
    readFile: async (path) => (path === PATH ? (toml ?? null) : null),
    env,
    flags,
  };
  return loadConfig(sources);
}

async function complaint(given: Parameters<typeof load>[0]): Promise<string> {
  const error = await load(given).then(
    () => null,
    (reason: unknown) => reason,
  );
  if (!(error instanceof HutchError)) throw new Error('it was accepted', { cause: error });
  expect(error.code).toBe('invalid_argument');
  return `${error.message} (${error.hint})`;
}

test('without a file, variables or flags there are the defaults', async () => {
  const { config, values, file } = await load();
  expect(file).toBeNull();
  expect(config).toEqual({
    daemon: {
      listen: '127.0.0.1:4880',
      socket: null,
      allowed_hosts: [],
      allowed_origins: [],
      preview_domain: 'hutch.localhost',
      log_level: 'info',
    },
    sandbox: {
      image: 'debian',
      cpus: 1,
      memory: 512,
      disk: 8_192,
      timeout: null,
      idle: null,
      stop_grace: 10_000,
      network: 'allow',
      file_sync: [],
      backend: 'auto',
      warm: 1,
    },
    images: { insecure_registries: [], ca: null, registry_ca: [], mirrors: [], allow: [], require_digest: [], signed: [] },
    volumes: { allow: null },
    devices: { allow: [] },
    builds: { package_settings: true },
    network: { allow_qemu_user_network: false },
    roles: { vm: null, vm_key: null },
    projects: new Map(),
    limits: { sandboxes: 1_000, cpus: 64, memory: 262_144, disk: 131_072, free: 1_024 },
    retention: {
      ...{ events: 7_776_000_000, operations: 2_592_000_000, deleted: 2_592_000_000, templates: 1_209_600_000 },
      ...{ cache: 2_592_000_000, cache_size: 20_480 },
    },
  });
  expect(values.every(({ source, key }) => source === 'default' && LEAVES.get(key) !== undefined)).toBe(true);
});

test('a project has rules of images of its own, in a table of its name; nothing else', async () => {
  const toml = '[images]\nallow = ["docker.io/**"]\n\n[projects.ci.images]\nallow = ["ghcr.io/owner/**"]\nrequire_digest = "ghcr.io/**"\n';
  const { config, values } = await load({ toml });
  expect(config.images.allow).toEqual(['docker.io/**']);
  expect([...config.projects]).toEqual([['ci', { allow: ['ghcr.io/owner/**'], require_digest: ['ghcr.io/**'] }]]);
  expect(values.filter(({ key }) => key.startsWith('projects.')).map(({ key, value, source }) => [key, value, source])).toEqual([
    ['projects.ci.images.allow', 'ghcr.io/owner/**', `${PATH}:5`],
    ['projects.ci.images.require_digest', 'ghcr.io/**', `${PATH}:6`],
  ]);
  for (const wrong of [
    '[projects.ci.images]\nalow = []',
    '[projects.ci.images]\nca = "/ca.pem"',
    '[projects.ci.limits]\nsandboxes = 3',
    '[projects.CI.images]\nallow = []',
    '[projects.ci]\nallow = []',
    '[projects]\nci = 3',
    '[projects.ci.images.allow]\nx = 1',
  ]) {
    expect(await complaint({ toml: wrong }), wrong).toMatch(/toml:\d+: projects\..* of a project .*\[projects\.NAME\.images\]/);
  }
  expect(await complaint({ toml: 'projects = 3' })).toMatch(/toml:1: projects: there is no such setting/);
  expect(await complaint({ toml: '[projects.ci.images]\nsigned = ["x"]' })).toMatch(/toml:2: projects\.ci\.images\.signed: must be/);
});

test('a rule about images that no name of an image can fit is refused: it would hold of nothing', async () => {
  const good = [
    '**',
    '**/web',
    '*/team/*',
    'docker.io/**',
    'docker.io/library/*',
    'ghcr.io/owner',
    'localhost/x',
    'registry:5000/a/b',
    '[::1]:5000/x',
  ];
  const { config } = await load({ toml: `[images]\nallow = ${JSON.stringify(good)}\nsigned = ["*.example/**=/etc/key.pub"]\n` });
  expect(config.images.allow).toEqual(good);
  for (const wrong of [
    'python',
    'library/*',
    'docker.io',
    'http://docker.io/**',
    'docker.io/Owner/*',
    'docker.io//x',
    'docker.io/x/',
    '/x',
    'x:1',
  ])
    for (const [key, value] of [
      ['allow', wrong],
      ['require_digest', wrong],
      ['signed', `${wrong}=/etc/key.pub`],
    ] as const)
      expect(await complaint({ toml: `[images]\n${key} = ["${value}"]` }), `${key} ${wrong}`).toMatch(
        /toml:2: images\.\w+: must be .*like (docker|ghcr)/,
      );
});

test('flags win over variables, variables over the file, the file over defaults; each says where it came from', async () => {
  const toml = '# mine\n[sandbox]\nmemory = "1.5G"\ncpus = 2\ndisk = "4G"\n\n[daemon]\nlog_level = "debug"\n';
  const env = { HUTCH_SANDBOX_CPUS: '3', HUTCH_SANDBOX_DISK: '5G', HUTCH_NETWORK_ALLOW_QEMU_USER_NETWORK: 'true', PATH: '/bin' };
  const { config, values, file } = await load({ toml, env, flags: [{ flag: '--disk', key: 'sandbox.disk', value: '6G' }] });
  expect(file).toBe(PATH);
  expect(config.sandbox).toMatchObject({ memory: 1_536, cpus: 3, disk: 6_144 });
  expect(config.network.allow_qemu_user_network).toBe(true);
  expect(values.filter(({ source }) => source !== 'default').map(({ key, value, source }) => [key, value, source])).toEqual([
    ['daemon.log_level', 'debug', `${PATH}:8`],
    ['sandbox.cpus', 3, 'HUTCH_SANDBOX_CPUS'],
    ['sandbox.memory', '1536M', `${PATH}:3`],
    ['sandbox.disk', '6G', '--disk'],
    ['network.allow_qemu_user_network', true, 'HUTCH_NETWORK_ALLOW_QEMU_USER_NETWORK'],
  ]);
});

describe('what is wrong is named, with its place', () => {
  test.each([
    ['[sandbox]\n\nmemroy = "1G"', `${PATH}:3: sandbox.memroy: there is no such setting (did you mean sandbox.memory?)`],
    ['memory = "1G"', `${PATH}:1: memory: there is no such setting (did you mean sandbox.memory?)`],
    ['[sandboxes]\ncpus = 1', `${PATH}:2: sandboxes.cpus: there is no such setting (did you mean sandbox.cpus?)`],
    ['[zebra]\nstripes = 1', `${PATH}:2: zebra.stripes: there is no such setting (see all settings: hutch config show)`],
    [
      'sandbox.memory = 512',
      `${PATH}:1: sandbox.memory: 512 has no unit; write 512M or 512G, whichever you mean (see all settings: hutch config show)`,
    ],
    [
      '[sandbox]\nmemory = "64M"',
      `${PATH}:2: sandbox.memory: 64M is less than the least, 128M; give at least 128M (see all settings: hutch config show)`,
    ],
    ['[sandbox]\ncpus = 1.5', `${PATH}:2: sandbox.cpus: must be a whole number from 1 to 64 (see all settings: hutch config show)`],
    [
      '[sandbox]\nnetwork = "lan"',
      `${PATH}:2: sandbox.network: must be one of allow, allow-lan, none (see all settings: hutch config show)`,
    ],
    [
      '[sandbox]\ntimeout = "never"',
      `${PATH}:2: sandbox.timeout: 'never' is no duration; write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms, or none (see all settings: hutch config show)`,
    ],
    [
      '[daemon]\nlisten = "4880"',
      `${PATH}:2: daemon.listen: must be an address and a port, like 127.0.0.1:4880 or [::1]:4880, or off (see all settings: hutch config show)`,
    ],
    [
      '[daemon]\nlisten = "127.0.0.1:65536"',
      `${PATH}:2: daemon.listen: must be an address and a port, like 127.0.0.1:4880 or [::1]:4880, or off (see all settings: hutch config show)`,
    ],
    [
      '[network]\nallow_qemu_user_network = "yes"',
      `${PATH}:2: network.allow_qemu_user_network: must be true or false (see all settings: hutch config show)`,
    ],
    [
      '[limits]\nmemory = "256M"',
      `${PATH}:2: limits.memory: the default of a sandbox, sandbox.memory, must not be more than limits.memory (see all settings: hutch config show)`,
    ],
  ])('%j', async (toml, expected) => expect(await complaint({ toml })).toBe(expected));

  test('no TOML, with line and column', async () => {
    expect(await complaint({ toml: '[sandbox]\nmemory = \n' })).toMatch(/^\/etc\/hutch\/config\.toml:2:\d+: no TOML: /);
  });

  test('a variable', async () => {
    expect(await complaint({ env: { HUTCH_SANDBOX_MEMROY: '1G' } })).toBe(
      'HUTCH_SANDBOX_MEMROY: there is no such setting (did you mean HUTCH_SANDBOX_MEMORY?)',
    );
    expect(await complaint({ env: { HUTCH_MEMORY: '1G' } })).toBe(
      'HUTCH_MEMORY: there is no such setting (did you mean HUTCH_SANDBOX_MEMORY?)',
    );
    expect(await complaint({ env: { HUTCH_SANDBOX_CPUS: '0' } })).toMatch(
      /^HUTCH_SANDBOX_CPUS: sandbox.cpus: must be a whole number from 1 to 64/,
    );
    await load({ env: { HUTCH_HOME: '/x', HUTCH_API_KEY: 'e2b_0', HUTCH_TEST_SEED: '1' } });
  });

  test('a flag', async () => {
    const flags = [{ flag: '--timeout', key: 'sandbox.timeout', value: '5' }] as const;
    expect(await complaint({ flags })).toMatch(/^--timeout: sandbox.timeout: 5 has no unit; write 5s or 5m/);
  });

  test('a file that cannot be read is not a file that is not there', async () => {
    const readFile = () => Promise.reject(new HutchError({ code: 'permission_denied', message: 'may not' }));
    await expect(loadConfig({ paths: [PATH], readFile, env: {} })).rejects.toMatchObject({ code: 'permission_denied' });
  });
});

test('what `config show` prints can be put into a file or a variable and means the same', async () => {
  const shown = (await load()).values;
  const env = Object.fromEntries(shown.map(({ key, value }) => [environmentName(key), String(value)]));
  const toml = shown.map(({ key, value }) => `${key} = ${JSON.stringify(value)}`).join('\n');
  expect((await load({ env })).config).toEqual((await load()).config);
  expect((await load({ toml })).config).toEqual((await load()).config);
});

test('any file gives a configuration or a HutchError', async () => {
  const piece = fc.constantFrom(
    '[sandbox]',
    '\n',
    'cpus',
    '=',
    '1',
    '"',
    '__proto__',
    '[',
    ']',
    '1979-05-27',
    '{}',
    'memory="1G"',
    '.',
    'nan',
    'sandbox',
    '\u0000',
    '#',
  );
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.string(),
        fc.array(piece).map((pieces) => pieces.join('')),
      ),
      async (toml) => {
        const error = await load({ toml }).then(
          () => null,
          (reason: unknown) => reason,
        );
        expect(error === null || error instanceof HutchError).toBe(true);
      },
    ),
    { numRuns: 500 },
  );
});

/** The page's tables, as they must be. */
function configurationTables(): string {
  const tables = Object.keys(KEYS).map((section) => {
    const rows = [...LEAVES]
      .filter(([path]) => path.startsWith(`${section}.`))
      .map(
        ([path, { about, fallback }]) =>
          `| \`${path.slice(section.length + 1)}\` | \`${fallback}\` | \`${environmentName(path)}\` | ${about} |`,
      );
    return [`## [${section}]`, '', '| key | default | variable | what it is |', '| --- | --- | --- | --- |', ...rows].join('\n');
  });
  return `${tables.join('\n\n')}\n`;
}

test('the configuration page lists every key as the code has it', async () => {
  const page = await readFile(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  // The formatter aligns the columns of tables.
  const plain = (text: string) => text.replaceAll(/ {2,}/g, ' ').replaceAll(/-{3,}/g, '---');
  expect(plain(page.slice(page.indexOf('## [')))).toBe(plain(configurationTables()));
});

test('a list is an array in the file and has commas elsewhere; what is wrong in it is named', async () => {
  const toml = '[daemon]\nallowed_hosts = ["box.example", "[fd00::1]"]\n';
  expect((await load({ toml })).config.daemon.allowed_hosts).toEqual(['box.example', '[fd00::1]']);
  const { config, values } = await load({ toml, env: { HUTCH_DAEMON_ALLOWED_HOSTS: 'a.example, b' } });
  expect(config.daemon.allowed_hosts).toEqual(['a.example', 'b']);
  expect(values.find(({ key }) => key === 'daemon.allowed_hosts')).toMatchObject({
    value: 'a.example,b',
    source: 'HUTCH_DAEMON_ALLOWED_HOSTS',
  });
  expect((await load({ toml, env: { HUTCH_DAEMON_ALLOWED_HOSTS: 'none' } })).config.daemon.allowed_hosts).toEqual([]);
  for (const wrong of ['box.example:80', 'http://box', 'a,,b']) {
    expect(await complaint({ env: { HUTCH_DAEMON_ALLOWED_HOSTS: wrong } })).toContain('HUTCH_DAEMON_ALLOWED_HOSTS: daemon.allowed_hosts');
  }
  expect(await complaint({ toml: '[daemon]\nallowed_origins = "dash.example"\n' })).toContain('an origin, like https://dash.example.com');
});

test('the names of the variables are those of the settings', () => {
  expect(VARIABLES).toEqual([...LEAVES.keys()].map(environmentName));
});

test('a value that a stronger one replaces must be right as well', async () => {
  const env = { HUTCH_DAEMON_LISTEN: 'off' };
  expect(await complaint({ env, toml: '[daemon]\nlisten = "nonsense"' })).toMatch(/^\S+:2: daemon\.listen: /);
});

test('files to put into sandboxes are tables of their own in the file, and what is wrong in one is named', async () => {
  const toml =
    '[[file_sync]]\nhost = "~/.netrc"\nguest = "~/.netrc"\n\n[[file_sync]]\nhost = "/home/me/x"\nguest = "/root/x"\nmode = "0644"\n';
  const expected = [
    { host: '~/.netrc', guest: '~/.netrc', mode: null },
    { host: '/home/me/x', guest: '/root/x', mode: 0o644 },
  ];
  expect((await load({ toml })).config.sandbox.file_sync).toEqual(expected);
  const env = { HUTCH_SANDBOX_FILE_SYNC: '~/.netrc:~/.netrc, /home/me/x:/root/x:0644' };
  expect((await load({ env })).config.sandbox.file_sync).toEqual(expected);
  for (const [wrong, why] of [
    ['guest = "~/x"', 'number 1: host is missing'],
    ['host = "x"\nguest = "~/x"', 'number 1: the path on the host must be absolute'],
    ['host = "~/x"\nguest = "../x"', 'number 1: the path in the sandbox must be absolute'],
    ['host = "~/x"\nguest = "~/x"\nmode = 600', 'number 1: a mode is three octal digits'],
    ['host = "~/x"\nguest = "~/x"\nmodus = "0600"', 'modus'],
  ] as const)
    expect(await complaint({ toml: `[[file_sync]]\n${wrong}\n` }), wrong).toContain(why);
});
