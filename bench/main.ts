// `hutch bench`: measures Hutch against baselines in the same run. See docs/benchmarks.md.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Bench, type Measurement, type Size } from './context.ts';
import { HEADER, line, type Row } from './harness.ts';
import { listenForNoise, machineFacts, type Noise } from './machine.ts';
import { interrupt, isInterrupted, mustRun, Place, ROOT } from './place.ts';
import { type Part, type Result, report } from './report.ts';
import { BACKENDS } from './rows/backends.ts';
import { BOOT } from './rows/boot.ts';
import { BUILDS } from './rows/builds.ts';
import { EXEC } from './rows/exec.ts';
import { FIRST_RUN } from './rows/first-run.ts';
import { FORK } from './rows/fork.ts';
import { IMAGES } from './rows/images.ts';
import { LOOP } from './rows/loop.ts';
import { MEMORY } from './rows/memory.ts';
import { MOUNTED } from './rows/mounted.ts';
import { START } from './rows/start.ts';
import { STREAMS } from './rows/streams.ts';
import { WARM } from './rows/warm.ts';
import { WORK_INSIDE } from './rows/work.ts';
import { WORKSPACE } from './rows/workspace.ts';

const ALL: readonly Measurement[] = [
  ...FIRST_RUN,
  ...START,
  ...WARM,
  ...FORK,
  ...EXEC,
  ...STREAMS,
  ...WORK_INSIDE,
  ...MEMORY,
  ...LOOP,
  ...BOOT,
  ...BACKENDS,
  ...WORKSPACE,
  ...MOUNTED,
  ...IMAGES,
  ...BUILDS,
];
/** What a name stands for beside itself: parts of it that can be measured, and written down, alone. */
const ALSO: Readonly<Record<string, readonly string[]>> = {
  workspace: ['mounted', 'scp'],
  backends: ['gvisor'],
  images: ['archives', 'first-exec', 'builds'],
};
const RUNS_MAX = 1_000;
const RELEASED_MS = 60_000;
const EXIT_INTERRUPTED = 130;

const USAGE = `Usage: hutch bench [WHAT…] [--runs N] [--json] [--quick | --long] [--write]

${ALL.map(({ name, about }) => `  ${name.padEnd(12)}${about}`).join('\n')}

Measured too: ${Object.entries(ALSO)
  .map(([name, others]) => `with ${name} ${others.join(', ')}`)
  .join('; ')}.

  --runs N   samples of each, instead of the usual number
  --json     one JSON document on stdout
  --quick    a few samples and small sizes: shows that it can be measured, its figures mean nothing
  --long     50 sandboxes instead of 10, and more samples
  --write    write what was measured into docs/benchmarks.md; the other sections stay
`;

type Options = {
  readonly wanted: readonly Measurement[];
  readonly size: Size;
  readonly runs: number | null;
  readonly json: boolean;
  readonly write: boolean;
};

