// Words of an instruction as a Dockerfile writes them: quotes, escapes, and variables with the forms of
// a shell (`${x:-y}`, `${x:+y}`, `${x:?y}`, `${x#p}`, `${x%p}`, `${x/p/r}`).
import type { Escape } from './lines.ts';

export class WordError extends Error {}

export type Variables = (name: string) => string | undefined;

const EXPANSION_CHARS_MAX = 1024 * 1024;
const NESTING_MAX = 32;

/** By white space outside of quotes; each word as it stands there, quotes and escapes included. */
export function splitWords(text: string, escapeChar: Escape): readonly string[] {
  const words: string[] = [];
  let word = '';
  let isWord = false;
  let quote: string | null = null;
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at] ?? '';
    if (quote === null && /\s/.test(char)) {
      if (isWord) words.push(word);
      word = '';
      isWord = false;
      continue;
    }
    isWord = true;
    word += char;
    if (char === escapeChar && quote !== "'") {
      at += 1;
      word += text[at] ?? '';
    } else if (quote === null && (char === '"' || char === "'")) quote = char;
    else if (char === quote) quote = null;
  }
  if (isWord) words.push(word);
  return words;
}

/** One word with its quotes taken away and its variables replaced. */
export function expand(word: string, variables: Variables, escapeChar: Escape): string {
  return new Expander(word, variables, escapeChar, 0).all();
}

/** As `expand`, but quotes and escapes stay what they are: the content of a heredoc. */
export function expandText(text: string, variables: Variables, escapeChar: Escape): string {
  return new Expander(text, variables, escapeChar, 0).text();
}

class Expander {
  readonly #word: string;
  readonly #variables: Variables;
  readonly #escapeChar: Escape;
  readonly #depth: number;
  #at = 0;

  constructor(word: string, variables: Variables, escapeChar: Escape, depth: number) {
    if (depth > NESTING_MAX) throw new WordError(`variables are nested more than ${NESTING_MAX} deep`);
    this.#word = word;
    this.#variables = variables;
    this.#escapeChar = escapeChar;
    this.#depth = depth;
  }

  all(): string {
    let out = '';
    while (this.#at < this.#word.length) {
      const char = this.#take();
      if (char === "'") out += this.#single();
      else if (char === '"') out += this.#double();
      else if (char === '$') out += this.#variable();
      else if (char === this.#escapeChar) out += this.#at < this.#word.length ? this.#take() : char;
      else out += char;
      if (out.length > EXPANSION_CHARS_MAX) throw new WordError(`it grows to more than ${EXPANSION_CHARS_MAX} characters`);
    }
    return out;
  }

  text(): string {
    let out = '';
    while (this.#at < this.#word.length) {
      const char = this.#take();
      if (char === '$') out += this.#variable();
      else if (char === this.#escapeChar && this.#word[this.#at] === '$') out += this.#take();
      else out += char;
      if (out.length > EXPANSION_CHARS_MAX) throw new WordError(`it grows to more than ${EXPANSION_CHARS_MAX} characters`);
    }
    return out;
  }

  #take(): string {
    const char = this.#word[this.#at] ?? '';
    this.#at += 1;
    return char;
  }

  #single(): string {
    const end = this.#word.indexOf("'", this.#at);
    if (end < 0) throw new WordError("a ' is never closed");
    const inner = this.#word.slice(this.#at, end);
    this.#at = end + 1;
    return inner;
  }

  #double(): string {
    let out = '';
    while (this.#at < this.#word.length) {
      const char = this.#take();
      if (char === '"') return out;
      if (char === '$') out += this.#variable();
      else if (char === this.#escapeChar) {
        const next = this.#word[this.#at] ?? '';
        if (next === '"' || next === '$' || next === this.#escapeChar) out += this.#take();
        else out += char;
      } else out += char;
    }
    throw new WordError('a " is never closed');
  }

