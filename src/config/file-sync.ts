// The list of files that each sandbox gets of its owner's home: tables in a file, `HOST:GUEST[:MODE]` with commas in between elsewhere.
import * as z from 'zod';
import {
  FILE_SYNC_MAX,
  type FileSync,
  guestRefusal,
  hostRefusal,
  MODE_MUST,
  parseFileSync,
  parseMode,
  showFileSync,
} from '../domain/file-sync.ts';
import type { Leaf } from './leaf.ts';

const table = z.strictObject({
  host: z.string('host is missing, or no text'),
  guest: z.string('guest is missing, or no text'),
  // Octal as TOML writes it is a number; a decimal that only looks so has bits that no mode has, or not those that were meant.
  mode: z.string(`${MODE_MUST}, in quotes`).optional(),
});

export function fileSyncLeaf({ about }: { readonly about: string }): Leaf<readonly FileSync[]> {
  const schema = z.unknown().transform((raw, context): readonly FileSync[] => {
    const entries = raw === 'none' || raw === '' ? [] : typeof raw === 'string' ? raw.split(',') : raw;
    const read = Array.isArray(entries) && entries.length <= FILE_SYNC_MAX ? entries.map(readOne) : null;
    if (read === null) {
      context.addIssue(`must be at most ${FILE_SYNC_MAX} tables [[file_sync]] with host, guest and perhaps mode, or none`);
      return z.NEVER;
    }
    const wrong = read.findIndex((one) => typeof one === 'string');
    if (wrong >= 0) context.addIssue(`number ${wrong + 1}: ${read[wrong] as string}`);
    return read.filter((one) => typeof one !== 'string');
  });
  return { schema, fallback: 'none', about, show: (files) => (files.length === 0 ? 'none' : files.map(showFileSync).join(',')) };
}

/** A text says what is wrong. */
function readOne(raw: unknown): FileSync | string {
  if (typeof raw === 'string') {
    const parsed = parseFileSync(raw.trim());
    return parsed.ok ? parsed.value : `${parsed.message}; ${parsed.hint}`;
  }
  const parsed = table.safeParse(raw);
  if (!parsed.success) return parsed.error.issues[0]?.message ?? 'is wrong';
  const { host, guest, mode: text } = parsed.data;
  const mode = text === undefined ? null : parseMode(text);
  if (mode === undefined) return `${MODE_MUST}, not '${text}'`;
  return hostRefusal(host) ?? guestRefusal(guest) ?? { host, guest, mode };
}
