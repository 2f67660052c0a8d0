// Blocks of users: no two data directories have the same, whoever was killed, removed or away, and what they leave of
// the machine's rules judges nobody else.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { BLOCKS, blockOf, isWithin, type UidRange } from '../../src/domain/users.ts';
import type { Host, ProcessRef } from '../../src/host/host.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { bridgeScript } from '../../src/network/bridge.ts';
import { installScript } from '../../src/network/firewall.ts';
import { transact } from '../../src/network/nft.ts';
import { bridgesOfTable, bridgeTableOf } from '../../src/network/own-name.ts';
import { listLeftovers, removeLeftovers, tableOf } from '../../src/network/tables.ts';
import { BLOCK_FILE, CLAIMS_DIR, UidClaims } from '../../src/network/uid-blocks.ts';
import { testOperation } from '../support/operation.ts';
import { isRoot, takeUsers } from '../support/users.ts';

const op = testOperation();
const GONE: ProcessRef = { pid: 2 ** 22 + 1, startTicks: 1 };

/** A machine of its own: a directory of claims, and of all processes only those that are named. */
async function machine() {
  const dir = await mkdtemp(join(tmpdir(), 'hutch-blocks-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  const pids: string[] = [];
  const real = nodeHost();
  const host: Host = { ...real, list: (listing, path) => (path === '/proc' ? Promise.resolve(pids) : real.list(listing, path)) };
  const claimsDir = join(dir, 'claims');
  const self = await real.processRef(op, process.pid);
  if (self === null) throw new Error('no process');
  return {
    claimsDir,
    pids,
    async dataDir(name: string): Promise<string> {
      await mkdir(join(dir, name), { recursive: true });
      return join(dir, name);
    },
    async take(dataDir: string, daemon: ProcessRef = GONE): Promise<UidRange & { how: string }> {
      await using claims = await UidClaims.hold(op, host, claimsDir);
      return await claims.take(op, dataDir, daemon);
    },
    async giveBack(dataDir: string): Promise<void> {
      await using claims = await UidClaims.hold(op, host, claimsDir);
      await claims.giveBack(op, dataDir);
    },
    self,
  };
}

async function runAs(uid: number): Promise<ChildProcess> {
  const child = spawn('setpriv', ['--reuid', `${uid}`, '--clear-groups', 'sh', '-c', 'echo; exec sleep 1000'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  await once(child.stdout as NodeJS.ReadableStream, 'data');
  return child;
}

async function ended(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await once(child, 'exit');
}

test('each data directory has a block of its own, the same one every time', async () => {
  const { take, dataDir, claimsDir, giveBack } = await machine();
  const names = Array.from({ length: BLOCKS.length }, (_, index) => `d${index}`);
  const dirs = await Promise.all(names.map(dataDir));
  const taken = await Promise.all(dirs.slice(0, 5).map((dir) => take(dir)));
  for (const dir of dirs.slice(5)) taken.push(await take(dir));
  expect(new Set(taken.map(({ first }) => first))).toEqual(new Set(BLOCKS));
  for (const { first, last } of taken) expect(last - first + 1).toBeGreaterThanOrEqual(1_000);
  const again = async (): Promise<readonly unknown[]> => {
    const found = [];
    for (const dir of dirs) found.push(await take(dir));
    return found;
  };
  const same = taken.map((block) => ({ ...block, how: 'kept' }));
  expect(await again()).toEqual(same);
  await rm(claimsDir, { recursive: true }); // as after a reboot
  expect(await again()).toEqual(same);
  await giveBack(dirs[3] ?? '');
  expect(await again()).toEqual(same);
});

test('a block is free again when its data directory is gone or another one’s copy, but not while anything runs in it', async () => {
  const { take, dataDir, pids } = await machine();
  const [a, b] = [await dataDir('a'), await dataDir('b')];
  const block = await take(a);
  await cp(a, b, { recursive: true });
  expect((await take(b)).first, 'a copy has a block of its own').not.toBe(block.first);
  expect(await take(a)).toEqual({ ...block, how: 'kept' });
  for (const dir of [a, b]) await rm(dir, { recursive: true });
  // The same directory made anew is another one.
  await dataDir('a');
  expect(await take(a)).toEqual({ ...block, how: 'new' });
  await rm(a, { recursive: true });
  await dataDir('a');
  if (!isRoot) return;
  const orphan = await runAs(block.first + 7);
  pids.push(`${orphan.pid}`);
  const other = await take(a);
  expect(other.first).not.toBe(block.first);
  await ended(orphan);
  await rm(a, { recursive: true });
  await dataDir('a');
  expect((await take(a)).first).toBe(block.first);
});

test('where all blocks are taken, one is taken from a directory of which nothing runs; it has another when it is back', async () => {
  const { take, dataDir, self } = await machine();
  const dirs = await Promise.all(BLOCKS.map((first) => dataDir(`${first}`)));
  const away = dirs[5] ?? '';
  const blocks = new Map<string, number>();
  for (const dir of dirs) blocks.set(dir, (await take(dir, dir === away ? GONE : self)).first);
  const newcomer = await dataDir('newcomer');
  expect(await take(newcomer, self)).toMatchObject({ first: blocks.get(away), how: 'new' });
  await expect(take(away, self)).rejects.toMatchObject({ code: 'resource_exhausted', hint: expect.stringContaining('/claims says whose') });
  await rm(dirs[9] ?? '', { recursive: true });
  // Its daemon runs on without it: only when that has ended too may another have the block.
  await expect(take(away, self)).rejects.toMatchObject({ code: 'resource_exhausted' });
  for (const dir of dirs.slice(10, 12)) await take(dir, GONE);
  expect(await take(away, self)).toMatchObject({ how: 'new' });
});

test('a claim that cannot be read is nobody’s', async () => {
  const { take, dataDir, claimsDir } = await machine();
  const a = await dataDir('a');
  const { first } = await take(a);
  await rm(a, { recursive: true });
  await dataDir('a');
  await nodeHost().writeFileAtomic(op, join(claimsDir, `${first}`), '{"dataDir": 1', 0o644);
  expect((await take(a)).first).toBe(first);
  expect(JSON.parse(await readFile(join(claimsDir, `${first}`), 'utf8'))).toMatchObject({ dataDir: a });
  expect((await readdir(claimsDir)).toSorted()).toEqual([`${first}`, 'lock']);
  expect(JSON.parse(await readFile(join(a, BLOCK_FILE), 'utf8'))).toMatchObject({ first });
});

test.runIf(isRoot)(
  'tables that others have left are listed and removed, unless a process runs as one of their users',
  { timeout: 60_000 },
  async () => {
    await using users = await takeUsers();
    await using stale = await takeUsers(); // stands for a directory that is gone: its block is ours, so nobody else has it
    const host = nodeHost();
    const old = `hutch_${Math.floor(Math.random() * 2 ** 32)
      .toString(16)
      .padStart(8, '0')}`;
    const all = { first: 900_000, last: 965_535 };
    onTestFinished(() => void spawnSync('nft', ['delete', 'table', 'inet', old], { stdio: 'ignore' }));
    for (const [table, uids] of [
      [old, all],
      [stale.table, stale.uids],
      [users.table, users.uids],
    ] as const)
      expect(await transact(op, host, installScript({ table, uids, others: [], resolvers: [] }))).toBe('');
    // This machine as if nobody else were on it: of all processes, claims and tables only ours.
    const pids: string[] = [];
    const lists: Record<string, readonly string[]> = { '/proc': pids, [CLAIMS_DIR]: [`${users.uids.first}`] };
    const ourTables = [old, stale.table, users.table];
    const only: Host = {
      ...host,
      list: (_op, path) => Promise.resolve(lists[path] ?? []),
      async run(running, argv, options) {
        const { stdout, ...rest } = await host.run(running, argv, options);
        const lines = new TextDecoder().decode(stdout).split('\n');
        return {
          ...rest,
          stdout: new TextEncoder().encode(lines.filter((line) => ourTables.some((name) => line.endsWith(` ${name}`))).join('\n')),
        };
      },
    };
    const own = { uids: users.uids, needed: [users.table], outdated: [] };
    const holding = async <T>(work: (claims: UidClaims) => Promise<T>): Promise<T> => {
      await using claims = await UidClaims.hold(op, only);
      return await work(claims);
    };
    const ours = (found: readonly { what: string }[]): string[] => found.map(({ what }) => what).toSorted();

    const [inBlock, outside] = [await runAs(stale.uids.first + 1), await runAs(await unclaimed())];
    pids.push(`${inBlock.pid}`, `${outside.pid}`);
    const busy = '; processes still run as its users';
    const [blockLine, oldLine] = [`nft table inet ${stale.table}`, `nft table inet ${old}`];
    expect(ours(await holding((claims) => listLeftovers(op, only, claims, own)))).toEqual(
      [`${oldLine}${busy}`, `${blockLine}${busy}`].toSorted(),
    );
    expect(ours(await holding((claims) => removeLeftovers(op, only, claims, own)))).toEqual([]);
    expect(tables()).toEqual(expect.arrayContaining([old, stale.table, users.table]));

    for (const child of [inBlock, outside]) await ended(child);
    pids.length = 0;
    expect(ours(await holding((claims) => removeLeftovers(op, only, claims, own)))).toEqual([oldLine, blockLine].toSorted());
    expect(tables()).not.toContain(old);
    expect(tables()).not.toContain(stale.table);
    expect(tables()).toContain(users.table);
    expect(ours(await holding((claims) => listLeftovers(op, only, claims, own)))).toEqual([]);
  },
);

test.runIf(isRoot)(
  'rules for containers whose daemon is gone are removed once their bridges are, and those of a daemon that lives never',
  {
    timeout: 60_000,
  },
  async () => {
    await using users = await takeUsers();
    const host = nodeHost();
    const hashes = Array.from({ length: 2 }, () => randomBytes(4).toString('hex'));
    const [gone = '', bridged = ''] = hashes.map((hash) => `hutch_${hash}_bridge`);
    await using claims = await UidClaims.hold(op, host);
    const alive = bridgeTableOf((await claims.all(op)).get(users.uids.first)?.dataDir ?? '');
    const bridge = bridgesOfTable(bridged)?.lan ?? '';
    onTestFinished(() => {
      for (const table of [gone, bridged, alive]) spawnSync('nft', ['delete', 'table', 'inet', table], { stdio: 'ignore' });
      spawnSync('ip', ['link', 'delete', bridge]);
    });
    for (const table of [gone, bridged, alive]) {
      const bridges = bridgesOfTable(table);
      if (bridges === null) throw new Error(`${table} is none`);
      expect(await transact(op, host, bridgeScript(table, bridges, []))).toBe('');
    }
    expect(spawnSync('ip', ['link', 'add', bridge, 'type', 'bridge']).status).toBe(0);
    const own = { uids: users.uids, needed: [users.table], outdated: [] };
    const ours = (found: readonly { what: string }[]) =>
      found.map(({ what }) => what).filter((what) => what.endsWith('_bridge') || what.includes(bridged));
    const other = (line: string): boolean => hashes.some((hash) => line.includes(hash)) || line.includes(alive);
    expect(
      ours(await listLeftovers(op, host, claims, own))
        .filter(other)
        .toSorted(),
    ).toEqual([`nft table inet ${gone}`]);
    await removeLeftovers(op, host, claims, own);
    expect(tables()).not.toContain(gone);
    expect(tables()).toEqual(expect.arrayContaining([bridged, alive]));
    spawnSync('ip', ['link', 'delete', bridge]);
    await removeLeftovers(op, host, claims, own);
    expect(tables()).not.toContain(bridged);
    expect(tables()).toContain(alive);
  },
);

function tables(): readonly string[] {
  return [...spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout.matchAll(/^table inet (\S+)$/gm)].map(
    ([, name = '']) => name,
  );
}

/** A user of sandboxes in a block that nobody has. */
async function unclaimed(): Promise<number> {
  await using claims = await UidClaims.hold(op, nodeHost());
  const claimed = await claims.all(op);
  const first = BLOCKS.findLast((candidate) => !claimed.has(candidate));
  if (first === undefined) throw new Error('all blocks are claimed');
  expect(isWithin(blockOf(first), first)).toBe(true);
  expect(tableOf(blockOf(first))).toBe(`hutch_uids_${first}`);
  return first + 3;
}
