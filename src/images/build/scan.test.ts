import fc from 'fast-check';
import { expect, test } from 'vitest';
import { diffScans, parseScan, type Scan } from './scan.ts';

/** What a stage has on disk, as names and what they are: the image's own below, then layer on layer. */
type Files = Map<string, string>;

const NAMES = ['a', 'b', 'a/x', 'a/y', 'b/x', 'b/z', 'c'];
const change = fc.record({ do: fc.constantFrom('write', 'remove'), name: fc.constantFrom(...NAMES) });

/** The files that overlayfs would show and keep, in a model of it: `upper` alone is what a scan sees. */
class Overlay {
  readonly lower: ReadonlyMap<string, string>;
  readonly upper = new Map<string, { kind: 'f' | 'd' | 'w'; state: string; flag: '-' | 'o' }>();
  #clock = 0;

  constructor(lower: ReadonlyMap<string, string>) {
    this.lower = lower;
  }

  tick(): string {
    this.#clock += 1;
    return String(this.#clock);
  }

  merged(): Files {
    const seen: Files = new Map(this.lower);
    for (const [path, { kind, flag }] of [...this.upper].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const drop = () => [...seen.keys()].filter((each) => each.startsWith(`${path}/`)).forEach((each) => void seen.delete(each));
      if (kind === 'w') {
        seen.delete(path);
        drop();
      } else {
        if (kind === 'f' || flag === 'o') drop();
        seen.set(path, kind);
      }
    }
    return seen;
  }

  apply({ do: what, name }: { do: string; name: string }): void {
    const parent = name.includes('/') ? name.slice(0, name.indexOf('/')) : null;
    const now = this.merged();
    if (what === 'remove') {
      if (!now.has(name)) return;
      for (const path of [...this.upper.keys()]) if (path === name || path.startsWith(`${name}/`)) this.upper.delete(path);
      const isLower = this.lower.has(name) && (parent === null || !this.hidden(parent));
      if (isLower) this.upper.set(name, { kind: 'w', state: this.tick(), flag: '-' });
      if (parent !== null) this.touch(parent);
      return;
    }
    if (parent !== null && now.get(parent) !== 'd') this.directory(parent);
    if (parent !== null) this.touch(parent);
    if (now.get(name) === 'd') return;
    this.upper.set(name, { kind: 'f', state: this.tick(), flag: '-' });
  }

  hidden(path: string): boolean {
    const own = this.upper.get(path);
    return own !== undefined && (own.flag === 'o' || own.kind !== 'd');
  }

  touch(path: string): void {
    const own = this.upper.get(path);
    this.upper.set(path, { kind: 'd', state: this.tick(), flag: own?.kind === 'd' ? own.flag : '-' });
  }

  directory(path: string): void {
    // Something is, or was, there in the image: what it had must not shine through.
    const flag = this.lower.has(path) ? 'o' : '-';
    this.upper.set(path, { kind: 'd', state: this.tick(), flag });
  }

  scan(): Scan {
    return new Map([...this.upper].map(([path, entry]) => [path, { ...entry }]));
  }
}

/** As OCI's layers are applied: what is taken away first, then what is there. */
function applyDiff(files: Files, diff: ReturnType<typeof diffScans>, kinds: Scan): void {
  for (const path of [...diff.removed, ...diff.opaque.map((each) => `${each}/`)]) {
    for (const each of [...files.keys()]) if (each === path || each.startsWith(path.endsWith('/') ? path : `${path}/`)) files.delete(each);
  }
  for (const { path } of diff.changed) {
    const kind = kinds.get(path)?.kind ?? 'f';
    if (kind === 'f') for (const each of [...files.keys()]) if (each.startsWith(`${path}/`)) files.delete(each);
    files.set(path, kind);
  }
}

test('the layers of all steps together give what the sandbox had after the last one', () => {
  const lowers = fc.uniqueArray(fc.constantFrom('c', 'a', 'b', 'a/x', 'b/x'), { maxLength: 5 });
  fc.assert(
    fc.property(lowers, fc.array(fc.array(change, { maxLength: 6 }), { maxLength: 5 }), (lower, steps) => {
      const base: Files = new Map();
      for (const name of lower.sort()) {
        if (name.includes('/')) base.set(name.slice(0, 1), 'd');
        base.set(name, base.get(name) ?? 'f');
      }
      for (const name of base.keys()) if (name.includes('/')) base.set(name.slice(0, 1), 'd');
      const overlay = new Overlay(base);
      const image: Files = new Map(base);
      let before = overlay.scan();
      for (const step of steps) {
        for (const each of step) overlay.apply(each);
        const after = overlay.scan();
        applyDiff(
          image,
          diffScans(before, after, () => false),
          after,
        );
        before = after;
        expect([...image].sort()).toEqual([...overlay.merged()].sort());
      }
    }),
    { numRuns: 2_000 },
  );
});

test('what did not change is in no layer, and what lies outside never is', () => {
  const record = (kind: string, state: string, flag: string, path: string) => `${kind} ${state} ${flag} ${path}\0`;
  const text =
    record('d', '1 5 493 0 0 4096 9', '-', '') + record('f', '2 5 420 0 0 3 9', '-', 'a b\n') + record('w', '3 5 0 0 0 0 9', '-', 'gone');
  const scan = parseScan(Buffer.from(text, 'latin1'));
  expect([...scan.keys()]).toEqual(['', 'a b\n', 'gone']);
  expect(diffScans(scan, scan, () => false)).toEqual({ removed: [], opaque: [], changed: [] });
  expect(diffScans(new Map(), scan, () => false)).toEqual({
    removed: ['gone'],
    opaque: [],
    changed: [
      { path: '', from: 'u' },
      { path: 'a b\n', from: 'u' },
    ],
  });
  expect(diffScans(new Map(), scan, (path) => path !== 'gone').changed).toEqual([]);
  expect(() => parseScan(Buffer.from('f 1 2\0'))).toThrow(/damaged/);
  expect(() => parseScan(Buffer.from(text.slice(0, -1)))).toThrow(/cut off/);
});
