// How the default image is prepared on good and bad days, with a small distribution and a stand-in for
// mmdebstrap; packing, moving and checking are real.
import { appendFile, chmod, mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { RunOptions } from '../../src/host/host.ts';
import { prepareDefaultImage } from '../../src/images/default-image.ts';
import { listImages, openImage, verifyImage } from '../../src/images/image.ts';
import { imagePaths, removeLeftovers } from '../../src/images/layout.ts';
import { failNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { distribution, failed } from './distribution.ts';

const op = testOperation();
/** The whole list with --long, else every fifth call, beginning where the seed says. */
const FAULT_STRIDE = process.env['HUTCH_TEST_LONG'] === undefined ? 5 : 1;
const FIRST_FAULT = 1 + (Number(process.env['HUTCH_TEST_SEED'] ?? 0) % FAULT_STRIDE);

const staged = async (staging: string) => (await readdir(staging)).filter((name) => !name.endsWith('.lock'));

test('it is made once and found by its content from then on', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const image = await prepareDefaultImage(op, debian.host, paths);
  expect(image.record).toMatchObject({ name: 'debian', digest: `sha256:${await debian.host.sha256(op, image.path)}` });
  expect(await staged(paths.staging)).toEqual([]);
  expect(await prepareDefaultImage(op, debian.host, paths)).toEqual(image);
  expect(debian.commands.filter((command) => command === 'mmdebstrap')).toHaveLength(1);
});

test("the machine's mirror and proxy serve to fetch packages and are told to nobody else", async () => {
  await using debian = await distribution();
  let seen: { argv: readonly string[]; options: RunOptions | undefined } | undefined;
  const host = {
    ...debian.host,
    run: (...[operation, argv, options]: Parameters<typeof debian.host.run>) => {
      if (argv.includes('mmdebstrap')) seen = { argv, options };
      return debian.host.run(operation, argv, options);
    },
  };
  await prepareDefaultImage(op, host, imagePaths(debian.dataDir), { no_proxy: 'localhost' });
  expect(seen?.options?.env).toMatchObject({ http_proxy: 'http://proxy.example:3128', no_proxy: 'localhost' });
  expect(seen?.argv).toContain('deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main');
  const hook = seen?.argv.find((word) => word.startsWith('--customize-hook=')) ?? '';
  expect(hook).toContain('deb http://deb.debian.org/debian bookworm main');
  expect(hook).not.toMatch(/mirror\.example|proxy\.example/);
  // mmdebstrap keeps its apt configuration there: without it, it would clean the apt of this machine.
  expect(hook).not.toMatch(/\$1"?\/tmp/);
});

test('whichever host call fails, nothing half-made is found and the next try succeeds', async () => {
  await using debian = await distribution();
  for (let nth = FIRST_FAULT; ; nth += FAULT_STRIDE) {
    const paths = imagePaths(join(debian.dataDir, String(nth)));
    const faulty = failNthCall(debian.host, nth);
    await prepareDefaultImage(op, faulty, paths).catch(() => {});
    if (faulty.hit === undefined) {
      expect(nth).toBeGreaterThan(20);
      return;
    }
    for (const found of await listImages(op, debian.host, paths)) await verifyImage(op, debian.host, paths, found.record.digest);
    const image = await prepareDefaultImage(op, debian.host, paths);
    await verifyImage(op, debian.host, paths, image.record.digest);
    await removeLeftovers(op, debian.host, paths, new Set(['image']));
    expect(await staged(paths.staging), `call ${nth}: ${faulty.hit.method}`).toEqual([]);
    expect(await readdir(paths.images)).toHaveLength(1);
  }
});

test('interrupted while it is packed, it is not bootstrapped again', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const interrupted = { ...debian.host, sha256: () => Promise.reject(op.error('internal', 'interrupted')) };
  await expect(prepareDefaultImage(op, interrupted, paths)).rejects.toThrow('interrupted');
  expect(await readdir(join(paths.staging, 'image'))).toEqual([expect.stringMatching(/^root-[0-9a-f]{16}\.tar$/)]);
  debian.commands.length = 0;
  await prepareDefaultImage(op, debian.host, paths);
  expect(debian.commands).not.toContain('mmdebstrap');
});

test('what a killed try left half-made is removed, not gone on with', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  await mkdir(join(paths.staging, 'image/scratch/mmdebstrap.abc/etc'), { recursive: true });
  await writeFile(join(paths.staging, 'image/root-0123456789abcdef.tar'), 'of an older recipe');
  await writeFile(join(paths.staging, 'image/root.tar.part'), 'half');
  await prepareDefaultImage(op, debian.host, paths);
  expect(await staged(paths.staging)).toEqual([]);
  expect(debian.commands).toContain('mmdebstrap');
});

