// What registries answer: read with a bound, and their refusals made errors that say of which image they are.
import * as z from 'zod';
import type { HutchError } from '../../domain/errors.ts';
import { HUB, type ImageReference } from '../../domain/image-reference.ts';
import type { HttpAnswer } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';

const ERROR_BYTES_MAX = 16 * 1024;
const errorAnswer = z.object({ errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })).max(64) });

export type Repository = Pick<ImageReference, 'registry' | 'repository'>;

export function nameOf({ registry, repository }: Repository): string {
  return registry === HUB ? repository.replace(/^library\//, '') : `${registry}/${repository}`;
}

export async function readAll(op: Operation, answer: HttpAnswer, bytesMax: number, what: string): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let total = 0;
  for await (const chunk of answer.body) {
    total += chunk.byteLength;
    if (total > bytesMax) throw op.error('failed_precondition', `${what} has more than ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

export type Asked = 'read' | 'write';

export async function refusalOf(
  op: Operation,
  repository: Repository,
  path: string,
  answer: HttpAnswer,
  asked: Asked = 'read',
): Promise<HutchError> {
  const { registry } = repository;
  const name = nameOf(repository);
  const said = await readAll(op, answer, ERROR_BYTES_MAX, 'an error').catch(() => Buffer.alloc(0));
  const reason = reasonOf(said);
  const wanted = path.replace(/^(manifests|blobs)\//, '').replace(/\?.*$/s, '');
  if (answer.status === 404) {
    const within = registry === HUB ? name : repository.repository;
    const it = path.startsWith('manifests/') ? `${within}${wanted.includes(':') ? '@' : ':'}${wanted}` : `${wanted} of ${within}`;
    return op.error('not_found', `${registry} has no ${it}${reason}`);
  }
  if (answer.status === 401 || answer.status === 403) {
    const verb = asked === 'read' ? 'give out' : 'let us push';
    return op.error('permission_denied', `${registry} does not ${verb} ${name}${reason}`, { hint: loginHint(registry) });
  }
  const question = asked === 'read' ? `the question for ${name} ${wanted}` : `the push of ${name}`;
  return statusError(op, answer, `${registry} answered ${answer.status} to ${question}${reason}`);
}

export function statusError(op: Operation, answer: HttpAnswer, message: string): HutchError {
  const isPassing = answer.status === 429 || answer.status === 408 || answer.status >= 500;
  const after = answer.headers['retry-after'];
  if (!isPassing) return op.error('failed_precondition', message);
  const error = op.error('unavailable', answer.status === 429 ? `${message}: too many requests` : message);
  if (after !== undefined && /^\d{1,9}$/.test(after)) RETRY_AFTER_MS.set(error, Number(after) * 1000);
  else if (after !== undefined && !Number.isNaN(Date.parse(after))) RETRY_AFTER_MS.set(error, Math.max(0, Date.parse(after) - Date.now()));
  return error;
}

/** How long a registry wants to be left alone, with the error that says so. */
const RETRY_AFTER_MS = new WeakMap<HutchError, number>();

export function retryAfterOf(error: HutchError): number | null {
  return RETRY_AFTER_MS.get(error) ?? null;
}

function reasonOf(said: Buffer): string {
  const parsed = errorAnswer.safeParse(jsonOf(said));
  const [first] = parsed.success ? parsed.data.errors : [];
  const text = first?.message ?? first?.code;
  return text === undefined || text === '' ? '' : ` (${text.replace(/[^\x20-\x7e]/g, ' ').slice(0, 200)})`;
}

export function jsonOf(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return null;
  }
}

export function needsLogin(op: Operation, registry: string): HutchError {
  return op.error('permission_denied', `${registry} wants a login`, { hint: loginHint(registry) });
}

export function loginHint(registry: string): string {
  return `log in with: hutch image login${registry === HUB ? '' : ` ${registry}`}`;
}

export function wrongDigest(op: Operation, what: string, found: string): HutchError {
  return op.error('failed_precondition', `${what} is not what it should be: its digest is ${found}`);
}
