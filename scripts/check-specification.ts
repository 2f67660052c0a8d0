// docs/specification.md holds sentences that users rely on. Each bullet ends with the names of the
// tests that prove it, in backquotes after "Proof:". This check fails for a bullet without one and
// for a name that no test has. `${…}` in a test's name stands for anything.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const TEST_CALL = /\b(?:test|it)(?:\.\w+(?:\([^)]*\))?)*\(\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|`((?:[^`\\]|\\.)*)`)/g;
/** The name after the list of `test.each([…])(`. */
const TEST_OF_EACH = /^ *\](?: as const)?\)\(\s*'((?:[^'\\]|\\.)*)'/gm;
const LAB_SCENARIO = /^ {2}name: '([^'\n]+)'/gm;
const RUST_TEST = /#\[test\]\s*(?:#\[[^\]]*\]\s*)*fn\s+(\w+)/g;

function filesBelow(dir: string, suffix: string): string[] {
  return readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith(suffix) && !/(^|\/)(node_modules|target|dist)\//.test(path))
    .map((path) => join(dir, path));
}

function literal(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}

/** Patterns that match the names of all tests found below `root`; none for a name that could be any. */
export function testNames(root: string): RegExp[] {
  const names: string[] = [];
  for (const dir of ['src', 'test']) {
    // What several files run, as for each backend, lies in modules of its own.
    for (const path of filesBelow(join(root, dir), dir === 'test' ? '.ts' : '.test.ts')) {
      const text = readFileSync(path, 'utf8');
      for (const match of [...text.matchAll(TEST_CALL), ...text.matchAll(TEST_OF_EACH)])
        names.push((match[1] ?? match[2] ?? match[3] ?? '').replaceAll("\\'", "'"));
    }
  }
  // What only the lab can prove.
  for (const lab of ['scenarios.ts', 'installed.ts'].map((file) => join(root, 'scripts/lab', file)))
    if (existsSync(lab)) for (const match of readFileSync(lab, 'utf8').matchAll(LAB_SCENARIO)) names.push(match[1] ?? '');
  for (const path of filesBelow(join(root, 'rust'), '.rs')) {
    for (const match of readFileSync(path, 'utf8').matchAll(RUST_TEST)) names.push(match[1] ?? '');
  }
  return names
    .map((name) => name.split(/\$\{[^}]*\}/))
    .filter((parts) => /\w/.test(parts.join('')))
    .map((parts) => new RegExp(`^${parts.map(literal).join('.*')}$`));
}

/** What is wrong with a specification, one line each. */
export function problems(specification: string, names: readonly RegExp[]): string[] {
  const found: string[] = [];
  const bullets = specification.split(/\n(?=- )/).filter((part) => part.startsWith('- '));
  if (bullets.length === 0) found.push('no sentence found: each is a bullet that begins with "- "');
  for (const bullet of bullets) {
    const text = (bullet.split(/\n\n|\n#/)[0] ?? '').replace(/\s+/g, ' ');
    const [sentence = '', proof] = text.split('Proof:');
    const proofs = [...(proof ?? '').matchAll(/`([^`]+)`/g)].map((match) => match[1] ?? '');
    if (proofs.length === 0) found.push(`no proof: ${sentence.trim().slice(0, 100)}`);
    for (const name of proofs)
      if (!names.some((pattern) => pattern.test(name))) found.push(`no test is named "${name}" (for: ${sentence.slice(0, 60)})`);
  }
  return found;
}

if (import.meta.main) {
  const found = problems(readFileSync('docs/specification.md', 'utf8'), testNames('.'));
  for (const line of found) console.error(`docs/specification.md: ${line}`);
  process.exit(found.length === 0 ? 0 : 1);
}
