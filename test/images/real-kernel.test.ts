// The distribution's real kernel: what our own unpacking gives is what lz4 gives, and it boots.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { downloadPackages } from '../../src/images/apt.ts';
import { prepareInitramfs } from '../../src/images/initramfs.ts';
import { type PreparedKernel, prepareKernel, verifyKernel } from '../../src/images/kernel.ts';
import { imagePaths } from '../../src/images/layout.ts';
import { testOperation } from '../support/operation.ts';

const host = nodeHost();
const op = testOperation();
const paths = imagePaths(join(import.meta.dirname, '../../.tools/data'));
const BOOT_MS = 90_000;
let dir = '';
let kernel: PreparedKernel;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-kernel-'));
  kernel = await prepareKernel(op, host, paths);
}, 600_000);
afterAll(() => rm(dir, { recursive: true, force: true }));

test('it is what the package holds, to the byte', { timeout: 300_000 }, async () => {
  const request = {
    firstOf: ['linux-image-cloud-amd64', 'linux-image-virtual'],
    follow: /^linux-image-[0-9]/,
    workDir: dir,
    step: 'test',
    env: {},
  };
  const [deb] = await downloadPackages(op, host, request);
  if (deb === undefined) throw new Error('the distribution has no kernel');
  // By now it may offer a newer one than was prepared.
  const isSame = deb.name === `linux-image-${kernel.record.version}`;
  const subject = isSame ? kernel : await prepareKernel(op, host, imagePaths(dir));
  await verifyKernel(op, host, isSame ? paths : imagePaths(dir), subject.record.digest);
  await host.run(op, ['dpkg-deb', '-x', deb.file, join(dir, 'tree')]);
  const vmlinuz = await readFile(join(dir, 'tree/boot', `vmlinuz-${subject.record.version}`));
  const start = vmlinuz.indexOf(Buffer.from([0x02, 0x21, 0x4c, 0x18]));
  expect(start, 'an LZ4 payload').toBeGreaterThan(0);
  // What follows the stream makes lz4 complain after it has written all there is.
  const unpacked = await host.run(op, ['lz4', '-dc'], { input: vmlinuz.subarray(start), outputBytesMax: 256 * 1024 * 1024 });
  const ours = await readFile(subject.vmlinuxPath);
  expect(sha256(unpacked.stdout.subarray(0, ours.byteLength))).toBe(sha256(ours));
});

test('its initramfs is a cpio archive with our files, the same each time', async () => {
  const agentPath = '/bin/busybox';
  const initramfs = await prepareInitramfs(op, host, imagePaths(dir), { kernel, agentPath });
  const archive = await readFile(initramfs.path);
  const listed = await host.run(op, ['cpio', '--list', '--verbose', '--numeric-uid-gid', '--quiet'], { input: archive });
  expect(listed.exitCode).toBe(0);
  const lines = Buffer.from(listed.stdout).toString().trim().split('\n');
  for (const line of lines) expect(line).toMatch(/^\S+ +\d+ 0 +0 .*Jan +1 +1970 /);
  expect(lines.find((line) => line.endsWith(' dev/console'))).toMatch(/^crw------- .* 5, +1 /);
  expect(lines.find((line) => line.endsWith(' init'))).toMatch(/^-rwxr-xr-x /);
  const extracted = await host.run(op, ['cpio', '--extract', '--to-stdout', '--quiet', 'lib/modules/order'], { input: archive });
  expect(Buffer.from(extracted.stdout).toString()).toBe(kernel.moduleFiles.map((file) => `${file}\n`).join(''));
  expect(kernel.moduleFiles.indexOf('virtio.ko')).toBeLessThan(kernel.moduleFiles.indexOf('virtio_blk.ko'));

  await rm(initramfs.path);
  expect(await prepareInitramfs(op, host, imagePaths(dir), { kernel, agentPath })).toEqual(initramfs);
  expect(await readdir(imagePaths(dir).initramfs)).toHaveLength(1);
});

test('an agent that is not there is named', async () => {
  await expect(prepareInitramfs(op, host, imagePaths(dir), { kernel, agentPath: '/nowhere/agent' })).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringContaining('/nowhere/agent'),
  });
});

test('it boots without being unpacked again, and runs /init', { timeout: BOOT_MS + 20_000 }, async () => {
  // busybox as /init says that it finds no /etc/init.d/rcS: then the kernel, the archive and its console work.
  const { path } = await prepareInitramfs(op, host, imagePaths(dir), { kernel, agentPath: '/bin/busybox' });
  const khz = /cpu MHz\s*: (\d+)/.exec(await readFile('/proc/cpuinfo', 'utf8'))?.[1] ?? '2000';
  const append = `console=ttyS0 quiet panic=-1 tsc_early_khz=${khz}000 tsc=reliable no_timer_check random.trust_cpu=on`;
  const machine = [
    '-M',
    'microvm,rtc=on,acpi=on',
    '-accel',
    'tcg',
    '-cpu',
    'max',
    '-m',
    '256',
    '-nodefaults',
    '-no-reboot',
    '-display',
    'none',
  ];
  const qemu = spawn('qemu-system-x86_64', [
    ...machine,
    '-serial',
    'stdio',
    '-kernel',
    kernel.vmlinuxPath,
    '-initrd',
    path,
    '-append',
    append,
  ]);
  const deadline = setTimeout(() => qemu.kill('SIGKILL'), BOOT_MS);
  let output = '';
  try {
    for await (const chunk of qemu.stdout) {
      output += String(chunk);
      if (output.includes('rcS')) break;
    }
    expect(output).toContain('/etc/init.d/rcS');
  } finally {
    clearTimeout(deadline);
    const ended = new Promise((resolve) => qemu.once('close', resolve));
    qemu.kill('SIGKILL');
    if (qemu.exitCode === null && qemu.signalCode === null) await ended;
  }
});

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
