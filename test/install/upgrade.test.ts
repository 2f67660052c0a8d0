// An upgrade from outside: real releases, a real daemon over the reference backend, sandboxes that live.
import { appendFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SCHEMA_VERSION } from '../../src/store/schema.ts';
import { eventually } from '../support/eventually.ts';
import { Machine } from './world.ts';

let machine: Machine;
const START_MS = 240_000;
const OURS = ['--user', '--no-service'] as const;
const SEED = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
const LONG = process.env['HUTCH_TEST_LONG'] !== undefined;

type Status = {
  readonly installed: { readonly release: string; readonly previous: string | null };
  readonly daemon: { readonly pid: number; readonly release: string } | null;
  readonly healthy: boolean;
  readonly problems: readonly string[];
  readonly repaired: string | null;
};

beforeAll(async () => {
  machine = await Machine.make();
  const installed = await machine.run(['system', 'install', ...OURS]);
  if (installed.code !== 0) throw new Error(installed.stderr);
  await machine.ok('run', '-d', '--name', 'live', '--', 'sh', '-c', 'n=0; while :; do n=$((n + 1)); echo $n > count; sleep 0.2; done');
}, START_MS);
afterAll(async () => {
  await machine[Symbol.asyncDispose]();
}, START_MS);

const status = async (): Promise<Status> => await machine.json<Status>('system', 'status', '--user');

/** It still runs, as the same process. */
async function livesOn(mainPid: string): Promise<void> {
  expect(await mainProcess()).toBe(mainPid);
  const count = async () => Number(await machine.ok('exec', 'live', '--', 'cat', 'count'));
  const before = await count();
  await eventually('the sandbox counts on', async () => (await count()) > before, START_MS);
}

async function mainProcess(): Promise<string> {
  const { startedAtMs, id } = (JSON.parse(await machine.ok('inspect', 'live', '--json')) as { startedAtMs: number; id: string }) ?? {};
  return `${id} ${startedAtMs}`;
}

/** What an upgrade must not leave behind, done or undone. */
function leftovers(): string[] {
  const lib = join(machine.home, '.local/lib/hutch');
  const halves = readdirSync(join(lib, 'releases')).filter((name) => name.startsWith('.'));
  return [...halves, ...readdirSync(lib).filter((name) => name === 'upgrade.json' || name.endsWith('.new')), ...copies()];
}

const copies = (): string[] => readdirSync(join(machine.data, 'data')).filter((name) => /before-upgrade|put-back/.test(name));

test(
  'an upgrade puts another release in place while sandboxes live, and keeps the one before it',
  async () => {
    const main = await mainProcess();
    const before = await status();
    const newer = machine.newer('newer');
    const dry = await machine.run(['system', 'upgrade', '--user', '--dry-run'], { from: newer });
    expect(dry.stdout).toMatch(/^would upgrade from/);
    expect((await status()).daemon).toEqual(before.daemon);
    const done = await machine.run(['system', 'upgrade', '--user'], { from: newer });
    expect(done.code, done.stderr).toBe(0);
    const after = await status();
    expect(after).toMatchObject({ healthy: true, installed: { previous: before.installed.release } });
    expect(after.installed.release).not.toBe(before.installed.release);
    expect(after.daemon?.release).toBe(after.installed.release);
    expect(after.daemon?.pid).not.toBe(before.daemon?.pid);
    await livesOn(main);
    expect(leftovers()).toEqual([]);
    const again = await machine.run(['system', 'upgrade', '--user'], { from: newer });
    expect(again.stdout).toMatch(/^nothing to do/);
    expect((await status()).daemon).toEqual(after.daemon);
  },
  START_MS,
);

const FAULTY = join(import.meta.dirname, 'upgrade-with-fault.ts');
/** With --long at each call; else at some of them, by the seed. */
const SAMPLES = 2;
/** The first of the calls that change more than what lies beside. */
const JOURNAL = 'upgrade.json';

