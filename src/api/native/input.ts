// From a request to what the verb table says its input is: the path's parts, then the query or the
// JSON body. What does not fit is refused with the name of the field and its bound.
import type { IncomingMessage } from 'node:http';
import type { z } from 'zod';
import { HutchError } from '../../domain/errors.ts';
import type { Verb } from '../../services/verbs.ts';

export const JSON_BODY_BYTES_MAX = 8 * 1024 * 1024;
export const JSON_BODY_MS = 30_000;

/** Whether the input comes as a JSON body. */
export function takesBody(verb: Verb): boolean {
  return verb.kind === 'unary' && verb.method === 'POST';
}

export function parseInput(
  verb: Verb,
  params: Readonly<Record<string, string | undefined>>,
  given: Readonly<Record<string, unknown>>,
): unknown {
  for (const name of Object.keys(params)) if (name in given) throw invalid(`${name} comes from the path; it must not be given again`);
  return parseBySchema(verb.input, { ...given, ...params });
}

export function parseBySchema<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const parsed = schema.safeParse(value, { reportInput: true });
  if (parsed.success) return parsed.data;
  throw invalid(parsed.error.issues.slice(0, 5).map(sentence).join('; '));
}

/** `memoryMiB must be at least 128`. Union issues say what their last branch says: the most permissive one stands there. */
function sentence(issue: z.core.$ZodIssue): string {
  const field = issue.path.length === 0 ? 'the request' : fieldOf(issue.path);
  switch (issue.code) {
    case 'too_small':
      return `${field} must ${measured('at least', issue.minimum, issue.origin)}`;
    case 'too_big':
      return `${field} must ${measured('at most', issue.maximum, issue.origin)}`;
    case 'unrecognized_keys':
      return `${issue.keys.map((key) => (issue.path.length === 0 ? key : `${field}.${key}`)).join(', ')} is not known here`;
    case 'invalid_value':
      return `${field} must be ${issue.values.length === 1 ? '' : 'one of '}${issue.values.map(String).join(', ')}`;
    case 'invalid_type':
      return issue.input === undefined ? `${field} is missing` : `${field} must be ${article(issue.expected)}`;
    case 'invalid_union': {
      const last = issue.errors.at(-1)?.[0];
      return last === undefined ? `${field} is not understood` : sentence({ ...last, path: [...issue.path, ...last.path] });
    }
    case 'invalid_key': {
      const [first] = issue.issues;
      return `${field} ${first?.message ?? 'is no valid name'}`;
    }
    default:
      return `${field}: ${issue.message}`;
  }
}

/** `main.argv[4]` */
function fieldOf(path: readonly PropertyKey[]): string {
  return path.map((part, at) => (typeof part === 'number' ? `[${part}]` : `${at === 0 ? '' : '.'}${String(part)}`)).join('');
}

function measured(how: string, bound: number | bigint, origin: string): string {
  if (origin === 'string') return `have ${how} ${bound} characters`;
  return origin === 'array' ? `have ${how} ${bound} entries` : `be ${how} ${bound}`;
}

function article(expected: string): string {
  if (expected === 'int') return 'a whole number';
  return `${/^[aeiou]/.test(expected) ? 'an' : 'a'} ${expected === 'record' ? 'object' : expected}`;
}

export function invalid(message: string): HutchError {
  return new HutchError({ code: 'invalid_argument', message });
}

/** The query, a repeated name as an array. */
export function queryOf(search: string): Record<string, string | string[]> {
  const query: Record<string, string | string[]> = Object.create(null);
  for (const [name, value] of new URLSearchParams(search)) {
    const before = query[name];
    query[name] = before === undefined ? value : [...(Array.isArray(before) ? before : [before]), value];
  }
  return { ...query };
}

/** A JSON object; an empty body is an empty object. */
export async function readJsonBody(request: IncomingMessage): Promise<Record<string, unknown>> {
  const type = request.headers['content-type'];
  const text = await readBody(request);
  if (text.byteLength === 0) return {};
  if (type === undefined || !/^application\/(?:[\w.+-]+\+)?json\b/i.test(type))
    throw invalid('the body must have Content-Type: application/json');
  let value: unknown;
  try {
    value = JSON.parse(text.toString('utf8'));
  } catch (cause) {
    throw new HutchError({ code: 'invalid_argument', message: 'the body is no JSON', cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid('the body must be a JSON object');
  return value as Record<string, unknown>;
}

function readBody(request: IncomingMessage): Promise<Buffer> {
  const announced = Number(request.headers['content-length'] ?? 0);
  const tooLarge = () => new HutchError({ code: 'payload_too_large', message: `the body must be at most ${JSON_BODY_BYTES_MAX} bytes` });
  if (announced > JSON_BODY_BYTES_MAX) return Promise.reject(tooLarge());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const timer = setTimeout(
      () => reject(new HutchError({ code: 'deadline_exceeded', message: `the body took longer than ${JSON_BODY_MS} ms` })),
      JSON_BODY_MS,
    );
    request.on('data', (chunk: Buffer) => {
      bytes += chunk.byteLength;
      if (bytes > JSON_BODY_BYTES_MAX) {
        request.pause();
        reject(tooLarge());
      } else chunks.push(chunk);
    });
    request.on('end', () => resolve(Buffer.concat(chunks)));
    request.on('error', (cause) => reject(new HutchError({ code: 'cancelled', message: 'the client went away', cause })));
    request.on('close', () => {
      clearTimeout(timer);
      reject(new HutchError({ code: 'cancelled', message: 'the client went away' }));
    });
  });
}
