// docs/benchmarks.md, from one run: never edited by hand.
import { HEADER, line, type Row } from './harness.ts';
import type { Facts, Noise } from './machine.ts';

export type Result = {
  readonly facts: Facts;
  readonly noise: { readonly before: Noise; readonly after: Noise };
  readonly seconds: number;
  readonly size: string;
  readonly rows: readonly Row[];
  readonly failed: readonly { readonly name: string; readonly why: string }[];
};

export function report(result: Result): string {
  const { facts, noise, rows, failed } = result;
  return [
    '# Benchmarks',
    '',
    'Made by `./hutch bench --write`; do not edit it. Repeat it with `./hutch bench`, or one part with `./hutch bench run`.',
    '',
    '## Where and when',
    '',
    `${facts.processor}, ${facts.processors} processors, ${facts.memoryGiB} GiB; ${facts.kernel}; QEMU ${facts.qemu}, Node.js ${facts.node};`,
    `commit ${facts.commit}; ${facts.takenAt}; ${Math.round(result.seconds / 60)} minutes, size \`${result.size}\`.`,
    '',
    `- Before: ${noise.before.sentence}${noise.before.noisy ? ': **too noisy to trust single figures**' : ''}.`,
    `- After: ${noise.after.sentence}${noise.after.noisy ? ': **too noisy to trust single figures**' : ''}.`,
    '',
    '## Figures',
    '',
    HEADER,
    ...rows.map(line),
    '',
    ...(failed.length === 0 ? [] : ['Not measured in this run:', '', ...failed.map(({ name, why }) => `- ${name}: ${why}`), '']),
    '## What bounds them',
    '',
    ...rows.map(({ what, note }) => `- ${what}: ${note}`),
    '',
    '## How to read this',
    '',
    '- Candidate and baseline are measured in turn, in one run, on one machine. The ratio travels; the milliseconds do not.',
    '  A ratio is the median of the ratios of the pairs. Where p50 or p99 is in the name, it is of those figures.',
    '- The bare script is what a restore costs without Hutch: a plain QEMU command line, the same template, a client of sixty',
    '  lines, no daemon, no shim, no user of its own, no network, no store, no identity. What is more than that, Hutch added.',
    '- The bare guest is the same kernel, image and machine, booted cold by a plain QEMU command line with a short shell script',
    '  as its init.',
    '- "noisy" at a figure: its tenth and ninetieth percentile lie more than a factor of two apart.',
    '',
    '## What is not measured',
    '',
    '- Hardware virtualization: this machine has none that runs guests. There, the guest’s part shrinks and the daemon’s stays.',
    '- What apt-get takes in a first run on a machine that lacks the programs.',
    '- Many sandboxes that work at once, other shapes than the default one, disks that are nearly full, IPv6.',
    '- The network’s throughput, and terminals.',
    '',
  ].join('\n');
}
