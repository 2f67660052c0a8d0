// Archives that lie: none leads out of the image, hangs, or takes more than its bound; each is one error that says what is wrong, and
// nothing of it is left. What is only odd is taken as it is.
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { padding } from '../../src/domain/tar/entry.ts';
import { TarReader } from '../../src/domain/tar/reader.ts';
import { testOperation } from '../support/operation.ts';
import { image, pax, tampered, tar, withPax } from './archives.ts';
import { type Cases, file, Hostile, header, layer, packed } from './hostile.ts';
import { type Place, place, readTree, treeOf } from './place.ts';
import type { FakeRegistry } from './registry.ts';

let hostile: Hostile;
let registry: FakeRegistry;
let here: Place;
beforeAll(async () => {
  hostile = await Hostile.make();
  ({ registry, here } = hostile);
});
afterAll(async () => await hostile?.[Symbol.asyncDispose]());

const deep = (depth: number) => `${'d/'.repeat(depth)}f`;
const links = (count: number) =>
  Array.from({ length: count }, (_, at) => ({ path: `l${at}`, type: 'symlink' as const, link: `l${at + 1}` }));

/** Form 1.0: the map lies in front of the data. */
function sparse1(map: string, data: string, realSize: number): Buffer {
  const text = Buffer.concat([Buffer.from(map), Buffer.alloc(padding(map.length))]).toString('latin1');
  const records =
    pax('GNU.sparse.major', '1') +
    pax('GNU.sparse.minor', '0') +
    pax('GNU.sparse.name', 's') +
    pax('GNU.sparse.realsize', String(realSize));
  return withPax(records, { path: 'GNUSparseFile.0/s', content: text + data });
}
const sparse01 = (map: string, size: number, data: string) =>
  withPax(pax('GNU.sparse.size', String(size)) + pax('GNU.sparse.map', map), { path: 's', content: data });

