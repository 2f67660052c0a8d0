// From nothing to a command that has run: the CLI and the SDK against the bare script.
import { bareRun } from '../bare/restore.ts';
import type { Bench, Measurement } from '../context.ts';
import { figures, judge, type Row, short, timed } from '../harness.ts';
import { execOk, mustRun } from '../place.ts';

const BARE_FACTOR = 1.25;
const LS_FACTOR = 1.2;
const HEADLINE_MS = 350;
const SCRIPT = 'bare script';

async function cliOk(bench: Bench, argv: readonly string[]): Promise<void> {
  const { code, stderr } = await bench.place.cli(argv);
  if (code !== 0) throw new Error(`hutch ${argv.join(' ')} ended with ${code}: ${stderr}`);
}

const median = (taken: readonly number[]) => figures(taken).median;

async function run(bench: Bench): Promise<readonly Row[]> {
  const template = await bench.template();
  const base: number[] = [];
  const ours: number[] = [];
  const without: number[] = [];
  const list: number[] = [];
  const runs = bench.runs(15);
  for (let i = -1; i < runs; i += 1) {
    const bare = await timed(() => bareRun(template));
    const whole = await timed(() => cliOk(bench, ['run', '--rm', '--', 'true']));
    const ls = await timed(() => cliOk(bench, ['ls']));
    const noNet = await timed(() => cliOk(bench, ['run', '--rm', '--no-net', '--', 'true']));
    if (i < 0) continue; // the warm-up
    base.push(bare);
    ours.push(whole);
    list.push(ls);
    without.push(noNet);
  }
  const allowed = base.map((bare, i) => BARE_FACTOR * bare + LS_FACTOR * (list[i] ?? Number.NaN));
  const share = median(ours.map((whole, i) => whole / (allowed[i] ?? Number.NaN)));
  return [
    judge(
      {
        what: '`hutch run --rm -- true`, warm daemon, no warm sandbox, whole CLI',
        unit: 'ms',
        baselineName: SCRIPT,
        target: `≤ ${BARE_FACTOR}× + ${LS_FACTOR} × \`hutch ls\`; < ${HEADLINE_MS} ms without hardware virtualization`,
        meets: (_ratio, { median: ms }) => share <= 1 && ms < HEADLINE_MS,
        note: `Takes ${short(share)}× of what is allowed (${short(median(allowed))} ms); \`hutch ls\` took ${short(median(list))} ms, with \`--no-net\` the whole took ${short(median(without))} ms. Bound by the guest’s first program after a restore, whose code the emulator translates anew each time, and by starting Node.js for the CLI; then comes the sandbox’s identity (some 21 ms in the guest, of which 8 are its hardware address). Three runs of nft, a second clean-up, a second sync and making the main process’s log in the guest (a tenth of its work) are gone. In the CLI, so are TLS and HTTPS (16 ms of processor time, for a unix socket), a formatter of numbers (11 ms), and loading ciphers before the request is sent (5 ms); the guest is ended as soon as all output is out of it, not when the client has it; its end and its deletion are one commit, and what it had on the host is removed behind the answer (some 20 ms that \`--rm\` waited for). Tried without gain: a larger young generation for the daemon; for the CLI no worker threads of V8, no optimizing compiler, no OpenSSL configuration. A daemon as it comes keeps one sandbox ready, which this row forgoes: with that the same command waits for no restore (see \`warm\`).`,
      },
      base,
      ours,
    ),
  ];
}

async function sdk(bench: Bench): Promise<readonly Row[]> {
  const { hutch } = bench.place;
  const template = await bench.template();
  const base: number[] = [];
  const ours: number[] = [];
  const created: number[] = [];
  const runs = bench.runs(15);
  for (let i = -1; i < runs; i += 1) {
    const bare = await timed(() => bareRun(template));
    const started = performance.now();
    const sandbox = await hutch.create();
    const createdMs = performance.now() - started;
    await execOk(sandbox, ['true']);
    const whole = performance.now() - started;
    await sandbox.delete();
    if (i < 0) continue;
    base.push(bare);
    ours.push(whole);
    created.push(createdMs);
  }
  return [
    judge(
      {
        what: 'SDK: create → first exec done',
        unit: 'ms',
        baselineName: SCRIPT,
        target: `≤ ${BARE_FACTOR}×`,
        meets: (ratio) => ratio <= BARE_FACTOR,
        note: `Of it ${short(median(created))} ms until \`create\` answered. Beyond the script: passt, the shim, a user and limits of its own, durable commits, and telling the guest who it is, which is the most of it. The rules of the network cost nothing while nobody changes them; the daemon’s own work is some 25 ms of processor time; its largest part beside garbage collection is forking itself to start the shim, as Node.js forks by copying the page tables: 0.8 ms of processor time at 52 MiB resident, 1.6 to 3 at 112, 3.5 to 5 at 171 (measured alone). A process that forks for it was not made: one start in a hundred parts would be saved.`,
      },
      base,
      ours,
    ),
  ];
}

async function list(bench: Bench): Promise<readonly Row[]> {
  const base: number[] = [];
  const ours: number[] = [];
  const runs = bench.runs(25);
  for (let i = -2; i < runs; i += 1) {
    const node = await timed(() => mustRun([process.execPath, '-e', '0']));
    const ls = await timed(() => cliOk(bench, ['ls']));
    if (i < 0) continue;
    base.push(node);
    ours.push(ls);
  }
  return [
    judge(
      {
        what: '`hutch ls`, warm daemon',
        unit: 'ms',
        baselineName: '`node -e 0`',
        target: '≤ 3×',
        meets: (ratio) => ratio <= 3,
        note: 'Bound by starting Node.js and compiling the bundle; the shell script that finds Node.js looks through the sources for one that is newer than the bundle; then one request over the unix socket.',
      },
      base,
      ours,
    ),
  ];
}

export const START: readonly Measurement[] = [
  { name: 'run', about: 'hutch run --rm -- true', rows: run },
  { name: 'sdk', about: 'SDK create to first exec', rows: sdk },
  { name: 'ls', about: 'hutch ls', rows: list },
];
