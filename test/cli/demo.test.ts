// `hutch demo` on a terminal, over real machines: what it shows is what happens. The recording of it is the README's first
// picture: HUTCH_TEST_RECORD=docs/demo.svg writes it.
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Frame, svgOf } from './recording.ts';
import { Screen } from './screen.ts';
import { MACHINES, World } from './world.ts';

const SIZE = { cols: 112, rows: 24 };
const DEMO_MS = 300_000;
const STEPS = [
  /sandbox \S+: qemu, Linux \S+, a computer of its own/,
  /a repository and its test suite inside: commit [0-9a-f]{7,}, warm: 33860 primes, 80 tests of \d+ numbers/,
  /copied 8 ways while it ran, memory and all; it stood still for \d+ ms/,
  /the daemon \(process \d+\) is killed: SIGKILL/,
  /a new one \(process \d+\) has taken over what runs, \d+ ms later/,
  /80 tests passed in 8 copies; 9 of 9 sandboxes run on/,
  /ledger: \d+ entries, unbroken; [\d.]+ seconds of sandboxes used/,
  /all cleaned up/,
];
let world: World;

beforeAll(async () => {
  world = await World.make(MACHINES);
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

async function record(screen: Screen, until: RegExp): Promise<Frame[]> {
  const began = performance.now();
  const frames: Frame[] = [];
  while (performance.now() - began < DEMO_MS) {
    const text = await screen.text();
    if (frames.at(-1)?.screen !== text) frames.push({ atMs: performance.now() - began, screen: text });
    if (until.test(text)) return frames;
    await sleep(100);
  }
  throw new Error(`it did not end; the screen shows\n${await screen.text()}`);
}

test('the demo warms up a sandbox, copies it, kills the daemon, and loses nothing', { timeout: DEMO_MS + 60_000 }, async () => {
  await using screen = await Screen.open(world, SIZE);
  await screen.enter('PS1="$ "; hutch() { $H "$@"; }; clear');
  await screen.enter('hutch demo; echo "code $?"');
  const frames = await record(screen, /^code \d+$/m);
  const seen = frames.map((frame) => frame.screen).join('\n');
  for (const step of STEPS) expect(seen).toMatch(step);
  expect(frames.at(-1)?.screen).toMatch(/^code 0$/m);
  // The copies were seen at work, not only when they were done.
  expect(seen).toMatch(/-fork-\d +█+·+ +\d of 10/);
  expect(JSON.parse(await world.ok('ls', '--json'))).toMatchObject({ sandboxes: [] });
  const picture = svgOf(frames, SIZE);
  expect(picture.match(/<g visibility/g)).toHaveLength(frames.length);
  const path = process.env['HUTCH_TEST_RECORD'];
  if (path !== undefined) writeFileSync(path, picture);
});
