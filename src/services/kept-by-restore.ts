// What lay in the data directory when a backup took the place of the store. Made after that backup, it is on no record, and a daemon
// removes what is on none; but it is work of somebody's, and the store that was replaced knows it. So its names are written
// down first, and what has one of them stays until a person removes it: `hutch doctor --leaks` tells of it.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

type Files = Pick<Host, 'stat' | 'list' | 'readFile' | 'writeFileAtomic' | 'remove'>;

/** Each has an entry for a row of the store, named by its id or digest. */
const DIRECTORIES = ['sandboxes', 'snapshots', 'volumes', 'images'] as const;
const LIST_BYTES_MAX = 64 * 1024 * 1024;

const listPath = (dataDir: string): string => `${dataDir}/kept-by-restore`;

/** Before the store is exchanged, with the lock of the directory. Where nothing comes of it, nothing is lost: all of it is on record. */
export async function keepWhatLies(op: Operation, host: Files, dataDir: string): Promise<void> {
  await write(op, host, dataDir, await lying(op, host, dataDir));
}

export async function keptByRestore(op: Operation, host: Files, dataDir: string): Promise<ReadonlySet<string>> {
  if ((await host.stat(op, listPath(dataDir))) === null) return new Set();
  const text = new TextDecoder().decode(await host.readFile(op, listPath(dataDir), LIST_BYTES_MAX));
  return new Set(text.split('\n').filter((name) => name !== ''));
}

/** What is on record, or gone, needs no keeping. */
export async function keepTheRest(
  op: Operation,
  host: Files,
  dataDir: string,
  { kept, known }: { readonly kept: ReadonlySet<string>; readonly known: ReadonlySet<string> },
): Promise<void> {
  if (kept.size === 0) return;
  const rest = (await lying(op, host, dataDir)).filter((name) => kept.has(name) && !known.has(name));
  if (rest.length < kept.size) await write(op, host, dataDir, rest);
}

async function lying(op: Operation, host: Files, dataDir: string): Promise<string[]> {
  const names: string[] = [];
  for (const directory of DIRECTORIES)
    if ((await host.stat(op, `${dataDir}/${directory}`)) !== null) names.push(...(await host.list(op, `${dataDir}/${directory}`)));
  return names;
}

async function write(op: Operation, host: Files, dataDir: string, names: readonly string[]): Promise<void> {
  if (names.length === 0) await host.remove(op, listPath(dataDir));
  else await host.writeFileAtomic(op, listPath(dataDir), `${names.join('\n')}\n`, 0o600);
}
