// Files and work in sandboxes whose programs run on the host's processor itself: the same rows for every
// backend of that kind.
import type { Sandbox } from '../../src/sdk/sandbox.ts';
import type { Bench } from '../context.ts';
import { figures, judge, pair, type Row, short } from '../harness.ts';
import { execOk } from '../place.ts';
import { readRate, writeRate } from './streams.ts';

const FILE_FACTOR = 0.7;
const MIB = 2 ** 20;

/** Prints the seconds that so many bytes took from one process to another over a unix socket. */
const RAW = `import os, socket, sys, time
size = int(sys.argv[1])
out, into = socket.socketpair()
if os.fork() == 0:
    into.close()
    chunk = bytes(65536)
    for _ in range(size // 65536):
        out.sendall(chunk)
    os._exit(0)
out.close()
buffer = bytearray(262144)
left = size
began = time.perf_counter()
while left > 0:
    got = into.recv_into(buffer)
    if got == 0:
        raise SystemExit('the other process ended')
    left -= got
print(time.perf_counter() - began)
`;

/** What bounds them. */
export type FileNotes = { readonly push: string; readonly pull: string };

/** A file into the sandbox and out of it, against as many bytes between two processes in it. */
export async function fileRows(bench: Bench, backend: string, sandbox: Sandbox, notes: FileNotes): Promise<readonly Row[]> {
  const mebibytes = bench.pick({ quick: 4, usual: 512, long: 512 });
  await sandbox.files.write('/root/raw.py', RAW);
  const raw = async (): Promise<number> => mebibytes / Number(await execOk(sandbox, ['python3', '/root/raw.py', String(mebibytes * MIB)]));
  /** What a program inside gets that writes as much and waits for the disk. */
  const synced = async (): Promise<number> => {
    const began = performance.now();
    await execOk(sandbox, ['dd', 'if=/dev/zero', 'of=/root/synced', 'bs=1M', `count=${mebibytes}`, 'conv=fsync', 'status=none']);
    return mebibytes / ((performance.now() - began) / 1000);
  };
  const way = (what: string, candidate: () => Promise<number>, note: string): Promise<Row> =>
    pair({
      what: `${backend}: ${what}, ${mebibytes} MiB`,
      unit: 'MiB/s',
      baselineName: 'as much between two processes inside, over a unix socket',
      runs: bench.runs(3, 1),
      target: `≥ ${FILE_FACTOR}×`,
      meets: (ratio) => ratio >= FILE_FACTOR,
      baseline: raw,
      candidate,
      note,
    });
  return [
    await way('push a file', () => writeRate(sandbox, mebibytes), notes.push),
    await pair({
      what: `${backend}: push a file, ${mebibytes} MiB`,
      unit: 'MiB/s',
      baselineName: 'dd conv=fsync inside',
      runs: bench.runs(3, 1),
      target: 'reported',
      meets: () => null,
      baseline: synced,
      candidate: () => writeRate(sandbox, mebibytes),
      note: 'As many bytes on the same disk, synced, by a program inside that is sent nothing. Bytes that stay on a disk cannot be as quick as bytes that stay nowhere: the cache’s pages alone take longer than the socket.',
    }),
    await way('pull a file', () => readRate(sandbox, mebibytes), notes.pull),
  ];
}

export type Other = {
  readonly name: string;
  /** Runs work.py in another place with these arguments; gives what it prints. */
  readonly run: (kind: string, size: number) => Promise<string>;
  readonly factor: number;
  readonly note: string;
};

/** CPU loop, compile and small files, against the same elsewhere. `/root/work.py` is in the sandbox. */
export async function workRows(bench: Bench, backend: string, sandbox: Sandbox, other: Other): Promise<readonly Row[]> {
  const kinds = [
    ['cpu', 'CPU loop', bench.pick({ quick: 2_000, usual: 5_000_000, long: 10_000_000 })],
    ['compile', 'compile', bench.pick({ quick: 1, usual: 60, long: 100 })],
    ['files', 'small files', bench.pick({ quick: 50, usual: 30_000, long: 30_000 })],
  ] as const;
  const rows: Row[] = [];
  for (const [kind, what, size] of kinds) {
    const [base, ours]: [number[], number[]] = [[], []];
    const runs = bench.runs(3, 1);
    for (let i = bench.size === 'quick' ? 0 : -1; i < runs; i += 1) {
      const outside = Number(await other.run(kind, size));
      const inside = Number(await execOk(sandbox, ['python3', '/root/work.py', kind, String(size), '/root']));
      if (i < 0) continue;
      base.push(outside);
      ours.push(inside);
    }
    rows.push(
      judge(
        {
          what: `${backend}, inside: ${what} (${size.toLocaleString('en')})`,
          unit: 's',
          baselineName: other.name,
          target: `≤ ${other.factor}×`,
          meets: (ratio) => ratio <= other.factor,
          note: `${other.note} (${short(figures(base).median)} s)`,
        },
        base,
        ours,
      ),
    );
  }
  return rows;
}
