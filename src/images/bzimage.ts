// A distribution's `vmlinuz` (bzImage): finds the packed kernel in it and unpacks it to the ELF file
// that a VMM boots by PVH, which saves the guest the unpacking. Offsets and names are those of the
// kernel's Documentation/arch/x86/boot.rst. Every size is checked before it is used.
import { promisify } from 'node:util';
import { gunzip, zstdDecompress } from 'node:zlib';
import { checkKernelElf } from './elf.ts';
import { LZ4_LEGACY_MAGIC, unpackLz4Legacy } from './lz4.ts';
import { DamagedPayload } from './payload-error.ts';

/** Debian's cloud kernel has 53 MB, Ubuntu's generic one 60 to 70 MB. */
export const VMLINUX_BYTES_MAX = 256 * 1024 * 1024;
export const VMLINUZ_BYTES_MAX = 128 * 1024 * 1024;

const SETUP_BYTES_MIN = 0x250;
const SECTOR_BYTES = 512;
/** The first boot protocol that says where the payload lies. */
const PROTOCOL_WITH_PAYLOAD = 0x0208;
const BOOT_FLAG = 0xaa55;
const HEADER_MAGIC = 0x53726448; // "HdrS"
/** Behind every payload but gzip's, which has it inside: the unpacked size as u32. */
const SIZE_TRAILER_BYTES = 4;

/** Unpacks an xz file; the program does it, Node cannot. */
export type UnpackXz = (packed: Uint8Array, bytesMax: number) => Promise<Uint8Array>;

/** The kernel's ELF file, out of a bzImage or as it is. @throws DamagedPayload when these bytes hold none. */
export async function unpackKernel(vmlinuz: Uint8Array, unpackXz: UnpackXz): Promise<Uint8Array> {
  const vmlinux = isElf(vmlinuz) ? vmlinuz : await unpackPayload(payloadOf(vmlinuz), unpackXz);
  checkKernelElf(vmlinux);
  return vmlinux;
}

function isElf(bytes: Uint8Array): boolean {
  return Buffer.from(bytes.subarray(0, 4)).toString('latin1') === '\x7fELF';
}

/** Where the header says that the kernel's version stands, from byte 0x200 on. */
const VERSION_OFFSET = 0x20e;
const VERSION_CHARS_MAX = 128;
const BANNER = /Linux version ([A-Za-z0-9][A-Za-z0-9._+~-]{0,127}) \(/;

/** As `uname -r` will show it: a bzImage has it in its header, an ELF file in the line that it prints first. Null for neither. */
export function kernelVersion(bytes: Uint8Array): string | null {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (isElf(bytes)) {
    for (let at = text.indexOf('Linux version '); at >= 0; at = text.indexOf('Linux version ', at + 1)) {
      const found = BANNER.exec(text.toString('latin1', at, at + 200));
      if (found?.[1] !== undefined && found.index === 0) return found[1];
    }
    return null;
  }
  if (bytes.byteLength < SETUP_BYTES_MIN) return null;
  const offset = text.readUInt16LE(VERSION_OFFSET);
  if (offset === 0) return null;
  const said = text.toString('latin1', 0x200 + offset, 0x200 + offset + VERSION_CHARS_MAX);
  return /^([A-Za-z0-9][A-Za-z0-9._+~-]{0,127})[ \0]/.exec(said)?.[1] ?? null;
}

/** The packed kernel within a bzImage, its trailing size included. */
function payloadOf(vmlinuz: Uint8Array): Uint8Array {
  if (vmlinuz.byteLength < SETUP_BYTES_MIN) throw new DamagedPayload(`vmlinuz has only ${vmlinuz.byteLength} bytes`);
  const view = new DataView(vmlinuz.buffer, vmlinuz.byteOffset, vmlinuz.byteLength);
  const isKernel = view.getUint16(0x1fe, true) === BOOT_FLAG && view.getUint32(0x202, true) === HEADER_MAGIC;
  if (!isKernel) throw new DamagedPayload('vmlinuz has no Linux boot header');
  const protocol = view.getUint16(0x206, true);
  if (protocol < PROTOCOL_WITH_PAYLOAD) throw new DamagedPayload(`vmlinuz speaks boot protocol ${protocol.toString(16)}, older than 2.08`);
  const setupSectors = view.getUint8(0x1f1) || 4; // 0 means 4, says the protocol
  const start = (setupSectors + 1) * SECTOR_BYTES + view.getUint32(0x248, true);
  const length = view.getUint32(0x24c, true);
  if (length <= SIZE_TRAILER_BYTES || start + length > vmlinuz.byteLength) {
    throw new DamagedPayload(`vmlinuz is cut off: its kernel should end at byte ${start + length} of ${vmlinuz.byteLength}`);
  }
  return vmlinuz.subarray(start, start + length);
}

async function unpackPayload(payload: Uint8Array, unpackXz: UnpackXz): Promise<Uint8Array> {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const magic = view.getUint32(0, true);
  if ((magic & 0xffff) === 0x8b1f) return unpackOr('gzip', () => promisify(gunzip)(payload, { maxOutputLength: VMLINUX_BYTES_MAX }));
  const announced = view.getUint32(payload.byteLength - SIZE_TRAILER_BYTES, true);
  if (announced === 0 || announced > VMLINUX_BYTES_MAX) {
    throw new DamagedPayload(`it announces ${announced} unpacked bytes; at most ${VMLINUX_BYTES_MAX} are accepted`);
  }
  const packed = payload.subarray(0, payload.byteLength - SIZE_TRAILER_BYTES);
  if (magic === LZ4_LEGACY_MAGIC) return unpackLz4Legacy(packed, announced);
  const unpacked = await unpackOther(magic, packed, announced, unpackXz);
  if (unpacked.byteLength !== announced) {
    throw new DamagedPayload(`it unpacks to ${unpacked.byteLength} bytes, not to the ${announced} that it announces`);
  }
  return unpacked;
}

function unpackOther(magic: number, packed: Uint8Array, bytesMax: number, unpackXz: UnpackXz): Promise<Uint8Array> {
  switch (magic) {
    case 0xfd2fb528:
      return unpackOr('zstd', () => promisify(zstdDecompress)(packed, { maxOutputLength: bytesMax }));
    case 0x587a37fd: // 0xFD "7zX"
      return unpackXz(packed, bytesMax);
    default:
      throw new DamagedPayload(`its kernel is packed in a way that is not known (magic ${magic.toString(16).padStart(8, '0')})`);
  }
}

/** zlib's errors become ours: what it says about corrupt or too large data is what a person needs. */
export async function unpackOr(format: string, unpack: () => Promise<Uint8Array>): Promise<Uint8Array> {
  try {
    return await unpack();
  } catch (error) {
    throw new DamagedPayload(`its ${format} stream does not unpack: ${error instanceof Error ? error.message : String(error)}`);
  }
}
