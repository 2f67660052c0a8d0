// `WWW-Authenticate` of a registry: which of the two ways of logging in it wants, and where.

export type Challenge =
  | { readonly scheme: 'basic' }
  | { readonly scheme: 'bearer'; readonly realm: string; readonly service: string | null; readonly scope: string | null };

/** Null for what is not understood. Where it offers both, the token: it says less to whom it is sent. */
export function parseChallenge(header: string): Challenge | null {
  const text = header.slice(0, 4096);
  const bearer = /(?:^|,\s*)bearer\s+(.*)$/is.exec(text)?.[1];
  if (bearer !== undefined) {
    const values = new Map<string, string>();
    for (const [, key = '', quoted, plain] of bearer.matchAll(/([a-z_]+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))/gi)) {
      if (!values.has(key.toLowerCase())) values.set(key.toLowerCase(), quoted ?? plain ?? '');
    }
    const realm = values.get('realm');
    if (realm !== undefined && realm !== '') {
      return { scheme: 'bearer', realm, service: values.get('service') ?? null, scope: values.get('scope') ?? null };
    }
  }
  return /(?:^|,\s*)basic\b/i.test(text) ? { scheme: 'basic' } : null;
}
