import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { bzImage, tinyKernel } from '../../test/images/payloads.ts';
import { unpackKernel, VMLINUX_BYTES_MAX } from './bzimage.ts';
import { DamagedPayload } from './payload-error.ts';

const noXz = () => Promise.reject(new Error('xz was not expected'));
const kernel = tinyKernel({ padding: 5000 });
const zstd = (bytes: Uint8Array) => bzImage(zstdCompressSync(bytes), bytes.byteLength);

test('a kernel is unpacked from gzip and zstd', async () => {
  expect(await unpackKernel(bzImage(gzipSync(kernel), null), noXz)).toEqual(Buffer.from(kernel));
  expect(await unpackKernel(zstd(kernel), noXz)).toEqual(Buffer.from(kernel));
});

test('xz is left to the program, with the announced size as its bound', async () => {
  const packed = Uint8Array.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 1, 2]);
  const asked: unknown[] = [];
  const unpacked = await unpackKernel(bzImage(packed, kernel.byteLength), (bytes, bytesMax) => {
    asked.push(Buffer.from(bytes), bytesMax);
    return Promise.resolve(kernel);
  });
  expect(asked).toEqual([Buffer.from(packed), kernel.byteLength]);
  expect(unpacked).toBe(kernel);
});

test.for([
  ['an empty file', new Uint8Array(), /has only 0 bytes/],
  ['a text', new Uint8Array(4096).fill(65), /no Linux boot header/],
  ['a cut vmlinuz', zstd(kernel).slice(0, -20), /cut off: its kernel should end at byte/],
  ['an unknown packing', bzImage(Uint8Array.from([1, 2, 3, 4, 5]), 100), /not known \(magic 04030201\)/],
  ['a kernel larger than it announces', bzImage(zstdCompressSync(kernel), kernel.byteLength - 1), /zstd stream does not unpack/],
  ['a kernel smaller than it announces', bzImage(zstdCompressSync(kernel), kernel.byteLength + 1), /not to the \d+ that it announces/],
  ['an announcement beyond the bound', bzImage(zstdCompressSync(kernel), VMLINUX_BYTES_MAX + 1), /at most 268435456 are accepted/],
  ['a damaged gzip stream', bzImage(gzipSync(kernel).fill(0, 30, 40), null), /gzip stream does not unpack/],
  ['a kernel without a PVH entry', zstd(tinyKernel({ note: 'GNU' })), /no PVH entry/],
  ['a kernel for another machine', zstd(tinyKernel({ machine: 183 })), /not for x86_64/],
  ['something that is no ELF file', zstd(Buffer.from('#!/bin/sh\n'.repeat(20))), /no 64-bit little-endian ELF file/],
] as const)('%s is refused with one clear sentence', async ([, vmlinuz, message]) => {
  await expect(unpackKernel(vmlinuz, noXz)).rejects.toThrow(DamagedPayload);
  await expect(unpackKernel(vmlinuz, noXz)).rejects.toThrow(message);
});

test('an old boot protocol, which does not say where the kernel lies, is refused', async () => {
  const old = zstd(kernel);
  old.set([0x04, 0x02], 0x206);
  await expect(unpackKernel(old, noXz)).rejects.toThrow(/boot protocol 204, older than 2\.08/);
});

test('whichever byte of the header is changed, it unpacks or is refused', async () => {
  const good = zstd(kernel);
  await fc.assert(
    fc.asyncProperty(fc.nat(0x300), fc.nat(255), async (at, value) => {
      const changed = good.slice();
      changed[at] = value;
      const result = await unpackKernel(changed, () => Promise.reject(new DamagedPayload('xz'))).catch((error: unknown) => error);
      if (!(result instanceof Uint8Array)) expect(result).toBeInstanceOf(DamagedPayload);
    }),
    { numRuns: 300 },
  );
});
