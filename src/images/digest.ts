// Ids of what is named by its content: the same content has the same id on every machine.
import { createHash } from 'node:crypto';
import { type Id, type IdKind, newId } from '../domain/ids.ts';

/** From the first bytes of a `sha256:…` digest, so that looking it up twice gives one id. */
export function idOfDigest<K extends IdKind>(kind: K, digest: string): Id<K> {
  const bytes = Buffer.from(digest.replace(/^sha256:/, ''), 'hex');
  return newId(kind, (count) => bytes.subarray(0, count));
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
