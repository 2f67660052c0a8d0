// Programs of this machine that unpack what a stranger packed, in forms that nothing of ours reads. Always true: such a program has what a user
// without any rights has, sees one file that is open already, writes into another, and is bounded in time, memory and what it writes.

import { ArchiveError } from '../domain/archive-error.ts';
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { outsidePackingOf } from './layers/unpack.ts';

const READ_MS = 15 * 60_000;
const CPU_SECONDS_MAX = 600;
const MEMORY_BYTES_MAX = 2 * 1024 ** 3;
const MAGIC_BYTES = 6;
const FILE_TOO_LARGE = 128 + 25;
const NOBODY = [
  'setpriv',
  '--reuid=65534',
  '--regid=65534',
  '--clear-groups',
  '--no-new-privs',
  '--inh-caps=-all',
  '--bounding-set=-all',
  '--',
];

export type OutsideReading = {
  readonly from: string;
  /** Made anew. */
  readonly to: string;
  readonly bytesMax: number;
  /** What `from` is, for whoever reads the error. */
  readonly what: string;
};

/** @throws ArchiveError for what the program does not read. @throws HutchError `resource_exhausted` on a full disk. */
export async function readOutside(op: Operation, host: Host, argv: readonly string[], reading: OutsideReading): Promise<void> {
  const { from, to, bytesMax, what } = reading;
  using limited = op.within(READ_MS, `unpacking ${what}`);
  const bounds = ['prlimit', `--fsize=${bytesMax}`, `--cpu=${CPU_SECONDS_MAX}`, `--as=${MEMORY_BYTES_MAX}`, '--core=0', '--'];
  const command = [...(host.uid === 0 ? NOBODY : []), ...bounds, ...argv];
  // The shell only opens the files; all names are arguments of its own, never part of the command.
  const { exitCode, stderr } = await host.run(limited, [
    'sh',
    '-c',
    'in=$0 out=$1; shift; exec "$@" < "$in" > "$out"',
    from,
    to,
    ...command,
  ]);
  if (exitCode === 0) return;
  const words = new TextDecoder()
    .decode(stderr)
    .replace(/[^\x20-\x7e]+/g, ' ')
    .trim()
    .slice(0, 200);
  if (/No space left/.test(words)) throw op.error('resource_exhausted', `${what} cannot be unpacked: the disk is full`);
  const isTooLarge = /File size limit|File too large/.test(words) || exitCode === FILE_TOO_LARGE;
  const why = isTooLarge ? 'it unpacks into more than there is room for' : words;
  throw new ArchiveError(`${what} is damaged: ${why === '' ? `its reader ended with ${exitCode}` : why}`);
}

/**
 * Unpacks what Node cannot (xz, bzip2), by the program of that name; false where `from` is packed otherwise or not at all.
 * @throws ArchiveError when it is damaged or has more than `bytesMax`. @throws HutchError `failed_precondition` without the program.
 */
export async function unpackedOutside(op: Operation, host: Host, reading: OutsideReading): Promise<boolean> {
  const packing = outsidePackingOf(await host.readRange(op, reading.from, 0, MAGIC_BYTES));
  if (packing === null) return false;
  if ((await host.which(op, packing)) === null)
    throw op.error('failed_precondition', `${reading.what} is packed with ${packing}, and this machine has no program ${packing}`, {
      hint: 'install it, or pack it with gzip or zstd',
    });
  await readOutside(op, host, [packing, '--decompress', '--stdout'], reading);
  return true;
}
