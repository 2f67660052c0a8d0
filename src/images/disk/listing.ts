// What an image has, as `rdsquashfs --describe` says it: a line for each file, its name in quotes where it has blanks.
import type { Node, NodeType } from './changes.ts';

const TYPES: Readonly<Record<string, NodeType>> = {
  dir: 'directory',
  file: 'file',
  slink: 'symlink',
  nod: 'device',
  pipe: 'fifo',
  sock: 'socket',
};
const LINE = /^(\w+) ("(?:[^"\\]|\\.)*"|\S+) ([0-7]+) (\d+) (\d+)(?: (.*))?$/;
const FORMATS: Readonly<Record<string, number>> = { c: 0x2000, b: 0x6000 };

/** Names are bytes, as latin1. A line that cannot be read is of a name that nobody can type either, and is left out. */
export function parseListing(text: string): Map<string, Node> {
  const found = new Map<string, Node>();
  for (const line of text.split('\n')) {
    const [, word = '', name = '', mode = '', uid = '', gid = '', rest = ''] = LINE.exec(line) ?? [];
    const type = TYPES[word];
    if (type === undefined) continue;
    const path = unquoted(name).replace(/^\/+/, '');
    if (path === '') continue;
    found.set(path, {
      type,
      mode: Number.parseInt(mode, 8),
      uid: Number(uid),
      gid: Number(gid),
      target: targetOf(type, rest),
      inode: null,
    });
  }
  return found;
}

function targetOf(type: NodeType, rest: string): string {
  if (type === 'symlink') return unquoted(rest);
  if (type !== 'device') return '';
  const [kind = '', major = '', minor = ''] = rest.split(' ');
  return `${FORMATS[kind] ?? 0} ${major}:${minor}`;
}

function unquoted(text: string): string {
  return text.startsWith('"') ? text.slice(1, -1).replace(/\\(.)/g, '$1') : text;
}
