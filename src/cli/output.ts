// How results look: tables, ages, sizes, JSON. Pure, but for nothing: the writing is in io.ts.
import { stripVTControlCharacters } from 'node:util';

/** One document on one line. */
export function json(value: unknown): string {
  return `${JSON.stringify(value)}\n`;
}

/** Columns as wide as their widest cell; the last one is not filled up. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows.map((row) => row.map(safe))];
  const widths = head.map((_, column) => Math.max(...all.map((row) => width(row[column] ?? ''))));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell + ' '.repeat((widths[column] ?? 0) - width(cell))))
      .join('   ')
      .trimEnd();
  return `${all.map(line).join('\n')}\n`;
}

/** Text that came from elsewhere, without what would command the terminal. */
export function safe(text: string): string {
  return stripVTControlCharacters(text).replaceAll(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

/** The same of a line that keeps its columns. */
export function safeLine(text: string): string {
  return text.split('\t').map(safe).join('\t');
}

/** Git's own colours, as they are where nothing else is configured; else what commands a terminal. */
const COLOUR_OR_CONTROL = /\u001b\[(?:|1|31|32|33|36|41)m|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** A patch of files that came from elsewhere, for a terminal: its lines and colours stay, and nothing in it commands the terminal. */
export function safePatch(text: string): string {
  return text.replaceAll(COLOUR_OR_CONTROL, (found) =>
    found.length > 1 ? found : found < ' ' ? `^${String.fromCharCode(found.charCodeAt(0) + 64)}` : '?',
  );
}

function width(text: string): number {
  return [...text].length;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** For eyes: rounded, `1.5 GiB`. What is read back uses src/domain/size.ts. */
export function roughSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** `12s`, `5m`, `3h`, `2d`. */
export function roughAge(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1_000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

export function clock(ms: number): string {
  return new Date(ms)
    .toISOString()
    .replace('T', ' ')
    .replace(/\.\d+Z$/, 'Z');
}

/** An argument vector as one would type it. */
export function commandLine(argv: readonly string[]): string {
  return argv.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(' ');
}

export function cut(text: string, chars: number): string {
  const letters = [...text];
  return letters.length <= chars ? text : `${letters.slice(0, chars - 1).join('')}…`;
}
