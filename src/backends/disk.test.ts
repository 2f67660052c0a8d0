// Over the real host: mke2fs and a directory of our own.
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import { nodeHost } from '../host/node-host.ts';
import { DiskSeeds, whatIsWrong } from './disk.ts';

const MIB = 2 ** 20;

test('a new disk has its size and takes next to nothing; of seeds nothing stays, whoever was killed while making one', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-disk-'));
  onTestFinished(() => rm(dir, { recursive: true }));
  await writeFile(join(dir, '.seed-8589934592-0123456789abcdef'), 'left');
  const [op, host] = [testOperation(), nodeHost()];
  const seeds = new DiskSeeds(host, dir);
  const made = [64, 96].map((mebibytes) => seeds.makeDisk(op, join(dir, `${mebibytes}.img`), mebibytes * MIB, null));
  await Promise.all(made);
  expect((await readdir(dir)).sort()).toEqual(['64.img', '96.img']);
  for (const mebibytes of [64, 96]) {
    const { size, blocks } = await stat(join(dir, `${mebibytes}.img`));
    expect(size).toBe(mebibytes * MIB);
    expect(blocks * 512).toBeLessThan(size / 4);
  }
  const { exitCode } = await host.run(op, ['e2fsck', '-fn', join(dir, '96.img')]);
  expect(exitCode).toBe(0);
});

test('of what e2fsck says, one line tells why it ended', () => {
  const superblock =
    '/v/disk.img: \nThe superblock could not be read or does not describe a valid ext2/ext3/ext4\nfilesystem.  If the device is valid …\n\ne2fsck: Bad magic number in super-block while trying to open /v/disk.img';
  const inode =
    '/v/disk.img: Inode 12 has illegal block(s).  \n\n/v/disk.img: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)';
  expect(whatIsWrong(superblock, '/v/disk.img')).toBe('Bad magic number in super-block');
  expect(whatIsWrong(inode, '/v/disk.img')).toBe('Inode 12 has illegal block(s).');
});
