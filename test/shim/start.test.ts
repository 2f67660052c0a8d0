// Starts that fail, are called off, or lose their starter: told plainly, and nothing of them is left.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { inspectShim, shimEnded, startShim } from '../../src/host/shim.ts';
import { eventually } from '../support/eventually.ts';
import { describeCall, failNthCall, hangNthCall } from '../support/host-faults.ts';
import { testOperation } from '../support/operation.ts';
import { host, newPlace, processesWith, SHIM } from './place.ts';

const op = testOperation();
const isRoot = process.getuid?.() === 0;
const marked = (): string => String(3_000_000 + randomBytes(3).readUIntBE(0, 3));

test.each([
  [['/no/such/program'], {}, /cannot run \/no\/such\/program: No such file/, 127],
  [['/etc/passwd'], {}, /cannot run \/etc\/passwd: Permission denied/, 126],
  [['true'], { also: [['/no/companion']] }, /cannot run \/no\/companion/, 127],
  [['true'], { cgroups: ['/no/cgroup'] }, /cannot join \/no\/cgroup/, 127],
  [['true'], { cwd: '/no/cwd' }, /cannot enter \/no\/cwd/, 127],
  [
    ['true'],
    { also: [['false']], awaitSockets: ['/no/socket'] },
    /cannot wait for \/no\/socket: the program that would make it has ended/,
    127,
  ],
] as const)('%j with %j is told by a sentence, and by exit.json', async (argv, more, sentence, exitCode) => {
  await using place = await newPlace();
  await expect(place.start(argv, more)).rejects.toMatchObject({ code: 'unavailable', message: expect.stringMatching(sentence) });
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ alive: false, proof: 'exit.json', exitCode });
  expect(JSON.parse(await fs.readFile(join(place.dir, 'exit.json'), 'utf8'))).toMatchObject({ failed: expect.stringMatching(sentence) });
  expect((await fs.readdir(place.dir)).filter((name) => !name.endsWith('.json'))).toEqual([]);
});

test('a companion that was running is ended when the start fails after it', async () => {
  await using place = await newPlace();
  const marker = marked();
  await expect(place.start(['/no/such/program'], { also: [['sleep', marker]] })).rejects.toMatchObject({ code: 'unavailable' });
  expect(await processesWith(marker)).toEqual([]);
});

test('what cannot be witnessed is not started: no directory, no log, a directory that others may write', async () => {
  await using place = await newPlace();
  await expect(place.start(['true'], { dir: join(place.dir, 'absent') })).rejects.toMatchObject({ code: 'not_found' });
  await expect(place.start(['true'], { logPath: join(place.dir, 'no', 'log') })).rejects.toMatchObject({
    message: expect.stringMatching(/cannot open/),
  });
  await fs.symlink('/dev/null', join(place.dir, 'link'));
  await expect(place.start(['true'], { logPath: join(place.dir, 'link') })).rejects.toMatchObject({
    message: expect.stringMatching(/cannot open/),
  });
  await fs.chmod(place.dir, 0o777);
  await expect(place.start(['true'])).rejects.toMatchObject({ message: expect.stringMatching(/ours alone to write/) });
});

test.runIf(isRoot)('a directory that belongs to the program is refused: it could forge its end', async () => {
  await using place = await newPlace();
  await fs.chown(place.dir, 912_345, 912_345);
  await expect(place.start(['true'], { runAs: { uid: 912_345, gid: 912_345 } })).rejects.toMatchObject({
    message: expect.stringMatching(/ours alone to write/),
  });
});

test('a directory in use takes no second shim, and the first goes on', async () => {
  await using place = await newPlace();
  const { child } = await place.start(['sleep', marked()]);
  const args = ['--dir', place.dir, '--log', place.logPath, '--', 'true'];
  const second = await host.run(op, [SHIM, ...args]);
  expect([second.exitCode, new TextDecoder().decode(second.stdout)]).toEqual([1, expect.stringMatching(/in use by another shim/)]);
  expect(await inspectShim(op, host, place.dir)).toEqual({ alive: true, ...child });
});

test('an earlier end does not count for a new start', async () => {
  await using place = await newPlace();
  await place.start(['false']);
  await shimEnded(op, host, place.dir);
  const { child } = await place.start(['sleep', marked()]);
  expect(await inspectShim(op, host, place.dir)).toEqual({ alive: true, ...child });
});

test('a directory whose process runs takes no second one', async () => {
  await using place = await newPlace();
  const { child } = await place.start(['sleep', marked()]);
  await expect(place.start(['true'])).rejects.toMatchObject({ code: 'conflict' });
  expect(await inspectShim(op, host, place.dir)).toEqual({ alive: true, ...child });
});

test('whoever asks before the shim came calls the start off for good', async () => {
  await using place = await newPlace();
  const marker = marked();
  const ticket = `start-${'0'.repeat(32)}`;
  await fs.writeFile(join(place.dir, ticket), '');
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ proof: 'never-started' });
  const args = ['--dir', place.dir, '--log', place.logPath, '--ticket', ticket, '--', 'sleep', marker];
  const late = await host.run(op, [SHIM, ...args]);
  expect([late.exitCode, new TextDecoder().decode(late.stdout)]).toEqual([1, expect.stringMatching(/called off/)]);
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ proof: 'never-started' });
  expect([await fs.readdir(place.dir), await processesWith(marker)]).toEqual([[], []]);
});

