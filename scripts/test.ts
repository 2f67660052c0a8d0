// `./dev test`: everything, in the order in which a failure is cheapest to see: checks, Rust, the
// TypeScript tests (which start the real parts), the lab. Prints the seed; ends with one line
// "N passed, N failed". `--long` runs the full figures and keeps what it ran in docs/test-runs.md.
// `--backend NAME` runs the conformance suite of that one alone, and fails where it cannot be run.
// `--fuzz=SECONDS` (60) is how long the parsers of what guests and hosts send are fuzzed, all targets together.
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { relative } from 'node:path';
import { type FileRun, recordRun } from './test-runs.ts';
import { type Deadlines, vitest } from './vitest.ts';
import type { FileRan } from './vitest-events.ts';

/**
 * `notRun`: tests that say themselves that they do not apply here (another user, `--long`).
 * `unsteady`: tests that failed among the others and passed alone. Both are named, never silent.
 */
type Section = {
  readonly name: string;
  passed: number;
  failures: string[];
  readonly notRun: string[];
  readonly unsteady: string[];
  /** What went wrong in each of the failed and unsteady, as far as it is known here. */
  readonly whys: Map<string, string>;
  readonly files: readonly FileRun[];
  seconds: number;
};
type Options = {
  readonly long: boolean;
  readonly filters: readonly string[];
  readonly only: string | null;
  readonly noLab: boolean;
  readonly backend: string | null;
  readonly fuzzSeconds: number;
};

/** Those of rust/agent/tests/fuzz.rs and test/guest/fuzz.test.ts, which share the time. */
const FUZZ_TARGETS = 5;
const FUZZ_SECONDS = 60;

const SECTIONS = ['checks', 'rust', 'tests', 'lab'] as const;

function parse(argv: readonly string[]): Options {
  const filters: string[] = [];
  let long = false;
  let noLab = false;
  let only: string | null = null;
  let backend: string | null = null;
  let fuzzSeconds = FUZZ_SECONDS;
  const rest = [...argv];
  for (let arg = rest.shift(); arg !== undefined; arg = rest.shift()) {
    if (arg === '--long') long = true;
    else if (arg === '--no-lab') noLab = true;
    else if (arg.startsWith('--only=')) only = arg.slice('--only='.length);
    else if (arg === '--backend') backend = rest.shift() ?? '';
    else if (arg.startsWith('--backend=')) backend = arg.slice('--backend='.length);
    else if (arg.startsWith('--fuzz=')) fuzzSeconds = Number(arg.slice('--fuzz='.length));
    else if (arg.startsWith('-'))
      fail(`unknown option ${arg}; there are --long, --no-lab, --backend NAME, --fuzz=SECONDS, --only=${SECTIONS.join('|')}`);
    else filters.push(arg);
  }
  if (only !== null && !(SECTIONS as readonly string[]).includes(only)) fail(`--only takes one of ${SECTIONS.join(', ')}`);
  if (backend !== null && !existsSync(suiteOf(backend))) fail(`--backend takes one of ${backends().join(', ')}`);
  if (!Number.isInteger(fuzzSeconds) || fuzzSeconds < 1) fail('--fuzz takes a whole number of seconds, such as --fuzz=3600');
  if (backend !== null) filters.push(suiteOf(backend));
  return { long, filters, only, noLab, backend, fuzzSeconds };
}

const SUITES = 'test/conformance';
const suiteOf = (backend: string): string => `${SUITES}/${backend}.test.ts`;

/** Those that the conformance suite knows: a file each. */
function backends(): readonly string[] {
  return readdirSync(SUITES).flatMap((name) => /^([\w-]+)\.test\.ts$/.exec(name)?.[1] ?? []);
}

function fail(message: string): never {
  console.error(`error: ${message}`);
  process.exit(2);
}

function section(name: string, part: Partial<Section> = {}): Section {
  return { name, passed: 0, failures: [], notRun: [], unsteady: [], whys: new Map(), files: [], seconds: 0, ...part };
}

