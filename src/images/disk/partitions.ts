// Where on a disk the root file system lies: the whole of it, or one of its partitions (MBR or GPT, sectors of 512 bytes).
import { ArchiveError } from '../../domain/archive-error.ts';
import { type Disk, number64, partOfDisk } from './bytes.ts';

const SECTOR = 512;
const GPT_ENTRIES_MAX = 256;
/** The ext superblock's magic, from the beginning of the file system. */
const EXT_MAGIC_AT = 0x438;

type Place = { readonly start: number; readonly sizeBytes: number };

/** The largest ext2, ext3 or ext4 file system on it. @throws ArchiveError with what is there instead. */
export async function rootOf(disk: Disk): Promise<Disk> {
  if (await isExt(disk, 0)) return disk;
  const places = await partitions(disk);
  const found: Place[] = [];
  for (const place of places) if (await isExt(disk, place.start)) found.push(place);
  const [largest] = found.toSorted((a, b) => b.sizeBytes - a.sizeBytes);
  if (largest !== undefined) return partOfDisk(disk, largest.start, Math.min(largest.sizeBytes, disk.sizeBytes - largest.start));
  const others = new Set<string>();
  for (const start of [0, ...places.map((place) => place.start)]) others.add(await otherAt(disk, start));
  others.delete('');
  const there = others.size === 0 ? '' : ` (there is ${[...others].join(', ')})`;
  throw new ArchiveError(`no ext4 file system is on the disk image${there}: give its root file system as a tar archive`);
}

/** Whether a disk may begin with these bytes, of which there are 4 KiB where the file has as many. */
export function looksLikeDisk(start: Buffer): boolean {
  if (start.byteLength >= EXT_MAGIC_AT + 2 && start.readUInt16LE(EXT_MAGIC_AT) === 0xef53) return true;
  // A tar archive has its magic where the code of a boot sector is.
  return start.byteLength >= SECTOR && start.readUInt16LE(510) === 0xaa55 && start.toString('latin1', 257, 262) !== 'ustar';
}

async function isExt(disk: Disk, start: number): Promise<boolean> {
  if (start + EXT_MAGIC_AT + 2 > disk.sizeBytes) return false;
  return (await disk.read(start + EXT_MAGIC_AT, 2)).readUInt16LE(0) === 0xef53;
}

async function partitions(disk: Disk): Promise<readonly Place[]> {
  if (disk.sizeBytes < 2 * SECTOR) return [];
  const boot = await disk.read(0, SECTOR);
  if (boot.readUInt16LE(510) !== 0xaa55) return [];
  const entries = [0, 1, 2, 3].map((index) => boot.subarray(446 + index * 16, 462 + index * 16));
  if (entries.some((entry) => entry.readUInt8(4) === 0xee)) return await gptPartitions(disk);
  return entries
    .map((entry) => ({ start: entry.readUInt32LE(8) * SECTOR, sizeBytes: entry.readUInt32LE(12) * SECTOR }))
    .filter(({ start, sizeBytes }) => start > 0 && sizeBytes > 0 && start < disk.sizeBytes);
}

async function gptPartitions(disk: Disk): Promise<readonly Place[]> {
  const header = await disk.read(SECTOR, 92);
  if (header.toString('latin1', 0, 8) !== 'EFI PART') throw new ArchiveError('the partition table of the disk image is damaged');
  const [count, bytes] = [header.readUInt32LE(80), header.readUInt32LE(84)];
  if (count > GPT_ENTRIES_MAX || bytes < 128 || bytes > 4_096) throw new ArchiveError('the partition table of the disk image is damaged');
  const table = await disk.read(number64(header.readBigUInt64LE(72), 'a partition') * SECTOR, count * bytes);
  const found: Place[] = [];
  for (let at = 0; at < table.byteLength; at += bytes) {
    const [first, last] = [table.readBigUInt64LE(at + 32), table.readBigUInt64LE(at + 40)];
    if (first === 0n || last < first) continue;
    const start = number64(first, 'a partition') * SECTOR;
    if (start < disk.sizeBytes) found.push({ start, sizeBytes: number64(last - first + 1n, 'a partition') * SECTOR });
  }
  return found;
}

async function otherAt(disk: Disk, start: number): Promise<string> {
  if (start + 0x1_0048 > disk.sizeBytes) return '';
  if ((await disk.read(start, 4)).toString('latin1') === 'XFSB') return 'XFS';
  if ((await disk.read(start + 0x1_0040, 8)).toString('latin1') === '_BHRfS_M') return 'btrfs';
  if ((await disk.read(start, 6)).toString('latin1') === 'LUKS\xba\xbe') return 'an encrypted partition';
  return '';
}
