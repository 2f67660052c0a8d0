import { expect, test } from 'vitest';
import { difference } from './bundle.ts';
import { templateRecipe } from './template-key.ts';

const boot = {
  ...{ imagePath: '/i', kernelPath: '/k', initramfsPath: '/r' },
  ...{ imageDigest: 'image', kernelDigest: 'kernel', initramfsDigest: 'agent' },
} as Parameters<typeof templateRecipe>[1];

const recipe = (acceleration: 'kvm' | 'tcg', identity: string, emulator = '7.2') =>
  templateRecipe({ cpus: 1, memoryMiB: 512 }, boot, emulator, acceleration, { identity, tscKhz: null }, 2 ** 30);

test('with hardware virtualization another processor, or another of its flags, is another template, and refuses what was saved', () => {
  const [one, other] = [recipe('kvm', 'Maker, model 1, flags a b'), recipe('kvm', 'Maker, model 1, flags a')];
  expect(other.key).not.toBe(one.key);
  expect(difference(one.fingerprint, other.fingerprint)).toBe('the processor is not what it was when it was made');
  expect(difference(one.fingerprint, recipe('kvm', 'Maker, model 1, flags a b').fingerprint, 'everything')).toBeNull();
  // The guest sees QEMU's processor, on every host the same.
  expect(recipe('tcg', 'this').key).toBe(recipe('tcg', 'that').key);
  expect(difference(one.fingerprint, recipe('tcg', 'this').fingerprint)).toContain('the acceleration (kvm then, tcg now), the processor');
  expect(difference(one.fingerprint, recipe('kvm', 'Maker, model 1, flags a b', '8.0').fingerprint)).toBe(
    'the version of QEMU (7.2 then, 8.0 now) is not what it was when it was made',
  );
});
