// Which images may be pulled: registries and repositories that are allowed, those whose images must be named by
// their digest, and those that must be signed. Pure; the first rule that refuses is named.
import { type ImageReference, shownReference } from '../../domain/image-reference.ts';

export type ImagePolicy = {
  /** Empty: all. */
  readonly allow: readonly string[];
  readonly requireDigest: readonly string[];
  /** Of a pattern the files of public keys, of which one must have signed. */
  readonly signed: readonly { readonly pattern: string; readonly keyPath: string }[];
  /** What each is called in the configuration. */
  readonly names: { readonly allow: string; readonly requireDigest: string; readonly signed: string };
};

export const NO_POLICY: ImagePolicy = {
  allow: [],
  requireDigest: [],
  signed: [],
  names: { allow: 'images.allow', requireDigest: 'images.require_digest', signed: 'images.signed' },
};

export type Refusal = { readonly message: string; readonly hint: string };

/** What comes out of a file has one content: under a tag, too, it cannot move. */
export type Doing = 'pulled' | 'imported';

/** Null where its name alone does not say no. */
export function refusalOfName({ allow, requireDigest, names }: ImagePolicy, reference: ImageReference, doing: Doing): Refusal | null {
  const what = shownReference(reference);
  if (allow.length > 0 && !allow.some((pattern) => matches(pattern, reference))) {
    return { message: `${what} may not be ${doing}: ${names.allow} does not list it`, hint: `what may: ${allow.join(', ').slice(0, 500)}` };
  }
  const rule = reference.digest === null && doing === 'pulled' ? requireDigest.find((pattern) => matches(pattern, reference)) : undefined;
  if (rule === undefined) return null;
  return {
    message: `${what} may not be pulled by a name that can move: ${names.requireDigest} lists ${rule}`,
    hint: `name it by its digest: ${what.replace(/:[^:/]*$/, '')}@sha256:…`,
  };
}

/** The keys of which one must have signed it; null: nobody must. */
export function keysFor({ signed }: ImagePolicy, reference: ImageReference): readonly string[] | null {
  const rules = signed.filter(({ pattern }) => matches(pattern, reference));
  return rules.length === 0 ? null : rules.map(({ keyPath }) => keyPath);
}

/** `*` is any part of a path, `**` any number of them. Docker Hub's own images are in `docker.io/library`. */
export function matches(pattern: string, { registry, repository }: ImageReference): boolean {
  const parts = pattern.split('/').map((part) =>
    part === '**'
      ? '.+'
      : part
          .split('*')
          .map((text) => text.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
          .join('[^/]*'),
  );
  return new RegExp(`^${parts.join('/')}$`).test(`${registry}/${repository}`);
}
