// Durations as people write them: `5m`, `1h30m`, `250ms`, `1.5h`. Always with a unit, and what
// `formatDuration` writes, `parseDuration` reads back as the same number of milliseconds.
import type { ParsedText } from './size.ts';

export type DurationBounds = {
  /** What the duration is of, for the message: `timeout`. */
  readonly what: string;
  readonly minMs: number;
  readonly maxMs: number;
};

/** From the largest to the smallest: the order in which they may stand. */
const UNITS_MS = { d: 86_400_000n, h: 3_600_000n, m: 60_000n, s: 1_000n, ms: 1n } as const;
type Unit = keyof typeof UNITS_MS;
const UNITS = Object.keys(UNITS_MS) as readonly Unit[];

/** Longer texts are refused unread. */
export const DURATION_CHARS_MAX = 40;

/** Whole milliseconds of a text like `1h30m`, a part of one rounded up. Each unit at most once, the larger first. */
export function parseDuration(text: string, bounds: DurationBounds): ParsedText<number> {
  const { what, minMs, maxMs } = bounds;
  const trimmed = text.trim().toLowerCase();
  const hint = 'write it like 30s, 5m or 1h30m: numbers and d, h, m, s or ms';
  if (trimmed === '') return { ok: false, message: `${what}: a duration is missing`, hint };
  if (trimmed.length > DURATION_CHARS_MAX)
    return { ok: false, message: `${what}: a duration has at most ${DURATION_CHARS_MAX} characters`, hint };
  if (/^-/.test(trimmed)) return { ok: false, message: `${what}: ${trimmed} is negative`, hint };
  if (/^[+]?\d+(\.\d+)?$/.test(trimmed)) {
    return { ok: false, message: `${what}: ${trimmed} has no unit`, hint: `write ${trimmed}s or ${trimmed}m, whichever you mean` };
  }
  const ms = sumMs(trimmed);
  if (ms === null) return { ok: false, message: `${what}: '${trimmed}' is no duration`, hint };
  if (ms < BigInt(minMs)) {
    return {
      ok: false,
      message: `${what}: ${trimmed} is less than the least, ${formatDuration(minMs)}`,
      hint: `give at least ${formatDuration(minMs)}`,
    };
  }
  if (ms > BigInt(maxMs)) {
    return {
      ok: false,
      message: `${what}: ${trimmed} is more than the most, ${formatDuration(maxMs)}`,
      hint: `give at most ${formatDuration(maxMs)}`,
    };
  }
  return { ok: true, value: Number(ms) };
}

/** The exact form: `1h30m`, `250ms`, `1m500ms`, `0s`. Takes whole, safe milliseconds. */
export function formatDuration(ms: number): string {
  if (!Number.isSafeInteger(ms) || ms < 0) throw new RangeError(`a duration is a whole number of milliseconds, not ${ms}`);
  let rest = BigInt(ms);
  let text = '';
  for (const unit of UNITS) {
    const count = rest / UNITS_MS[unit];
    rest %= UNITS_MS[unit];
    if (count > 0n) text += `${count}${unit}`;
  }
  return text === '' ? '0s' : text;
}

function sumMs(text: string): bigint | null {
  let sum = 0n;
  let at = text.startsWith('+') ? 1 : 0;
  let lastUnit = -1;
  const term = /(\d+)(?:\.(\d+))?(ms|[dhms])/y;
  while (at < text.length) {
    term.lastIndex = at;
    const match = term.exec(text);
    const [whole, part = '', unit] = match?.slice(1) ?? [];
    const order = UNITS.indexOf(unit as Unit);
    if (whole === undefined || order <= lastUnit) return null;
    const scale = 10n ** BigInt(part.length);
    sum += (BigInt(whole + part) * UNITS_MS[unit as Unit] + scale - 1n) / scale;
    lastUnit = order;
    at = term.lastIndex;
  }
  return sum;
}