const ARCHIVES: Cases = {
  'a path with ..': [() => layer(file('../etc/passwd')), /'\.\.\/etc\/passwd' leads out/],
  'a path that leads out on a detour': [() => layer(file('a/b/../../../etc/x')), /leads out/],
  'an absolute path with ..': [() => layer(file('/../x')), /leads out/],
  'a symlink that follows itself': [
    () => layer({ path: 'a', type: 'symlink', link: 'b' }, { path: 'b', type: 'symlink', link: 'a' }, file('a/f')),
    /more than 40 symlinks/,
  ],
  'a chain of 41 symlinks': [() => layer(...links(41), file('l0/f')), /more than 40 symlinks/],
  'a symlink to nothing': [() => layer({ path: 'l', type: 'symlink', link: '' }), /target that Linux does not allow/],
  'a symlink to more than a path': [() => layer({ path: 'l', type: 'symlink', link: 'a'.repeat(4_096) }), /long link|target that Linux/],
  'a hard link that leads out': [() => layer({ path: 'h', type: 'hardlink', link: '../../etc/shadow' }), /leads out/],
  'a hard link to a file of this machine': [() => layer({ path: 'h', type: 'hardlink', link: '/etc/passwd' }), /which is not there/],
  'a hard link through a symlink to this machine': [
    () => layer({ path: 'l', type: 'symlink', link: '/etc' }, { path: 'h', type: 'hardlink', link: 'l/passwd' }),
    /which is not there/,
  ],
  'a hard link to a directory': [
    () => layer({ path: 'd', type: 'directory' }, { path: 'h', type: 'hardlink', link: 'd' }),
    /to a directory/,
  ],
  'a hard link to itself': [() => layer({ path: 'h', type: 'hardlink', link: 'h' }), /which is not there/],
  'a file below a file': [() => layer(file('f'), file('f/g')), /below something that is no directory/],
  'a file for the root': [() => layer(file('.')), /replace the root/],
  'a NUL in a name': [() => layer(withPax(pax('path', 'a\0b'), file('f'))), /NUL in its path/],
  'a name of 256 bytes': [() => layer(file('n'.repeat(256))), /more than 255 bytes/],
  'a path of 5,000 bytes': [() => layer(file(`${'n'.repeat(99)}/`.repeat(50))), /more than 4095 bytes/],
  'a depth of 2,000': [() => layer(file(deep(2_000))), /directories deep/],
  'a depth of 4,000': [() => layer(file(deep(4_000))), /more than 4095 bytes/],
  'a depth that grows by symlinks': [
    () => layer(file(deep(500)), { path: 'l', type: 'symlink', link: 'd/'.repeat(500) }, file(`l/${'e/'.repeat(600)}f`)),
    /directories deep/,
  ],
  'a whiteout of nothing': [() => layer(file('.wh.')), /has no name/],
  'a whiteout of .': [() => layer(file('.wh..')), /has no name/],
  'a whiteout of ..': [() => layer(file('d/.wh...')), /has no name/],
  'a size beyond the archive': [() => layer(tampered(header('f'), 124, '00000100000\0')), /cut off/],
  'a negative size': [() => layer(tampered(header('f'), 124, Buffer.alloc(12, 0xff))), /negative size/],
  'a size of 2^88': [
    () => layer(tampered(header('f'), 124, Buffer.concat([Buffer.from([0x80]), Buffer.alloc(11, 0x7f)]))),
    /size that is too large/,
  ],
  'a size that is no number': [() => layer(tampered(header('f'), 124, 'many things\0')), /size that is no number/],
  'a user that Linux does not have': [() => layer(withPax(pax('uid', '4294967296'), file('f'))), /which no Linux has/],
  'a mode that is no number': [() => layer(tampered(header('f'), 100, 'rwxr-xr\0')), /mode that is no number/],
  'a wrong checksum': [() => layer(Buffer.concat([Buffer.from(header('f')).fill('x', 0, 4)])), /no tar archive/],
  'a PAX record that is longer than its header': [() => layer(withPax('99 path=a\n', file('f'))), /PAX header is damaged/],
  'a PAX record of no length': [() => layer(withPax('0 path=a\n', file('f'))), /PAX header is damaged/],
  'a PAX record without an end': [() => layer(withPax('9 path=ab', file('f'))), /PAX header is damaged/],
  'a PAX record without a value': [() => layer(withPax('7 path\n', file('f'))), /PAX header is damaged/],
  'a PAX header of 2 MiB': [() => layer(withPax(pax('comment', 'c'.repeat(2 * 1024 * 1024)), file('f'))), /at most 1048576 are read/],
  'a PAX size that overflows': [() => layer(withPax(pax('size', '9'.repeat(16)), file('f'))), /too large/],
  'a PAX time that is none': [() => layer(withPax(pax('mtime', 'soon'), file('f'))), /no time/],
  'twenty headers before one entry': [
    () => layer(...Array.from({ length: 20 }, () => withPax(pax('comment', 'c'), { path: 'f' }).subarray(0, 1_024))),
    /headers stand before one entry/,
  ],
  'a header that announces nothing': [() => layer(withPax(pax('path', 'a'), { path: 'f' }).subarray(0, 1_024)), /announces an entry/],
  'a long name that does not end': [
    () => layer(tampered(tampered(header('././@LongLink'), 156, 'L'), 124, '00010000000\0')),
    /at most 4096 are read/,
  ],
  'a volume of several': [() => layer(tampered(header('v'), 156, 'M')), /kind that is not known/],
  'holes that overlap': [() => layer(sparse01('0,4,2,4', 10, 'abcdefgh')), /map of the holes/],
  'holes beyond the file': [() => layer(sparse01('0,4,100,4', 10, 'abcdefgh')), /map of the holes/],
  'holes that leave data over': [() => layer(sparse01('0,4', 10, 'abcdefgh')), /map of the holes/],
  'half a hole': [() => layer(sparse01('0', 10, '')), /map of the holes/],
  'a map of a million holes': [() => layer(sparse1('1000000\n', '', 10)), /more than 65536 pieces/],
  'a map of holes that is longer than the file': [() => layer(sparse1('3\n0\n', '', 10)), /longer than the file|map of the holes/],
  'a sparse file of 8 PiB': [() => layer(sparse1('0\n', '', 2 ** 53 - 1)), /more than 8388608 bytes/],
  'an extended attribute of 100 KiB': [
    () => layer({ ...file('f'), xattrs: new Map([['user.x', Buffer.alloc(100 * 1024)]]) }),
    /at most 65536 are allowed/,
  ],
  'extended attributes of 400 KiB': [
    () => layer({ ...file('f'), xattrs: new Map(Array.from({ length: 8 }, (_, at) => [`user.x${at}`, Buffer.alloc(50 * 1024)])) }),
    /attributes of one file/,
  ],
  'a device with a number that is none': [
    () => layer({ path: 'dev', type: 'block', devMajor: 5_000, devMinor: 0 }),
    /number that Linux does not have/,
  ],
  'more entries than are taken': [() => layer(...Array.from({ length: 5_001 }, (_, at) => ({ path: `f${at}` }))), /more than 5000 entries/],
  'directories that nobody describes, too many': [
    () => layer(...Array.from({ length: 50 }, (_, at) => file(`${at}/${deep(200)}`))),
    /more than 5000 entries/,
  ],
  'names that take too much memory': [
    () => layer(...Array.from({ length: 400 }, (_, at) => ({ path: `${'n'.repeat(200)}/`.repeat(18) + at }))),
    /take more than 1048576 bytes/,
  ],
  'a bomb of zeros in a file': [() => layer({ path: 'bomb', content: Buffer.alloc(9 * 1024 * 1024) }), /more than 8388608 bytes/],
  'a bomb of zeros behind the archive': [
    () => image([Buffer.concat([tar(file('f')), Buffer.alloc(17 * 1024 * 1024)])]),
    /more than 16777216 bytes when it is unpacked/,
  ],
  'a bomb of layers': [
    () => image(Array.from({ length: 3 }, (_, at) => tar({ path: `f${at}`, content: Buffer.alloc(3 * 1024 * 1024) }))),
    /more than 8388608 bytes/,
  ],
  'gzip that is cut off': [() => packed((bytes) => gzipSync(bytes).subarray(0, 60)), /does not unpack \(gzip\)/],
  'gzip with a wrong checksum': [
    () => packed((bytes) => Buffer.concat([gzipSync(bytes).subarray(0, -8), Buffer.alloc(8, 1)])),
    /does not unpack \(gzip\)/,
  ],
  'gzip with garbage behind it': [
    () => packed((bytes) => Buffer.concat([gzipSync(bytes), Buffer.from('garbage')])),
    /does not unpack \(gzip\)/,
  ],
  'zstd that is cut off': [() => packed((bytes) => zstdCompressSync(bytes).subarray(0, 20)), /does not unpack \(zstd\)/],
  'zstd with garbage behind it': [
    () => packed((bytes) => Buffer.concat([zstdCompressSync(bytes), Buffer.from('garbage')])),
    /does not unpack \(zstd\)/,
  ],
  'a bomb of zeros in zstd': [
    () => image([Buffer.concat([tar(file('f')), Buffer.alloc(17 * 1024 * 1024)])], { packed: (bytes) => zstdCompressSync(bytes) }),
    /more than 16777216 bytes when it is unpacked/,
  ],
  // A frame whose window is 2 GiB: whoever unpacks it must have that much memory.
  'zstd that wants memory': [() => packed(() => Buffer.from('28b52ffd00a8010000', 'hex')), /does not unpack \(zstd\)/],
  'a layer in xz': [() => packed(() => Buffer.from('fd377a585a000004', 'hex')), /packed with xz/],
  'a layer in bzip2': [() => packed(() => Buffer.from('BZh91AY&SY')), /packed with bzip2/],
  'a disk image for a layer': [() => packed(() => Buffer.from('514649fb00000003', 'hex')), /disk image \(qcow2\)/],
  'noise for a layer': [() => packed(() => Buffer.from('not a tar archive, whatever else it may be'.repeat(20))), /no tar archive/],
};
test('an archive that lies is refused with one sentence, and leaves nothing', { timeout: 300_000 }, async () => {
  const before = process.memoryUsage().rss;
  await hostile.refusesAll(ARCHIVES);
  expect(Object.keys(ARCHIVES).length).toBeGreaterThan(60);
  // The archives themselves, which are made here, are most of it.
  expect(process.memoryUsage().rss - before).toBeLessThan(512 * 1024 * 1024);
});

