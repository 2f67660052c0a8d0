// How a kernel is prepared on good and bad days, with a small distribution in place of the real one.
import { appendFile, chmod, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { Progress } from '../../src/host/operation.ts';
import { findKernel, openKernel, prepareKernel, verifyKernel } from '../../src/images/kernel.ts';
import { imagePaths, removeLeftovers } from '../../src/images/layout.ts';
import { failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { distribution, failed } from './distribution.ts';

const op = testOperation();
/** The whole list with --long, else every seventh call, beginning where the seed says. */
const FAULT_STRIDE = process.env['HUTCH_TEST_LONG'] === undefined ? 7 : 1;
const FIRST_FAULT = 1 + (Number(process.env['HUTCH_TEST_SEED'] ?? 0) % FAULT_STRIDE);

test('a kernel is unpacked with the modules that a guest loads, and is found the next time', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const steps: Progress[] = [];
  const kernel = await prepareKernel(testOperation({ onProgress: (step) => steps.push(step) }), debian.host, paths);
  expect(kernel.record).toMatchObject({ version: '6.1.0-56-cloud-amd64', architecture: 'x86_64' });
  expect(kernel.record.id).toMatch(/^krn[0-9a-z]{17}$/);
  expect(kernel.moduleFiles).toContain('overlay.ko');
  expect(kernel.moduleFiles.slice(-2)).toEqual(['virtio_balloon.ko', 'fuse.ko']);
  expect(kernel.moduleFiles).not.toContain('ext4.ko');
  expect(await readdir(kernel.modulesDir)).toEqual(kernel.moduleFiles.toSorted());
  expect((await stat(kernel.vmlinuxPath)).mode & 0o777).toBe(0o444);
  expect(steps).toContainEqual({ step: 'kernel', detail: expect.stringContaining('downloading'), done: 17, total: 33, unit: 'bytes' });
  expect((await readdir(paths.staging)).filter((name) => !name.endsWith('.lock'))).toEqual([]);

  debian.commands.length = 0;
  expect(await prepareKernel(op, debian.host, paths)).toEqual(kernel);
  expect(debian.commands).toEqual([]);
});

test('a kernel of an older recipe is made anew, and used where that cannot be; one that is the same by today’s is kept', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const made = await prepareKernel(op, debian.host, paths);
  const age = async () => {
    const path = join(paths.kernels, made.record.digest.replace('sha256:', ''), 'manifest.json');
    const text = (await readFile(path, 'utf8')).replace('"recipe": 3', '"recipe": 1');
    await rm(path);
    await writeFile(path, text);
  };
  await age();
  const away = failed('E: there is no network');
  const offline = { ...debian.host, run: async () => away };
  const used = await prepareKernel(op, offline, paths);
  expect([used.record.digest, used.record.detail['recipe']]).toEqual([made.record.digest, 1]);
  debian.commands.length = 0;
  expect((await prepareKernel(op, debian.host, paths)).record.detail['recipe']).toBe(3);
  expect(debian.commands).toContain('apt-get download');
  debian.commands.length = 0;
  expect((await prepareKernel(op, debian.host, paths)).record.digest).toBe(made.record.digest);
  expect(debian.commands).toEqual([]);
});

test('whichever host call fails, nothing half-made is found and the next try succeeds', async () => {
  await using debian = await distribution();
  const host = debian.host;
  for (let nth = FIRST_FAULT; ; nth += FAULT_STRIDE) {
    const paths = imagePaths(join(debian.dataDir, String(nth)));
    const faulty = failNthCall(host, nth);
    const outcome = await prepareKernel(op, faulty, paths).catch((error: unknown) => error);
    if (faulty.hit === undefined) {
      expect(nth).toBeGreaterThan(40);
      return;
    }
    const found = await findKernel(op, host, paths);
    if (found !== null) await verifyKernel(op, host, paths, found.record.digest);
    const kernel = await prepareKernel(op, host, paths);
    await verifyKernel(op, host, paths, kernel.record.digest);
    const what = `call ${nth}: ${faulty.hit.method} ${String(faulty.hit.args[0])} ${String(outcome)}`;
    expect(await readdir(paths.kernels), what).toEqual([kernel.record.digest.replace('sha256:', '')]);
    await removeLeftovers(op, host, paths, new Set(['kernel']));
    expect(
      (await readdir(paths.staging)).filter((name) => !name.endsWith('.lock')),
      what,
    ).toEqual([]);
  }
});

test('a package that was downloaded before an interruption is not downloaded again', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const interrupted = { ...debian.host, readFile: () => Promise.reject(op.error('internal', 'interrupted')) };
  await expect(prepareKernel(op, interrupted, paths)).rejects.toThrow('interrupted');
  expect(await readdir(join(paths.staging, 'kernel'))).toEqual([expect.stringMatching(/\.deb$/)]);
  debian.commands.length = 0;
  await prepareKernel(op, debian.host, paths);
  expect(debian.commands).not.toContain('apt-get download');
});

