// Names of images in registries, as people write them: `python:3.13-slim`, `ghcr.io/owner/name@sha256:…`.
// Pure. The short form is Docker's: without a registry Docker Hub is meant, without a tag `latest`.
import { HutchError } from './errors.ts';

export const HUB = 'docker.io';
const REFERENCE_CHARS_MAX = 512;
const REPOSITORY_CHARS_MAX = 255;

const HOST =
  /^(?:(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])(?:\.(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]))*|\[[0-9a-fA-F:.]{2,45}\])(?::\d{1,5})?$/;
const PART = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;

export type ImageReference = {
  /** With its port, as it was written: `docker.io`, `registry.example:5000`. */
  readonly registry: string;
  /** `library/python`. */
  readonly repository: string;
  /** Null where a digest says it. */
  readonly tag: string | null;
  readonly digest: string | null;
};

/** Null for what is none. */
export function parseImageReference(text: string): ImageReference | null {
  if (text.length > REFERENCE_CHARS_MAX) return null;
  const [named = '', digest, ...more] = text.split('@');
  if (more.length > 0 || (digest !== undefined && !DIGEST.test(digest))) return null;
  const slash = named.indexOf('/');
  const first = slash < 0 ? '' : named.slice(0, slash);
  const hasRegistry = /[.:]/.test(first) || first === 'localhost' || first !== first.toLowerCase();
  const registry = hasRegistry ? first : HUB;
  const rest = hasRegistry ? named.slice(slash + 1) : named;
  const colon = rest.lastIndexOf(':');
  const path = colon < 0 ? rest : rest.slice(0, colon);
  const tag = colon < 0 ? null : rest.slice(colon + 1);
  if (!HOST.test(registry) || (tag !== null && !TAG.test(tag))) return null;
  const isHub = registry === HUB || registry === 'index.docker.io';
  const repository = isHub && !path.includes('/') ? `library/${path}` : path;
  if (repository.length > REPOSITORY_CHARS_MAX || !repository.split('/').every((part) => PART.test(part))) return null;
  // 64 hex digits would be taken for a digest by everybody else.
  if (/^[0-9a-f]{64}$/.test(path)) return null;
  return {
    registry: isHub ? HUB : registry,
    repository,
    tag: digest === undefined ? (tag ?? 'latest') : null,
    digest: digest ?? null,
  };
}

/** @throws HutchError `invalid_argument`. */
export function requireImageReference(text: string): ImageReference {
  const reference = parseImageReference(text);
  if (reference !== null) return reference;
  throw new HutchError({
    code: 'invalid_argument',
    message: `'${text.replace(/[^\x20-\x7e]/g, '?').slice(0, 128)}' is no name of an image`,
    hint: 'write it like python:3.13-slim, ghcr.io/owner/name:tag or registry.example:5000/name@sha256:…',
  });
}

/** The short form, in which two ways of writing one name are the same. */
export function shownReference({ registry, repository, tag, digest }: ImageReference): string {
  const path = registry === HUB ? repository.replace(/^library\//, '') : `${registry}/${repository}`;
  return digest === null ? `${path}:${tag}` : `${path}@${digest}`;
}
