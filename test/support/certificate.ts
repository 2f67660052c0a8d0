import { execFileSync } from 'node:child_process';

export function openssl(...args: string[]): void {
  execFileSync('openssl', args, { stdio: 'pipe' });
}

type SelfSigned = { readonly name: string; readonly key: string; readonly certificate: string; readonly extensions?: readonly string[] };

/** Of an authority, or of a server that is its own. */
export function selfSigned({ name, key, certificate, extensions = [] }: SelfSigned): void {
  const asked = extensions.flatMap((extension) => ['-addext', extension]);
  openssl(
    'req',
    '-x509',
    '-newkey',
    'rsa:2048',
    '-nodes',
    '-days',
    '2',
    '-subj',
    `/CN=${name}`,
    ...asked,
    '-keyout',
    key,
    '-out',
    certificate,
  );
}
