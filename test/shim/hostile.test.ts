// Hostile or unlucky surroundings: clients that misbehave, a run directory that vanishes, a full disk.
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { inspectShim, shimEnded, shimRef, signalShim } from '../../src/host/shim.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { host, newPlace, type Place, processesWith } from './place.ts';

const op = testOperation();
const isRoot = process.getuid?.() === 0;
const marked = (): string => String(5_000_000 + randomBytes(3).readUIntBE(0, 3));

function dial(place: Place): Socket {
  const socket = connect(join(place.dir, 'shim.sock'));
  socket.on('error', () => {}); // being hung up on is what some of these ask for
  return socket;
}

/** All that is heard until the shim hangs up or a second without a word. */
async function heard(socket: Socket): Promise<readonly string[]> {
  let text = '';
  socket.on('data', (chunk) => {
    text += String(chunk);
  });
  socket.setTimeout(300, () => socket.destroy());
  await new Promise((resolve) => socket.once('close', resolve));
  return text.split('\n').filter((line) => line !== '');
}

/** Memory that is not of its program file, which it shares with whatever other shims there are. */
async function ownBytes(pid: number): Promise<number> {
  const rollup = await fs.readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Pss_Anon:\s+(\d+) kB$/m.exec(rollup)?.[1]) * 1024;
}

async function cpuUs(place: Place): Promise<number> {
  const shim = await shimRef(op, host, place.dir);
  const use = shim === null ? null : await host.processUse(op, shim);
  if (use === null) throw new Error('the shim is gone');
  return use.cpuUs;
}

test('requests that are garbage are answered, and change nothing', async () => {
  await using place = await newPlace();
  const { child } = await place.start(['sleep', marked()]);
  const socket = dial(place);
  const said = heard(socket);
  for (const line of ['', '{}', '{"signal":"HUP"}', '{"signal":"TERM"', '\u0000\u{1f600}', '{"signal":["KILL"]}', 'null'])
    socket.write(`${line}\n`);
  socket.write(randomBytes(3_000).filter((byte) => byte !== 10));
  const [greeting, ...answers] = await said;
  expect(JSON.parse(greeting ?? '')).toMatchObject({ version: 1, pid: child.pid });
  expect(answers.map((answer) => JSON.parse(answer).ok)).toEqual(Array.from({ length: 7 }, () => false));
  expect(await inspectShim(op, host, place.dir)).toEqual({ alive: true, ...child });
});

test('a line of a mebibyte is refused and hung up on', async () => {
  await using place = await newPlace();
  await place.start(['sleep', marked()]);
  const socket = dial(place);
  const said = heard(socket);
  socket.write(Buffer.alloc(2 ** 20, 'x'));
  expect((await said)[1] ?? 'hung up').toMatch(/at most 4096 bytes|hung up/);
  expect(await signalShim(op, host, place.dir, 'SIGKILL')).toBe(true);
});

test('a hundred idle connections cost little and keep nobody out; more are turned away', async () => {
  await using place = await newPlace();
  const { shim } = await place.start(['sleep', marked()]);
  const before = await ownBytes(shim.pid);
  const idle = Array.from({ length: 100 }, () => dial(place));
  try {
    await Promise.all(idle.map((socket) => new Promise((resolve) => socket.once('data', resolve))));
    expect((await ownBytes(shim.pid)) - before).toBeLessThan(256 * 1024);
    const ended = shimEnded(op, host, place.dir);
    const crowd = Array.from({ length: 100 }, () => dial(place));
    const fates = await Promise.all(
      crowd.map(
        (socket) =>
          new Promise((resolve) => {
            socket.once('data', () => resolve('in'));
            socket.once('close', () => resolve('turned away'));
          }),
      ),
    );
    expect(fates.filter((fate) => fate === 'turned away').length).toBeGreaterThan(70);
    for (const socket of crowd) socket.destroy();
    expect(await signalShim(op, host, place.dir, 'SIGTERM')).toBe(true);
    expect(await ended).toMatchObject({ proof: 'exit.json', signal: 'SIGTERM' });
  } finally {
    for (const socket of idle) socket.destroy();
  }
});

