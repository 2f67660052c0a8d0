// The kinds of values that a configuration has. Each reads what a file gives (text, number, boolean)
// and what the environment or a flag gives (text), and shows its value as one would write it.
import * as z from 'zod';
import { formatDuration, parseDuration } from '../domain/duration.ts';
import { bytesToMiB, formatSize, MIB, type ParsedText, parseSize } from '../domain/size.ts';

export type Scalar = string | number | boolean;

export type Leaf<T> = {
  readonly schema: z.ZodType<T>;
  /** As one would write it. */
  readonly fallback: Scalar;
  readonly about: string;
  show(value: T): Scalar;
};

type Common = { readonly fallback: Scalar; readonly about: string };

export function textLeaf({
  fallback,
  about,
  charsMax,
  pattern,
  must,
}: Common & { charsMax: number; pattern: RegExp; must: string }): Leaf<string> {
  const schema = z
    .string(`must be text: ${must}`)
    .max(charsMax, `must have at most ${charsMax} characters`)
    .regex(pattern, `must be ${must}`);
  return { schema, fallback, about, show: (value) => value };
}

export function wordLeaf<const W extends string>({ fallback, about, words }: Common & { words: readonly W[] }): Leaf<W> {
  return { schema: z.enum(words, `must be one of ${words.join(', ')}`), fallback, about, show: (value) => value };
}

export function flagLeaf({ fallback, about }: Common): Leaf<boolean> {
  const schema = z.union([z.boolean(), z.enum(['true', 'false']).transform((word) => word === 'true')], 'must be true or false');
  return { schema, fallback, about, show: (value) => value };
}

export function countLeaf({ fallback, about, min, max }: Common & { min: number; max: number }): Leaf<number> {
  const bounds = `must be a whole number from ${min} to ${max}`;
  const count = z.int(bounds).min(min, bounds).max(max, bounds);
  const digits = z
    .string()
    .regex(/^\d{1,15}$/, bounds)
    .transform(Number)
    .pipe(count);
  return { schema: z.union([count, digits], bounds), fallback, about, show: (value) => value };
}

/** A size in whole MiB, rounded up. */
export function mebibytesLeaf({ fallback, about, min, max }: Common & { min: number; max: number }): Leaf<number> {
  const bounds = { what: 'size', min: BigInt(min) * MIB, max: BigInt(max) * MIB };
  const schema = texted('a size like 512M', (text) => mapped(parseSize(text, bounds), bytesToMiB));
  return { schema, fallback, about, show: (value) => formatSize(BigInt(value) * MIB) };
}

export function durationLeaf({ fallback, about, minMs, maxMs }: Common & { minMs: number; maxMs: number }): Leaf<number> {
  const schema = texted('a duration like 5m', (text) => parseDuration(text, { what: 'duration', minMs, maxMs }));
  return { schema, fallback, about, show: formatDuration };
}

/** Several words: an array in a file, else separated by commas. None is written `none`. */
export function listLeaf({
  about,
  pattern,
  must,
  max,
}: Omit<Common, 'fallback'> & { pattern: RegExp; must: string; max: number }): Leaf<readonly string[]> {
  const schema = z.unknown().transform((raw, context): readonly string[] => {
    const words = raw === 'none' || raw === '' ? [] : typeof raw === 'string' ? raw.split(',').map((word) => word.trim()) : raw;
    if (Array.isArray(words) && words.length <= max && words.every((word) => typeof word === 'string' && pattern.test(word))) return words;
    context.addIssue(`must be at most ${max}, separated by commas, each ${must}, or none`);
    return z.NEVER;
  });
  return { schema, fallback: 'none', about, show: (words) => (words.length === 0 ? 'none' : words.join(',')) };
}

/** The leaf's value, or null for `word`. */
export function orWord<T>(word: string, leaf: Leaf<T>): Leaf<T | null> {
  return {
    ...leaf,
    schema: z.unknown().transform((raw, context): T | null => {
      if (raw === word) return null;
      const parsed = leaf.schema.safeParse(raw);
      if (parsed.success) return parsed.data;
      context.addIssue(`${parsed.error.issues[0]?.message ?? 'is wrong'}, or ${word}`);
      return z.NEVER;
    }),
    show: (value) => (value === null ? word : leaf.show(value)),
  };
}

function texted<T>(what: string, parse: (text: string) => ParsedText<T>): z.ZodType<T> {
  return z.unknown().transform((raw, context): T => {
    // A bare number in a file is as ambiguous as a bare number in a flag.
    const parsed = typeof raw === 'string' || typeof raw === 'number' ? parse(String(raw)) : null;
    if (parsed?.ok === true) return parsed.value;
    context.addIssue(parsed === null ? `must be ${what}` : `${parsed.message.replace(/^[a-z]+: /, '')}; ${parsed.hint}`);
    return z.NEVER;
  });
}

function mapped<A, B>(parsed: ParsedText<A>, change: (value: A) => B): ParsedText<B> {
  return parsed.ok ? { ok: true, value: change(parsed.value) } : parsed;
}
