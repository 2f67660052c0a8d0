import { expect, test } from 'vitest';
import { tinyModule } from '../../test/images/payloads.ts';
import { moduleIndex, modulesInOrder } from './modules.ts';

function reader(modules: Record<string, string[]>) {
  const index = moduleIndex(Object.keys(modules).join('\n'), 'kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c_generic.ko\n');
  return { index, read: async (path: string) => tinyModule(modules[path] ?? []) };
}

const names = (modules: readonly { name: string }[]) => modules.map(({ name }) => name);

test('what a module depends on is loaded before it, once', async () => {
  const { index, read } = reader({
    'kernel/net.ko': ['depends=net-failover,ring'],
    'kernel/net-failover.ko': ['depends=failover'],
    'kernel/failover.ko': ['depends='],
    'kernel/ring.ko': ['depends='],
    'kernel/blk.ko': ['depends=ring'],
  });
  expect(names(await modulesInOrder(['blk', 'net'], index, read))).toEqual(['ring', 'blk', 'failover', 'net_failover', 'net']);
});

test('what the kernel has built in is not loaded', async () => {
  const { index, read } = reader({ 'kernel/overlay.ko': ['depends=crc32c-generic'] });
  expect(names(await modulesInOrder(['ext4', 'overlay'], index, read))).toEqual(['overlay']);
});

test('a soft dependency comes first where it exists, and is no matter where it does not', async () => {
  const { index, read } = reader({ 'kernel/a.ko': ['softdep=pre: b nowhere'], 'kernel/b.ko': ['softdep=pre: a'] });
  expect(names(await modulesInOrder(['a'], index, read))).toEqual(['b', 'a']);
});

test('a module that is missing is named', async () => {
  const { index, read } = reader({ 'kernel/a.ko': ['depends=gone'] });
  await expect(modulesInOrder(['a'], index, read)).rejects.toThrow('it has no module gone, neither as a file nor built in');
});

test('modules that depend on each other are refused', async () => {
  const { index, read } = reader({ 'kernel/a.ko': ['depends=b'], 'kernel/b.ko': ['depends=a'] });
  await expect(modulesInOrder(['a'], index, read)).rejects.toThrow('depends on itself');
});
