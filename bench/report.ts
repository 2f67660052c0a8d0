// docs/benchmarks.md: a section for each measurement, of the last run that had it. Never edited by hand.
import { HEADER, line, type Row } from './harness.ts';
import type { Facts, Noise } from './machine.ts';

export type Part = { readonly name: string; readonly rows: readonly Row[] };

export type Result = {
  readonly facts: Facts;
  readonly noise: { readonly before: Noise; readonly after: Noise };
  readonly seconds: number;
  readonly size: string;
  readonly rows: readonly Row[];
  readonly parts: readonly Part[];
  readonly failed: readonly { readonly name: string; readonly why: string }[];
};

const HEAD = `# Benchmarks

Made by \`./hutch bench --write\`; do not edit it. Repeat it with \`./hutch bench\`, or one part with \`./hutch bench run\`; with \`--write\` its section here is made
anew, and the others stay. Each says when it was measured, at which commit, and how quiet the machine was.

`;

const READING = '## How to read this';
const FOOT = `${READING}

- Candidate and baseline are measured in turn, in one run, on one machine. The ratio travels; the milliseconds do not.
  A ratio is the median of the ratios of the pairs. Where p50 or p99 is in the name, it is of those figures.
- The bare script is what a restore costs without Hutch: a plain QEMU command line, the same template, a client of sixty
  lines, no daemon, no shim, no user of its own, no network, no store, no identity. What is more than that, Hutch added.
- The bare guest is the same kernel, image and machine, booted cold by a plain QEMU command line with a short shell script
  as its init.
- "noisy" at a figure: its tenth and ninetieth percentile lie more than a factor of two apart.

## What is not measured

- Hardware virtualization: this machine has none that runs guests. There, the guest’s part shrinks and the daemon’s stays.
- What apt-get takes in a first run on a machine that lacks the programs.
- Many sandboxes that work at once, other shapes than the default one, disks that are nearly full, IPv6.
- The network’s throughput, and terminals.
`;

/** `before` is the page as it is; sections stand in the order of `names`, several measurements of one name in one. */
export function report(before: string, names: readonly string[], result: Result): string {
  const kept = sectionsOf(before);
  const made = Map.groupBy(result.parts, ({ name }) => name);
  const all = [...new Set(names)].map((name) => {
    const parts = made.get(name);
    if (parts === undefined) return kept.get(name) ?? '';
    return section({ name, rows: parts.flatMap(({ rows }) => rows) }, result);
  });
  return `${HEAD}${all.join('')}${FOOT}`;
}

/** By their names, each as it stands there. */
function sectionsOf(page: string): ReadonlyMap<string, string> {
  const body = page.slice(page.indexOf('\n## ') + 1, page.includes(READING) ? page.indexOf(READING) : page.length);
  const sections = body.split(/^(?=## )/m).filter((text) => text.startsWith('## '));
  return new Map(sections.map((text) => [/^## (\S+)/.exec(text)?.[1] ?? '', text]));
}

function section({ name, rows }: Part, { facts, noise, size }: Result): string {
  const heard = (when: string, { sentence, noisy }: Noise): string =>
    `- ${when}: ${sentence}${noisy ? ': **too noisy to trust single figures**' : ''}.`;
  return [
    `## ${name}`,
    '',
    `Commit ${facts.commit}; ${facts.takenAt}, size \`${size}\`; ${facts.processor}, ${facts.processors} processors, ${facts.memoryGiB} GiB; ${facts.kernel};`,
    `QEMU ${facts.qemu}, Node.js ${facts.node}.`,
    '',
    heard('Before', noise.before),
    heard('After', noise.after),
    '',
    HEADER,
    ...rows.map(line),
    '',
    ...rows.map(({ what, note }) => `- ${what}: ${note}`),
    '',
    '',
  ].join('\n');
}
