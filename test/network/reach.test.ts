// What a real guest reaches, by canaries: each address is tried from inside a sandbox. Decision 10.
import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import type { NetworkMode } from '../../src/domain/sandbox.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { rootedNetwork } from '../../src/network/rooted.ts';
import { configuredAgent, firstUid, qemuUnderTest } from '../qemu/fixture.ts';
import { outputOf } from '../qemu/guest-command.ts';
import { testOperation } from '../support/operation.ts';
import { CANARY, HOST_EXTRA, LAN, METADATA, neighbours, PUBLIC } from './neighbours.ts';

const TABLE = 'hutch_test_reach';
const GUEST_GATEWAY = '192.0.0.1';

/** Tries every address at once; prints which said the word. */
const PROBE = `
import socket, sys, json, threading
found = []
def attempt(address):
    try:
        with socket.create_connection((address, int(sys.argv[1])), 10) as s:
            s.settimeout(10)
            if s.recv(64) == b'${CANARY}': found.append(address)
    except OSError: pass
tries = [threading.Thread(target=attempt, args=(a,)) for a in sys.argv[2:]]
for t in tries: t.start()
for t in tries: t.join()
print(json.dumps(sorted(found)))
`;

function table(): string {
  return spawnSync('nft', ['list', 'table', 'inet', TABLE], { encoding: 'utf8' }).stdout;
}

describe.runIf(firstUid !== null)('as root', () => {
  const op = testOperation();
  const uids = { first: firstUid ?? 0, last: (firstUid ?? 0) + 999 };

  const REACHED: Record<NetworkMode, readonly string[]> = { none: [], allow: [PUBLIC], 'allow-lan': [LAN, PUBLIC] };

  test('a guest reaches the internet, private ranges only when it may, and the host never', { timeout: 240_000 }, async () => {
    await using around = await neighbours();
    await using it = await qemuUnderTest({ network: rootedNetwork({ host: nodeHost(), uids, table: TABLE }) });
    const targets = [...new Set([...around.hostAddresses, HOST_EXTRA, '127.0.0.1', GUEST_GATEWAY, LAN, PUBLIC, METADATA])];
    const reached: Partial<Record<NetworkMode, unknown>> = {};
    for (const mode of ['none', 'allow', 'allow-lan'] as const) {
      const plan = it.plan({ network: mode });
      await it.backend.create(op, plan);
      using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
      const { stdout } = await outputOf(op, agent, ['python3', '-c', PROBE, String(around.port), ...targets]);
      reached[mode] = JSON.parse(stdout);
      await it.backend.kill(op, plan, 'now');
      await it.backend.remove(op, plan);
    }
    expect(reached).toEqual(REACHED);
    expect(table()).toBe(''); // the last sandbox took the rules with it
  });

  test('the rules come back when somebody else has flushed them', async () => {
    const network = rootedNetwork({ host: nodeHost(), uids, table: `${TABLE}_2` });
    const plan = {
      id: 'sbx00000000000000000' as never,
      mode: 'allow',
      socketDir: '/nonexistent',
      runAs: { uid: uids.first, gid: uids.first },
    } as const;
    const list = (): string => spawnSync('nft', ['list', 'table', 'inet', `${TABLE}_2`], { encoding: 'utf8' }).stdout;
    await network.admit(op, plan);
    const before = list();
    spawnSync('nft', ['flush', 'table', 'inet', `${TABLE}_2`]);
    await network.admit(op, plan);
    expect(list()).toBe(before);
    await network.close(op, plan);
    await network.close(op, plan);
    expect(list()).toBe('');
  });
});

test.runIf(firstUid === null)('without root there is no network, and the reason is told', async () => {
  const network = rootedNetwork({ host: nodeHost(), uids: { first: 960_000, last: 960_999 }, table: TABLE });
  expect(await network.probe(testOperation())).toMatchObject({ modes: ['none'], notes: [expect.stringContaining('no network')] });
});