test('a hundred thousand entries are an image, and one more than may be are none', { timeout: 300_000 }, async () => {
  await using wide = await place({ limits: { entriesMax: 100_001 } });
  const entries = (count: number) => tar(...Array.from({ length: count }, (_, at) => ({ path: `d${at % 100}/f${at}` })));
  registry.put('many', '1', image([entries(99_900)]));
  const found = await wide.pull(`${registry.name}/many:1`);
  expect((await treeOf(found)).size).toBeGreaterThan(99_900);
  await wide.library.remove(testOperation(), found.record.digest);
  registry.put('many', '2', image([entries(100_002)]));
  await hostile.fails(`many:2`, /more than 100001 entries/, wide);
});

test('what is only odd is taken as it is', async () => {
  const made = layer(
    { path: '/abs/', type: 'directory', mode: 0o700, uid: 70_000, gid: 3_000_000 },
    file('//abs//f', 'one'),
    file('./abs/./f', 'two'),
    { path: 'out', type: 'symlink', link: '../../../../tmp' },
    file('out/in', 'in the image'),
    { path: 'etc', type: 'symlink', link: '/usr/etc' },
    file('etc/passwd', 'root'),
    { path: 'hard', type: 'hardlink', link: '/etc/passwd' },
    file('new\nline'),
    file('caf\u00e9-latin1'),
    file('README'),
    file('readme'),
    { path: 'old', mtimeSeconds: 0 },
    tampered(header('before'), 136, Buffer.alloc(12, 0xff)),
    { path: 'suid', mode: 0o6755, content: 'x' },
    { path: 'null', type: 'character', mode: 0o666, devMajor: 1, devMinor: 3 },
    { path: 'disk', type: 'block', mode: 0o660, devMajor: 259, devMinor: 70_000 },
    { path: 'pipe', type: 'fifo' },
    {
      path: 'capable',
      xattrs: new Map([
        ['security.capability', Buffer.from('0100000200040000000000000000000000000000', 'hex')],
        ['user.note', Buffer.from('a=b\nc')],
        ['trusted.overlay.opaque', Buffer.from('y')],
        ['user.overlay.whiteout', Buffer.from('y')],
        ['system.posix_acl_access', Buffer.from('x')],
      ]),
    },
    // user::rw- user:1000:rwx group::r-- mask::rwx other::---
    {
      path: 'listed',
      mode: 0o670,
      xattrs: new Map([
        [
          'system.posix_acl_access',
          Buffer.from('0200000001000600ffffffff02000700e803000004000400ffffffff10000700ffffffff20000000ffffffff', 'hex'),
        ],
      ]),
    },
    sparse1('2\n2\n3\n8\n1\n', 'abcd', 10),
    file('.wh.never-was'),
    { path: `${'long/'.repeat(40)}name-${'n'.repeat(200)}`, content: 'deep' },
    { path: 'twice', type: 'directory' },
    file('twice', 'now a file'),
  );
  registry.put('odd', '1', made);
  const found = await here.pull(`${registry.name}/odd:1`);
  const tree = await treeOf(found);
  const content = (path: string) => tree.get(path)?.content.toString('latin1');
  expect(tree.get('abs')).toMatchObject({ mode: 0o700, uid: 70_000, gid: 3_000_000 });
  expect(content('abs/f')).toBe('two');
  expect(content('tmp/in')).toBe('in the image');
  expect(content('usr/etc/passwd') || content(tree.get('usr/etc/passwd')?.link ?? '')).toBe('root');
  expect([tree.get('hard')?.type, tree.get('usr/etc/passwd')?.type].sort()).toEqual(['file', 'hardlink']);
  for (const name of ['new\nline', 'caf\u00e9-latin1', 'README', 'readme', 'old', 'before']) expect([...tree.keys()], name).toContain(name);
  expect(tree.get('suid')?.mode).toBe(0o6755);
  // Its list is not kept; its group has what that gives it, and not the mask.
  expect(tree.get('listed')).toMatchObject({ mode: 0o640, xattrs: null });
  expect(tree.get('null')).toMatchObject({ type: 'character', devMajor: 1, devMinor: 3 });
  expect(tree.get('disk')).toMatchObject({ type: 'block', devMajor: 259, devMinor: 70_000 });
  expect(tree.get('pipe')?.type).toBe('fifo');
  expect([...(tree.get('capable')?.xattrs ?? [])].map(([name, value]) => [name, value.toString('latin1')]).sort()).toEqual([
    ['security.capability', Buffer.from('0100000200040000000000000000000000000000', 'hex').toString('latin1')],
    ['user.note', 'a=b\nc'],
  ]);
  expect(tree.get('s')?.content).toEqual(Buffer.from('\0\0abc\0\0\0d\0', 'latin1'));
  expect(content('twice')).toBe('now a file');
  expect(content(`${'long/'.repeat(40)}name-${'n'.repeat(200)}`)).toBe('deep');
  await here.library.remove(testOperation(), found.record.digest);
});

