// Writes src/sdk/routes.ts from the verb table: what a client must know of each verb, without zod.
// `--check` writes nothing and fails when the file is not up to date (test/sdk/routes.test.ts does that too).
import { readFileSync, writeFileSync } from 'node:fs';
import { type Verb, verbs } from '../src/services/verbs.ts';

const FILE = new URL('../src/sdk/routes.ts', import.meta.url);

export function routesSource(): string {
  const lines = Object.entries(verbs as Record<string, Verb>).map(([name, { kind, method, path, idempotent, reads }]) => {
    return `  '${name}': { kind: '${kind}', method: '${method}', path: '${path}', idempotent: ${idempotent}, reads: ${reads} },`;
  });
  return `// Made from the verb table by scripts/generate-sdk-routes.ts: do not edit.

export type Route = {
  readonly kind: 'unary' | 'lines' | 'socket' | 'download' | 'upload';
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** \`{name}\` stands for a member of the input. */
  readonly path: string;
  readonly idempotent: boolean;
  readonly reads: boolean;
};

export const routes = {
${lines.join('\n')}
} as const satisfies Record<string, Route>;
`;
}

if (import.meta.main) {
  const source = routesSource();
  if (!process.argv.includes('--check')) writeFileSync(FILE, source);
  else if (readFileSync(FILE, 'utf8') !== source) {
    console.error('src/sdk/routes.ts is not up to date: run node scripts/generate-sdk-routes.ts');
    process.exit(1);
  }
}
