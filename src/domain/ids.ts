// Ids: a three-letter kind and 17 characters of lower-case Crockford base 32 (85 random bits).
// An id is a DNS label without a hyphen, so that other APIs can use it unchanged.
// Randomness is passed in: this module has none of its own.

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz';
const ID_RANDOM_CHARS = 17;
/** Random bytes that one id takes. One character uses the low 5 bits of one byte. */
export const ID_RANDOM_BYTES = ID_RANDOM_CHARS;
const OP_ID_RANDOM_BYTES = 6;

export const ID_KINDS = ['sbx', 'img', 'krn', 'snp', 'tpl', 'vol', 'prj', 'key', 'ird', 'lse', 'bld'] as const;
export type IdKind = (typeof ID_KINDS)[number];

declare const brand: unique symbol;
export type Id<K extends IdKind> = string & { readonly [brand]: K };
export type SandboxId = Id<'sbx'>;
export type ImageId = Id<'img'>;
export type KernelId = Id<'krn'>;
export type SnapshotId = Id<'snp'>;
export type TemplateId = Id<'tpl'>;
export type VolumeId = Id<'vol'>;
export type ProjectId = Id<'prj'>;
export type KeyId = Id<'key'>;
export type BuildId = Id<'bld'>;
export type LeaseId = Id<'lse'>;
export type OpId = string & { readonly [brand]: 'op' };

/** Gives `count` random bytes, or throws: an id is never made from anything weaker. */
export type RandomBytes = (count: number) => Uint8Array;

/** Makes an id of `kind`. Throws whatever `randomBytes` throws. */
export function newId<K extends IdKind>(kind: K, randomBytes: RandomBytes): Id<K> {
  let tail = '';
  for (const byte of exactly(ID_RANDOM_BYTES, randomBytes)) tail += ALPHABET.charAt(byte & 31);
  return (kind + tail) as Id<K>;
}

export function isId<K extends IdKind>(kind: K, text: unknown): text is Id<K> {
  return typeof text === 'string' && text.startsWith(kind) && /^[a-z]{3}[0-9a-hjkmnp-tv-z]{17}$/.test(text);
}

/** Whether a text has the form of an id of any kind. Names may not: a reference must be unambiguous. */
export function looksLikeId(text: string): boolean {
  return ID_KINDS.some((kind) => isId(kind, text));
}

/** Makes `op-` and 12 hex digits. */
export function newOpId(randomBytes: RandomBytes): OpId {
  let hex = '';
  for (const byte of exactly(OP_ID_RANDOM_BYTES, randomBytes)) hex += byte.toString(16).padStart(2, '0');
  return `op-${hex}` as OpId;
}

export function isOpId(text: unknown): text is OpId {
  return typeof text === 'string' && /^op-[0-9a-f]{12}$/.test(text);
}

export const NAME_CHARS_MAX = 63;

/** Whether a text may be a name: a DNS label (RFC 1123) that does not look like an id. */
export function isName(text: string): boolean {
  return text.length <= NAME_CHARS_MAX && /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/.test(text) && !looksLikeId(text);
}

/** A source that gives less than it was asked for would make ids that are none, or that repeat. */
function exactly(count: number, randomBytes: RandomBytes): Uint8Array {
  const bytes = randomBytes(count);
  if (bytes.length !== count) throw new Error(`asked for ${count} random bytes, got ${bytes.length}`);
  return bytes;
}