test('what stands behind the end of an archive is no part of it', async () => {
  const behind = [Buffer.from('garbage'.repeat(300)), tar(file('late')), header('late').subarray(0, 100)];
  for (const [at, more] of behind.entries()) {
    registry.put('behind', String(at), image([Buffer.concat([tar(file('f')), more])]));
    const found = await here.pull(`${registry.name}/behind:${at}`);
    expect([...(await treeOf(found)).keys()].filter((path) => path !== '')).toEqual(['f']);
    await here.library.remove(testOperation(), found.record.digest);
  }
});

test('an archive that is cut off anywhere is refused, or is what stands before the cut', async () => {
  const whole = tar(
    file('one', 'content of one'),
    { path: `${'p'.repeat(90)}/${'q'.repeat(90)}`, content: 'y'.repeat(700) },
    { path: 'two', xattrs: new Map([['user.a', Buffer.alloc(600, 'v')]]) },
    sparse1('1\n0\n3\n', 'abc', 20),
  );
  const all = [...(await readTree(whole)).keys()];
  let refusals = 0;
  for (let length = 0; length < whole.byteLength; length += 64) {
    const outcome = await readTree(whole.subarray(0, length)).catch((error: unknown) => error);
    if (outcome instanceof Error) {
      expect(outcome.message).toMatch(/cut off|announces an entry/);
      refusals += 1;
    } else {
      const paths = [...(outcome as ReadonlyMap<string, unknown>).keys()];
      expect(paths).toEqual(all.slice(0, paths.length));
    }
  }
  expect(refusals).toBeGreaterThan(50);
});

