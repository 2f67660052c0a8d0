// A program's life under its shim: started, witnessed, ended, with nothing left.
import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ProcessEvidence } from '../../src/backends/backend.ts';
import { companionEnded, inspectShim, type ShimEvidence, shimEnded, shimRef, signalShim } from '../../src/host/shim.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';
import { host, newPlace, processesWith } from './place.ts';

const op = testOperation();
const isRoot = process.getuid?.() === 0;
/** A sleep that no other test has: its duration names it. */
const marked = (): string => String(1_000_000 + randomBytes(3).readUIntBE(0, 3));

test('its evidence is what a backend gives', () => {
  const evidence: ShimEvidence = { alive: true, pid: 1, startTicks: 1 };
  const same: ProcessEvidence = evidence;
  expect(same.alive).toBe(true);
});

test.each([
  ['exit 0', { exitCode: 0, signal: null }],
  ['exit 7', { exitCode: 7, signal: null }],
  ['kill -SEGV $$', { exitCode: null, signal: 'SIGSEGV' }],
  ['kill -KILL $$', { exitCode: null, signal: 'SIGKILL' }],
  ['kill -35 $$', { exitCode: null, signal: 'SIG35' }],
])('%s is recorded as what the kernel said', async (script, expected) => {
  await using place = await newPlace();
  const before = Date.now();
  await place.start(['sh', '-c', script]);
  const end = await shimEnded(op, host, place.dir);
  expect(end).toMatchObject({ alive: false, proof: 'exit.json', oomKilled: false, ...expected });
  expect(end.diedAtMs).toBeGreaterThanOrEqual(before);
  expect(await inspectShim(op, host, place.dir)).toEqual(end);
});

test('both are told by pid and start time, each in a session of its own', async () => {
  await using place = await newPlace();
  const { shim, child } = await place.start(['sleep', marked()]);
  expect(await host.processRef(op, shim.pid)).toEqual(shim);
  expect(await inspectShim(op, host, place.dir)).toEqual({ alive: true, ...child });
  expect(await shimRef(op, host, place.dir)).toEqual(shim);
  const sessions = await Promise.all(
    [shim.pid, child.pid].map(async (pid) => (await fs.readFile(`/proc/${pid}/stat`, 'utf8')).split(' ')[5]),
  );
  expect(sessions).toEqual([`${shim.pid}`, `${child.pid}`]);
});

test('output of both kinds is in the log; the environment holds nothing of ours', async () => {
  await using place = await newPlace();
  await place.start(['sh', '-c', 'echo out; echo err >&2; env | cut -d= -f1 | sort | tr "\\n" " "; read x || echo no input']);
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toMatch(/^out\nerr\nHOME LANG (OLDPWD )?PATH PWD no input\n$/);
});

test('a log that grows beyond its bound is rotated once, whatever is written', async () => {
  await using place = await newPlace();
  await place.start(['sh', '-c', 'head -c 50000000 /dev/zero; echo the end']);
  await shimEnded(op, host, place.dir);
  const sizes = [(await fs.stat(place.logPath)).size, (await fs.stat(`${place.logPath}.1`)).size];
  for (const size of sizes) expect(size).toBeLessThan(11 * 2 ** 20);
  expect(Number(sizes[1])).toBeGreaterThanOrEqual(10 * 2 ** 20);
  expect((await place.log()).endsWith('the end\n')).toBe(true);
  expect((await fs.readdir(join(place.dir, '..'))).sort()).toEqual(['log', 'log.1', 'run']);
});

test('whatever the program leaves behind is ended with it, also what hides in a session of its own', async () => {
  await using place = await newPlace();
  const [a, b, c] = [marked(), marked(), marked()];
  await place.start(['sh', '-c', `sleep ${a} & setsid sleep ${b} & (setsid sh -c "trap '' TERM HUP; sleep ${c}" &) ; sleep 0.05; exit 3`]);
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ exitCode: 3 });
  for (const marker of [a, b, c]) expect(await processesWith(marker)).toEqual([]);
  expect((await fs.readdir(place.dir)).sort()).toEqual(['exit.json', 'shim.json']);
});

