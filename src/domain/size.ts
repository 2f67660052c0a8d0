// Sizes as people write them: `512M`, `1.5G`, `8GiB`. Always with a unit, always by 1,024, and what
// `formatSize` writes, `parseSize` reads back as the same number of bytes. Bytes are bigint: no size
// that can be written down overflows.

export type SizeBounds = {
  /** What the size is of, for the message: `memory`. */
  readonly what: string;
  readonly min: bigint;
  readonly max: bigint;
};

/** A value, or why the text is none. */
export type ParsedText<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly message: string; readonly hint: string };

export const KIB = 1_024n;
export const MIB = KIB * 1_024n;
export const GIB = MIB * 1_024n;
export const TIB = GIB * 1_024n;

const UNITS = { B: 1n, K: KIB, M: MIB, G: GIB, T: TIB } as const;
type Unit = keyof typeof UNITS;
const LARGEST_FIRST = ['T', 'G', 'M', 'K'] as const satisfies readonly Unit[];

/** Longer texts are refused unread. */
export const SIZE_CHARS_MAX = 40;

/**
 * Bytes of a text like `512M`. A part of a byte is rounded up, so that nobody gets less than was
 * asked. Case and space around it do not matter; a bare number is refused, since half the world
 * reads it as bytes and the other half as MiB.
 */
export function parseSize(text: string, bounds: SizeBounds): ParsedText<bigint> {
  const { what, min, max } = bounds;
  const trimmed = text.trim();
  const hint = `write it like ${formatSize(example(bounds))}: a number and K, M, G or T`;
  if (trimmed === '') return { ok: false, message: `${what}: a size is missing`, hint };
  if (trimmed.length > SIZE_CHARS_MAX) return { ok: false, message: `${what}: a size has at most ${SIZE_CHARS_MAX} characters`, hint };
  const match = /^(?<sign>[+-]?)(?<whole>\d+)(?:\.(?<part>\d+))?(?<unit>[kmgt](?:i?b)?|b)?$/i.exec(trimmed);
  const { sign, whole, part = '', unit } = match?.groups ?? {};
  if (whole === undefined) {
    return { ok: false, message: `${what}: '${trimmed}' is no size`, hint };
  }
  if (sign === '-') return { ok: false, message: `${what}: ${trimmed} is negative`, hint };
  if (unit === undefined) {
    return { ok: false, message: `${what}: ${trimmed} has no unit`, hint: `write ${trimmed}M or ${trimmed}G, whichever you mean` };
  }
  const scale = 10n ** BigInt(part.length);
  const scaled = BigInt(whole + part) * UNITS[unit.charAt(0).toUpperCase() as Unit];
  const bytes = (scaled + scale - 1n) / scale;
  if (bytes < min)
    return {
      ok: false,
      message: `${what}: ${trimmed} is less than the least, ${formatSize(min)}`,
      hint: `give at least ${formatSize(min)}`,
    };
  if (bytes > max)
    return { ok: false, message: `${what}: ${trimmed} is more than the most, ${formatSize(max)}`, hint: `give at most ${formatSize(max)}` };
  return { ok: true, value: bytes };
}

/** The shortest exact form with a unit: `512M`, `1536M`, `1000B`, `0B`. */
export function formatSize(bytes: bigint): string {
  if (bytes < 0n) throw new RangeError(`a size is not negative: ${bytes}`);
  for (const unit of LARGEST_FIRST) {
    if (bytes > 0n && bytes % UNITS[unit] === 0n) return `${bytes / UNITS[unit]}${unit}`;
  }
  return `${bytes}B`;
}

/** Whole MiB, rounded up: the unit of memory and disks. The bounds of `parseSize` keep it a safe integer. */
export function bytesToMiB(bytes: bigint): number {
  return Number((bytes + MIB - 1n) / MIB);
}

function example({ min, max }: SizeBounds): bigint {
  return [GIB, 512n * MIB, MIB].find((bytes) => bytes >= min && bytes <= max) ?? min;
}
