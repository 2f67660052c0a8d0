// `.dockerignore`: which files of a build's context are no part of it. Patterns are Docker's: `*` and `?`
// within a name, `**` over any number of directories, `[…]`, `!` to take one back; the last that fits decides, and what
// is below a directory that fits, fits too.

const PATTERNS_MAX = 10_000;

type Pattern = { readonly takesBack: boolean; readonly fits: RegExp };

/** Paths are relative, without `./`, by slashes. */
export class Ignored {
  readonly #patterns: readonly Pattern[];
  readonly #takesBack: boolean;

  constructor(patterns: readonly string[]) {
    this.#patterns = patterns
      .slice(0, PATTERNS_MAX)
      .map(patternOf)
      .filter((pattern) => pattern !== null);
    this.#takesBack = this.#patterns.some(({ takesBack }) => takesBack);
  }

  static parse(text: string): Ignored {
    const lines = text
      .replace(/^\uFEFF/, '')
      .split('\n')
      .map((line) => line.trim());
    return new Ignored(lines.filter((line) => line !== '' && !line.startsWith('#')));
  }

  has(path: string): boolean {
    let isIgnored = false;
    for (const { takesBack, fits } of this.#patterns) if (isIgnored === takesBack && fits.test(path)) isIgnored = !takesBack;
    return isIgnored;
  }

  /** Whether nothing below that directory needs to be looked at. */
  hasAllBelow(path: string): boolean {
    return !this.#takesBack && this.has(path);
  }

  get isEmpty(): boolean {
    return this.#patterns.length === 0;
  }
}

function patternOf(text: string): Pattern | null {
  const takesBack = text.startsWith('!');
  const parts = (takesBack ? text.slice(1).trim() : text).split('/').filter((part) => part !== '' && part !== '.');
  const kept: string[] = [];
  for (const part of parts) {
    if (part === '..') kept.pop();
    else kept.push(part);
  }
  if (kept.length === 0) return null;
  return { takesBack, fits: new RegExp(`^${globSource(kept.join('/'))}(?:/|$)`) };
}

/** As a regular expression without anchors. */
export function globSource(glob: string): string {
  let source = '';
  for (let at = 0; at < glob.length; at += 1) {
    const char = glob[at] ?? '';
    if (char === '*' && glob[at + 1] === '*') {
      while (glob[at + 1] === '*') at += 1;
      if (glob[at + 1] === '/') {
        at += 1;
        source += '(?:[^/]*/)*';
      } else source += '.*';
    } else if (char === '*') source += '[^/]*';
    else if (char === '?') source += '[^/]';
    else if (char === '[') {
      const end = glob.indexOf(']', at + 2);
      if (end < 0) source += '\\[';
      else {
        const inner = glob
          .slice(at + 1, end)
          .replaceAll('\\', '\\\\')
          .replace(/^[!^]/, '^');
        source += `(?!/)[${inner.replaceAll('[', '\\[')}]`;
        at = end;
      }
    } else if (char === '\\' && at + 1 < glob.length) {
      at += 1;
      source += quoted(glob[at] ?? '');
    } else source += quoted(char);
  }
  return source;
}

function quoted(char: string): string {
  return char.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');
}