test('TERM, KILL, STOP and CONT reach the program through the shim', async () => {
  await using place = await newPlace();
  const { child } = await place.start(['sh', '-c', `trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done`]);
  await eventually('the program is ready', async () => (await place.log()) === 'ready\n');
  const state = async (): Promise<string | undefined> => (await fs.readFile(`/proc/${child.pid}/stat`, 'utf8')).split(' ')[2];
  expect(await signalShim(op, host, place.dir, 'SIGSTOP')).toBe(true);
  await eventually('it is stopped', async () => (await state()) === 'T');
  expect(await signalShim(op, host, place.dir, 'SIGCONT')).toBe(true);
  await eventually('it runs', async () => (await state()) !== 'T');
  expect(await signalShim(op, host, place.dir, 'SIGTERM')).toBe(true);
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ exitCode: 5 });
  expect(JSON.parse(await fs.readFile(join(place.dir, 'exit.json'), 'utf8'))).toMatchObject({ asked: 'SIGTERM' });
  expect(await signalShim(op, host, place.dir, 'SIGKILL')).toBe(false);
});

test('SIGTERM to the shim asks the program to end, and waits for it', async () => {
  await using place = await newPlace();
  const { shim, child } = await place.start(['sh', '-c', `trap 'sleep 0.1; exit 6' TERM; echo ready; while :; do sleep 0.02; done`]);
  await eventually('the program is ready', async () => (await place.log()) === 'ready\n');
  for (const signal of ['SIGTERM', 'SIGTERM'] as const) await host.kill(op, shim, signal);
  expect(await host.isAlive(op, child)).toBe(true);
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ exitCode: 6 });
});

test('a shim that is killed takes its program with it, and that is proven by the pid alone', async () => {
  await using place = await newPlace();
  const { shim, child } = await place.start(['sleep', marked()]);
  const ended = shimEnded(op, host, place.dir);
  await host.kill(op, shim, 'SIGKILL');
  expect(await ended).toMatchObject({ alive: false, proof: 'pid-gone', exitCode: null, diedAtMs: null });
  expect(await host.isAlive(op, child)).toBe(false);
});

test('a stopped shim holds up neither the proof nor the signal for long', async () => {
  await using place = await newPlace();
  const { shim, child } = await place.start(['sleep', marked()]);
  await host.kill(op, shim, 'SIGSTOP');
  using limited = op.within(300, 'an answer of the shim');
  await expect(signalShim(limited, host, place.dir, 'SIGTERM')).rejects.toMatchObject({ code: 'deadline_exceeded' });
  await host.kill(op, child, 'SIGKILL');
  await eventually('the program is gone', async () => !(await inspectShim(op, host, place.dir)).alive);
  expect(await inspectShim(op, host, place.dir)).toMatchObject({ proof: 'pid-gone' });
  await host.kill(op, shim, 'SIGCONT');
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', signal: expect.stringMatching(/SIGTERM|SIGKILL/) });
});

test.runIf(isRoot)('the program runs as the user it is given, without groups or a way to more', async () => {
  await using place = await newPlace();
  await place.start(['sh', '-c', 'id -u; id -g; id -G; grep -E "NoNewPrivs|CapEff" /proc/self/status; ulimit -c; pwd'], {
    runAs: { uid: 912_345, gid: 912_346 },
    cwd: '/usr',
  });
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toBe('912345\n912346\n912346\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n0\n/usr\n');
});

test.runIf(isRoot)('after the change of user the program still dies with its shim', async () => {
  await using place = await newPlace();
  const { shim, child } = await place.start(['sleep', marked()], { runAs: { uid: 912_345, gid: 912_345 } });
  await host.kill(op, shim, 'SIGKILL');
  await eventually('its end', async () => !(await host.isAlive(op, child)));
});

test('the program joins the cgroups before it runs', async () => {
  await using place = await newPlace();
  const cgroup = join(place.dir, 'cgroup');
  await fs.mkdir(cgroup);
  await fs.writeFile(join(cgroup, 'cgroup.procs'), ''); // what a cgroup would be told: "0", that is: myself
  await place.start(['cat', join(cgroup, 'cgroup.procs')], { cgroups: [cgroup] });
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toBe('0\n');
});

