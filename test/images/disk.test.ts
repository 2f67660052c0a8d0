// Disk images as images: what is read out of them is what was put in, in every form; what lies is refused.
import { execFileSync } from 'node:child_process';
import { chmod, lchown, link, mkdir, mkdtemp, open, readFile, rm, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ArchiveError } from '../../src/domain/archive-error.ts';
import type { Disk } from '../../src/images/disk/bytes.ts';
import { Ext4 } from '../../src/images/disk/ext4.ts';
import { rootOf } from '../../src/images/disk/partitions.ts';
import { qcow2Disk } from '../../src/images/disk/qcow2.ts';
import { tarOf } from '../../src/images/disk/tar.ts';
import { testOperation } from '../support/operation.ts';
import { type Place, place, readTree, type Seen, treeOf } from './place.ts';

const op = testOperation();
const MUTATIONS = process.env['HUTCH_TEST_LONG'] === undefined ? 120 : 30_000;
const SEED = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
let dir = '';
let tree = '';
let at: Place;

const run = (...argv: string[]): Buffer =>
  execFileSync(argv[0] ?? '', argv.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 2 ** 28 });

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'hutch-disk-'));
  at = await place();
  tree = join(dir, 'tree');
  for (const path of ['etc', 'many', 'a/b/c/d', 'empty']) await mkdir(join(tree, path), { recursive: true });
  await writeFile(join(tree, 'etc/hostname'), 'disk\n');
  await writeFile(join(tree, 'bin'), 'program', { mode: 0o755 });
  await chmod(join(tree, 'bin'), 0o4755);
  await link(join(tree, 'etc/hostname'), join(tree, 'a/b/again'));
  await symlink('../etc/hostname', join(tree, 'a/short'));
  await symlink(`/${'long/'.repeat(40)}end`, join(tree, 'a/long'));
  await writeFile(join(tree, 'large'), Buffer.alloc(3_000_123, 'large file '));
  // Data, a hole, data, and a hole at the end: more pieces than an inode has room for.
  const sparse = await open(join(tree, 'sparse'), 'w');
  for (let piece = 0; piece < 12; piece += 1) await sparse.write(`piece ${piece}`, piece * 200_000);
  await sparse.close();
  await truncate(join(tree, 'sparse'), 5_000_000);
  for (let index = 0; index < 300; index += 1)
    await writeFile(join(tree, 'many', `file-${index}-${'x'.repeat(index % 60)}`), String(index));
  await writeFile(join(tree, 'a/b/c/d/ümlaut'), 'ü');
  await utimes(join(tree, 'etc/hostname'), 1_500_000_000, 1_500_000_000);
  if (process.getuid?.() !== 0) return;
  await lchown(join(tree, 'bin'), 70_000, 71_000);
  run('mknod', join(tree, 'null'), 'c', '1', '3');
  run('mknod', join(tree, 'wide'), 'b', '300', '70000');
  run('mkfifo', join(tree, 'pipe'));
}, 60_000);