test('a layer that is cut off anywhere, packed with gzip or zstd, is refused', { timeout: 60_000 }, async () => {
  for (const pack of [gzipSync, zstdCompressSync]) {
    const { length } = pack(tar(file('f')));
    for (let end = 1; end < length; end += Math.ceil(length / 10))
      await hostile.refuses(
        packed((bytes) => pack(bytes).subarray(0, end)),
        /does not unpack|cut off|no tar archive|not what the image says/,
      );
  }
});

test('bytes are parsed the same however they are cut into chunks', async () => {
  const whole = tar(file('one', 'content of one'), { path: 'x'.repeat(300), content: 'y'.repeat(700) }, sparse1('1\n0\n3\n', 'abc', 20));
  const expected = await readTree(whole);
  for (const size of [1, 7, 511, 513]) {
    await using reader = new TarReader(
      (async function* () {
        for (let at = 0; at < whole.byteLength; at += size) yield whole.subarray(at, at + size);
      })(),
    );
    const seen: [string, string][] = [];
    for (let entry = await reader.next(); entry !== null; entry = await reader.next()) {
      const chunks: Buffer[] = [];
      for await (const chunk of reader.content()) chunks.push(Buffer.from(chunk));
      seen.push([entry.path, Buffer.concat(chunks).toString()]);
    }
    expect(seen).toEqual([...expected].map(([path, { content }]) => [path, content.toString()]));
  }
});
