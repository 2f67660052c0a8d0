// Processes that stand still in the unified hierarchy (cgroup v2), with the real kernel, also where the machine has its controllers in version 1.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { accessSync, constants, readFileSync } from 'node:fs';
import { mkdir, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { CGROUP_ROOT } from '../../src/backends/cgroup.ts';
import { Cgroups } from '../../src/backends/gvisor/cgroup.ts';
import { newId } from '../../src/domain/ids.ts';
import { nodeHost } from '../../src/host/node-host.ts';
import { eventually } from '../support/eventually.ts';
import { testOperation } from '../support/operation.ts';

const op = testOperation();
const ROUND_TRIPS = 50;

/** Where the unified hierarchy is mounted; null: nowhere, or nobody may write there. */
function unified(): string | null {
  const root = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .find(([, , type]) => type === 'cgroup2')?.[1];
  try {
    accessSync(root ?? '', constants.W_OK);
    return root ?? null;
  } catch {
    return null;
  }
}

/** The host of a machine that has nothing but that hierarchy. `looked`: after each look whether a file is there. */
function hostWith(root: string, looked: (path: string) => Promise<void> = async () => {}) {
  const there = (value: unknown): unknown =>
    typeof value === 'string' && value.startsWith(CGROUP_ROOT) ? join(root, value.slice(CGROUP_ROOT.length)) : value;
  return new Proxy(nodeHost(), {
    get(host, key) {
      const member: unknown = Reflect.get(host, key);
      if (typeof member !== 'function') return member;
      return async (...given: unknown[]) => {
        const said = given.map(there);
        const answer: unknown = await Reflect.apply(member, host, said);
        if (key === 'stat') await looked(String(said[1]));
        return answer;
      };
    },
  });
}

/** Says what it is told. */
class Echo implements AsyncDisposable {
  readonly child: ChildProcess = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] });
  heard = 0;

  constructor() {
    this.child.stdout?.on('data', (bytes: Buffer) => {
      this.heard += bytes.byteLength;
    });
  }

  say(): void {
    this.child.stdin?.write('x');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await gone;
  }
}

test('in the unified hierarchy a sandbox stands still until it is let go on, and only that one', { timeout: 60_000 }, async (context) => {
  const root = unified();
  if (root === null) return context.skip('the unified hierarchy of cgroups cannot be written here');
  const name = `hutch-test-${randomBytes(6).toString('hex')}`;
  const [mine, other] = [newId('sbx', randomBytes), newId('sbx', randomBytes)];
  await using undo = new AsyncDisposableStack();
  for (const dir of [join(root, name), join(root, name, mine), join(root, name, other)]) {
    await mkdir(dir);
    undo.defer(() => rmdir(dir));
  }
  const [held, free] = [undo.use(new Echo()), undo.use(new Echo())];
  for (const [id, { child }] of [[mine, held] as const, [other, free] as const])
    await writeFile(join(root, name, id, 'cgroup.procs'), `${child.pid}`);
  const cgroups = new Cgroups(hostWith(root), name);
  // What stands still does so for good: until it is told.
  undo.defer(async () => void (await cgroups.thaw(op, { id: mine })));

  for (let times = 1; times <= 2; times += 1) {
    expect(await cgroups.freeze(op, { id: mine })).toBe('frozen');
    expect(await cgroups.freeze(op, { id: mine })).toBe('was frozen');
    held.say();
    for (let trip = 1; trip <= ROUND_TRIPS; trip += 1) {
      const before = free.heard;
      free.say();
      await eventually('the other one answers', () => free.heard > before);
    }
    expect(held.heard).toBe(times - 1);
    expect(await cgroups.thaw(op, { id: mine })).toBe(true);
    expect(await cgroups.thaw(op, { id: mine })).toBe(false);
    await eventually('it goes on', () => held.heard === times);
  }
  // Of which there is none.
  expect(await cgroups.freeze(op, { id: newId('sbx', randomBytes) })).toBe('cannot');
});

test('a sandbox that ends while it is told to stand still, or to go on, is no error', async (context) => {
  const root = unified();
  if (root === null) return context.skip('the unified hierarchy of cgroups cannot be written here');
  const name = `hutch-test-${randomBytes(6).toString('hex')}`;
  await using undo = new AsyncDisposableStack();
  await mkdir(join(root, name));
  undo.defer(() => rmdir(join(root, name)));
  for (const told of ['freeze', 'thaw'] as const) {
    const id = newId('sbx', randomBytes);
    const dir = join(root, name, id);
    await mkdir(dir);
    const ends = async (path: string): Promise<void> => {
      if (path.startsWith(dir)) await rmdir(dir);
    };
    await new Cgroups(hostWith(root, ends), name)[told](op, { id });
    await expect(rmdir(dir), told).rejects.toThrow('ENOENT');
  }
});