function parse(argv: readonly string[]): Options | string {
  try {
    const { values, positionals } = parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        runs: { type: 'string' },
        json: { type: 'boolean', default: false },
        quick: { type: 'boolean', default: false },
        long: { type: 'boolean', default: false },
        write: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) return '';
    const unknown = positionals.find((name) => !ALL.some((measurement) => measurement.name === name));
    if (unknown !== undefined) return `there is no measurement '${unknown}'`;
    const runs = values.runs === undefined ? null : Number(values.runs);
    if (runs !== null && !(Number.isInteger(runs) && runs >= 1 && runs <= RUNS_MAX)) return `--runs takes a number from 1 to ${RUNS_MAX}`;
    if (values.quick && values.long) return '--quick and --long exclude each other';
    const { json, write } = values;
    const named = new Set(positionals.flatMap((name) => [name, ...(ALSO[name] ?? [])]));
    const wanted = ALL.filter(({ name }) => named.size === 0 || named.has(name));
    return { wanted, size: values.quick ? 'quick' : values.long ? 'long' : 'usual', runs, json, write };
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** All output but the result. */
const say = (text: string): void => void process.stderr.write(`${text}\n`);

/** `onRows` is told what there is after each measurement, so that a run that is cut short is not lost. */
async function measure({ wanted, size, runs, json }: Options, onRows: (sofar: Result) => void): Promise<Result> {
  const interrupted = Promise.withResolvers<never>();
  interrupted.promise.catch(() => {});
  const stop = (): void => {
    say('\nInterrupted: cleaning up. Once more ends at once, and leaves what there is.');
    interrupt();
    interrupted.reject(new Error('interrupted'));
  };
  process.once('SIGINT', stop).once('SIGTERM', stop);
  const began = performance.now();
  const facts = machineFacts();
  const before = listenForNoise();
  say(`${before.noisy ? 'This machine is noisy now' : 'This machine is quiet'}: ${before.sentence}.`);
  await mustRun([join(ROOT, 'hutch'), 'version']); // builds the bundle, where it is older than the sources
  const rows: Row[] = [];
  const parts: Part[] = [];
  const failed: { name: string; why: string }[] = [];
  const resultNow = (after: Noise): Result => {
    return { facts, noise: { before, after }, seconds: (performance.now() - began) / 1000, size, rows, parts, failed };
  };
  {
    await using place = await Place.make();
    await place.startDaemon();
    await using bench = new Bench(place, size, runs);
    for (const { name, rows: take } of wanted) {
      if (isInterrupted()) break;
      say(`measuring ${name}`);
      const taking = take(bench);
      taking.catch(() => {}); // after an interruption only its end is waited for
      try {
        const taken = await Promise.race([taking, interrupted.promise]);
        rows.push(...taken);
        parts.push({ name, rows: taken });
        if (!json) for (const row of taken) say(line(row));
        onRows(resultNow(before));
      } catch (error) {
        // It releases what it has made itself, at its next step; what hangs is taken from it below.
        if (isInterrupted())
          await Promise.race([taking.catch(() => {}), new Promise((resolve) => setTimeout(resolve, RELEASED_MS).unref())]);
        failed.push({ name, why: error instanceof Error ? error.message : String(error) });
        if (!isInterrupted()) say(`not measured: ${name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
        await place.deleteAll().catch(() => {});
      }
    }
  }
  return resultNow(listenForNoise());
}

function write(result: Result): void {
  const path = join(ROOT, 'docs', 'benchmarks.md');
  const before = existsSync(path) ? readFileSync(path, 'utf8') : '';
  const names = ALL.map(({ name }) => name);
  writeFileSync(path, report(before, names, result));
}

const options = parse(process.argv.slice(2));
if (typeof options === 'string') {
  process.stderr.write(options === '' ? USAGE : `error: ${options}\n\n${USAGE}`);
  process.exit(options === '' ? 0 : 2);
}
const result = await measure(options, (sofar) => {
  if (options.write) write(sofar);
}).catch((error: unknown) => {
  if (!isInterrupted()) throw error;
  process.exit(EXIT_INTERRUPTED); // before there was anything to report
});
if (options.json) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
else
  process.stdout.write(
    `\n${HEADER}\n${result.rows.map(line).join('\n')}\n\n${result.rows.map(({ what, note }) => `- ${what}: ${note}`).join('\n')}\n`,
  );
const { before, after } = result.noise;
if (before.noisy || after.noisy) say(`\nThis machine was too noisy to trust single figures. After: ${after.sentence}.`);
const noisy = result.rows.filter((row) => row.noisy).map(({ what }) => what);
if (noisy.length > 0) say(`Noisy: ${noisy.join('; ')}.`);
if (options.write) {
  write(result);
  say('Wrote docs/benchmarks.md.');
}
process.exit(isInterrupted() ? EXIT_INTERRUPTED : result.failed.length === 0 ? 0 : 1);
