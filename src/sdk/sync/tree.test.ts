import fc from 'fast-check';
import { expect, test } from 'vitest';
import { newIgnore } from './ignore.ts';
import { conflictName, decide, isSame, linkRefusal, type Node, pathRefusal } from './tree.ts';

const node: fc.Arbitrary<Node | null> = fc.oneof(
  fc.constant(null),
  fc.constant({ type: 'directory' } as const),
  fc.record({ type: fc.constant('symlink' as const), target: fc.constantFrom('a', 'b') }),
  fc.record({
    type: fc.constant('file' as const),
    size: fc.constantFrom(0, 1),
    mtimeMs: fc.constantFrom(1, 2),
    mode: fc.constantFrom(0o600, 0o644),
  }),
);
const sides = fc.record({ here: node, guest: node });
const directions = fc.record({ twoWay: fc.boolean(), removes: fc.boolean() });

test('whatever two sides have become, nothing that one of them has changed is overwritten or removed', () => {
  fc.assert(
    fc.property(fc.option(sides), sides, directions, (before, now, how) => {
      const decision = decide(before, now, how);
      const [ours, theirs] = [!isSame(now.here, before?.here ?? null), !isSame(now.guest, before?.guest ?? null)];
      if (decision === 'up') expect(now.here !== null && (now.guest === null || !theirs)).toBe(true);
      if (decision === 'down') expect(how.twoWay && now.guest !== null && (now.here === null || !ours)).toBe(true);
      if (decision === 'remove in the sandbox') expect(how.removes && now.here === null && before?.here !== null && !theirs).toBe(true);
      if (decision === 'remove here') expect(how.removes && how.twoWay && now.guest === null && before?.guest !== null && !ours).toBe(true);
      if (decision === 'conflict') expect(ours && theirs && now.here !== null && now.guest !== null).toBe(true);
      // What is new or was changed on our side alone arrives, and on theirs where it may.
      if (now.here !== null && ours && !theirs && !isSame(now.here, now.guest)) expect(decision).toBe('up');
      if (how.twoWay && now.guest !== null && theirs && !ours && !isSame(now.here, now.guest)) expect(decision).toBe('down');
    }),
    { numRuns: 2_000 },
  );
});

/** As a kernel would, in a directory whose links are these; null: it left the directory. `budget`: links that are followed at all. */
function walk(links: ReadonlyMap<string, string>, start: readonly string[], path: string, budget = { left: 40 }): readonly string[] | null {
  let at = [...start];
  for (const name of path.split('/')) {
    if (name === '' || name === '.') continue;
    if (name === '..') {
      if (at.length === 0) return null;
      at = at.slice(0, -1);
      continue;
    }
    const target = links.get([...at, name].join('/'));
    if (target === undefined) at = [...at, name];
    else {
      budget.left -= 1;
      if (budget.left < 0) return []; // a circle: the kernel gives up
      const led = walk(links, at, target, budget);
      if (led === null) return null;
      at = [...led];
    }
  }
  return at;
}

test('through links that are made here nobody gets out of the directory, whatever way they take', () => {
  const name = fc.constantFrom('a', 'b', 'c');
  const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((names) => names.join('/'));
  const target = fc.array(fc.constantFrom('..', '.', 'a', 'b', 'c'), { minLength: 1, maxLength: 5 }).map((names) => names.join('/'));
  let made = 0;
  fc.assert(
    fc.property(fc.array(fc.tuple(path, target), { maxLength: 6 }), target, (wanted, tried) => {
      // A link stands in a real directory: nothing is made below a link.
      const links = new Map<string, string>();
      for (const [at, to] of wanted) {
        const isBelow = [...links.keys()].some((link) => at.startsWith(`${link}/`) || link.startsWith(`${at}/`));
        if (!isBelow && linkRefusal(at, to) === null) links.set(at, to);
      }
      made += links.size;
      const inside = tried
        .split('/')
        .filter((part) => part !== '..')
        .join('/');
      expect(walk(links, [], inside)).not.toBeNull();
    }),
    { numRuns: 2_000 },
  );
  expect(made).toBeGreaterThan(1_000);
  expect(linkRefusal('a/b', '/etc/passwd')).toContain('absolute');
  expect(linkRefusal('a/b', '../../x')).toContain('leads out');
  expect(linkRefusal('a/b', 'c/../../../x')).toContain('behind a name');
  expect(linkRefusal('a/b', '../x')).toBeNull();
});

test('paths of a sandbox that would lead elsewhere are refused', () => {
  for (const path of ['..', 'a/../b', '', 'a//b', '/a', './a', 'a\\x2f', 'a\0b', 'x'.repeat(256), `${'a/'.repeat(3_000)}a`])
    expect(pathRefusal(path), path).not.toBeNull();
  for (const path of ['a', '...', 'a b/ä', '-rf', 'new\nline']) expect(pathRefusal(path), path).toBeNull();
});

test('.git and half-written files are on neither side, whatever is taken back; other patterns are those of .gitignore', () => {
  const isIgnored = newIgnore(['node_modules', '/dist', '*.log', '!keep.log', '!.git']);
  for (const path of ['.git', 'sub/.git/hooks/post-checkout', '.GIT/config', '.hutch-12.tmp', 'a/node_modules/b', 'dist/x', 'a/b.log'])
    expect(isIgnored(path), path).toBe(true);
  for (const path of ['.gitignore', 'a/dist', 'a/keep.log', 'node_modules2']) expect(isIgnored(path), path).toBe(false);
});

test('what is kept beside keeps its ending, and no name is taken twice', () => {
  const at = Date.UTC(2026, 0, 2, 3, 4, 5);
  expect(conflictName('a.b/notes.txt', at, () => false)).toBe('a.b/notes.conflict-20260102T030405Z.txt');
  expect(conflictName('a.b/.env', at, () => false)).toBe('a.b/.env.conflict-20260102T030405Z');
  expect(conflictName('x', at, (name) => name === 'x.conflict-20260102T030405Z')).toBe('x.conflict-20260102T030405Z-2');
});
