// What a person means by `web`, `sbx7k3…` or `7k3`: an exact id, else an exact name, else the unique
// prefix of an id (its kind may be left out) or of a name. Pure: the caller brings the candidates, so
// a store that fails has failed before, and is never taken for "not found".
import { HutchError } from './errors.ts';
import { ID_KINDS, isId } from './ids.ts';

/** Fewer characters than this are no prefix: `a` must not remove a sandbox. */
export const PREFIX_CHARS_MIN = 3;
/** Of those that a text might mean, how many are listed. */
const LISTED_MAX = 10;

export type Candidate = { readonly id: string; readonly name: string | null };

export type Resolved<T extends Candidate> =
  | { readonly outcome: 'found'; readonly value: T }
  | { readonly outcome: 'ambiguous'; readonly matches: readonly T[] }
  | { readonly outcome: 'none' };

/** Hexadecimal digits of a digest, from its beginning: twelve are what lists show. */
const DIGEST = /^(?:sha256:)?([0-9a-f]{6,64})$/;

/** What has that digest, or is the only one whose digest begins so. */
export function resolveDigest<T extends { readonly digest: string | null }>(text: string, candidates: readonly T[]): T | null {
  const hex = DIGEST.exec(text)?.[1];
  if (hex === undefined) return null;
  const [only, ...more] = candidates.filter(({ digest }) => digest?.startsWith(`sha256:${hex}`) === true);
  return more.length === 0 ? (only ?? null) : null;
}

/** `candidates` holds at least everything that could match; it may hold more. */
export function resolveReference<T extends Candidate>(text: string, candidates: readonly T[]): Resolved<T> {
  const exact = candidates.find(({ id }) => id === text) ?? candidates.find(({ name }) => name === text);
  if (exact !== undefined) return { outcome: 'found', value: exact };
  const matches = candidates.filter((candidate) => isPrefix(text, candidate));
  const [first] = matches;
  if (first === undefined) return { outcome: 'none' };
  return matches.length === 1 ? { outcome: 'found', value: first } : { outcome: 'ambiguous', matches };
}

/** The one that is meant, or a HutchError: `not_found`, or `conflict` with the list of those that it might be. */
export function requireReference<T extends Candidate>(what: Listed, text: string, candidates: readonly T[]): T {
  const resolved = resolveReference(text, candidates);
  switch (resolved.outcome) {
    case 'found':
      return resolved.value;
    case 'ambiguous':
      throw new HutchError({
        code: 'conflict',
        message: `'${text}' may be any of ${resolved.matches.length}: ${listed(resolved.matches)}`,
        hint: 'give more of the id or name',
      });
    case 'none':
      throw new HutchError({ code: 'not_found', message: `there is no ${what} '${shortened(text)}'`, hint: noneHint(what, text) });
  }
}

function isPrefix(text: string, { id, name }: Candidate): boolean {
  const afterKind = text.startsWith(kindOf(id)) ? text.length - kindOf(id).length : 0;
  if (afterKind >= PREFIX_CHARS_MIN && id.startsWith(text)) return true;
  if (text.length < PREFIX_CHARS_MIN) return false;
  return id.slice(kindOf(id).length).startsWith(text) || (name?.startsWith(text) ?? false);
}

/** `sbx` of a sandbox, `op-` of an operation. */
function kindOf(id: string): string {
  return id.slice(0, 3);
}

function listed(matches: readonly Candidate[]): string {
  const shown = matches.slice(0, LISTED_MAX).map(({ id, name }) => (name === null ? id : `${name} (${id})`));
  const more = matches.length - shown.length;
  return more > 0 ? `${shown.join(', ')} and ${more} more` : shown.join(', ');
}

/** What can be referred to, and what lists it. */
const LISTED_BY = {
  sandbox: 'hutch ls',
  key: 'hutch keys ls',
  snapshot: 'hutch snapshot ls',
  'snapshot or sandbox': 'hutch snapshot ls; hutch ls --all',
  template: 'hutch template ls',
  image: 'hutch image ls',
  kernel: 'hutch kernel ls',
  asset: 'hutch assets ls',
  project: 'hutch quotas ls',
  volume: 'hutch volume ls',
  operation: 'hutch ops ls --all',
} as const;
type Listed = keyof typeof LISTED_BY;

function noneHint(what: Listed, text: string): string {
  const kind = ID_KINDS.find((known) => isId(known, text));
  const isShort = kind === undefined && text.length < PREFIX_CHARS_MIN;
  return `${isShort ? `a prefix needs at least ${PREFIX_CHARS_MIN} characters; ` : ''}see what there is: ${LISTED_BY[what]}`;
}

/** Whatever was typed is said back, but not a megabyte of it, and nothing that drives a terminal. */
function shortened(text: string): string {
  const plain = text.replace(/\p{Cc}/gu, '?');
  return plain.length > 64 ? `${plain.slice(0, 64)}…` : plain;
}