test('while a program of a killed process still works there, the next try waits for its end', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  await mkdir(paths.staging, { recursive: true });
  const orphan = await debian.host.lockFile(op, join(paths.staging, 'image.program.lock'));
  const told = Promise.withResolvers<void>();
  const next = prepareDefaultImage(
    testOperation({ onProgress: ({ detail }) => detail?.startsWith('another process') && told.resolve() }),
    debian.host,
    paths,
  );
  await told.promise;
  expect(debian.commands).not.toContain('mmdebstrap');
  await orphan?.[Symbol.asyncDispose]();
  await next;
  expect(debian.commands).toContain('mmdebstrap');
});

test('without room on the disk it says how much is missing, before it begins', async () => {
  await using debian = await distribution();
  const full = { ...debian.host, fileSystem: async () => ({ totalBytes: 2 ** 30, freeBytes: 300 * 2 ** 20, type: 'ext4' }) };
  await expect(prepareDefaultImage(op, full, imagePaths(debian.dataDir))).rejects.toMatchObject({
    code: 'resource_exhausted',
    message: expect.stringMatching(/300 MiB are free .* needs 1 GiB/),
  });
  expect(debian.commands).toEqual([]);
});

test.for([
  ['E: Failed to fetch http://deb.example/x  Could not connect to deb.example:80', 'unavailable', /Could not connect to deb\.example/],
  ['tar: write error: No space left on device', 'resource_exhausted', /the disk is full/],
  ['E: unable to pick chroot mode automatically (use --mode for manual selection)', 'failed_precondition', /user namespaces/],
] as const)('when mmdebstrap says "%s" the error is %s', async ([stderr, code, message]) => {
  await using debian = await distribution();
  debian.answers.set('mmdebstrap', () => failed(stderr));
  const paths = imagePaths(debian.dataDir);
  await expect(prepareDefaultImage(op, debian.host, paths)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  expect(await readdir(join(paths.staging, 'image'))).toEqual([]);
});

test('an image that was changed on disk is refused when it is read through, and made anew', async () => {
  await using debian = await distribution();
  const paths = imagePaths(debian.dataDir);
  const image = await prepareDefaultImage(op, debian.host, paths);
  await chmod(image.path, 0o644);
  const bytes = await debian.host.readFile(op, image.path, 2 ** 20);
  await writeFile(
    image.path,
    bytes.map((byte, index) => (index === 200 ? byte ^ 1 : byte)),
  );
  await expect(verifyImage(op, debian.host, paths, image.record.digest)).rejects.toThrow(/rootfs\.squashfs has changed/);
  await appendFile(image.path, 'x');
  await expect(openImage(op, debian.host, paths, image.record.digest)).rejects.toThrow(/rootfs\.squashfs has \d+ of \d+ bytes/);
  const again = await prepareDefaultImage(op, debian.host, paths);
  await verifyImage(op, debian.host, paths, again.record.digest);
});

test("without Debian's keys it says which package brings them", async () => {
  await using debian = await distribution();
  const host = {
    ...debian.host,
    stat: (...[operation, path]: Parameters<typeof debian.host.stat>) =>
      path.includes('keyring') ? Promise.resolve(null) : debian.host.stat(operation, path),
  };
  await expect(prepareDefaultImage(op, host, imagePaths(debian.dataDir))).rejects.toMatchObject({
    code: 'failed_precondition',
    hint: 'run: sudo apt-get install debian-archive-keyring',
  });
});