test('a client that asks without end and never reads is hung up on', async () => {
  await using place = await newPlace();
  await place.start(['sleep', marked()]);
  const socket = dial(place);
  socket.pause();
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.write('{"signal":"CONT"}\n'.repeat(200_000));
  await closed;
  expect(await signalShim(op, host, place.dir, 'SIGCONT')).toBe(true);
});

test('an idle shim uses no processor time, whoever is connected', async () => {
  await using place = await newPlace();
  await place.start(['sleep', marked()]);
  const socket = dial(place);
  await new Promise((resolve) => socket.once('data', resolve));
  const before = await cpuUs(place);
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect((await cpuUs(place)) - before).toBeLessThanOrEqual(10_000); // one tick of the kernel's accounting
  socket.destroy();
});

test.each([
  ['ends when it is asked', 'trap "echo asked; exit 0" TERM'],
  ['has to be killed', 'trap "" TERM'],
])('a run directory that is removed ends what nobody can find any more: a program that %s', async (_, trap) => {
  await using place = await newPlace();
  const marker = marked();
  const { shim } = await place.start(['sh', '-c', `${trap}; echo on; while :; do sleep 0.1; : ${marker}; done`], {
    also: [['sleep', marker]],
  });
  await eventually('the program is heard', async () => (await place.log()) === 'on\n');
  await fs.rm(place.dir, { recursive: true });
  await eventually('all is gone', async () => (await processesWith(marker)).length === 0 && !(await host.isAlive(op, shim)));
  expect(await place.log()).toMatch(/^on\nhutch-shim: the run directory was removed: .*\n(asked\n)?hutch-shim: cannot write exit.json: /);
});

test('files that vanish from a run directory end nothing, and the proof is written all the same', async () => {
  await using place = await newPlace();
  await host.run(op, ['mkfifo', join(place.dir, '..', 'gate')]);
  const { child } = await place.start(['sh', '-c', 'read line < gate; exit 9'], { cwd: join(place.dir, '..') });
  for (const name of await fs.readdir(place.dir)) await fs.rm(join(place.dir, name));
  await new Promise((resolve) => setTimeout(resolve, 1_000)); // several looks at the directory
  expect(await host.isAlive(op, child)).toBe(true);
  await fs.writeFile(join(place.dir, '..', 'gate'), 'go\n');
  await eventually('its end is written', async () => (await fs.readdir(place.dir)).includes('exit.json'));
  expect(JSON.parse(await fs.readFile(join(place.dir, 'exit.json'), 'utf8'))).toMatchObject({ code: 9 });
});

test('a log directory that vanishes stops nothing, and the log stays bounded', async () => {
  await using place = await newPlace();
  await fs.mkdir(join(place.dir, 'logs'));
  await place.start(['sh', '-c', 'head -c 30000000 /dev/zero; exit 2'], {
    logPath: join(place.dir, 'logs', 'log'),
    cwd: '/',
  });
  await fs.rm(join(place.dir, 'logs'), { recursive: true });
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', exitCode: 2 });
});

test.runIf(isRoot)('a full disk loses output and nothing else', async () => {
  await using place = await newPlace();
  const small = join(place.dir, 'small');
  await fs.mkdir(small);
  expect((await host.run(op, ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', small])).exitCode).toBe(0);
  try {
    await place.start(['sh', '-c', 'head -c 1000000 /dev/zero; exit 8'], { logPath: join(small, 'log') });
    expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', exitCode: 8 });
  } finally {
    await eventually('the shim has let go of its log', async () => (await host.run(op, ['umount', small])).exitCode === 0);
  }
});

test('many at once end each with its own code', async () => {
  await Promise.all(
    Array.from({ length: 20 }, async (_, i) => {
      await using place = await newPlace();
      await place.start(['sh', '-c', `sleep 0.0${i % 10}; exit ${i}`]);
      expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', exitCode: i });
    }),
  );
});
