import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { HostFiles, isBare } from './host-files.ts';

const line = (point: string) => `8 8 0:8 / ${point} rw  - 9p none rw,trans=fd\n`;

test('a path on which something is mounted is none of the root’s own', () => {
  const mounts = ['/', '/proc', '/tmp', '/mnt/a\\040b'].map(line).join('');
  const bare = (path: string, more = '') => isBare(mounts + more, path, ['/', '/tmp']);
  expect(['/root/file', '/tmp/file', '/process/file', '/mnt/a', '/mnt/a b2/x'].filter((path) => !bare(path))).toEqual([]);
  expect(['/proc/1/status', '/proc', '/mnt/a b/file'].filter((path) => bare(path))).toEqual([]);
  expect(bare('/tmp/file', line('/tmp')), 'something lies over it').toBe(false);
  expect(bare('/root/file', line('/')), 'something lies over all of it').toBe(false);
  expect(isBare('', '/root/file', ['/'])).toBe(false);
});

test('nothing is read or written while a disk is held, and nothing any more once its files are let go', async () => {
  const op = testOperation();
  const files = new HostFiles();
  const calls: string[] = [];
  const writing = Promise.withResolvers<void>();
  const file = files.keep({
    stat: async () => ({ sizeBytes: 0, mode: 0, uid: 0, gid: 0 }),
    read: async () => calls.push('read'),
    write: async () => {
      calls.push('write');
      await writing.promise;
      calls.push('written');
    },
    sync: async () => {},
    [Symbol.asyncDispose]: async () => void calls.push('closed'),
  });
  const written = file.write(op, new Uint8Array(1), 0);
  const holding = files.hold().then((hold) => {
    calls.push('held');
    return hold;
  });
  const read = file.read(op, new Uint8Array(1), 0);
  writing.resolve();
  const hold = await holding;
  await written;
  expect(calls).toEqual(['write', 'written', 'held']);
  hold[Symbol.dispose]();
  await read;
  expect(calls.at(-1)).toBe('read');
  await files.close();
  await files.close();
  expect(calls.slice(4)).toEqual(['closed']);
  await expect(file.read(op, new Uint8Array(1), 0)).rejects.toMatchObject({ code: 'unavailable' });
});
