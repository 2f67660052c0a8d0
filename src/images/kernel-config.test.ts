import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { kernelVersion } from './bzimage.ts';
import { builtinByConfig, carriedConfig, configByModules, OPTIONS, parseKernelConfig } from './kernel-config.ts';
import { compareVersions, type KernelPackage, matching } from './kernel-packages.ts';

test('an option is built in, a module, or neither', () => {
  const config = parseKernelConfig('# a comment\nCONFIG_VIRTIO_MMIO=m\nCONFIG_EXT4_FS=y\n# CONFIG_TUN is not set\nCONFIG_VIRTIO_BLK="y"\n');
  expect(config).toMatchObject({ VIRTIO_MMIO: 'module', EXT4_FS: 'builtin', TUN: 'no', VIRTIO_BLK: 'no' });
  expect(Object.keys(config).toSorted()).toEqual([...OPTIONS].toSorted());
});

test('the configuration that a kernel carries is found, and what only looks like one is none', async () => {
  const noise = Buffer.alloc(1000, 7);
  const carried = Buffer.concat([noise, Buffer.from('IKCFG_ST'), gzipSync('CONFIG_PVH=y\n'), Buffer.from('IKCFG_ED'), noise]);
  expect(await carriedConfig(carried)).toBe('CONFIG_PVH=y\n');
  expect(await carriedConfig(noise)).toBeNull();
  expect(await carriedConfig(Buffer.from('IKCFG_STno gzipIKCFG_ED'))).toBeNull();
  expect(await carriedConfig(Buffer.from('IKCFG_ST'))).toBeNull();
});

test('what guests need is a module when it is loaded, else built in', () => {
  expect(configByModules(['virtio_mmio.ko', 'squashfs.ko'])).toMatchObject({
    VIRTIO_MMIO: 'module',
    SQUASHFS: 'module',
    EXT4_FS: 'builtin',
  });
});

test('a kernel that lacks what guests need is refused by the option’s name', () => {
  const all = parseKernelConfig(
    ['VIRTIO_MMIO', 'VIRTIO_CONSOLE', 'VIRTIO_BLK', 'VIRTIO_NET', 'EXT4_FS', 'OVERLAY_FS'].map((name) => `CONFIG_${name}=y\n`).join(''),
  );
  expect(() => builtinByConfig(all, 'its own configuration')).toThrow('by its own configuration it has no CONFIG_SQUASHFS');
  expect(builtinByConfig({ ...all, SQUASHFS: 'module' }, '')).not.toContain('squashfs');
});

test('a version is read from the header of a bzImage and from the banner of an ELF file', () => {
  const image = Buffer.alloc(0x1000);
  image.writeUInt16LE(0x800, 0x20e);
  image.write('6.9.1-mine (me@here) #1 SMP\0', 0xa00, 'latin1');
  expect(kernelVersion(image)).toBe('6.9.1-mine');
  image.write('../../etc (me@here)\0', 0xa00, 'latin1');
  expect(kernelVersion(image)).toBeNull();
  expect(kernelVersion(Buffer.from('\x7fELF … Linux version %s (x) … Linux version 6.9.1-mine (me@here) …', 'latin1'))).toBe('6.9.1-mine');
  expect(kernelVersion(Buffer.alloc(3))).toBeNull();
});

const offered = (...versions: string[]): KernelPackage[] =>
  versions.map((version) => ({ package: `linux-image-${version}`, version, packageVersion: '1', sizeBytes: 2 ** 24 }));

test('versions are compared number by number', () => {
  expect(['6.1.0-9-amd64', '6.12.1-amd64', '6.1.0-47-amd64'].toSorted(compareVersions)).toEqual([
    '6.1.0-9-amd64',
    '6.1.0-47-amd64',
    '6.12.1-amd64',
  ]);
});

test('the beginning of a version means the newest that is made for virtual machines, else the newest', () => {
  const here = offered('6.1.0-9-cloud-amd64', '6.1.0-47-amd64', '6.1.0-47-cloud-amd64', '6.12.1-rt-amd64', '6.12.2-amd64');
  expect(matching('6.1', here)?.version).toBe('6.1.0-47-cloud-amd64');
  expect(matching('6.1.0-9', here)?.version).toBe('6.1.0-9-cloud-amd64');
  expect(matching('6.12', here)?.version).toBe('6.12.2-amd64');
  expect(matching('6.12.1-rt-amd64', here)?.version).toBe('6.12.1-rt-amd64');
  expect(matching('6.1.0-4', here)).toBeNull(); // 6.1.0-47 does not begin with the number 4
  expect(matching('7', here)).toBeNull();
});