test('companions run before the program, log to the same file, and end with it', async () => {
  await using place = await newPlace();
  const [marker, socket] = [marked(), join(place.dir, 'companion.sock')];
  const listen = `import socket,time; time.sleep(.1); s=socket.socket(socket.AF_UNIX); s.bind('${socket}'); s.listen(); print('listening',flush=True); time.sleep(${marker})`;
  await place.start(['sh', '-c', `test -S ${socket} && echo found; sleep 0.1; exit 4`], {
    also: [
      ['python3', '-c', listen],
      ['sleep', marker],
    ],
    awaitSockets: [socket],
  });
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ exitCode: 4 });
  expect(await place.log()).toBe('listening\nfound\n');
  expect(await processesWith(marker)).toEqual([]);
});

test('a program and its first companion share a socket pair, as descriptor 3 of each', async () => {
  await using place = await newPlace();
  const companion = `import socket; s=socket.socket(fileno=3); s.sendall(s.recv(9).upper())`;
  const program = `import socket; s=socket.socket(fileno=3); s.sendall(b'ping'); print(s.recv(9).decode(), len(s.recv(9)))`;
  await place.start(['python3', '-c', program], {
    also: [
      ['python3', '-c', companion],
      ['sh', '-c', 'test ! -e /proc/self/fd/3'],
    ],
    pair: 'shared',
  });
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toBe('PING 0\n'); // and its end is heard: nobody else holds the pair
});

test('a console has a log of its own, bounded too, and never holds up its writer', async () => {
  await using place = await newPlace();
  const consolePath = join(place.dir, 'console');
  await place.start(['sh', '-c', 'echo log; echo console >&4; head -c 30000000 /dev/zero >&4 || true; echo written'], { consolePath });
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toMatch(/^log\n(.*Resource temporarily unavailable\n)?written\n$/);
  const first = (await fs.stat(`${consolePath}.1`).catch(() => null)) === null ? consolePath : `${consolePath}.1`;
  expect(new TextDecoder().decode(await host.readRange(op, first, 0, 8))).toBe('console\n');
  expect((await fs.stat(consolePath)).size).toBeLessThan(11 * 2 ** 20);
});

test('nothing but stdio is open in a program that asks for nothing else', async () => {
  await using place = await newPlace();
  await place.start(['ls', '/proc/self/fd']);
  await shimEnded(op, host, place.dir);
  expect(await place.log()).toBe('0\n1\n2\n3\n'); // 3 is the directory that ls reads
});

test('a companion that ends by itself does not end the program', async () => {
  await using place = await newPlace();
  await place.start(['sh', '-c', 'sleep 0.1; exit 9'], { also: [['true'], ['false']] });
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ exitCode: 9 });
});

test('a companion that ends is told of, to who listens and to who comes later; one that goes on is not', async () => {
  await using place = await newPlace();
  const waits = ['sh', '-c', 'while [ ! -e go ]; do sleep 0.02; done'];
  await place.start(['sleep', '1000'], { cwd: place.dir, also: [['sleep', '1000'], waits] });
  const listening = companionEnded(op, host, place.dir);
  const beganMs = Date.now();
  await fs.writeFile(join(place.dir, 'go'), '');
  const told = await listening;
  expect(told).toMatchObject({ companion: 1 });
  expect(told?.endedAtMs).toBeGreaterThanOrEqual(beganMs - 1_000);
  expect(await companionEnded(op, host, place.dir)).toEqual(told);
  // What is told meanwhile is no answer to a request.
  expect(await signalShim(op, host, place.dir, 'SIGKILL')).toBe(true);
  expect(await shimEnded(op, host, place.dir)).toMatchObject({ signal: 'SIGKILL' });
  expect(await companionEnded(op, host, place.dir)).toBe(null);
});

test('two hundred short lives leave nothing', async () => {
  const marker = marked();
  for (let i = 0; i < 200; i += 1) {
    await using place = await newPlace();
    await place.start(['sh', '-c', `: ${marker}; exit ${i % 256}`]);
    expect(await shimEnded(op, host, place.dir)).toMatchObject({ proof: 'exit.json', exitCode: i % 256 });
  }
  await eventually('the last shims are gone', async () => (await processesWith(marker, 'shims')).length === 0);
});