  #variable(): string {
    const rest = this.#word.slice(this.#at);
    const plain = /^(?:[A-Za-z_][A-Za-z0-9_]*|[0-9])/.exec(rest)?.[0];
    if (plain !== undefined) {
      this.#at += plain.length;
      return this.#variables(plain) ?? '';
    }
    if (rest[0] !== '{') return '$';
    const inner = this.#braces();
    const [, name = '', form = '', word = ''] =
      /^([A-Za-z_][A-Za-z0-9_]*|[0-9])(?:(:[-+?]|[-+?]|##?|%%?|\/\/?)([\s\S]*))?$/.exec(inner) ?? [];
    if (name === '') throw new WordError(`\${${inner.slice(0, 60)}} is no form of a variable that is known`);
    return this.#formed(name, form, word);
  }

  /** Up to the brace that closes it; the ones inside are of variables in its word. */
  #braces(): string {
    this.#at += 1;
    let depth = 1;
    let inner = '';
    while (this.#at < this.#word.length) {
      const char = this.#take();
      if (char === this.#escapeChar) {
        inner += char + this.#take();
        continue;
      }
      if (char === '$' && this.#word[this.#at] === '{') depth += 1;
      else if (char === '}') depth -= 1;
      if (depth === 0) return inner;
      inner += char;
    }
    throw new WordError('a ${ is never closed');
  }

  #formed(name: string, form: string, word: string): string {
    const value = this.#variables(name);
    const inner = (text: string) => new Expander(text, this.#variables, this.#escapeChar, this.#depth + 1).all();
    const isSet = form.startsWith(':') ? value !== undefined && value !== '' : value !== undefined;
    switch (form.replace(':', '')) {
      case '':
        return value ?? '';
      case '-':
        return isSet ? (value ?? '') : inner(word);
      case '+':
        return isSet ? inner(word) : '';
      case '?':
        if (isSet) return value ?? '';
        throw new WordError(word === '' ? `${name} is not set` : `${name}: ${inner(word)}`);
      case '#':
      case '##':
        return withoutPrefix(value ?? '', inner(word), form === '##' ? 'longest' : 'shortest');
      case '%':
      case '%%':
        return reversed(withoutPrefix(reversed(value ?? ''), reversedPattern(inner(word)), form === '%%' ? 'longest' : 'shortest'));
      default: {
        const { pattern, replacement } = halves(word, this.#escapeChar);
        return replaced(value ?? '', inner(pattern), inner(replacement), form === '//' ? 'all' : 'first');
      }
    }
  }
}

function halves(word: string, escapeChar: Escape): { pattern: string; replacement: string } {
  for (let at = 0; at < word.length; at += 1) {
    if (word[at] === escapeChar) at += 1;
    else if (word[at] === '/') return { pattern: word.slice(0, at), replacement: word.slice(at + 1) };
  }
  return { pattern: word, replacement: '' };
}

/** `*` and `?` of a shell's pattern; anything else is itself. */
function matcher(pattern: string, greedy: boolean): RegExp {
  const source = [...pattern]
    .map((char) =>
      char === '*' ? (greedy ? '[\\s\\S]*' : '[\\s\\S]*?') : char === '?' ? '[\\s\\S]' : char.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&'),
    )
    .join('');
  return new RegExp(source, 'g');
}

function withoutPrefix(value: string, pattern: string, how: 'shortest' | 'longest'): string {
  const found = new RegExp(`^(?:${matcher(pattern, how === 'longest').source})`).exec(value);
  return found === null ? value : value.slice(found[0].length);
}

function replaced(value: string, pattern: string, replacement: string, how: 'first' | 'all'): string {
  if (pattern === '') return value;
  const found = matcher(pattern, true);
  return how === 'all' ? value.replaceAll(found, () => replacement) : value.replace(new RegExp(found.source), () => replacement);
}

function reversed(text: string): string {
  return [...text].reverse().join('');
}

function reversedPattern(pattern: string): string {
  return reversed(pattern);
}
