// The SDK as its users get it: packed, installed beside their program, imported by its name.
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { buildSdk } from '../../scripts/build-sdk.ts';
import { routesSource } from '../../scripts/generate-sdk-routes.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';

const run = promisify(execFile);
const ROOT = join(import.meta.dirname, '../..');
let project: string;
let daemon: DaemonUnderTest;

beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), 'hutch-sdk-'));
  const modules = join(project, 'node_modules');
  await mkdir(modules);
  await buildSdk(join(modules, 'hutch-sdk'));
  // What npm would install: the package's own dependency (types only), and what a TypeScript user has.
  for (const name of ['zod', '@types', 'undici-types']) await symlink(join(ROOT, 'node_modules', name), join(modules, name));
  await writeFile(join(project, 'package.json'), '{"type":"module"}');
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
  await rm(project, { recursive: true, force: true });
});

async function program(source: string): Promise<string> {
  const file = join(project, 'program.ts');
  await writeFile(file, source);
  const env = { PATH: process.env['PATH'] ?? '', HUTCH_API_URL: `unix:${daemon.ready.socketPath}`, HUTCH_API_KEY: daemon.key };
  const { stdout } = await run(process.execPath, [file], { cwd: project, env, timeout: 30_000 });
  return stdout.trimEnd();
}

test('routes.ts is what the verb table says', async () => {
  expect(await readFile(join(ROOT, 'src/sdk/routes.ts'), 'utf8')).toBe(routesSource());
});

test('a program creates a sandbox, runs in it, and leaves nothing behind', async () => {
  const out = await program(`
    import { Hutch } from 'hutch-sdk';
    let id: string;
    {
      await using sandbox = await Hutch.create({ labels: { from: 'sdk' } });
      id = sandbox.id;
      const { stdout, exitCode } = await sandbox.exec(['sh', '-c', 'echo hello; exit 3']);
      console.log(stdout.trim(), exitCode, sandbox.info.labels.from);
    }
    using hutch = Hutch.connect();
    const after = await hutch.api.call('sandbox.get', { ref: id }).catch((error) => ({ state: error.code }));
    console.log(after.state);
  `);
  expect(out).toBe('hello 3 sdk\ndeleted');
});

test('errors are typed, and name their operation', async () => {
  const out = await program(`
    import { Hutch, HutchError } from 'hutch-sdk';
    const hutch = Hutch.connect();
    try {
      await hutch.sandbox('nobody');
    } catch (error) {
      if (!(error instanceof HutchError)) throw error;
      console.log(error.code, error.retryable, /^op-/.test(error.opId ?? ''));
    }
  `);
  expect(out).toBe('not_found false true');
});

test('zod is not loaded at run time, and ws only for a socket', async () => {
  const files = (await readdir(join(project, 'node_modules/hutch-sdk'))).filter((name) => name.endsWith('.js'));
  for (const file of files) {
    const source = await readFile(join(project, 'node_modules/hutch-sdk', file), 'utf8');
    expect(source, file).not.toMatch(/from ?["']zod["']|ZodObject/);
    if (file === 'index.js') expect(source).not.toContain('Sec-WebSocket-Key');
  }
});

test('a program in TypeScript is checked against its types', async () => {
  await writeFile(
    join(project, 'typed.ts'),
    `import { Hutch, type HutchError, type SandboxInfo } from 'hutch-sdk';
     const sandbox = await Hutch.create({ cpus: 2, memoryMiB: 512 });
     const state: 'running' | SandboxInfo['state'] = sandbox.info.state;
     const result = await sandbox.exec(['true'], { timeoutMs: 1000 });
     const code: number = result.exitCode;
     export const error = (e: HutchError): string => e.code + state + code;
     // @ts-expect-error: there is no such option
     await Hutch.create({ memory: 512 });
     // @ts-expect-error: not a command
     await sandbox.exec('true');`,
  );
  const tsc = [
    join(ROOT, 'node_modules/typescript/bin/tsc'),
    '--noEmit',
    '--strict',
    '--target',
    'es2024',
    '--lib',
    'es2024,esnext.disposable',
    '--module',
    'nodenext',
    '--types',
    'node',
    '--skipLibCheck',
    'typed.ts',
  ];
  await run(process.execPath, tsc, { cwd: project }).catch((error: { stdout: string }) => {
    throw new Error(error.stdout);
  });
});
