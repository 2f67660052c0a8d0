// The program that compares a machine that runs, or stands still, with what is stored (rust/imprint), as calls.
import { constants } from 'node:os';
import { dirname } from 'node:path';
import { z } from 'zod';
import type { HutchError } from '../domain/errors.ts';
import type { Host, RunResult } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';

export type MemoryToTake = {
  readonly pid: number;
  /** One that the process has mapped as its guest's memory. */
  readonly mapped: string;
  readonly dir: string;
  readonly bytes: number;
  /** The number of the new layer. */
  readonly layer: number;
  /** Layers up to this one are mapped by the process itself. */
  readonly mappedLayers: number;
  /** The last layer that is stored was taken with `keep`, and no memory of this process was taken since. */
  readonly noted: boolean;
  /** The kernel goes on noting what is written. */
  readonly keep: boolean;
};
export type DiskToTake = { readonly path: string; readonly dir: string; readonly bytes: number; readonly layer: number };

const taken = z.object({ layer: z.int(), pages: z.int(), bytes: z.int(), hash: z.string().nullable() });
export type Taken = z.infer<typeof taken>;

/** Gigabytes, to a slow disk. */
const TAKE_MS = 10 * 60_000;
const OUTPUT_BYTES_MAX = 64 * 1024;
const SAID_CHARS_MAX = 400;

/**
 * Writes what differs, in the order memory, disks. With `still` the machine runs at first, and stands still only while
 * what has changed meanwhile is taken: from the end of `still.begin` to the call of `still.end`. With `lasts` all of it is on
 * the disk then, with its checksums.
 */
export async function take(
  op: Operation,
  host: Host,
  program: string,
  what: { readonly memory: MemoryToTake | null; readonly disks: readonly DiskToTake[]; readonly lasts: boolean },
  still: { readonly before: boolean; begin(): Promise<void>; end(): Promise<void> },
): Promise<readonly Taken[]> {
  const { memory, disks, lasts } = what;
  const argv = [
    ...[program, 'take', ...(still.before ? ['--before'] : []), ...(lasts ? [] : ['--passing'])],
    ...(memory?.noted === true ? ['--noted'] : []),
    ...(memory?.keep === true ? ['--keep'] : []),
    ...(memory === null
      ? []
      : ['--memory', memory.pid, memory.mapped, memory.dir, memory.bytes, memory.layer, memory.mappedLayers].map(String)),
    ...disks.flatMap((disk) => ['--disk', disk.path, disk.dir, disk.bytes, disk.layer].map(String)),
  ];
  using limited = op.within(TAKE_MS, 'writing down a machine');
  if (!still.before) await still.begin();
  const isStill = Promise.withResolvers<Uint8Array>();
  const isTaken = Promise.withResolvers<void>();
  isTaken.promise.catch(() => {}); // waited for below
  isStill.promise.catch(() => {}); // heard by the program's input
  let said = '';
  const heard = new Set<string>();
  const running = host.run(limited, argv, {
    outputBytesMax: OUTPUT_BYTES_MAX,
    input: still.before ? one(isStill.promise) : new Uint8Array(),
    onOutput: (chunk, stream) => {
      if (stream !== 'stdout') return;
      said += new TextDecoder().decode(chunk);
      for (const word of ['before', 'taken']) {
        if (heard.has(word) || !said.split('\n').slice(0, -1).includes(word)) continue;
        heard.add(word);
        if (word === 'before') still.begin().then(() => isStill.resolve(new TextEncoder().encode('\n')), isStill.reject);
        else still.end().then(isTaken.resolve, isTaken.reject);
      }
    },
  });
  const { exitCode, stdout, stderr } = await running;
  if (exitCode !== 0)
    throw await failure(op, host, 'a machine cannot be written down', { exitCode, stderr }, memory?.dir ?? disks[0]?.dir ?? '/');
  await isTaken.promise;
  const lines = new TextDecoder().decode(stdout).split('\n');
  return lines.filter((line) => line.startsWith('{')).map((line) => taken.parse(JSON.parse(line)));
}

async function* one(promise: Promise<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield await promise;
}

/** Makes `path` the disk that is stored in `dir`; it is durable only after `Host.sync`. */
export async function layOut(op: Operation, host: Host, program: string, dir: string, bytes: number, path: string): Promise<void> {
  using limited = op.within(TAKE_MS, 'laying out a disk');
  const { exitCode, stderr } = await host.run(limited, [program, 'lay', dir, String(bytes), path]);
  if (exitCode !== 0) throw await failure(op, host, 'a disk cannot be laid out', { exitCode, stderr }, dirname(path));
}

/** A page of a file that has no room, as in a full tmpfs, ends a program without a word. */
const BUS_ERROR = 128 + constants.signals.SIGBUS;
/** Less is none. */
const ROOM_BYTES = 1024 * 1024;

async function failure(
  op: Operation,
  host: Host,
  what: string,
  { exitCode, stderr }: Pick<RunResult, 'exitCode' | 'stderr'>,
  dir: string,
): Promise<HutchError> {
  const said = new TextDecoder()
    .decode(stderr)
    .trim()
    .slice(-SAID_CHARS_MAX)
    .replace(/^hutch-imprint: /, '');
  const isFull = exitCode === BUS_ERROR ? (await host.fileSystem(op, dir)).freeBytes < ROOM_BYTES : /os error (28|122)\b/.test(said);
  const words =
    said === '' ? `${isFull ? `no room is left in ${dir}` : 'the program that does it has died'} (exit code ${exitCode})` : said;
  return op.error(isFull ? 'resource_exhausted' : 'unavailable', `${what}: ${words}`);
}
