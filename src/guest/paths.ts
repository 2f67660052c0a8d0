// Paths between us and the guest: text where they are valid UTF-8, bytes where they are not.
import { isUtf8 } from 'node:buffer';
import type { GuestPath } from './messages.ts';

/** As the protocol wants it: a str when it is valid UTF-8, else a bin. */
export function pathParam(path: GuestPath): GuestPath {
  return typeof path !== 'string' && isUtf8(path) ? Buffer.from(path.buffer, path.byteOffset, path.byteLength).toString('utf8') : path;
}

/** For people: bytes that are no UTF-8 as `\xNN`. Two paths never look the same. */
export function showPath(path: GuestPath): string {
  if (typeof path === 'string') return path.replaceAll('\\', '\\\\');
  let shown = '';
  for (const byte of path)
    shown += byte >= 0x20 && byte < 0x7f && byte !== 0x5c ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`;
  return shown;
}
