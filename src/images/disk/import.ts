// A disk image (raw or qcow2, with partitions or without, packed or not) as a root file system in a tar archive. It is read by
// ourselves from first to last: neither the kernel nor a program of this machine looks into it.
import { join } from 'node:path';
import type { Host } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import { TREE_LIMITS } from '../layers/tree.ts';
import { packingOf, unpacked } from '../layers/unpack.ts';
import { packedWithZstd } from '../zstd.ts';
import { rawDisk } from './bytes.ts';
import { Ext4 } from './ext4.ts';
import { looksLikeDisk, rootOf } from './partitions.ts';
import { QCOW2_MAGIC, qcow2Disk } from './qcow2.ts';
import { tarOf } from './tar.ts';

const START_BYTES = 4_096;

/** The archive that it makes in `dir`; null where `file` is no disk image. @throws ArchiveError for one that cannot be used. */
export async function tarOfDisk(op: Operation, host: Host, file: string, dir: string, bytesMax: number): Promise<string | null> {
  const start = await startOf(op, host, file, bytesMax);
  const isQcow2 = start.toString('latin1', 0, 4) === QCOW2_MAGIC;
  if (!isQcow2 && !looksLikeDisk(start)) return null;
  op.progress({ step: 'import', detail: 'reading the disk image' });
  const plain = isPacked(await host.readRange(op, file, 0, 6)) ? join(dir, 'disk') : file;
  if (plain !== file) await host.appendStream(op, plain, unpacked(op, host, file, bytesMax));
  const raw = rawDisk(op, host, plain, (await host.stat(op, plain))?.sizeBytes ?? 0);
  const files = await Ext4.open(await rootOf(isQcow2 ? await qcow2Disk(raw) : raw));
  const tar = join(dir, 'root.tar.zst');
  // Holes in files of gigabytes take next to nothing so.
  await host.appendStream(op, tar, packedWithZstd(tarOf(files, { entriesMax: TREE_LIMITS.entriesMax, bytesMax })));
  return tar;
}

/** As much of the content as tells what it is. */
async function startOf(op: Operation, host: Host, file: string, bytesMax: number): Promise<Buffer> {
  const start = Buffer.from(await host.readRange(op, file, 0, START_BYTES));
  if (!isPacked(start)) return start;
  const parts: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of unpacked(op, host, file, bytesMax)) {
    parts.push(Buffer.from(chunk));
    bytes += chunk.byteLength;
    if (bytes >= START_BYTES) break;
  }
  return Buffer.concat(parts);
}

function isPacked(start: Uint8Array): boolean {
  if (Buffer.from(start.subarray(0, 4)).toString('latin1') === QCOW2_MAGIC) return false;
  return packingOf(start.subarray(0, 6)) !== 'none';
}
