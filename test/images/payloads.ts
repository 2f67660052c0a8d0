// Small kernels and modules for tests: real ELF headers around nothing.

const HEADER = 64;

export type ElfOptions = { readonly type: number; readonly machine?: number };

function elfHeader(view: DataView, { type, machine = 62 }: ElfOptions): void {
  view.setUint32(0, 0x7f454c46);
  view.setUint8(4, 2); // 64 bit
  view.setUint8(5, 1); // little-endian
  view.setUint16(16, type, true);
  view.setUint16(18, machine, true);
}

/** An executable with one note segment: the PVH entry, unless `note` says otherwise. */
export function tinyKernel(options: { readonly note?: string; readonly machine?: number; readonly padding?: number } = {}): Uint8Array {
  const { note = 'Xen', machine, padding = 0 } = options;
  const bytes = new Uint8Array(HEADER + 56 + 24 + padding).fill(7, HEADER + 56 + 24);
  const view = new DataView(bytes.buffer);
  elfHeader(view, { type: 2, ...(machine === undefined ? {} : { machine }) });
  view.setBigUint64(32, 64n, true); // program headers
  view.setUint16(56, 1, true);
  view.setUint32(HEADER, 4, true); // a note segment
  view.setBigUint64(HEADER + 8, 120n, true);
  view.setBigUint64(HEADER + 32, 24n, true);
  view.setUint32(120, 4, true); // the name's bytes
  view.setUint32(124, 4, true); // the description's
  view.setUint32(128, 18, true);
  bytes.set(Buffer.from(`${note}\0`), 132);
  return bytes;
}

/** A relocatable file whose `.modinfo` has these fields. */
export function tinyModule(fields: readonly string[]): Uint8Array {
  const info = Buffer.from(fields.map((field) => `${field}\0`).join(''));
  const names = Buffer.from('\0.modinfo\0.shstrtab\0');
  const sections = HEADER + info.length + names.length;
  const bytes = new Uint8Array(sections + 3 * 64);
  const view = new DataView(bytes.buffer);
  elfHeader(view, { type: 1 });
  bytes.set(info, HEADER);
  bytes.set(names, HEADER + info.length);
  view.setBigUint64(40, BigInt(sections), true);
  view.setUint16(60, 3, true);
  view.setUint16(62, 2, true);
  const section = (index: number, name: number, offset: number, size: number) => {
    const at = sections + index * 64;
    view.setUint32(at, name, true);
    view.setBigUint64(at + 24, BigInt(offset), true);
    view.setBigUint64(at + 32, BigInt(size), true);
  };
  section(1, 1, HEADER, info.length);
  section(2, 10, HEADER + info.length, names.length);
  return bytes;
}

/** A bzImage around a packed kernel; `unpackedBytes` is the trailer that all forms but gzip have. */
export function bzImage(packed: Uint8Array, unpackedBytes: number | null): Uint8Array {
  const setupSectors = 2;
  const start = (setupSectors + 1) * 512;
  const payload = Buffer.concat([packed, unpackedBytes === null ? Buffer.alloc(0) : u32(unpackedBytes)]);
  const bytes = new Uint8Array(start + 16 + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint8(0x1f1, setupSectors);
  view.setUint16(0x1fe, 0xaa55, true);
  bytes.set(Buffer.from('HdrS'), 0x202);
  view.setUint16(0x206, 0x020f, true);
  view.setUint32(0x248, 16, true);
  view.setUint32(0x24c, payload.length, true);
  bytes.set(payload, start + 16);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
