import fc from 'fast-check';
import { expect, test } from 'vitest';
import { tinyKernel, tinyModule } from '../../test/images/payloads.ts';
import { checkKernelElf, moduleInfo } from './elf.ts';
import { DamagedPayload } from './payload-error.ts';

test('a module says what it depends on, hard and soft', () => {
  const module = tinyModule(['license=GPL', 'depends=virtio,virtio_ring', 'softdep=pre: crc32c  lz4 post: later', 'name=x']);
  expect(moduleInfo(module)).toEqual({ depends: ['virtio', 'virtio_ring'], softBefore: ['crc32c', 'lz4'] });
});

test('a module without dependencies has none', () => {
  expect(moduleInfo(tinyModule(['depends=', 'softdep=post: a']))).toEqual({ depends: [], softBefore: [] });
});

test('a kernel is no module, and a module no kernel', () => {
  expect(() => moduleInfo(tinyKernel())).toThrow(/of the wrong kind/);
  expect(() => checkKernelElf(tinyModule([]))).toThrow(/of the wrong kind/);
});

test('whatever the bytes, they are read within their bounds or refused', () => {
  const mutated = fc.tuple(
    fc.constantFrom(tinyKernel(), tinyModule(['depends=a,b'])),
    fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 8 }),
    fc.nat(400),
  );
  fc.assert(
    fc.property(mutated, ([original, changes, cut]) => {
      const bytes = original.slice();
      for (const [at, value] of changes) if (at < bytes.byteLength) bytes[at] = value;
      for (const parse of [checkKernelElf, moduleInfo]) {
        for (const candidate of [bytes, bytes.slice(0, cut)]) {
          try {
            parse(candidate);
          } catch (error) {
            expect(error).toBeInstanceOf(DamagedPayload);
          }
        }
      }
    }),
    { numRuns: 1000 },
  );
});
