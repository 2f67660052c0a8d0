// QEMU's own user network: only by explicit configuration, and what it is good for.

import { once } from 'node:events';
import { createServer } from 'node:net';
import { expect, test } from 'vitest';
import { withoutNetwork } from '../../src/network/network.ts';
import { orVmmUser } from '../../src/network/vmm-user.ts';
import { configuredAgent, qemuUnderTest } from '../qemu/fixture.ts';
import { outputOf } from '../qemu/guest-command.ts';
import { testOperation } from '../support/operation.ts';

const op = testOperation();

test('without it a sandbox that wants a network is refused, with the reason', async () => {
  await using it = await qemuUnderTest({ network: withoutNetwork('there is no passt') });
  expect(await it.backend.probe(op)).toMatchObject({
    can: { networks: ['none'], notes: expect.arrayContaining(['no network: there is no passt']) },
  });
  const plan = it.plan({ network: 'allow' });
  await it.backend.create(op, plan);
  await expect(it.backend.start(op, plan)).rejects.toMatchObject({ code: 'failed_precondition', message: 'no network: there is no passt' });
  await it.backend.remove(op, plan);
});

test('with it a guest has a network, which reaches this machine: the probe says so', { timeout: 120_000 }, async () => {
  await using it = await qemuUnderTest({ network: orVmmUser(withoutNetwork('there is no passt')) });
  const probed = await it.backend.probe(op);
  expect(probed).toMatchObject({ ok: true, can: { networks: ['none', 'allow', 'allow-lan'] } });
  expect(JSON.stringify(probed)).toContain('sandboxes reach servers on this machine');
  const server = createServer((client) => client.end('word')).listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    const bound = server.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : 0;
    for (const [network, expected] of [
      ['allow', 'word'],
      ['none', ''],
    ] as const) {
      const plan = it.plan({ network });
      await it.backend.create(op, plan);
      using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
      const { stdout } = await outputOf(op, agent, ['timeout', '10', 'bash', '-c', `cat < /dev/tcp/10.0.2.2/${port}`]);
      expect(stdout, network).toBe(expected);
      await it.backend.kill(op, plan, 'now');
      await it.backend.remove(op, plan);
    }
  } finally {
    server.close();
  }
});
