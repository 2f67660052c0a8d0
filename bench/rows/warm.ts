// What one warm sandbox makes of a start: the hand-out alone, to the first command, and the whole command line. In a place of
// its own: everywhere else none is kept, so that processes and memory can be counted.
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { Agent, get } from 'node:http';
import { join } from 'node:path';
import { bareRun } from '../bare/restore.ts';
import type { Bench, Measurement } from '../context.ts';
import { figures, judge, type Row, short, timed } from '../harness.ts';
import { execOk, Place } from '../place.ts';

const SLACK_MS = 20;
const READY_MS = 60_000;
const LOOK_EVERY_MS = 100;
const BLOCK = Buffer.alloc(4096, 'f');

const median = (taken: readonly number[]) => figures(taken).median;

/** One warm sandbox is ready, and its making over. */
export async function ready({ hutch }: Place): Promise<void> {
  for (const until = performance.now() + READY_MS; performance.now() < until; ) {
    const { checks } = await hutch.api.call('doctor.check', {});
    if (checks.some(({ name, detail }) => name === 'warm sandboxes' && detail.startsWith('1 of 1'))) return;
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
  throw new Error('no sandbox became warm');
}

async function cliOk(place: Place, argv: readonly string[]): Promise<void> {
  const { code, stderr } = await place.cli(argv);
  if (code !== 0) throw new Error(`hutch ${argv.join(' ')} ended with ${code}: ${stderr}`);
}

/** Over a connection that is kept, as the SDK's is. */
async function health({ socketPath }: Place, agent: Agent): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  get({ socketPath, path: '/health', agent }, (response) => response.resume().on('end', resolve).on('error', reject)).on('error', reject);
  await promise;
}

/** Where the store writes. */
function fsyncOnce(place: Place): void {
  const file = openSync(join(place.dataDir, 'bench-fsync'), 'w');
  writeSync(file, BLOCK);
  fsyncSync(file);
  closeSync(file);
}

async function warm(bench: Bench): Promise<readonly Row[]> {
  await using scope = bench.scope();
  const place = scope.use(await Place.make('prepared', { HUTCH_SANDBOX_WARM: '1' }));
  await place.startDaemon();
  const { hutch } = place;
  const agent = new Agent({ keepAlive: true });
  scope.defer(() => agent.destroy());
  const usual = await hutch.create(); // makes the template, and wants the first
  const unused: number[] = [];
  const firsts: number[] = [];
  const healths: number[] = [];
  const handOuts: number[] = [];
  const parts: number[] = [];
  const wholes: number[] = [];
  const bares: number[] = [];
  const template = await bench.template();
  const runs = bench.runs(15);
  for (let i = -1; i < runs; i += 1) {
    // Of another place, where none is warm: restored a moment ago, and never used. Without a network: a second daemon that looks after
    // its rules would make the first one install its own again within the hand-out.
    const fresh = await bench.place.hutch.create({ network: 'none' });
    const first = await timed(async () => {
      await execOk(fresh, ['true']);
      fsyncOnce(place);
    });
    await fresh.delete();
    await ready(place);
    const began = performance.now();
    const made = await hutch.create();
    const handOut = performance.now() - began;
    await execOk(made, ['true']);
    const whole = performance.now() - began;
    await made.delete();
    const healthy = await timed(async () => {
      await health(place, agent);
      fsyncOnce(place);
    });
    await ready(place);
    const plain = await timed(() => cliOk(place, ['run', '--rm', '--', 'true']));
    await ready(place);
    const part = await timed(async () => {
      await cliOk(place, ['ls']);
      await execOk(usual, ['true']);
    });
    const bare = await timed(() => bareRun(template));
    if (i < 0) continue;
    unused.push(first);
    firsts.push(whole);
    healths.push(healthy);
    handOuts.push(handOut);
    wholes.push(plain);
    parts.push(part);
    bares.push(bare);
  }
  const allowed = parts.map((ms) => 1.2 * ms + SLACK_MS);
  const share = median(wholes.map((ms, i) => ms / (allowed[i] ?? Number.NaN)));
  return [
    judge(
      {
        what: 'warm hand-out → first exec done',
        unit: 'ms',
        baselineName: 'exec on a restored, unused sandbox + one fsync',
        target: '≤ 1.2×',
        meets: (ratio) => ratio <= 1.2,
        note: 'The sandbox that is handed out has run a program before, the unused one has not.',
      },
      unused,
      firsts,
    ),
    judge(
      {
        what: 'warm hand-out alone, durable',
        unit: 'ms',
        baselineName: '`GET /health` + one fsync',
        target: '≤ 2×',
        meets: (ratio) => ratio <= 2,
        note: 'Beyond a request and a commit, in milliseconds, as the least of some ten on a busy machine: image, shape and quota are looked up (0.9); whether a start would make the same now is looked at while it is claimed (1.4, without waiting for the disk); the guest is told name, environment, clock and entropy (3) while the shim says whether the rules of the network have moved (1); its link goes up (0.6); then the record with its sync, and the answer (5.7): 15 in all. Where somebody else has changed any rule of this machine since, nft looks after ours: 60 to 95 on that machine. These come one after the other because what is refused must have told the guest nothing, and because one that does not answer is replaced before anything is on record. The record is 1 of work in the store’s thread (0.7 when it is warm, of which SQLite takes half) and 1 of its sync; the rest is its way to that thread and back, twice 0.4, and the answer. Gone are two thirds of the questions to the store (six, now two) and looking at files one after the other. Not done: answering when the record is on the disk and telling the guest behind the answer, which would be near the target; a guest that hangs would then be the caller’s, and one whose daemon was killed in between had to be told by the next.',
      },
      healths,
      handOuts,
    ),
    judge(
      {
        what: '`hutch run --rm -- true`, one warm',
        unit: 'ms',
        baselineName: '`hutch ls` + exec in a running sandbox',
        target: `≤ 1.2× + ${SLACK_MS} ms`,
        meets: () => share <= 1,
        note: `Takes ${short(share)}× of what is allowed (${short(median(allowed))} ms), and ${short(median(wholes.map((ms, i) => ms / (bares[i] ?? Number.NaN))))}× of the bare script of the row without a warm one (${short(median(bares))} ms). Beyond what is allowed is the command’s own start, of which Node’s ciphers (8 ms of the processor, for the WebSocket’s handshake) are gone, and the hand-out.`,
      },
      parts,
      wholes,
    ),
  ];
}

export const WARM: readonly Measurement[] = [{ name: 'warm', about: 'starts with a sandbox that is kept ready', rows: warm }];
