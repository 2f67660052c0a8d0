// Pieces of the row schemas, and JSON in columns. Every row is parsed when it is read: a file that was
// edited by hand, or by another version, is found here and not three calls later.
import * as z from 'zod';
import { HutchError } from '../domain/errors.ts';
import { type Id, type IdKind, isId, isOpId, type OpId } from '../domain/ids.ts';
import type { JsonObject } from '../domain/records.ts';

export const DETAIL_BYTES_MAX = 262_144;
export const REPLY_BYTES_MAX = 1_048_576;

export function idColumn<K extends IdKind>(kind: K): z.ZodType<Id<K>> {
  return z.custom<Id<K>>((value) => isId(kind, value), `must be an id of kind ${kind}`);
}

export const opIdColumn = z.custom<OpId>(isOpId, 'must be an op id');
export const timeColumn = z.int();
export const objectSchema: z.ZodType<JsonObject> = z.record(z.string(), z.unknown());

/** JSON text in a column, parsed by `schema`. */
export function jsonColumn<T>(schema: z.ZodType<T>): z.ZodType<T> {
  return z
    .string()
    .transform((text, context) => {
      try {
        return JSON.parse(text) as unknown;
      } catch {
        context.addIssue('must be JSON');
        return z.NEVER;
      }
    })
    .pipe(schema) as unknown as z.ZodType<T>;
}

export function toJson(value: unknown, bytesMax: number, what: string): string {
  const text = JSON.stringify(value) ?? 'null';
  if (Buffer.byteLength(text) > bytesMax) {
    throw new HutchError({
      code: 'payload_too_large',
      message: `${what} takes ${Buffer.byteLength(text)} bytes; at most ${bytesMax} are kept`,
    });
  }
  return text;
}
