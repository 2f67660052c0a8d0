// A Dockerfile as logical lines: parser directives at its head, comments gone, continued lines joined,
// heredocs taken out of the lines that follow. What a line means is dockerfile.ts's.
import { DockerfileError } from './dockerfile-error.ts';

/** A file that somebody wrote by hand has a hundredth of it. */
export const DOCKERFILE_BYTES_MAX = 1024 * 1024;
const LINES_MAX = 20_000;
const HEREDOCS_MAX = 64;

export type Heredoc = {
  readonly name: string;
  readonly content: string;
  /** Whether `$NAME` in it is replaced: not where its name was quoted. */
  readonly expand: boolean;
  /** As it was written after the command: `<<-"EOF"`. */
  readonly marker: string;
};

export type LogicalLine = {
  /** Of its first line, from 1. */
  readonly line: number;
  readonly text: string;
  readonly heredocs: readonly Heredoc[];
};

export type Escape = '\\' | '`';

export type DockerfileLines = {
  readonly escapeChar: Escape;
  /** Lower case; `syntax` is taken note of and changes nothing. */
  readonly directives: Readonly<Record<string, string>>;
  readonly lines: readonly LogicalLine[];
};

const DIRECTIVE = /^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$/;
const COMMENT = /^\s*#/;
const WITH_HEREDOC = /^\s*(?:ONBUILD\s+)?(RUN|COPY|ADD)\b/i;

export function readLines(text: string): DockerfileLines {
  const raw = text
    .replace(/^\uFEFF/, '')
    .replaceAll('\r\n', '\n')
    .split('\n');
  if (raw.length > LINES_MAX) throw new DockerfileError(LINES_MAX, null, `it has more than ${LINES_MAX} lines`);
  const { directives, escapeChar } = directivesOf(raw);
  const lines: LogicalLine[] = [];
  for (let at = 0; at < raw.length; ) {
    const first = raw[at] ?? '';
    if (COMMENT.test(first) || first.trim() === '') {
      at += 1;
      continue;
    }
    const line = at + 1;
    const joined = join(raw, at, escapeChar);
    at = joined.next;
    const heredocs: Heredoc[] = [];
    if (WITH_HEREDOC.test(joined.text)) {
      for (const opened of heredocsIn(joined.text, escapeChar)) {
        if (heredocs.length === HEREDOCS_MAX)
          throw new DockerfileError(line, null, `more than ${HEREDOCS_MAX} heredocs in one instruction`);
        const read = readHeredoc(raw, at, opened, line);
        heredocs.push(read.heredoc);
        at = read.next;
      }
    }
    lines.push({ line, text: joined.text.trim(), heredocs });
  }
  return { escapeChar, directives, lines };
}

function directivesOf(raw: readonly string[]): { directives: Record<string, string>; escapeChar: Escape } {
  const directives: Record<string, string> = {};
  for (const [at, line] of raw.entries()) {
    const [, name = '', value = ''] = DIRECTIVE.exec(line) ?? [];
    if (name === '') break;
    const key = name.toLowerCase();
    if (key in directives) throw new DockerfileError(at + 1, null, `the directive ${key} is given twice`);
    directives[key] = value;
  }
  const escapeChar = directives['escape'] ?? '\\';
  if (escapeChar !== '\\' && escapeChar !== '`') {
    throw new DockerfileError(1, null, `the directive escape must be \\ or \`, not ${JSON.stringify(escapeChar.slice(0, 20))}`);
  }
  return { directives, escapeChar };
}

/** A line and those that continue it; comments and empty lines between them are none of it. */
function join(raw: readonly string[], from: number, escapeChar: Escape): { text: string; next: number } {
  const continued = escapeChar === '\\' ? /\\[ \t]*$/ : /`[ \t]*$/;
  const escapedEnd = escapeChar === '\\' ? /(^|[^\\])(\\\\)+[ \t]*$/ : /(^|[^`])(``)+[ \t]*$/;
  let text = '';
  let at = from;
  for (; at < raw.length; at += 1) {
    const line = raw[at] ?? '';
    if (at > from && (COMMENT.test(line) || line.trim() === '')) continue;
    const goesOn = continued.test(line) && !(escapedEnd.test(line) && !/[ \t]$/.test(line));
    text += goesOn ? line.replace(continued, '') : line;
    if (!goesOn) return { text, next: at + 1 };
  }
  return { text, next: at };
}

type Opened = { readonly name: string; readonly chomp: boolean; readonly expand: boolean; readonly marker: string };

/** `<<EOF`, `<<-EOF`, `<<"EOF"`, `3<<EOF`, wherever a shell would take one: not in quotes, not `<<<`. */
export function heredocsIn(text: string, escapeChar: Escape): readonly Opened[] {
  const found: Opened[] = [];
  let quote: string | null = null;
  for (let at = 0; at < text.length; at += 1) {
    const char = text[at] ?? '';
    if (quote !== null) {
      if (char === escapeChar && quote === '"') at += 1;
      else if (char === quote) quote = null;
      continue;
    }
    if (char === escapeChar) {
      at += 1;
      continue;
    }
    if (char === '"' || char === "'") {
      quote = char;
      continue;
    }
    if (char !== '<' || text[at + 1] !== '<') continue;
    if (text[at + 2] === '<') {
      while (text[at + 1] === '<') at += 1;
      continue;
    }
    const match = /^<<(-?)(?:"([^"\s]+)"|'([^'\s]+)'|([A-Za-z_][A-Za-z0-9_.-]*))/.exec(text.slice(at));
    if (match === null) continue;
    const [marker, dash, double, single, bare] = match;
    found.push({ name: double ?? single ?? bare ?? '', chomp: dash === '-', expand: bare !== undefined, marker });
    at += marker.length - 1;
  }
  return found;
}

function readHeredoc(raw: readonly string[], from: number, opened: Opened, line: number): { heredoc: Heredoc; next: number } {
  const { name, chomp, expand, marker } = opened;
  let content = '';
  for (let at = from; at < raw.length; at += 1) {
    const text = chomp ? (raw[at] ?? '').replace(/^\t+/, '') : (raw[at] ?? '');
    if (text === name) return { heredoc: { name, content, expand, marker }, next: at + 1 };
    content += `${text}\n`;
  }
  throw new DockerfileError(line, null, `the heredoc ${marker} is never ended: a line with nothing but ${name} is missing`);
}
