// Builds the SDK as a package that can be packed or linked: index.js with everything in it but what is
// loaded lazily, types, package.json. `node scripts/build-sdk.ts [DIR]`, by default dist/sdk.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';

const ROOT = resolve(import.meta.dirname, '..');

export async function buildSdk(dir: string): Promise<void> {
  mkdirSync(dir, { recursive: true });
  await build({
    absWorkingDir: ROOT,
    entryPoints: { index: 'src/sdk/index.ts' },
    outdir: dir,
    bundle: true,
    splitting: true,
    platform: 'node',
    format: 'esm',
    target: 'node24',
    legalComments: 'linked',
    external: ['bufferutil', 'utf-8-validate'],
    banner: { js: "import { createRequire as __createRequire } from 'node:module'; const require = __createRequire(import.meta.url);" },
    logLevel: 'warning',
  });
  const options = [
    '--declaration',
    '--emitDeclarationOnly',
    '--noEmit',
    'false',
    '--rewriteRelativeImportExtensions',
    '--rootDir',
    'src',
    '--outDir',
    join(dir, 'types'),
  ];
  const shared = readFileSync(join(ROOT, 'tsconfig.json'), 'utf8');
  const config = { ...(JSON.parse(shared) as { compilerOptions: object }), include: undefined, files: [join(ROOT, 'src/sdk/index.ts')] };
  const project = join(dir, 'tsconfig.build.json');
  writeFileSync(
    project,
    JSON.stringify({ ...config, compilerOptions: { ...config.compilerOptions, typeRoots: [join(ROOT, 'node_modules/@types')] } }),
  );
  const result = spawnSync(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', project, ...options], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  if (result.status !== 0) throw new Error(`the SDK's types cannot be made:\n${result.stdout}`);
  const own = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
    version: string;
    license: string;
    dependencies: Record<string, string>;
  };
  const manifest = {
    name: 'hutch-sdk',
    version: own.version,
    description: 'Sandboxes that you can fork, trace and bill: the TypeScript client of Hutch.',
    license: own.license,
    type: 'module',
    engines: { node: '>=24' },
    exports: { '.': { types: './types/sdk/index.d.ts', default: './index.js' } },
    files: ['*.js', '*.txt', 'types'],
    // For the types alone: at run time nothing is loaded from it.
    dependencies: { zod: own.dependencies['zod'] },
  };
  writeFileSync(join(dir, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
}

if (import.meta.main) {
  const dir = resolve(process.argv[2] ?? join(ROOT, 'dist/sdk'));
  await buildSdk(dir);
  console.log(`Built the SDK in ${dir}.`);
}