test('a package that was cut while it came is downloaded again', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const interrupted = { ...debian.host, readFile: () => Promise.reject(op.error('internal', 'interrupted')) };
  await expect(prepareKernel(op, interrupted, paths)).rejects.toThrow('interrupted');
  const [deb = ''] = await readdir(join(paths.staging, 'kernel'));
  await writeFile(join(paths.staging, 'kernel', deb), 'x'.repeat(33)); // of the right size
  debian.commands.length = 0;
  await prepareKernel(op, debian.host, paths);
  expect(debian.commands).toContain('apt-get download');
});

test('a package without the checksum of the lists is refused', async () => {
  await using debian = await distribution();
  debian.package = Buffer.from('something else that was delivered');
  const paths = imagePaths(debian.dataDir);
  await expect(prepareKernel(op, debian.host, paths)).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringContaining('does not have the checksum of the package lists'),
  });
  expect(debian.commands).toContain('apt-get update'); // old lists may be why: it tried with new ones
  expect(await findKernel(op, debian.host, paths)).toBeNull();
});

test('lists that are too old are fetched anew, without root, beside those of the machine', async () => {
  await using debian = await distribution();
  let tries = 0;
  debian.answers.set('apt-get update', () => {
    debian.answers.delete('apt-cache show');
    return { exitCode: 0, stdout: new Uint8Array(), stderr: new Uint8Array() };
  });
  debian.answers.set('apt-cache show', () => {
    tries += 1;
    return failed('E: No packages found');
  });
  const kernel = await prepareKernel(op, debian.host, imagePaths(debian.dataDir));
  expect(kernel.moduleFiles.length).toBeGreaterThan(0);
  expect(tries).toBe(4);
});

test('without a network the error names the mirror and what to do', async () => {
  await using debian = await distribution();
  const unreachable = () => failed("E: Failed to fetch http://deb.example/dists/x  Temporary failure resolving 'deb.example'");
  debian.answers.set('apt-get download', unreachable);
  debian.answers.set('apt-get update', unreachable);
  await expect(prepareKernel(op, debian.host, imagePaths(debian.dataDir))).rejects.toMatchObject({
    code: 'unavailable',
    message: expect.stringContaining("Temporary failure resolving 'deb.example'"),
    hint: expect.stringContaining('goes on where it stopped'),
  });
});

test('a kernel that cannot be unpacked gives one clear error, and its package is not kept', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const good = debian.vmlinuz;
  for (const [vmlinuz, message] of [
    [good.slice(0, -100), /vmlinuz is cut off/],
    [Buffer.from('MZ'.repeat(1000)), /no Linux boot header/],
  ] as const) {
    debian.vmlinuz = vmlinuz;
    await expect(prepareKernel(op, debian.host, paths)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(message),
    });
    expect(await readdir(join(paths.staging, 'kernel'))).toEqual([]);
  }
  debian.vmlinuz = good;
  await prepareKernel(op, debian.host, paths);
});

test.for([
  ['cut', (path: string) => truncate(path, 100)],
  ['changed', (path: string) => appendFile(path, 'x')],
] as const)('a kernel that was %s on disk is refused when it is read through, and made anew', async ([, damage]) => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const kernel = await prepareKernel(op, debian.host, paths);
  await chmod(kernel.vmlinuxPath, 0o644);
  await damage(kernel.vmlinuxPath);
  await expect(verifyKernel(op, debian.host, paths, kernel.record.digest)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('vmlinux has changed'),
  });
  const again = await prepareKernel(op, debian.host, paths);
  await verifyKernel(op, debian.host, paths, again.record.digest);
  expect(again.record.digest).toBe(kernel.record.digest);
});

test('a manifest that lies or cannot be read is refused', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const kernel = await prepareKernel(op, debian.host, paths);
  const manifest = join(paths.kernels, kernel.record.digest.replace('sha256:', ''), 'manifest.json');
  await chmod(manifest, 0o644);
  const content = await readFile(manifest, 'utf8');
  for (const [lie, message] of [
    [content.replace(/"sha256": "./, '"sha256": "0'), /does not belong to its digest|cannot be read/],
    [content.replace('overlay.ko', '../../x.ko'), /cannot be read/],
    ['{', /cannot be read/],
  ] as const) {
    await writeFile(manifest, lie);
    await expect(openKernel(op, debian.host, paths, kernel.record.digest)).rejects.toMatchObject({
      code: 'failed_precondition',
      message: expect.stringMatching(message),
    });
  }
});

test('of two that prepare at once one does it and the other waits', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const [one, two] = await Promise.all([prepareKernel(op, debian.host, paths), prepareKernel(op, debian.host, paths)]);
  expect(two).toEqual(one);
  expect(debian.commands.filter((command) => command === 'apt-get download')).toHaveLength(1);
});

test('a wait for another process ends when the caller gives up', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  await debian.host.makeDir(op, paths.staging, 0o755);
  await using _held = await debian.host.lockFile(op, join(paths.staging, 'kernel.lock'));
  const caller = new AbortController();
  const told = Promise.withResolvers<void>();
  const waiting = prepareKernel(
    testOperation({ signal: caller.signal, onProgress: ({ detail }) => detail?.startsWith('another process') && told.resolve() }),
    debian.host,
    paths,
  );
  await told.promise;
  caller.abort(new Error('enough'));
  await expect(waiting).rejects.toThrow('enough');
});
