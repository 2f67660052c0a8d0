// Headers of a tar archive, in the form that every reader of today takes: ustar, with PAX records for
// what does not fit into it. The same entry gives the same bytes.
import { BLOCK_BYTES, type EntryType, padding, type TarEntry } from './entry.ts';

const FLAGS: Readonly<Record<EntryType, string>> = {
  file: '0',
  hardlink: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
};
const OCTAL_8_MAX = 0o7777777;
const OCTAL_12_MAX = 0o77777777777;

export type EntryToWrite = Omit<TarEntry, 'sparse'>;

/** What stands before the content, whole blocks. */
export function tarHeader(entry: EntryToWrite): Buffer {
  const records: Buffer[] = [];
  const add = (key: string, value: string | Buffer) => records.push(record(key, value));
  if (entry.path.length > 100) add('path', entry.path);
  if (entry.link.length > 100) add('linkpath', entry.link);
  if (entry.uid > OCTAL_8_MAX) add('uid', String(entry.uid));
  if (entry.gid > OCTAL_8_MAX) add('gid', String(entry.gid));
  if (entry.sizeBytes > OCTAL_12_MAX) add('size', String(entry.sizeBytes));
  for (const [name, value] of [...(entry.xattrs ?? [])].sort(([a], [b]) => (a < b ? -1 : 1))) add(`SCHILY.xattr.${name}`, value);
  const header = block(FLAGS[entry.type], entry);
  if (records.length === 0) return header;
  const pax = Buffer.concat(records);
  return Buffer.concat([block('x', { ...PAX_ENTRY, sizeBytes: pax.byteLength }), pax, Buffer.alloc(padding(pax.byteLength)), header]);
}

/** What stands after the last entry. */
export const TAR_END = Buffer.alloc(2 * BLOCK_BYTES);

const PAX_ENTRY = { path: 'PaxHeader', link: '', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, devMajor: 0, devMinor: 0 } as const;

function block(flag: string, entry: Omit<EntryToWrite, 'type' | 'xattrs'>): Buffer {
  const header = Buffer.alloc(BLOCK_BYTES);
  header.write(entry.path.slice(0, 100), 0, 'latin1');
  octal(header, 100, 8, entry.mode);
  octal(header, 108, 8, Math.min(entry.uid, OCTAL_8_MAX));
  octal(header, 116, 8, Math.min(entry.gid, OCTAL_8_MAX));
  octal(header, 124, 12, Math.min(entry.sizeBytes, OCTAL_12_MAX));
  octal(header, 136, 12, Math.max(0, Math.min(entry.mtimeSeconds, OCTAL_12_MAX)));
  header.write('        ', 148, 'latin1');
  header.write(flag, 156, 'latin1');
  header.write(entry.link.slice(0, 100), 157, 'latin1');
  header.write('ustar\x0000', 257, 'latin1');
  octal(header, 329, 8, entry.devMajor);
  octal(header, 337, 8, entry.devMinor);
  let sum = 0;
  for (let index = 0; index < BLOCK_BYTES; index += 1) sum += header[index] ?? 0;
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return header;
}

function octal(header: Buffer, at: number, length: number, value: number): void {
  header.write(value.toString(8).padStart(length - 1, '0'), at, 'latin1');
}

/** Its own length counts itself. */
function record(key: string, value: string | Buffer): Buffer {
  const body = Buffer.concat([
    Buffer.from(` ${key}=`, 'latin1'),
    typeof value === 'string' ? Buffer.from(value, 'latin1') : value,
    Buffer.from('\n'),
  ]);
  let length = body.byteLength + 1;
  while (String(length).length + body.byteLength !== length) length = String(length).length + body.byteLength;
  return Buffer.concat([Buffer.from(String(length), 'latin1'), body]);
}