afterAll(async () => {
  await at[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

/** A file system with the tree in it. */
function made(name: string, size: string, ...options: string[]): string {
  const path = join(dir, name);
  run('mke2fs', '-q', '-F', '-m', '0', ...options, '-d', tree, path, size);
  return path;
}

async function* chunks(bytes: Buffer): AsyncGenerator<Uint8Array> {
  for (let from = 0; from < bytes.byteLength; from += 1_000_003) yield bytes.subarray(from, from + 1_000_003);
}

async function imported(bytes: Buffer) {
  const {
    images: [only],
  } = await at.library.import(op, chunks(bytes));
  if (only === undefined) throw new Error('nothing was imported');
  return only.image;
}

const outcomeOf = async (bytes: Buffer): Promise<string> =>
  await imported(bytes).then(
    () => 'taken',
    (error: { code?: string; message: string }) => `${error.code}: ${error.message}`,
  );

test('what is in a disk image is what was put into it: ext2, ext3 and ext4, with small blocks and large, raw, packed and qcow2', {
  timeout: 120_000,
}, async () => {
  const expected = await readTree(run('tar', '--create', '--format=posix', '--numeric-owner', '--directory', tree, '.'));
  expect(expected.size).toBeGreaterThan(310);
  const ext4 = made('ext4', '16M', '-t', 'ext4');
  const [zlib, zstd, plain] = ['zlib', 'zstd', 'plain'].map((name) => join(dir, `${name}.qcow2`)) as [string, string, string];
  run('qemu-img', 'convert', '-O', 'qcow2', ext4, plain);
  run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', 'cluster_size=4k,compat=0.10', ext4, zlib);
  run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd', ext4, zstd);
  const disks: readonly (readonly [string, Buffer])[] = [
    ['ext4', await readFile(ext4)],
    ['ext4 with blocks of 1 KiB', await readFile(made('small', '16M', '-t', 'ext4', '-b', '1024', '-I', '256'))],
    ['ext4 without 64 bits', await readFile(made('narrow', '16M', '-t', 'ext4', '-O', '^64bit,^metadata_csum,^flex_bg'))],
    ['ext3', await readFile(made('ext3', '24M', '-t', 'ext3', '-b', '1024'))],
    ['ext2 with small inodes', await readFile(made('ext2', '16M', '-t', 'ext2', '-b', '1024', '-I', '128'))],
    ['qcow2', await readFile(plain)],
    ['qcow2, version 2, compressed', await readFile(zlib)],
    ['qcow2, compressed with zstd', await readFile(zstd)],
    ['in an MBR partition', partitioned(await readFile(ext4), 'mbr')],
    ['in a GPT partition', partitioned(await readFile(ext4), 'gpt')],
  ];
  for (const [what, bytes] of disks) {
    const found = await readTree(Buffer.concat(await tarOfBytes(bytes, what.startsWith('qcow2'))));
    expect([...found.keys()].toSorted(), what).toEqual([...expected.keys()].toSorted());
    for (const [path, { content, ...said }] of found) {
      const { content: own, link: wantedLink, ...wanted } = expected.get(path) as Seen;
      const { link: saidLink, ...rest } = said;
      // Of a file with two names either may come first; the root's times are the maker's.
      if (said.type === 'hardlink' || wanted.type === 'hardlink')
        expect([path, saidLink || wantedLink].join(' ')).toMatch(/hostname|again/);
      else if (path !== '' && path !== '.')
        expect({ ...rest, link: saidLink }, `${what}: ${path}`).toEqual({ ...wanted, link: wantedLink });
      if (said.type === 'file' && wanted.type === 'file') expect(content.equals(own), `${what}: ${path}`).toBe(true);
    }
  }
});

test('a disk image becomes an image, the same whichever way it is wrapped', { timeout: 120_000 }, async () => {
  const ext4 = made('wrapped', '16M', '-t', 'ext4');
  run('qemu-img', 'convert', '-c', '-O', 'qcow2', ext4, join(dir, 'wrapped.qcow2'));
  const first = await imported(gzipSync(await readFile(ext4), { level: 1 }));
  const found = await treeOf(first);
  expect(found.get('many/file-1-x')?.content.toString()).toBe('1');
  expect(found.get('large')?.content.byteLength).toBe(3_000_123);
  expect((await imported(await readFile(join(dir, 'wrapped.qcow2')))).record.digest).toBe(first.record.digest);
  expect((await at.left()).staging).toEqual([]);
});

test('extended attributes come along, those of a file system’s own do not', async () => {
  const disk = made('xattr', '16M', '-t', 'ext4');
  run('debugfs', '-w', '-R', 'ea_set /bin user.own value', disk);
  run('debugfs', '-w', '-R', `ea_set /bin security.long ${'v'.repeat(300)}`, disk);
  const tree = await treeOf(await imported(await readFile(disk)));
  const xattrs = tree.get('bin')?.xattrs;
  expect([...(xattrs ?? [])].map(([name, value]) => [name, String(value)]).toSorted()).toEqual([
    ['security.long', 'v'.repeat(300)],
    ['user.own', 'value'],
  ]);
});

test('a disk image that lies, or needs more than itself, is refused with one sentence, and leaves nothing', {
  timeout: 60_000,
}, async () => {
  const ext4 = await readFile(made('lies', '16M', '-t', 'ext4'));
  const changed = (change: (bytes: Buffer) => void, of: Buffer = ext4): Buffer => {
    const bytes = Buffer.from(of);
    change(bytes);
    return bytes;
  };
  const path = join(dir, 'q.qcow2');
  run('qemu-img', 'convert', '-O', 'qcow2', join(dir, 'lies'), path);
  const qcow2 = await readFile(path);
  run('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', '/etc/passwd', join(dir, 'over.qcow2'));
  run(
    'qemu-img',
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    `data_file=${join(dir, 'data')},data_file_raw=on`,
    join(dir, 'external.qcow2'),
    '16M',
  );
  const loop = made('loop', '16M', '-t', 'ext4');
  run('debugfs', '-w', '-R', 'link a a/b/loop', loop);
  const cases: readonly (readonly [string, Buffer, RegExp])[] = [
    ['over another file', await readFile(join(dir, 'over.qcow2')), /over another file/],
    ['with data elsewhere', await readFile(join(dir, 'external.qcow2')), /data lies in another file/],
    ['encrypted', changed((bytes) => bytes.writeUInt32BE(1, 32), qcow2), /encrypted/],
    ['of a later version', changed((bytes) => bytes.writeUInt32BE(4, 4), qcow2), /version 4/],
    ['of exabytes', changed((bytes) => bytes.writeBigUInt64BE(2n ** 60n, 24), qcow2), /a disk of|larger than any disk|too short/],
    ['with a table far away', changed((bytes) => bytes.writeBigUInt64BE(2n ** 50n, 40), qcow2), /beyond its own end/],
    ['with impossible clusters', changed((bytes) => bytes.writeUInt32BE(60, 20), qcow2), /clusters of 2\^60/],
    ['a qcow2 that is cut', qcow2.subarray(0, 100_000), /beyond its own end/],
    ['a header alone', qcow2.subarray(0, 50), /no qcow2|cut/],
    ['a disk that is cut', ext4.subarray(0, 3_000_000), /cut off|beyond its own end/],
    ['a journal to replay', changed((bytes) => bytes.writeUInt32LE(bytes.readUInt32LE(0x460) | 4, 0x460)), /e2fsck/],
    ['features of the future', changed((bytes) => bytes.writeUInt32LE(0x8000_0000, 0x460)), /not understood/],
    ['no inodes in a group', changed((bytes) => bytes.writeUInt32LE(0, 0x428)), /contradicts itself/],
    ['blocks of gigabytes', changed((bytes) => bytes.writeUInt32LE(30, 0x418)), /impossible size/],
    ['a directory in itself', await readFile(loop), /in two places/],
    [
      'XFS',
      changed((bytes) => {
        bytes.fill(0, 0, 2_048).write('XFSB', 0);
        bytes.writeUInt16LE(0xaa55, 510);
      }),
      /no ext4 file system.*XFS/,
    ],
    [
      'a boot sector and nothing',
      changed((bytes) => {
        bytes.fill(0).writeUInt16LE(0xaa55, 510);
      }),
      /no ext4 file system/,
    ],
    [
      'a GPT that is none',
      changed((bytes) => {
        bytes.fill(0).writeUInt16LE(0xaa55, 510);
        bytes.writeUInt8(0xee, 450);
      }),
      /partition table/,
    ],
  ];
  for (const [what, bytes, sentence] of cases) {
    expect(await outcomeOf(bytes), what).toMatch(new RegExp(`^failed_precondition: the archive cannot be used: .*(${sentence.source})`));
    expect((await at.left()).staging, what).toEqual([]);
  }
});

test('whatever bytes of a disk image are changed, it is read or refused with one sentence', {
  timeout: MUTATIONS * 60 + 120_000,
}, async () => {
  const few = join(dir, 'few');
  await mkdir(join(few, 'etc/deep'), { recursive: true });
  for (let index = 0; index < 20; index += 1) await writeFile(join(few, 'etc', `name-${index}`), 'x'.repeat(index * 300));
  await symlink('etc', join(few, 'link'));
  const [ext4, ext2] = [join(dir, 'few.ext4'), join(dir, 'few.ext2')];
  run('mke2fs', '-q', '-F', '-t', 'ext4', '-b', '1024', '-N', '64', '-O', '^has_journal', '-d', few, ext4, '1M');
  run('mke2fs', '-q', '-F', '-t', 'ext2', '-b', '1024', '-N', '64', '-d', few, ext2, '1M');
  const packed = join(dir, 'few.qcow2');
  run('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', 'cluster_size=4k', ext4, packed);
  let state = SEED;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const outcomes = { read: 0, refused: 0 };
  for (const path of [ext4, ext2, packed]) {
    const sound = await readFile(path);
    // Where something stands: in most of the disk nothing does.
    const places = [...sound.keys()].filter((offset) => sound[offset] !== 0);
    for (let mutation = 0; mutation < MUTATIONS; mutation += 1) {
      const bytes = Buffer.from(sound);
      for (let count = 1 + random(4); count > 0; count -= 1) bytes[(places[random(places.length)] ?? 0) + random(4)] = random(256);
      const outcome = await readThrough(bytes, path === packed);
      if (outcome instanceof ArchiveError || outcome === null) outcomes[outcome === null ? 'read' : 'refused'] += 1;
      else throw new Error(`seed ${SEED}, ${path}, mutation ${mutation}`, { cause: outcome });
    }
  }
  expect(outcomes.read).toBeGreaterThan(MUTATIONS / 10);
  expect(outcomes.refused).toBeGreaterThan(MUTATIONS / 10);
});

/** Null, or what it was refused with. */
async function readThrough(bytes: Buffer, isQcow2: boolean): Promise<unknown> {
  try {
    await tarOfBytes(bytes, isQcow2);
    return null;
  } catch (error) {
    return error;
  }
}

async function tarOfBytes(bytes: Buffer, isQcow2: boolean): Promise<readonly Uint8Array[]> {
  const disk: Disk = {
    sizeBytes: bytes.byteLength,
    async read(offset, length) {
      if (!(offset >= 0 && length >= 0 && offset + length <= bytes.byteLength)) throw new ArchiveError('beyond its end');
      return bytes.subarray(offset, offset + length);
    },
  };
  const files = await Ext4.open(await rootOf(isQcow2 ? await qcow2Disk(disk) : disk));
  const parts: Uint8Array[] = [];
  for await (const chunk of tarOf(files, { entriesMax: 10_000, bytesMax: 2 ** 26 })) parts.push(chunk);
  return parts;
}

/** Behind a boot sector and its partition table, at 1 MiB. */
function partitioned(fileSystem: Buffer, how: 'mbr' | 'gpt'): Buffer {
  const head = Buffer.alloc(1024 * 1024);
  const [first, sectors] = [2_048, fileSystem.byteLength / 512];
  head.writeUInt16LE(0xaa55, 510);
  head.writeUInt8(how === 'mbr' ? 0x83 : 0xee, 450);
  head.writeUInt32LE(how === 'mbr' ? first : 1, 454);
  head.writeUInt32LE(sectors, 458);
  if (how === 'gpt') {
    head.write('EFI PART', 512);
    head.writeBigUInt64LE(2n, 512 + 72);
    head.writeUInt32LE(128, 512 + 80);
    head.writeUInt32LE(128, 512 + 84);
    head.writeBigUInt64LE(BigInt(first), 1_024 + 128 + 32);
    head.writeBigUInt64LE(BigInt(first + sectors - 1), 1_024 + 128 + 40);
  }
  return Buffer.concat([head, fileSystem]);
}