test('whoever waits for the end of an earlier process calls off no start that came after it', async () => {
  await using place = await newPlace();
  const ticket = `start-${'0'.repeat(32)}`;
  await fs.writeFile(join(place.dir, ticket), '');
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ alive: false });
  const args = ['--dir', place.dir, '--log', place.logPath, '--ticket', ticket, '--', 'true'];
  expect((await host.run(op, [SHIM, ...args])).exitCode).toBe(0);
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', exitCode: 0 });
});

test('asked at any moment of a start, the answer stays true', async () => {
  for (let round = 0; round < 30; round += 1) {
    await using place = await newPlace();
    const marker = marked();
    const starting = place.start(['sleep', marker]).then(
      () => 'started',
      () => 'not started',
    );
    while ((await fs.readdir(place.dir)).length === 0); // until the ticket is out, and not a moment longer
    await new Promise((resolve) => setTimeout(resolve, (round % 10) / 2));
    const seen = await inspectShim(op, host, place.dir);
    const outcome = await starting;
    if (!seen.alive) expect([outcome, await processesWith(marker)]).toEqual(['not started', []]);
    else expect(outcome).toBe('started');
  }
});

test('what was there before this boot is dead, and says so', async () => {
  await using place = await newPlace();
  const record = { version: 1, shimPid: 1, shimStartTicks: 0, pid: 1, startTicks: 0, bootId: 'another', startedAtMs: 0 };
  await fs.writeFile(join(place.dir, 'shim.json'), JSON.stringify(record));
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ alive: false, proof: 'boot-id' });
  await fs.writeFile(join(place.dir, 'shim.json'), JSON.stringify({ ...record, bootId: host.bootId(), pid: process.pid }));
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ alive: false, proof: 'pid-gone' }); // the pid is another process now
  for (const garbage of ['', '{', '[]', '{"version":2}', JSON.stringify({ ...record, pid: -1 })]) {
    await fs.writeFile(join(place.dir, 'shim.json'), garbage);
    await expect(inspectShim(op, host, place.dir)).rejects.toMatchObject({ code: 'internal' });
  }
  await fs.rm(join(place.dir, 'shim.json'));
});

test('a start leaves nothing behind, whichever host call fails or hangs', async () => {
  for (const break_ of [failNthCall, hangNthCall]) {
    for (let nth = 1; ; nth += 1) {
      await using place = await newPlace();
      const marker = marked();
      const broken = break_(host, nth, { only: { verb: 'start' } });
      using starting = testOperation({ verb: 'start' }).within(500, 'the start');
      const spec = {
        dir: place.dir,
        logPath: place.logPath,
        runAs: null,
        cgroups: [],
        also: [],
        awaitSockets: [],
        argv: ['sleep', marker],
      };
      const outcome = await startShim(starting, broken, SHIM, spec).then(
        () => 'started',
        () => 'failed',
      );
      if (broken.hit === undefined) {
        expect([outcome, nth > 1]).toEqual(['started', true]);
        break;
      }
      expect([outcome, await processesWith(marker)], describeCall(broken.hit)).toEqual(['failed', []]);
    }
  }
});

test('a starter that is killed leaves a sandbox that is found again, or none', async () => {
  const starter = join(import.meta.dirname, 'starter.ts');
  for (const fault of [1, 2, 3, 4].flatMap((n) => [`die-before:${n}`, `die-after:${n}`])) {
    await using place = await newPlace();
    const marker = marked();
    const child = spawn(process.execPath, [starter, place.dir, place.logPath, marker], {
      env: { ...process.env, HUTCH_TEST_FAULT: fault },
      stdio: 'ignore',
    });
    expect((await once(child, 'exit'))[1], fault).toBe('SIGKILL');
    const seen = await inspectShim(op, host, place.dir);
    expect([fault, seen.alive]).toEqual([fault, fault === 'die-after:4']);
    expect((await processesWith(marker)).length, fault).toBe(seen.alive ? 1 : 0);
  }
});

test('a sandbox outlives its starter, and whoever comes next has it in hand', async () => {
  await using place = await newPlace();
  const marker = marked();
  const child = spawn(process.execPath, [join(import.meta.dirname, 'starter.ts'), place.dir, place.logPath, marker], { stdio: 'ignore' });
  await eventually('it runs', async () => (await processesWith(marker)).length === 1);
  child.kill('SIGKILL');
  await once(child, 'exit');
  const seen = await inspectShim(op, host, place.dir);
  expect(seen.alive).toBe(true);
  const ended = shimEnded(op, host, place.dir);
  if (seen.alive) await host.kill(op, seen, 'SIGTERM');
  expect(await ended).toMatchObject({ proof: 'exit.json', signal: 'SIGTERM' });
});
