// Which rules of the configuration are for whom: those of `[images]`, and in their place what `[projects.NAME.images]` says of
// the project that asks. Images lie here once for all projects; so what one brought is not by that another's to run.
import type { Config } from '../config/schema.ts';
import type { Image } from '../domain/image.ts';
import type { Operation } from '../host/operation.ts';
import type { ImagePolicy } from '../images/trust/policy.ts';
import type { Store } from '../store/contract.ts';

export type ImageRules = {
  /** For who asks; the daemon itself is under those for all. */
  of(op: Operation): Promise<ImagePolicy>;
  /**
   * Whether who asks may use an image that is here: its project brought it, or Hutch made it; or the operator's project brought it, and
   * who asks is under no rules. `by`: a name may be anybody's word for it, an id or a digest is the image.
   */
  mayUse(op: Operation, image: Image, by: 'name' | 'digest'): Promise<boolean>;
};

export function imageRules(
  store: Pick<Store, 'query' | 'defaultProjectId'>,
  { images, projects }: Pick<Config, 'images' | 'projects'>,
): ImageRules {
  const forAll = policyOf(images);
  const own = new Map(
    [...projects].map(([name, rules]) => [name, policyOf({ ...images, ...rules }, { name, has: (key) => key in rules })]),
  );

  async function asking(op: Operation) {
    const key = (await store.query('keys', {})).find(({ id }) => id === op.actor);
    return (await store.query('projects', {})).find(({ id }) => id === key?.projectId);
  }

  return {
    async of(op) {
      if (own.size === 0) return forAll;
      return own.get((await asking(op))?.name ?? '') ?? forAll;
    },
    async mayUse(op, image, by) {
      if (isOfHutch(image)) return true;
      const brought = await store.query('imageProjects', { imageId: image.id });
      const isForAll = brought.length === 0 || brought.includes(store.defaultProjectId);
      // With the same rules for all, what one may have the others may.
      if (own.size === 0 && isForAll) return true;
      const project = await asking(op);
      if (project === undefined || brought.includes(project.id)) return true;
      const { allow, requireDigest, signed } = own.get(project.name) ?? forAll;
      if (own.size > 0 && allow.length + requireDigest.length + signed.length > 0) return false;
      return isForAll || (by === 'digest' && project.id === store.defaultProjectId);
    },
  };
}

type Rules = Pick<Config['images'], 'allow' | 'require_digest' | 'signed'>;

function policyOf(
  { allow, require_digest: requireDigest, signed }: Rules,
  project?: { readonly name: string; has(key: keyof Rules): boolean },
): ImagePolicy {
  const named = (key: keyof Rules): string => `${project?.has(key) === true ? `projects.${project.name}.` : ''}images.${key}`;
  const rules = signed.map((text) => {
    const at = text.indexOf('='); // the configuration has made sure that it is there
    return { pattern: text.slice(0, at), keyPath: text.slice(at + 1) };
  });
  const names = { allow: named('allow'), requireDigest: named('require_digest'), signed: named('signed') };
  return { allow, requireDigest, signed: rules, names };
}

/** Of Debian's packages, by `hutch` itself: of no project. */
export function isOfHutch({ detail: { source } }: Image): boolean {
  return typeof source === 'object' && source !== null && 'kind' in source && source.kind === 'mmdebstrap';
}
