// The direction of imports (docs/architecture.md). Arrows point one way:
//   domain ← host ← store, network, images, guest, backends ← services ← api ← daemon
//   store ← metering; domain ← config; config, host, network ← install ← cli; cli and sdk see the API's contract only.
const layer = (name, allowed) => ({
  name: `${name}-imports-only-what-it-may`,
  comment: `src/${name} may import ${['itself', ...allowed].join(', ')}`,
  severity: 'error',
  from: { path: `^src/${name}/`, pathNot: '\\.test\\.ts$' },
  to: { path: '^(src|test|scripts|bench)/', pathNot: [name, ...allowed].map((folder) => `^src/${folder}/`) },
});

const door = (name, module, owners, extra = []) => ({
  name,
  comment: `${module} is for ${owners.join(', ')} only`,
  severity: 'error',
  from: { path: '^src/', pathNot: [...owners.map((owner) => `^src/${owner}/`), ...extra, '\\.test\\.ts$'] },
  to: { path: `^(node:)?${module}$`, dependencyTypes: ['core'] },
});

module.exports = {
  forbidden: [
    layer('domain', []),
    layer('host', ['domain']),
    layer('config', ['domain']),
    layer('store', ['domain', 'host']),
    layer('metering', ['domain', 'host', 'store']),
    layer('network', ['domain', 'host']),
    layer('images', ['domain', 'host']),
    layer('guest', ['domain', 'host']),
    layer('backends', ['domain', 'host', 'network', 'guest']),
    layer('services', ['domain', 'host', 'config', 'store', 'metering', 'network', 'images', 'guest', 'backends']),
    layer('api', ['domain', 'host', 'services']),
    layer('sdk', ['domain', 'config', 'services']),
    layer('install', ['domain', 'host', 'config', 'network']),
    layer('cli', ['domain', 'sdk', 'config', 'services', 'install']),
    {
      name: 'no-circle',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only', 'dynamic-import'] } },
    },
    {
      name: 'services-know-no-backend',
      comment: 'backends are passed in by the composition root',
      severity: 'error',
      from: { path: '^src/services/' },
      to: { path: '^src/backends/.+/' },
    },
    {
      name: 'backends-do-not-know-each-other',
      severity: 'error',
      from: { path: '^src/backends/([^/]+)/' },
      to: { path: '^src/backends/([^/]+)/', pathNot: '^src/backends/$1/' },
    },
    {
      name: 'only-type-imports-of-the-contract',
      comment: 'clients see the API as types: zod must not be loaded by the CLI',
      severity: 'error',
      from: { path: '^src/(cli|sdk)/' },
      to: { path: '^src/services/', dependencyTypesNot: ['type-only'] },
    },
    {
      name: 'domain-is-pure',
      comment: 'no I/O, no clock, no randomness',
      severity: 'error',
      from: { path: '^src/domain/', pathNot: '\\.test\\.ts$' },
      to: { dependencyTypes: ['core'] },
    },
    door('files-only-through-the-host', 'fs(/promises)?', ['host'], ['^src/(cli|sdk)/']),
    door('processes-only-through-the-host', 'child_process', ['host'], ['^src/cli/', '^src/sdk/workspace/']),
    door('sqlite-only-in-the-store', 'sqlite', ['store']),
    {
      name: 'not-to-dev-dependencies',
      severity: 'error',
      from: { path: '^src/', pathNot: '\\.test\\.ts$' },
      to: { dependencyTypes: ['npm-dev'], pathNot: ['@types/'] },
    },
    { name: 'not-unresolvable', severity: 'error', from: {}, to: { couldNotResolve: true } },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '(^|/)(dist|rust|prebuilt|\\.tools)/' },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: {
      extensions: ['.ts', '.mjs', '.cjs', '.js', '.json'],
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'types', 'default'],
    },
  },
};
