// Under which key the cache has the layer of a step: what it begins with, what it says with its variables replaced, and what
// it reads. Never when a file was written, and never a secret.
import { createHash } from 'node:crypto';
import type { Inode } from '../layers/tree.ts';

/** Another one makes every layer anew: for a change in how steps are done. */
const RECIPE = 'hutch build 2';

export type Key = string;

/** Of what a stage begins with: an image's digest, or another stage's last key. */
export function firstKey(base: string): Key {
  return keyOf('from', base);
}

export function keyOf(...parts: readonly (string | readonly string[])[]): Key {
  const hash = createHash('sha256').update(RECIPE);
  for (const part of parts) {
    const lines = typeof part === 'string' ? [part] : part;
    hash.update(`\0${lines.length}`);
    // Lengths, so that no two lists give one text.
    for (const line of lines) hash.update(`\0${Buffer.byteLength(line)}\0`).update(line);
  }
  return hash.digest('hex');
}

/** One file as a key knows it: all but its times. */
export function fileLine(path: string, inode: Inode, contentHash: string): string {
  const xattrs = [...(inode.xattrs ?? [])].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, value]) => `${name}=${value.toString('hex')}`);
  const { type, mode, uid, gid, link, devMajor, devMinor, sizeBytes } = inode;
  return JSON.stringify([path, type, mode, uid, gid, link, devMajor, devMinor, sizeBytes, contentHash, xattrs]);
}
