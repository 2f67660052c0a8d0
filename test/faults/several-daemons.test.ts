// Several daemons on one machine, and what a killed one leaves: its rules and its users are in nobody's way.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { nodeHost } from '../../src/host/node-host.ts';
import { installScript } from '../../src/network/firewall.ts';
import { transact } from '../../src/network/nft.ts';
import { BLOCK_FILE, CLAIMS_DIR } from '../../src/network/uid-blocks.ts';
import { CANARY, LAN, neighbours } from '../network/neighbours.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot } from '../support/users.ts';
import { expectInOrder, options, pidOf, startDaemon } from './world.ts';

const op = testOperation();
const ALL = { first: 900_000, last: 965_535 };

const firstOf = async (daemon: DaemonUnderTest): Promise<number> =>
  (JSON.parse(await readFile(join(daemon.home, 'data', BLOCK_FILE), 'utf8')) as { first: number }).first;

function tables(): readonly string[] {
  return [...spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout.matchAll(/^table inet (\S+)$/gm)].map(
    ([, name = '']) => name,
  );
}

/** Rules that refuse what they can, as a daemon leaves them. */
async function install(table: string, uids: typeof ALL): Promise<void> {
  onTestFinished(() => void spawnSync('nft', ['delete', 'table', 'inet', table], { stdio: 'ignore' }));
  expect(await transact(op, nodeHost(), installScript({ table, uids, others: [], resolvers: [] }))).toBe('');
}

/** Its disk's owner, which is who its VMM runs as from its next start on. */
const uidOf = (daemon: DaemonUnderTest, id: string): number => statSync(join(daemon.home, 'data/sandboxes', id, 'vm/disk.img')).uid;

test.runIf(isRoot)(
  'two daemons give out different users, and what one leaves when it is killed is listed and removed by the next',
  {
    timeout: 180_000,
  },
  async () => {
    const real = { ...options(), entry: join(import.meta.dirname, '../../src/daemon/main.ts') };
    await using one = await DaemonUnderTest.start(real);
    const gone = await DaemonUnderTest.start(real);
    const [kept, left] = [await firstOf(one), await firstOf(gone)];
    expect(left).not.toBe(kept);
    const table = `hutch_uids_${left}`;
    await install(table, { first: left, last: left + 2_047 });
    await gone.kill9();
    await rm(gone.home, { recursive: true });
    const { leaks } = await one.call('doctor.leaks', {});
    // Daemons of other tests remove it as well, when they start: what is still there was told.
    if (tables().includes(table)) expect(leaks).toContainEqual({ kind: 'table', what: `nft table inet ${table}` });
    const claim = `${CLAIMS_DIR}/${left}`;
    if (existsSync(claim)) expect(leaks).toContainEqual({ kind: 'claim', what: `${claim} (of ${gone.home}/data, which does not have it)` });
    await one.kill9();
    await one.startAgain();
    expect(await firstOf(one)).toBe(kept);
    expect(tables()).not.toContain(table);
    expect(JSON.stringify((await one.call('doctor.leaks', {})).leaks)).not.toContain(`${left}`);
  },
);

test.runIf(isRoot)(
  'a sandbox reaches private ranges past rules that others left, and one of before its directory had its users goes on',
  {
    timeout: 300_000,
  },
  async () => {
    await install('hutch_0badc0de', ALL);
    await using around = await neighbours();
    await using daemon = await startDaemon();
    const reach = ['python3', '-c', `import socket; print(socket.create_connection(('${LAN}', ${around.port}), 10).recv(64).decode())`];
    const { id: running } = await daemon.call('sandbox.create', { network: 'allow-lan' });
    const { id: stopped } = await daemon.call('sandbox.create', { network: 'allow-lan' });
    await daemon.call('sandbox.stop', { ref: stopped, force: true });
    expect((await daemon.run(running, reach)).stdout).toBe(`${CANARY}\n`);
    const before = { first: await firstOf(daemon), running: uidOf(daemon, running), stopped: uidOf(daemon, stopped) };

    // As a Hutch leaves it that had no blocks: the rules are for all users, and under another name.
    await daemon.kill9();
    await rm(join(daemon.home, 'data', BLOCK_FILE));
    await rm(join(CLAIMS_DIR, `${before.first}`));
    const old = `hutch_${createHash('sha256').update(join(daemon.home, 'data')).digest('hex').slice(0, 8)}`;
    await install(old, ALL);
    spawnSync('nft', ['delete', 'table', 'inet', `hutch_uids_${before.first}`]);

    await daemon.startAgain();
    const first = await firstOf(daemon);
    expect(first).not.toBe(before.first);
    expect(tables()).not.toContain(old);
    expect((await daemon.run(running, reach)).stdout).toBe(`${CANARY}\n`);
    const rules = (): string => spawnSync('nft', ['list', 'table', 'inet', `hutch_uids_${first}`], { encoding: 'utf8' }).stdout;
    expect(rules()).toContain(`${before.running}`);
    expect(uidOf(daemon, running)).toBe(before.running);

    await daemon.call('sandbox.start', { ref: stopped });
    expect(uidOf(daemon, stopped)).toBeGreaterThanOrEqual(first);
    expect(uidOfProcess(pidOf(daemon, stopped, 'vmm'))).toBe(uidOf(daemon, stopped));
    await daemon.call('sandbox.restart', { ref: running, graceMs: 0 });
    expect(rules()).not.toContain(`${before.running}`);
    for (const ref of [running, stopped]) expect((await daemon.run(ref, reach)).stdout).toBe(`${CANARY}\n`);
    await expectInOrder(daemon);
  },
);

function uidOfProcess(pid: number): number {
  return Number(/^Uid:\s+(\d+)/m.exec(spawnSync('cat', [`/proc/${pid}/status`], { encoding: 'utf8' }).stdout)?.[1]);
}
