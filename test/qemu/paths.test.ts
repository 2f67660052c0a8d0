// Paths of any spelling and length: nothing in them means anything to QEMU, passt or the shim.
import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { rootedNetwork } from '../../src/network/rooted.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot, takeUsers } from '../support/users.ts';
import { configuredAgent, qemuUnderTest } from './fixture.ts';
import { outputOf } from './guest-command.ts';

const op = testOperation();
const run = promisify(execFile);

test.each([
  ['commas, quotes, spaces and a newline', `a,b=c,,d "e' ;$(false)\n%s \\x`],
  ['more than a socket or an option can hold', Array.from({ length: 6 }, () => 'x'.repeat(200)).join('/')],
  ['letters of other scripts', 'дом-家-🏠'],
])('a sandbox runs under a path with %s', async (_, inside) => {
  await using users = isRoot ? await takeUsers() : undefined;
  const over = users === undefined ? {} : { users, network: rootedNetwork({ host: nodeHost(), ...users }) };
  await using it = await qemuUnderTest(over, inside);
  const plan = it.plan({ network: isRoot ? 'allow' : 'none' });
  await it.backend.create(op, plan);
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  expect(await outputOf(op, agent, ['echo', 'here'])).toMatchObject({ stdout: 'here\n', exit: { code: 0 } });
  expect(await it.backend.stats(op, plan)).toMatchObject({ diskAllocatedBytes: expect.any(Number) });
  await it.backend.kill(op, plan, 'gently');
  await it.backend.remove(op, plan);
  expect(await it.backend.leaks(op, new Set())).toEqual([]);
});

test.runIf(isRoot)('a sandbox runs where nothing in the run directory may be executed, as /run is on most systems', async () => {
  await using users = await takeUsers();
  await using it = await qemuUnderTest({ users, network: rootedNetwork({ host: nodeHost(), ...users }) });
  const plan = it.plan({ network: 'allow' });
  const runs = dirname(plan.runDir);
  await mkdir(runs, { recursive: true });
  await run('mount', ['-t', 'tmpfs', '-o', 'noexec,nosuid,nodev,mode=711', 'tmpfs', runs]);
  await using _mounted = { [Symbol.asyncDispose]: async () => void (await run('umount', ['--lazy', runs])) };
  await it.backend.create(op, plan);
  using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
  expect(await outputOf(op, agent, ['echo', 'here'])).toMatchObject({ stdout: 'here\n', exit: { code: 0 } });
  await it.backend.kill(op, plan, 'gently');
  await it.backend.remove(op, plan);
  expect(await it.backend.leaks(op, new Set())).toEqual([]);
});
