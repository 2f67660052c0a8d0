// Values of secrets: in one 0600 file among the sandbox's data, and in memory only while it is started.
// They are in no record, no answer, no log and no event.
import { z } from 'zod';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type Secrets = Readonly<Record<string, string>>;

/** As much as the API takes. */
const FILE_BYTES_MAX = 134_217_728;
const file = z.record(z.string(), z.string());

/** Its directory is there. */
export async function keepSecrets(op: Operation, host: Host, path: string, secrets: Secrets): Promise<void> {
  if (Object.keys(secrets).length > 0) await host.writeFileAtomic(op, path, JSON.stringify(secrets), 0o600);
}

/** @throws HutchError `failed_precondition` when one of `names` is not kept any more. */
export async function readSecrets(op: Operation, host: Host, path: string, names: readonly string[]): Promise<Secrets> {
  if (names.length === 0) return {};
  if ((await host.stat(op, path)) === null) throw missing(op, names);
  const parsed = file.safeParse(parseJson(new TextDecoder().decode(await host.readFile(op, path, FILE_BYTES_MAX))));
  if (!parsed.success || names.some((name) => parsed.data[name] === undefined)) throw missing(op, names);
  return parsed.data;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null; // the schema refuses it; the text itself must not reach an error
  }
}

function missing(op: Operation, names: readonly string[]): Error {
  return op.error('failed_precondition', `the secrets of this sandbox are lost: ${names.join(', ')}`, {
    hint: 'make a new sandbox with them',
  });
}