/** Runs a program, its output going to ours as it comes; resolves with what it wrote and its code. */
function stream(argv: readonly string[], env: NodeJS.ProcessEnv): Promise<{ code: number; output: string }> {
  const [program = '', ...args] = argv;
  return new Promise((resolve) => {
    const child = spawn(program, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    const take = (chunk: Buffer) => {
      output += chunk.toString('utf8');
      process.stdout.write(chunk);
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.on('error', (error) => resolve({ code: 127, output: `${output}${error.message}` }));
    child.on('close', (code) => resolve({ code: code ?? 1, output }));
  });
}

async function checks(env: NodeJS.ProcessEnv): Promise<Section> {
  const { code, output } = await stream([process.execPath, 'scripts/check.ts'], env);
  const failures = [...output.matchAll(/^FAILED (.+) \(/gm)].map((match) => match[1] ?? '');
  if (code !== 0 && failures.length === 0) failures.push('the checks did not run');
  return section('checks', { passed: [...output.matchAll(/^ok /gm)].length, failures });
}

async function rust(env: NodeJS.ProcessEnv): Promise<Section> {
  const result = section('rust');
  const tests = await stream(['cargo', 'test', '--quiet', '--manifest-path', 'rust/Cargo.toml', '--workspace'], env);
  for (const match of tests.output.matchAll(/test result: \w+\. (\d+) passed; (\d+) failed/g)) result.passed += Number(match[1]);
  for (const match of tests.output.matchAll(/^\s+(\S+) --- FAILED|^---- (\S+) stdout ----/gm))
    result.failures.push(match[1] ?? match[2] ?? '');
  if (tests.code !== 0 && result.failures.length === 0) result.failures.push('cargo test did not run to its end');
  const prebuilt = await stream(['sh', 'rust/build-release.sh', '--check'], env);
  if (prebuilt.code === 0) result.passed += 1;
  else result.failures.push('the prebuilt binaries are what the sources make');
  return result;
}

/** The longest test of the sample may take 10 minutes, of the whole 2 hours. */
function deadlines(long: boolean): Deadlines {
  return { silentMs: long ? 3 * 3_600_000 : 15 * 60_000, endMs: 120_000 };
}

async function tests(options: Options, env: NodeJS.ProcessEnv): Promise<Section> {
  // Kernel and image, made once and kept: tests of machines start from them.
  const prepared = await stream([process.execPath, 'scripts/prepare.ts'], env);
  if (prepared.code !== 0) return section('tests', { failures: ['kernel and image could not be prepared'] });
  const { code, files, astray, hung } = await vitest(options.filters, env, deadlines(options.long));
  const result = section('tests', { files: fileRuns(files) });
  const failed: Failed[] = [];
  for (const { file, where } of hung) {
    const name = `${relative('.', file)} hung: ${where}`;
    const counted = files.find((ran) => ran.name === file)?.tests.filter(({ status }) => status === 'passed').length ?? 0;
    if (existsSync(file)) failed.push({ file, title: null, name, counted, why: '' });
    else result.failures.push(name);
  }
  for (const file of files) {
    const before = failed.length;
    for (const { status, title, fullName, why } of file.tests) {
      if (status === 'passed') result.passed += 1;
      else if (status === 'failed') failed.push({ file: file.name, title, name: fullName, counted: 0, why });
    }
    const counted = file.tests.filter(({ status }) => status === 'passed').length;
    // Its tests did not run because what they all need could not be made.
    if (file.status === 'failed' && failed.length === before)
      failed.push({
        file: file.name,
        title: null,
        name: `${relative('.', file.name)}: ${file.message || 'did not load'}`,
        counted,
        why: '',
      });
    else if (astray.includes(file.name))
      failed.push({ file: file.name, title: null, name: `${relative('.', file.name)}: an error outside of any test`, counted, why: '' });
    else if (options.filters.length === 0 || options.backend !== null)
      result.notRun.push(...file.tests.filter(({ status }) => !RAN.has(status)).map(({ fullName }) => fullName));
  }
  if (code !== 0 && failed.length === 0 && hung.length === 0)
    result.failures.push(`vitest ended with ${code} (an error outside of any test?)`);
  for (const it of failed) {
    const alone = failed.length <= RETRIED ? await passesAlone(it, env) : { passed: 0, why: '' };
    result.passed += Math.max(0, alone.passed - it.counted);
    (alone.passed > 0 ? result.unsteady : result.failures).push(it.name);
    const again = alone.why === '' || alone.why === it.why ? [] : [`alone: ${alone.why}`];
    result.whys.set(it.name, [it.why, ...again].filter((part) => part !== '').join('\n'));
  }
  return result;
}

/** A test that failed, or a file (title null) that failed around its tests, of which `counted` had passed. */
type Failed = {
  readonly file: string;
  readonly title: string | null;
  readonly name: string;
  readonly counted: number;
  readonly why: string;
};

const RAN: ReadonlySet<string> = new Set(['passed', 'failed']);

/** More failures than this are no accident of a busy machine. */
const RETRIED = 8;

/**
 * How many tests pass, and why one fails, when what failed is run while nothing else does; 0 if any fails again. Two processors that
 * also run emulated machines can be too slow for a deadline of the product itself; such a test is named in the summary.
 */
async function passesAlone({ file, title }: Failed, env: NodeJS.ProcessEnv): Promise<{ passed: number; why: string }> {
  console.log(`\nonce more, alone: ${title ?? file}`);
  const pattern = title?.replace(/[$()*+.?[\\\]^{|}]/g, '\\$&');
  const { code, files, hung } = await vitest(
    [file, ...(pattern === undefined ? [] : [`--testNamePattern=${pattern}`])],
    env,
    deadlines(options.long),
  );
  const ran = files.flatMap(({ tests }) => tests);
  const why = ran.map((test) => test.why).find((text) => text !== '') ?? '';
  if (code !== 0 || hung.length > 0) return { passed: 0, why };
  const passed = ran.filter(({ status }) => status === 'passed');
  return { passed: title === null ? passed.length : passed.some((result) => result.title === title) ? 1 : 0, why };
}

async function lab(options: Options, env: NodeJS.ProcessEnv): Promise<Section> {
  const { code, output } = await stream([process.execPath, 'scripts/lab.ts', 'test', ...(options.long ? ['--long'] : [])], env);
  const failures = [...output.matchAll(/^lab: FAILED (.+)$/gm)].map((match) => `in the lab: ${match[1]}`);
  if (code !== 0 && failures.length === 0) failures.push('the lab did not run to its end');
  return section('lab', { passed: [...output.matchAll(/^lab: ok /gm)].length, failures });
}

/** As docs/test-runs.md has it. */
function fileRuns(files: readonly FileRan[]): FileRun[] {
  return files.map(({ name, tests }) => ({
    file: relative('.', name),
    tests: tests.map(({ title, status, duration }) => ({
      title,
      outcome: status === 'passed' || status === 'failed' ? status : 'not run',
      seconds: duration / 1000,
    })),
  }));
}

const options = parse(process.argv.slice(2));
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? Date.now() % 2 ** 31);
const env = {
  ...process.env,
  HUTCH_TEST_SEED: String(seed),
  HUTCH_TEST_FUZZ_SECONDS: String(Math.ceil(options.fuzzSeconds / FUZZ_TARGETS)),
  ...(options.long ? { HUTCH_TEST_LONG: '1' } : {}),
  ...(options.backend === null ? {} : { HUTCH_TEST_REQUIRE_BACKEND: options.backend }),
};
const wanted = (name: (typeof SECTIONS)[number]) =>
  (options.only === null ? options.filters.length === 0 || name === 'tests' : options.only === name) && !(name === 'lab' && options.noLab);

console.log(`seed ${seed} (HUTCH_TEST_SEED=${seed} ./dev test repeats this choice)`);
const began = performance.now();
const sections: Section[] = [];
const run = async (name: (typeof SECTIONS)[number], start: () => Promise<Section>) => {
  if (!wanted(name)) return;
  console.log(`\n== ${name}`);
  const started = performance.now();
  const result = await start();
  result.seconds = (performance.now() - started) / 1000;
  sections.push(result);
};
await run('checks', () => checks(env));
await run('rust', () => rust(env));
await run('tests', () => tests(options, env));
await run('lab', () => lab(options, env));

const seconds = (performance.now() - began) / 1000;
console.log(`\n== summary, seed ${seed}, ${Math.round(seconds)} s`);
for (const name of sections.flatMap(({ notRun }) => notRun)) console.log(`not run here: ${name}`);
for (const section of sections) {
  console.log(`${section.name}: ${section.passed} passed, ${section.failures.length} failed, ${Math.round(section.seconds)} s`);
  const tell = (said: string, name: string): void => {
    console.log(`  ${said} ${name}`);
    for (const line of (section.whys.get(name) ?? '').split('\n')) if (line.trim() !== '') console.log(`    | ${line}`);
  };
  for (const name of section.unsteady) tell('unsteady: failed among the others, passed alone:', name);
  for (const name of section.failures) tell('FAILED', name);
}
// Its own section the lab writes itself.
if (options.long) {
  const parts = sections.filter(({ name }) => name === 'checks' || name === 'rust');
  recordRun({ parts, files: sections.flatMap(({ files }) => files), unsteady: sections.flatMap(({ unsteady }) => unsteady), seed });
}
const passed = sections.reduce((sum, section) => sum + section.passed, 0);
const failed = sections.reduce((sum, section) => sum + section.failures.length, 0);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
