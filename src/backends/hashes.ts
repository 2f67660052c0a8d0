// Big sparse files, without reading their holes (rust/imprint): checksums of what is in them, and where that is.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import type { SnapshotPart } from './snapshots.ts';

const HASH_MS = 10 * 60_000;
/** A place for every 64 KiB of a terabyte. */
const OUTPUT_BYTES_MAX = 512 * 1024 * 1024;
const SAID_CHARS_MAX = 400;

/** Of each file, over everything in it. */
export async function hashes(op: Operation, host: Host, program: string, paths: readonly string[]): Promise<readonly string[]> {
  if (paths.length === 0) return [];
  return (await asked(op, host, [program, 'hash', ...paths])).trim().split('\n');
}

/** Of a snapshot that travels: its files as they are. @throws HutchError `failed_precondition` where one is missing. */
export async function partsOf(
  op: Operation,
  host: Host,
  program: string,
  named: readonly Pick<SnapshotPart, 'name' | 'path'>[],
): Promise<readonly SnapshotPart[]> {
  const files: Omit<SnapshotPart, 'places'>[] = [];
  for (const { name, path } of named) {
    const info = await host.stat(op, path);
    if (info?.type !== 'file') throw op.error('failed_precondition', `the snapshot cannot be used: ${name} is missing`);
    files.push({ name, path, bytes: info.sizeBytes });
  }
  const paths = files.map(({ path }) => path);
  const places = await placesOfData(op, host, program, paths);
  return files.map((file, at) => ({ ...file, places: places[at] ?? [] }));
}

/** Of each file, where there may be more than zeros: from, and up to, in order. */
async function placesOfData(
  op: Operation,
  host: Host,
  program: string,
  paths: readonly string[],
): Promise<readonly (readonly (readonly [number, number])[])[]> {
  if (paths.length === 0) return [];
  const said = (await asked(op, host, [program, 'data', ...paths])).split('\n');
  const found: (readonly [number, number])[][] = [];
  let ofOne: (readonly [number, number])[] = [];
  for (const line of said.slice(0, -1)) {
    const [from, until] = line.split(' ').map(Number);
    if (from !== undefined && until !== undefined) ofOne.push([from, until]);
    else {
      found.push(ofOne);
      ofOne = [];
    }
  }
  return found;
}

async function asked(op: Operation, host: Host, argv: readonly string[]): Promise<string> {
  using limited = op.within(HASH_MS, 'checking what is stored');
  const { exitCode, stdout, stderr } = await host.run(limited, argv, { outputBytesMax: OUTPUT_BYTES_MAX });
  if (exitCode === 0) return new TextDecoder().decode(stdout);
  const said = new TextDecoder()
    .decode(stderr)
    .trim()
    .replace(/^hutch-imprint: /, '');
  throw op.error('unavailable', `what is stored cannot be read: ${said.slice(-SAID_CHARS_MAX)}`);
}