test(
  `killed at any call, an upgrade is finished or taken back by the next status, and sandboxes live (seed ${SEED})`,
  async () => {
    const main = await mainProcess();
    const checkouts = [machine.checkout, machine.newer('other', (dir) => appendFileSync(join(dir, 'dist/hutchd.mjs'), '// other\n'))];
    const turn = async (which: number, fault: string | null) => {
      const from = checkouts[which % 2] ?? '';
      return await machine
        .program(process.execPath, [FAULTY, from], fault === null ? {} : { HUTCH_TEST_FAULT: `${fault}:system.upgrade` })
        .then(
          ({ stdout }) => stdout,
          () => null, // killed, as it was to be
        );
    };
    // To the other one; the calls are those of a turn in which nothing fails.
    const counted = JSON.parse((await turn(1, null)) ?? '') as [string, string][];
    const begins = counted.findIndex(([method, path]) => method === 'writeFileAtomic' && path.endsWith(JOURNAL)) + 1;
    expect(begins).toBeGreaterThan(1);
    const all = counted.flatMap((_, index) => ['die-before', 'die-after'].map((how) => `${how}:${index + 1}`));
    const late = all.slice(2 * (begins - 1));
    const points = LONG ? all : Array.from({ length: SAMPLES }, (_, nth) => late[(SEED + nth * 7_919) % late.length] ?? '');
    let to = 0;
    for (const point of points) {
      const said = await turn(to, point);
      // A call may not come where another process was quicker.
      const after = await status();
      expect(after, `${point}: ${JSON.stringify(after)}`).toMatchObject({ healthy: true });
      expect(after.daemon?.release, point).toBe(after.installed.release);
      expect(leftovers(), point).toEqual([]);
      await livesOn(main);
      if (said === null && after.repaired !== null) expect(after.repaired, point).toMatch(/was cut short/);
      const installed = (
        await Promise.all(checkouts.map(async (from) => (await machine.run(['system', 'upgrade', '--user', '--dry-run'], { from })).stdout))
      ).findIndex((stdout) => stdout.startsWith('nothing to do'));
      expect(installed, point).toBeGreaterThanOrEqual(0);
      to = installed + 1;
    }
  },
  LONG ? 7_200_000 : START_MS,
);

const ABOUT = `if (process.argv[2] === '--about') {
  console.log(JSON.stringify({ version: '0.2.0', schemaVersion: SCHEMA }));
  process.exit(0);
}
`;

/** Daemons that are not well, each in its way. */
const BAD: readonly (readonly [string, string, string, RegExp])[] = [
  ['does not start', `${SCHEMA_VERSION}`, "console.error('boom');\nprocess.exit(1);\n", /daemon ended without a word|does not start/],
  ['starts and hangs', `${SCHEMA_VERSION}`, 'setInterval(() => {}, 1000);\n', /took longer than|was not well/],
  [
    'brings the store to its schema and ends',
    '99',
    `const { DatabaseSync } = await import('node:sqlite');
const db = new DatabaseSync(process.env.HUTCH_HOME + '/data/hutch.db');
db.exec('PRAGMA user_version = 99; DROP TABLE sandboxes;');
db.close();
process.exit(1);
`,
    /ended without a word|does not start/,
  ],
];

for (const [what, schema, script, why] of BAD) {
  // The last one is the other two's case as well, but for what they say.
  test.runIf(LONG || schema === '99')(
    `a release that ${what} is taken back by itself: the old one runs, and sandboxes went on`,
    async () => {
      const main = await mainProcess();
      const before = await status();
      const bad = machine.newer(`bad-${what.replaceAll(' ', '-')}`, (dir) =>
        writeFileSync(join(dir, 'dist/hutchd.mjs'), `${ABOUT.replace('SCHEMA', schema)}${script}`),
      );
      const failed = await machine.run(['system', 'upgrade', '--user', '--within', '10s'], { from: bad });
      expect(failed.code, failed.stdout).toBe(4);
      expect(failed.stderr).toMatch(/^error: 0\.2\.0-[0-9a-f]{12} was taken back: /);
      expect(failed.stderr).toMatch(why);
      expect(failed.stderr).toContain(`${before.installed.release} is in use again`);
      const after = await status();
      expect(after).toMatchObject({ healthy: true, installed: before.installed });
      expect(after.daemon?.release).toBe(before.installed.release);
      await livesOn(main);
      expect(leftovers()).toEqual([]);
      expect(readdirSync(join(machine.home, '.local/lib/hutch/releases')).filter((name) => name.startsWith('0.2.0'))).toEqual([]);
    },
    START_MS,
  );
}

test(
  'a release that cannot even say what it is, or is older than the store, is refused before anything is touched',
  async () => {
    const before = await status();
    const mute = machine.newer('mute', (dir) => writeFileSync(join(dir, 'dist/hutchd.mjs'), 'syntax error'));
    const refused = await machine.run(['system', 'upgrade', '--user'], { from: mute });
    expect([refused.code, refused.stderr]).toEqual([4, expect.stringMatching(/the daemon in \S+ does not run/)]);
    const older = machine.newer('older', (dir) => writeFileSync(join(dir, 'dist/hutchd.mjs'), ABOUT.replace('SCHEMA', '1')));
    const old = await machine.run(['system', 'upgrade', '--user'], { from: older });
    expect([old.code, old.stderr]).toEqual([4, expect.stringMatching(/the store has schema \d+, and 0\.2\.0-\S+ knows schemas up to 1/)]);
    expect(await status()).toEqual(before);
  },
  START_MS,
);
