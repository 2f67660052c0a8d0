// Addresses at which a shared port of a sandbox answers: `<port>-<name>.<domain>`, a host of its own for each, so that no
// page of a sandbox has the origin of another one or of the API.
import { isId, NAME_CHARS_MAX } from './ids.ts';

export type PreviewHost = { readonly port: number; readonly name: string };

const PORT_MAX = 65_535;

/** Whether no API answers there: the domain itself, and all below it. */
export function isPreviewHost(host: string, domain: string): boolean {
  const name = hostName(host);
  return name === domain || name.endsWith(`.${domain}`);
}

/** Null: it is none. `name` is that of a sandbox, or its id. */
export function parsePreviewHost(host: string, domain: string): PreviewHost | null {
  const name = hostName(host);
  if (!name.endsWith(`.${domain}`)) return null;
  const [, port = '', rest = ''] = /^(\d{1,5})-([a-z0-9-]{1,63})$/.exec(name.slice(0, -domain.length - 1)) ?? [];
  return rest === '' || Number(port) < 1 || Number(port) > PORT_MAX ? null : { port: Number(port), name: rest };
}

/** A label has 63 characters: where name and port do not fit, the id does. */
export function previewHost(port: number, { id, name }: { readonly id: string; readonly name: string }, domain: string): string {
  const label = `${port}-${name}`;
  return `${label.length > NAME_CHARS_MAX || isId('sbx', name) ? `${port}-${id}` : label}.${domain}`;
}

function hostName(host: string): string {
  return host.toLowerCase().replace(/:\d*$/, '').replace(/\.$/, '');
}
