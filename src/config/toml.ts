// The configuration file: TOML with one level of tables, and more of them for projects alone. What it says is flattened to `section.key`,
// each with the line on which it stands, so that a complaint can name it.
import { parse, TomlError } from 'smol-toml';
import { HutchError } from '../domain/errors.ts';

/** Of a file that somebody writes by hand. */
const CONFIG_CHARS_MAX = 1_048_576;
const PROJECTS = 'projects';

export type FileValue = { readonly path: string; readonly value: unknown; readonly where: string };

/** @throws HutchError `invalid_argument` naming file, line and column of what is no TOML. */
export function readToml(text: string, file: string): readonly FileValue[] {
  if (text.length > CONFIG_CHARS_MAX) {
    throw new HutchError({
      code: 'invalid_argument',
      message: `${file}: has ${text.length} characters; at most ${CONFIG_CHARS_MAX} are read`,
    });
  }
  const tables = parsed(text, file);
  const lines = text.split('\n');
  return Object.entries(tables).flatMap(([section, table]): readonly FileValue[] => {
    const where = `${file}:${lineOf(lines, section, null)}`;
    // A list of its own, as others have it: nothing but a sandbox is meant.
    if (section === 'file_sync') return [{ path: 'sandbox.file_sync', value: table, where }];
    if (!isTable(table)) return [{ path: section, value: table, where }];
    if (section === PROJECTS) return leavesOf(table, section, lines, file);
    return Object.entries(table).map(([key, value]) => ({
      path: `${section}.${key}`,
      value,
      where: `${file}:${lineOf(lines, section, key)}`,
    }));
  });
}

/** `[projects.NAME.images]`: as deep as it goes. */
function leavesOf(table: Record<string, unknown>, section: string, lines: readonly string[], file: string): readonly FileValue[] {
  return Object.entries(table).flatMap(([key, value]): readonly FileValue[] => {
    const path = `${section}.${key}`;
    if (isTable(value)) return leavesOf(value, path, lines, file);
    return [{ path, value, where: `${file}:${lineOf(lines, section, key)}` }];
  });
}

function parsed(text: string, file: string): Record<string, unknown> {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const [what = ''] = error.message.replace(/^Invalid TOML document: /, '').split('\n');
    throw new HutchError({ code: 'invalid_argument', message: `${file}:${error.line}:${error.column}: no TOML: ${what}`, cause: error });
  }
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && Object.getPrototypeOf(value) !== Date.prototype;
}

/**
 * The 1-based line on which a key (or its table) stands. The parser keeps no positions; this finds
 * `key =` below `[section]`, and `section.key =` anywhere. In doubt it says the line of the table.
 */
function lineOf(lines: readonly string[], section: string, key: string | null): number {
  let current = '';
  let sectionLine = 1;
  for (const [index, line] of lines.entries()) {
    const header = /^\s*\[{1,2}\s*["']?([^"'\]]+?)["']?\s*\]/.exec(line)?.[1];
    if (header !== undefined) current = header;
    if (header === section) sectionLine = index + 1;
    const assigned = /^\s*([A-Za-z0-9_."'-]+?)\s*=/.exec(line)?.[1]?.replaceAll(/["']/g, '');
    if (assigned === undefined) continue;
    const full = current === '' ? assigned : `${current}.${assigned}`;
    if (full === (key === null ? section : `${section}.${key}`)) return index + 1;
  }
  return sectionLine;
}
