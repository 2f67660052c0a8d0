// What a real guest reaches, by canaries: each address is tried from inside a sandbox. Decision 10.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, statSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { networkInterfaces } from 'node:os';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { NetworkMode } from '../../src/domain/sandbox.ts';
import type { Host } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import type { Network, NetworkPlan } from '../../src/network/network.ts';
import { rootedNetwork } from '../../src/network/rooted.ts';
import { namespaceRules, rootlessNetwork } from '../../src/network/rootless.ts';
import { configuredAgent, qemuUnderTest } from '../qemu/fixture.ts';
import { outputOf } from '../qemu/guest-command.ts';
import { newPlace } from '../shim/place.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot, type TestUsers, takeUsers } from '../support/users.ts';
import { addressesIn, CANARY, neighbours, PROBE, REACHED, REFUSALS, REFUSED, targetsIn } from './neighbours.ts';

const GUEST_GATEWAY = '192.0.0.1';

/** For python3: what becomes of a connection and of a datagram to each of its arguments. */
const OUTCOMES = `
import socket, sys
def attempt(kind, address):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(5)
        try:
            s.connect((address, 4880))
            s.send(b'x')
            s.recv(1)
        except OSError as error: return type(error).__name__
        return 'answered'
print(' '.join(attempt(kind, address) for address in sys.argv[1:] for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)))
`;

const listed = (table: string): string => spawnSync('nft', ['list', 'table', 'inet', table], { encoding: 'utf8' }).stdout;

