// qcow2 as QEMU's docs/interop/qcow2.txt has it, read by ourselves: no program of this machine opens an image that somebody gave us,
// and nothing in it can name another file. One that needs another file (a base, external data) or a password is refused.
import { promisify } from 'node:util';
import { inflateRaw, zstdDecompress } from 'node:zlib';
import { ArchiveError } from '../../domain/archive-error.ts';
import { type Disk, number64 } from './bytes.ts';

export const QCOW2_MAGIC = 'QFI\xfb';

const HEADER_BYTES = 112;
const DISK_BYTES_MAX = 2 ** 43;
/** Bits of the features that must be understood: dirty, corrupt, external data, compression type, extended L2. */
const [DIRTY, CORRUPT, EXTERNAL, COMPRESSION, EXTENDED] = [1n, 2n, 4n, 8n, 16n];
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const TABLES_MAX = 256;

export async function qcow2Disk(file: Disk): Promise<Disk> {
  const header = await file.read(0, Math.min(HEADER_BYTES, file.sizeBytes));
  if (header.byteLength < 72) throw new ArchiveError('it is a qcow2 image that is cut off');
  if (header.toString('latin1', 0, 4) !== QCOW2_MAGIC) throw new ArchiveError('it is no qcow2 image');
  const version = header.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw new ArchiveError(`it is a qcow2 image of version ${version}; 2 and 3 are understood`);
  if (header.readBigUInt64BE(8) !== 0n) {
    throw new ArchiveError('it is a qcow2 image over another file, which is not in it: flatten it first (qemu-img convert -O qcow2)');
  }
  if (header.readUInt32BE(32) !== 0) throw new ArchiveError('it is an encrypted qcow2 image');
  const features = version === 3 && header.byteLength >= 104 ? header.readBigUInt64BE(72) : 0n;
  if ((features & EXTERNAL) !== 0n) throw new ArchiveError('it is a qcow2 image whose data lies in another file');
  if ((features & CORRUPT) !== 0n) throw new ArchiveError('it is a qcow2 image that says that it is damaged');
  if ((features & EXTENDED) !== 0n) throw new ArchiveError('it is a qcow2 image with extended tables, which are not understood');
  if ((features & ~(DIRTY | COMPRESSION)) !== 0n) throw new ArchiveError('it is a qcow2 image with features that are not understood');
  const bits = header.readUInt32BE(20);
  if (bits < 9 || bits > 21) throw new ArchiveError(`it is a qcow2 image with clusters of 2^${bits} bytes`);
  const isZstd = (features & COMPRESSION) !== 0n && header.byteLength > 104 && header.readUInt8(104) === 1;
  const sizeBytes = number64(header.readBigUInt64BE(24), 'the size');
  if (sizeBytes > DISK_BYTES_MAX) throw new ArchiveError(`it is a disk of ${sizeBytes} bytes; at most ${DISK_BYTES_MAX} are read`);
  const clusterBytes = 2 ** bits;
  const perTable = clusterBytes / 8;
  const tables = header.readUInt32BE(36);
  if (tables * perTable * clusterBytes < sizeBytes) throw new ArchiveError('it is a qcow2 image whose tables are too short for its size');
  const l1Bytes = Math.ceil(sizeBytes / (perTable * clusterBytes)) * 8;
  const l1 = await file.read(number64(header.readBigUInt64BE(40), 'a table'), l1Bytes);

  const known = new Map<number, Promise<Buffer>>();
  /** The last compressed cluster: its neighbours' bytes are read one after the other. */
  let last: { readonly entry: bigint; readonly bytes: Promise<Buffer> } | null = null;

  async function table(index: number): Promise<Buffer | null> {
    const offset = number64(l1.readBigUInt64BE(index * 8) & OFFSET_MASK, 'a table');
    if (offset === 0) return null;
    const there = known.get(offset);
    if (there !== undefined) return await there;
    const reading = file.read(offset, clusterBytes);
    if (known.size >= TABLES_MAX) known.delete(known.keys().next().value ?? 0);
    known.set(offset, reading);
    return await reading;
  }

  /** From within one cluster. */
  async function piece(cluster: number, from: number, length: number): Promise<Buffer> {
    const l2 = await table(Math.floor(cluster / perTable));
    const entry = l2 === null ? 0n : l2.readBigUInt64BE((cluster % perTable) * 8);
    if ((entry & (1n << 62n)) !== 0n) {
      if (last?.entry !== entry) last = { entry, bytes: unpacked(entry) };
      return (await last.bytes).subarray(from, from + length);
    }
    const offset = number64(entry & OFFSET_MASK, 'a cluster');
    const isZero = offset === 0 || (version === 3 && (entry & 1n) !== 0n);
    return isZero ? Buffer.alloc(length) : await file.read(offset + from, length);
  }

  async function unpacked(entry: bigint): Promise<Buffer> {
    const offsetBits = BigInt(62 - (bits - 8));
    const offset = number64(entry & ((1n << offsetBits) - 1n), 'a cluster');
    const sectors = Number((entry & ((1n << 62n) - 1n)) >> offsetBits);
    const packed = await file.read(offset, Math.min((sectors + 1) * 512 - (offset & 511), Math.max(0, file.sizeBytes - offset)));
    try {
      // What stands behind its end in the last sector is another one's.
      const whole = isZstd
        ? await promisify(zstdDecompress)(packed.subarray(0, zstdFrameBytes(packed)), { maxOutputLength: clusterBytes })
        : await promisify(inflateRaw)(packed, { maxOutputLength: clusterBytes, finishFlush: 2 });
      if (whole.byteLength === clusterBytes) return whole;
    } catch (cause) {
      throw new ArchiveError('a cluster of the qcow2 image does not unpack', { cause });
    }
    throw new ArchiveError('a cluster of the qcow2 image does not unpack to its size');
  }

  return {
    sizeBytes,
    async read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > sizeBytes) throw new ArchiveError('the disk image points beyond its own end');
      const parts: Buffer[] = [];
      for (let at = offset; at < offset + length; ) {
        const from = at % clusterBytes;
        const take = Math.min(clusterBytes - from, offset + length - at);
        parts.push(await piece(Math.floor(at / clusterBytes), from, take));
        at += take;
      }
      return Buffer.concat(parts);
    },
  };
}

/**
 * How long the zstd frame is (RFC 8878, 3.1.1): what stands behind it in its last sector is no part of it. Where it is
 * damaged it is as long as there is anything, and does not unpack.
 */
function zstdFrameBytes(bytes: Buffer): number {
  if (bytes.byteLength < 8) return bytes.byteLength;
  const descriptor = bytes.readUInt8(4);
  const isSingle = (descriptor & 0x20) !== 0;
  const dictionary = [0, 1, 2, 4][descriptor & 3] ?? 0;
  const contentSize = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  let at = 5 + (isSingle ? 0 : 1) + dictionary + contentSize;
  for (let isLast = false; !isLast; ) {
    if (at + 3 > bytes.byteLength) return bytes.byteLength;
    const header = bytes.readUIntLE(at, 3);
    isLast = (header & 1) === 1;
    at += 3 + (((header >> 1) & 3) === 1 ? 1 : header >> 3);
  }
  return Math.min(bytes.byteLength, at + ((descriptor & 4) === 0 ? 0 : 4));
}
