// The routes, derived from the verb table: nothing is routed that is not a verb.
import findMyWay, { type HTTPMethod } from 'find-my-way';
import { type Verb, type VerbName, verbs } from '../../services/verbs.ts';

export type Route =
  | { readonly kind: 'verb'; readonly name: VerbName; readonly verb: Verb; readonly params: Readonly<Record<string, string | undefined>> }
  | { readonly kind: 'wrong-method'; readonly allowed: readonly string[] }
  | { readonly kind: 'none' };

export type Routes = (method: string, path: string) => Route;

/** Longer than any id, name or execution id, and than an image's name with its slashes escaped: what does not fit is no such thing. */
const PARAM_CHARS_MAX = 1_600;

export function newRoutes(): Routes {
  const router = findMyWay({ maxParamLength: PARAM_CHARS_MAX, caseSensitive: true });
  const byRoute = new Map<unknown, { name: VerbName; verb: Verb }>();
  const methods = new Set<HTTPMethod>();
  for (const [name, verb] of Object.entries(verbs) as [VerbName, Verb][]) {
    const handler = (): void => {};
    byRoute.set(handler, { name, verb });
    methods.add(verb.method);
    router.on(verb.method, verb.path.replaceAll(/\{(\w+)\}/g, ':$1'), handler);
  }
  return (method, path) => {
    const found = router.find(method as HTTPMethod, path);
    const entry = found === null ? undefined : byRoute.get(found.handler);
    if (found !== null && entry !== undefined) return { kind: 'verb', ...entry, params: found.params };
    const allowed = [...methods].filter((other) => other !== method && router.find(other, path) !== null);
    return allowed.length > 0 ? { kind: 'wrong-method', allowed } : { kind: 'none' };
  };
}