describe.runIf(isRoot)('as root', () => {
  const op = testOperation();
  let users: TestUsers;
  beforeAll(async () => {
    users = await takeUsers();
  });
  afterAll(() => users[Symbol.asyncDispose]());

  /** What a guest reaches with each mode. */
  async function reachedBy(network: Network): Promise<Partial<Record<NetworkMode, unknown>>> {
    await using around = await neighbours();
    await using it = await qemuUnderTest({ network, users });
    const targets = targetsIn(around, [GUEST_GATEWAY]);
    const reached: Partial<Record<NetworkMode, unknown>> = {};
    for (const mode of ['none', 'allow', 'allow-lan'] as const) {
      const plan = it.plan({ network: mode });
      await it.backend.create(op, plan);
      using agent = await configuredAgent(op, it, plan, await it.backend.start(op, plan));
      const { stdout } = await outputOf(op, agent, ['python3', '-c', PROBE, String(around.port), ...targets]);
      reached[mode] = addressesIn(stdout);
      const error = { none: 'OSError', allow: 'ConnectionRefusedError', 'allow-lan': null }[mode];
      if (error !== null) {
        const refused = await outputOf(op, agent, ['python3', '-c', REFUSALS, ...REFUSED]);
        expect(refused.stdout.trim(), 'what cannot be is told at once').toBe(REFUSED.map(() => error).join(' '));
      }
      await it.backend.kill(op, plan, 'now');
      await it.backend.remove(op, plan);
    }
    await it.backend.end?.(op);
    return reached;
  }

  test('a guest reaches the internet, private ranges only when it may, and the host never', { timeout: 240_000 }, async () => {
    expect(await reachedBy(rootedNetwork({ host: nodeHost(), ...users }))).toEqual(REACHED);
    expect(listed(users.table)).toBe('');
  });

  test('without root, a guest reaches the same', { timeout: 240_000 }, async () => {
    // As the sandboxes' own users, who may do nothing else, on a machine that is as distributions make it.
    const { mode } = statSync('/dev/net/tun');
    chmodSync('/dev/net/tun', 0o666);
    try {
      expect(await rootlessNetwork({ host: asUser(users.uids.first) }).probe(op)).toEqual({
        modes: ['none', 'allow', 'allow-lan'],
        notes: [],
      });
      expect(await reachedBy(rootlessNetwork({ host: nodeHost() }))).toEqual(REACHED);
      chmodSync('/dev/net/tun', 0o600);
      expect(await rootlessNetwork({ host: asUser(users.uids.first) }).probe(op)).toEqual({
        modes: ['none'],
        notes: ['no network: a network namespace of its own does not work here: Failed to open tun socket in namespace'],
      });
    } finally {
      chmodSync('/dev/net/tun', mode & 0o777);
    }
  });

  test('without root, who asks for what is refused hears so at once', () => {
    const own = '10.213.78.1';
    const script = `set -e
      ip link set lo up && ip link add way type veth peer name out && ip link set out up && ip link set way up
      ip address add ${own}/24 dev way && ip route add default dev way
      printf %s "$1" | nft -f - && shift && exec python3 -c "$@"`;
    const rules = namespaceRules('internet', [own, '127.0.0.1']);
    const refused = [own, '127.0.0.1', '169.254.169.254', '10.213.78.2'];
    const inside = ['unshare', '--net', 'sh', '-c', script, 'sh', rules, OUTCOMES, ...refused];
    const { stdout, stderr } = spawnSync(inside[0] ?? '', inside.slice(1), { encoding: 'utf8', timeout: 60_000 });
    expect(stdout.trim(), stderr).toBe(refused.map(() => 'ConnectionRefusedError PermissionError').join(' '));
  });

  /** Runs programs as a user who is not root. */
  function asUser(uid: number): Host {
    const host = nodeHost();
    const user = ['setpriv', '--reuid', `${uid}`, '--regid', `${uid}`, '--clear-groups'];
    return { ...host, run: (runOp, argv, options) => host.run(runOp, [...user, ...argv], options) };
  }

  const sandbox = (mode: 'allow' | 'allow-lan', nth: number) => ({
    id: 'sbx00000000000000000' as never,
    mode,
    socketDir: '/nonexistent',
    runAs: { uid: users.uids.first + nth, gid: users.uids.first + nth },
  });

  /** A network whose nft runs are counted, and what its table holds. */
  const counted = () => {
    const name = users.table;
    const host = nodeHost();
    const runs: string[] = [];
    const network = rootedNetwork({
      host: {
        ...host,
        run(runOp, argv, options) {
          runs.push(argv.join(' '));
          return host.run(runOp, argv, options);
        },
      },
      ...users,
    });
    const list = (): string => listed(name);
    const installs = (): number => runs.splice(0).filter((run) => run.endsWith('nft -f -')).length;
    /** As a start does it: wired, then the rules are seen by the shim of the sandbox, then it is let in. */
    const letIn = async (plan: NetworkPlan, seen: 'seen' | 'not seen' = 'seen'): Promise<void> => {
      const link = await network.wire(op, plan);
      if (link.kind !== 'passt') throw new Error('no passt');
      await network.admit(op, plan, seen === 'seen' ? { wiredAt: link.wiredAt, generation: await rulesGeneration() } : null);
    };
    return { network, list, installs, letIn };
  };

  test('by IPv6 a sandbox’s user reaches the host no more than by IPv4', async () => {
    const server = createServer((client) => {
      client.on('error', () => {});
      client.end(CANARY);
    }).listen(0, '::');
    await once(server, 'listening');
    const port = String((server.address() as AddressInfo).port);
    const own = Object.entries(networkInterfaces()).flatMap(([name, addresses = []]) =>
      addresses.flatMap(({ family, address }) => (family !== 'IPv6' ? [] : [address.startsWith('fe80:') ? `${address}%${name}` : address])),
    );
    const targets = [...new Set(['::1', '::ffff:127.0.0.1', ...own])];
    const plan = sandbox('allow-lan', 9);
    const reached = async (): Promise<readonly string[]> => {
      const user = ['--reuid', `${plan.runAs.uid}`, '--regid', `${plan.runAs.gid}`, '--clear-groups'];
      const child = spawn('setpriv', [...user, 'python3', '-c', PROBE, port, ...targets], {
        env: { PATH: '/usr/bin:/bin' },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let said = '';
      for await (const chunk of child.stdout) said += String(chunk);
      return addressesIn(said);
    };
    const network = rootedNetwork({ host: nodeHost(), ...users });
    try {
      expect(await reached()).toEqual(targets.toSorted()); // without rules
      await network.admit(op, plan, null);
      expect(await reached()).toEqual([]);
    } finally {
      await network.end(op);
      server.close();
    }
  });

  test('the rules are installed once, and again as soon as anybody has changed any', async () => {
    const { network, list, installs, letIn } = counted();
    await letIn(sandbox('allow', 0));
    const before = list();
    installs();
    for (let tries = 1; ; tries += 1) {
      // Others change rules on this machine too: then it is looked at again.
      await letIn(sandbox('allow', 1));
      if (installs() === 0) break;
      expect(tries, 'the rules were installed again each time').toBeLessThan(20);
    }
    for (const foreign of [
      `flush table inet ${users.table}`,
      `delete table inet ${users.table}`,
      `flush chain inet ${users.table} output`,
    ]) {
      spawnSync('nft', foreign.split(' '));
      await letIn(sandbox('allow', 2));
      expect(installs(), foreign).toBe(1);
      expect(list()).toBe(before);
    }
    await letIn(sandbox('allow', 3), 'not seen');
    expect(installs()).toBe(1);
    await network.end(op);
    await network.end(op);
    expect(list()).toBe('');
  });

  test('private ranges are open to those that may, as long as they are there', async () => {
    const { network, list, letIn } = counted();
    const lan = (): string | undefined => /set lan \{[^}]*elements = \{([^}]*)\}/.exec(list())?.[1]?.trim();
    const first = users.uids.first;
    await letIn(sandbox('allow-lan', 0));
    await Promise.all([letIn(sandbox('allow-lan', 1)), letIn(sandbox('allow', 2)), letIn(sandbox('allow', 3), 'not seen')]);
    expect(lan()).toBe(`${first}, ${first + 1}`);
    await network.close(op, sandbox('allow-lan', 1));
    await network.close(op, sandbox('allow-lan', 1));
    expect(lan()).toBe(`${first}`);
    // The next daemon knows of nobody: a user who is left over gets in no further than its own sandbox may.
    const next = counted();
    await next.letIn(sandbox('allow', 5));
    await next.letIn(sandbox('allow', 0));
    expect(lan()).toBeUndefined();
    next.installs();
    await next.network.close(op, sandbox('allow', 5));
    expect(next.installs()).toBe(0);
    await next.network.end(op);
    expect(list()).toBe('');
  });
});

/** As the shim of a sandbox tells it. */
async function rulesGeneration(): Promise<number> {
  await using place = await newPlace();
  const { rulesGeneration: generation } = await place.start(['true'], { rules: 'asked' });
  if (generation === null) throw new Error('the shim does not tell the generation of the rules');
  return generation;
}

test.runIf(!isRoot)('rules of the whole machine need root, and the reason is told', async () => {
  const network = rootedNetwork({ host: nodeHost(), uids: { first: 960_000, last: 960_999 }, table: 'hutch_test' });
  expect(await network.probe(testOperation())).toMatchObject({ modes: ['none'], notes: [expect.stringContaining('no network')] });
});
