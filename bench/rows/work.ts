// Work inside: what a guest does is the same with and without Hutch around it, so the figures should be
// the same as well. The host's figure says what software emulation costs.
import { existsSync, mkdtempSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Bench, Measurement } from '../context.ts';
import { figures, judge, type Row, short } from '../harness.ts';
import { execOk, mustRun } from '../place.ts';

const TARGET = 1.02;

/** Prints the seconds that the work took; its size is the second argument, its place the third. */
export const WORK = `import os, shutil, sys, time
kind, size, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def cpu():
    total = 0
    for i in range(size):
        total = (total * 31 + i) & 0xffffffff
def compile_():
    import ast, glob
    paths = sorted(glob.glob(os.path.dirname(os.__file__) + '/*.py'))[:size]
    for path in paths:
        with open(path, 'rb') as source:
            compile(source.read(), path, 'exec', optimize=2)
def files():
    for i in range(size):
        if i % 500 == 0:
            directory = f'{place}/work/{i // 500}'
            os.makedirs(directory)
        with open(f'{directory}/{i}', 'wb') as file:
            file.write(b'x' * 200)
    for root, _, names in os.walk(f'{place}/work'):
        for name in names:
            with open(f'{root}/{name}', 'rb') as file:
                file.read()
began = time.perf_counter()
{'cpu': cpu, 'compile': compile_, 'files': files}[kind]()
print(time.perf_counter() - began)
shutil.rmtree(f'{place}/work', ignore_errors=True)
`;

type Kind = {
  readonly kind: 'cpu' | 'compile' | 'files';
  readonly what: (size: number) => string;
  readonly size: number;
  readonly bound: string;
};

async function work(bench: Bench): Promise<readonly Row[]> {
  const guest = await bench.guest();
  await guest.write('/tmp/work.py', WORK);
  await using sandbox = await bench.place.hutch.create();
  await sandbox.files.write('/root/work.py', WORK);
  // The distribution’s, as in the image.
  const python = existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3';
  const here = mkdtempSync(join(tmpdir(), 'hutch-bench-work-'));
  try {
    writeFileSync(join(here, 'work.py'), WORK);
    const kinds: readonly Kind[] = [
      {
        kind: 'cpu',
        size: bench.pick({ quick: 2_000, usual: 1_000_000, long: 3_000_000 }),
        what: (size) => `CPU loop (Python, ${size.toLocaleString('en')} rounds)`,
        bound: 'The emulator’s speed. Hutch is not part of it.',
      },
      {
        kind: 'compile',
        size: bench.pick({ quick: 1, usual: 20, long: 60 }),
        what: (size) => `compile (${size} files of Python’s library, by Python’s compiler)`,
        bound: 'The emulator’s speed, and page faults: a sandbox’s memory is a private mapping of the template’s file.',
      },
      {
        kind: 'files',
        size: bench.pick({ quick: 50, usual: 30_000, long: 30_000 }),
        what: (size) => `${size.toLocaleString('en')} small files, written and read`,
        bound: 'System calls under emulation, overlayfs and ext4 in the guest.',
      },
    ];
    const rows: Row[] = [];
    for (const { kind, what, size, bound } of kinds) {
      const base: number[] = [];
      const ours: number[] = [];
      const host: number[] = [];
      const runs = bench.runs(3, 1);
      for (let i = bench.size === 'quick' ? 0 : -1; i < runs; i += 1) {
        const bare = Number(await guest.run(`python3 /tmp/work.py ${kind} ${size} /root`));
        const inside = Number(await execOk(sandbox, ['python3', '/root/work.py', kind, String(size), '/root']));
        const outside = Number(await mustRun([python, join(here, 'work.py'), kind, String(size), here]));
        if (i < 0) continue;
        base.push(bare);
        ours.push(inside);
        host.push(outside);
      }
      const toHost = figures(ours).median / figures(host).median;
      rows.push(
        judge(
          {
            what: `inside: ${what(size)}`,
            unit: 's',
            baselineName: 'bare QEMU',
            target: `≤ ${TARGET}×; the host’s ratio reported`,
            meets: (ratio) => ratio <= TARGET,
            note: `${short(toHost)}× the host’s time (${short(figures(host).median)} s). ${bound}`,
          },
          base,
          ours,
        ),
      );
    }
    return rows;
  } finally {
    await rm(here, { recursive: true, force: true });
  }
}

export const WORK_INSIDE: readonly Measurement[] = [{ name: 'work', about: 'CPU loop, compile, small files inside', rows: work }];
