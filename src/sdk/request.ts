// Where the members of an input travel: those that the path names in the path, the rest in the JSON
// body (unary POST) or the query. Pure: the other half of src/api/native/input.ts.
import type { Route } from './routes.ts';

export type EncodedRequest = { readonly method: Route['method']; readonly path: string; readonly body: string | null };

export function encodeRequest(route: Route, input: Readonly<Record<string, unknown>>): EncodedRequest {
  const left = new Map(Object.entries(input).filter(([, value]) => value !== undefined));
  const path = route.path.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const value = left.get(name);
    left.delete(name);
    if (typeof value !== 'string' || value === '') throw new TypeError(`${name} must be a text that is not empty`);
    return encodeURIComponent(value);
  });
  if (route.kind === 'unary' && route.method === 'POST') {
    return { method: route.method, path, body: JSON.stringify(Object.fromEntries(left)) };
  }
  const query = new URLSearchParams();
  for (const [name, value] of left) {
    for (const item of Array.isArray(value) ? value : [value]) query.append(name, String(item));
  }
  const search = query.toString();
  return { method: route.method, path: search === '' ? path : `${path}?${search}`, body: null };
}
