// The little of ELF that is needed: is this a kernel that a VMM can boot by PVH, and what does a
// module say about itself. All offsets come from the file and are checked against its size.
import { DamagedPayload } from './payload-error.ts';

const ELF_MAGIC = 0x7f454c46; // read big-endian
const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
const SECTION_HEADER_BYTES = 64;
const MACHINE_X86_64 = 62;
const SEGMENT_NOTE = 4;
/** XEN_ELFNOTE_PHYS32_ENTRY: where a PVH boot enters. */
const PVH_NOTE_TYPE = 18;
const ELF_KIND = { relocatable: 1, executable: 2, shared: 3 } as const;

/** @throws DamagedPayload unless these are a whole x86-64 kernel with a PVH entry. */
export function checkKernelElf(bytes: Uint8Array): void {
  const view = elfView(bytes, 'the kernel', [ELF_KIND.executable, ELF_KIND.shared]);
  const headers = table(view, 'program headers', view.getBigUint64(32, true), view.getUint16(56, true), PROGRAM_HEADER_BYTES);
  let pvh = false;
  for (const at of headers) {
    const segment = range(view, 'a segment', view.getBigUint64(at + 8, true), view.getBigUint64(at + 32, true));
    if (view.getUint32(at, true) === SEGMENT_NOTE) pvh ||= hasPvhNote(view, segment.start, segment.end);
  }
  if (!pvh) throw new DamagedPayload('the kernel has no PVH entry (it is built without CONFIG_PVH)');
}

function hasPvhNote(view: DataView, start: number, end: number): boolean {
  const padded = (bytes: number) => Math.ceil(bytes / 4) * 4;
  for (let at = start; at + 12 <= end; ) {
    const nameBytes = view.getUint32(at, true);
    const descriptionBytes = view.getUint32(at + 4, true);
    const type = view.getUint32(at + 8, true);
    if (type === PVH_NOTE_TYPE && nameBytes === 4 && at + 16 <= end && view.getUint32(at + 12) === 0x58656e00 /* "Xen" */) return true;
    at += 12 + padded(nameBytes) + padded(descriptionBytes);
  }
  return false;
}

/** What a module needs, as `modinfo` shows it: names without `.ko`. */
export type ModuleInfo = {
  readonly depends: readonly string[];
  /** To be loaded before it where they exist; without them it loads all the same. */
  readonly softBefore: readonly string[];
};

/** Reads the `.modinfo` section of a kernel module. @throws DamagedPayload when there is none. */
export function moduleInfo(bytes: Uint8Array): ModuleInfo {
  const view = elfView(bytes, 'the module', [ELF_KIND.relocatable]);
  const sections = table(view, 'section headers', view.getBigUint64(40, true), view.getUint16(60, true), SECTION_HEADER_BYTES);
  const contentOf = (header: number) =>
    range(view, 'a section', view.getBigUint64(header + 24, true), view.getBigUint64(header + 32, true));
  const namesHeader = sections[view.getUint16(62, true)];
  if (namesHeader === undefined) throw new DamagedPayload('the module has no section names');
  const names = contentOf(namesHeader);
  const info = sections.find((header) => textAt(bytes, names.start + view.getUint32(header, true), names.end) === '.modinfo');
  if (info === undefined) throw new DamagedPayload('the module has no .modinfo section');
  const { start, end } = contentOf(info);
  const fields = new TextDecoder('latin1').decode(bytes.subarray(start, end)).split('\0');
  const valuesOf = (key: string) => fields.filter((field) => field.startsWith(`${key}=`)).map((field) => field.slice(key.length + 1));
  return {
    depends: valuesOf('depends')
      .flatMap((list) => list.split(','))
      .filter((name) => name !== ''),
    softBefore: valuesOf('softdep').flatMap(softBefore),
  };
}

/** `pre: a b post: c` → a, b. */
function softBefore(softdep: string): readonly string[] {
  const words = softdep.split(/\s+/);
  const start = words.indexOf('pre:') + 1;
  if (start === 0) return [];
  const end = words.indexOf('post:', start);
  return words.slice(start, end === -1 ? undefined : end).filter((name) => name !== '');
}

function elfView(bytes: Uint8Array, what: string, kinds: readonly number[]): DataView {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const isElf = bytes.byteLength >= HEADER_BYTES && view.getUint32(0) === ELF_MAGIC && bytes[4] === 2 && bytes[5] === 1;
  if (!isElf) throw new DamagedPayload(`${what} is no 64-bit little-endian ELF file`);
  if (view.getUint16(18, true) !== MACHINE_X86_64) throw new DamagedPayload(`${what} is not for x86_64`);
  if (!kinds.includes(view.getUint16(16, true))) throw new DamagedPayload(`${what} is an ELF file of the wrong kind`);
  return view;
}

/** Offsets of the entries of a header table that lies within the file. */
function table(view: DataView, what: string, offset: bigint, count: number, entryBytes: number): readonly number[] {
  const { start } = range(view, what, offset, BigInt(count * entryBytes));
  return Array.from({ length: count }, (_, index) => start + index * entryBytes);
}

function range(view: DataView, what: string, offset: bigint, length: bigint): { start: number; end: number } {
  if (offset + length > BigInt(view.byteLength)) throw new DamagedPayload(`${what} lies beyond the end of the file`);
  return { start: Number(offset), end: Number(offset + length) };
}

function textAt(bytes: Uint8Array, start: number, limit: number): string {
  if (start >= limit) return '';
  const end = bytes.subarray(start, limit).indexOf(0);
  return new TextDecoder('latin1').decode(bytes.subarray(start, end === -1 ? limit : start + end));
}
