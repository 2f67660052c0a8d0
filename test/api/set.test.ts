// What is changed of a sandbox that exists, and how it ends and comes back by itself: over the API of a daemon of its own.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { ApiError, DaemonUnderTest, type SandboxView } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

const refusal = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'ok',
    (error: unknown) => (error instanceof ApiError ? error.message : Promise.reject(error as Error)),
  );
const get = (ref: string): Promise<SandboxView> => daemon.call('sandbox.get', { ref });
const until = (ref: string, what: string, is: (sandbox: SandboxView) => boolean): Promise<void> =>
  eventually(`${ref} ${what}`, async () => is(await get(ref)), 40_000);

async function shapesOf(id: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { sandboxId, kind, reason, shape } of daemon.lines('ledger.list', {}))
    if (sandboxId === id)
      found.push(`${kind} ${reason} ${shape.cpus}/${(shape.memoryBytes ?? 0) >> 20}/${(shape.storageBytes ?? 0) / 2 ** 20}`);
  return found;
}

test('what can be changed while it runs is, and the ledger closes the old shape and opens the new one at one instant', async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'live', cpus: 1, memoryMiB: 256, diskMiB: 1024 });
  const { sandbox, now, atNextStart } = await daemon.call('sandbox.set', {
    ref: 'live',
    cpus: 2,
    labels: { tier: 'a' },
    restart: 'on-failure',
  });
  expect([now, atNextStart]).toEqual([['cpus', 'labels', 'restart'], []]);
  expect(sandbox).toMatchObject({
    shape: { cpus: 2, memoryMiB: 256, diskMiB: 1024 },
    labels: { tier: 'a' },
    restart: 'on-failure',
    pending: null,
  });
  expect(await shapesOf(id)).toEqual([
    'vm.storage.start boot 1/256/1024',
    'vm.compute.start boot 1/256/1024',
    'vm.compute.stop set 1/256/1024',
    'vm.storage.stop set 1/256/1024',
    'vm.storage.start set 2/256/1024',
    'vm.compute.start set 2/256/1024',
  ]);
  await daemon.call('sandbox.set', { ref: 'live', labels: { other: 'b', tier: null } });
  expect(await get('live')).toMatchObject({ shape: { cpus: 2 }, labels: { other: 'b' }, restart: 'on-failure' });
});

test('what cannot be changed while it runs is kept, and so it is from its next start on, whoever starts it', async () => {
  const { id } = await daemon.call('sandbox.create', { name: 'later', cpus: 1, memoryMiB: 256, diskMiB: 1024 });
  const { now, atNextStart } = await daemon.call('sandbox.set', { ref: 'later', diskMiB: 2048, timeoutMs: 60_000 });
  expect([now, atNextStart]).toEqual([['timeoutMs'], ['diskMiB']]);
  await daemon.kill9();
  await daemon.startAgain();
  expect(await get('later')).toMatchObject({ shape: { diskMiB: 1024 }, pending: { diskMiB: 2048 }, timeoutMs: 60_000 });
  await daemon.call('sandbox.stop', { ref: 'later' });
  expect((await daemon.call('sandbox.set', { ref: 'later', cpus: 3 })).atNextStart).toEqual(['cpus']);
  await daemon.call('sandbox.start', { ref: 'later' });
  expect(await get('later')).toMatchObject({ shape: { cpus: 3, diskMiB: 2048 }, pending: null });
  expect((await shapesOf(id)).slice(-4)).toEqual([
    'vm.compute.stop stop-user 1/256/1024',
    'vm.storage.stop set 1/256/1024',
    'vm.storage.start set 3/256/2048',
    'vm.compute.start restart 3/256/2048',
  ]);
});

test('what is not possible is refused with the field and its bound, and nothing is changed', async () => {
  await daemon.call('sandbox.create', { name: 'bounds', diskMiB: 1024, autoRemove: true, start: false });
  const before = await get('bounds');
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds' }))).toMatch(/^invalid_argument: .*one of cpus, memoryMiB/);
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', cpus: 0 }))).toMatch(/^invalid_argument: cpus.*1/);
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', memoryMiB: 1 }))).toMatch(/^invalid_argument: memoryMiB.*128/);
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', diskMiB: 512, labels: { a: 'b' } }))).toMatch(
    /^invalid_argument: diskMiB must be at least 1024.*disks only grow/,
  );
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', network: 'allow' }))).toMatch(/network/);
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', restart: 'always' }))).toMatch(/^invalid_argument: restart must be no/);
  expect(await refusal(daemon.call('sandbox.set', { ref: 'bounds', idleMs: 10 }))).toMatch(
    /^invalid_argument: idleMs: must be 0, or from 1000/,
  );
  expect(await refusal(daemon.call('sandbox.create', { restart: 'always', autoRemove: true }))).toMatch(
    /^invalid_argument: restart: must be no/,
  );
  expect({ ...(await get('bounds')), changedAtMs: 0 }).toEqual({ ...before, changedAtMs: 0 });
});

test('a new time limit counts from now, and none takes the old one away', async () => {
  await daemon.call('sandbox.create', { name: 'timed', timeoutMs: 3_600_000 });
  const { sandbox } = await daemon.call('sandbox.set', { ref: 'timed', timeoutMs: null });
  expect(sandbox).toMatchObject({ timeoutMs: null, deadlineAtMs: null });
  await daemon.call('sandbox.set', { ref: 'timed', timeoutMs: 1_000 });
  expect((await daemon.until('timed', 'stopped')).ended).toMatchObject({ cause: 'timeout', actor: 'daemon' });
});

test('--restart starts again what fails, not what ends well, is stopped or has its time up', async () => {
  const main = (...argv: string[]) => ({ main: { argv } });
  await daemon.call('sandbox.create', { name: 'fails', restart: 'on-failure', ...main('sh', '-c', 'exit 3') });
  await daemon.call('sandbox.create', { name: 'succeeds', restart: 'on-failure', ...main('true') });
  await daemon.call('sandbox.create', { name: 'serves', restart: 'always', ...main('true') });
  await until('fails', 'is started again', ({ startCount }) => startCount >= 3);
  await until('serves', 'is started again', ({ startCount }) => startCount >= 3);
  expect(await get('succeeds')).toMatchObject({ state: 'stopped', startCount: 1 });
  // Whatever it does at the moment, it stays stopped once it was stopped.
  await daemon.call('sandbox.stop', { ref: 'fails' });
  const { startCount } = await daemon.until('fails', 'stopped');
  await daemon.kill9();
  await daemon.startAgain();
  await until('serves', 'is started again', (sandbox) => sandbox.startCount >= 5);
  expect(await get('fails')).toMatchObject({ state: 'stopped', startCount });
  await daemon.call('sandbox.delete', { ref: 'serves', force: true });
});

test('one that nobody touches is stopped, a touch puts that off, and 0 is never', async () => {
  const idleMs = 2_000;
  await daemon.call('sandbox.create', { name: 'idle', idleMs });
  await daemon.call('sandbox.create', { name: 'busy', idleMs });
  await daemon.call('sandbox.create', { name: 'never', idleMs: 0 });
  const busy = daemon.run('busy', ['sleep', '8']);
  const looking = setInterval(() => void get('idle'), 200);
  const { ended } = await daemon.until('idle', 'stopped');
  clearInterval(looking);
  expect(ended).toMatchObject({ cause: 'idle', actor: 'daemon' });
  expect((await daemon.call('why.get', { ref: 'idle' })).sentence).toContain('nobody had touched it');
  expect([(await get('busy')).state, (await get('never')).state]).toEqual(['running', 'running']);
  await busy;
  await daemon.until('busy', 'stopped');
});

test('prune deletes what has been stopped for long enough, and only tells with dryRun', async () => {
  for (const name of ['old', 'runs', 'comes-back']) await daemon.call('sandbox.create', { name, labels: { prune: 'yes' } });
  await daemon.call('sandbox.set', { ref: 'comes-back', restart: 'always' });
  await daemon.call('sandbox.stop', { ref: 'old' });
  const names = async () => (await daemon.call('sandbox.list', { label: 'prune' })).sandboxes.map(({ name }) => name).sort();
  const named = ({ sandboxes }: { readonly sandboxes: readonly { readonly name: string }[] }) => sandboxes.map(({ name }) => name);
  expect(named(await daemon.call('system.prune', {}))).toEqual([]);
  const would = await daemon.call('system.prune', { olderThanMs: 0, dryRun: true });
  expect(named(would)).toContain('old');
  expect(await names()).toEqual(['comes-back', 'old', 'runs']);
  expect(await daemon.call('system.prune', { olderThanMs: 0 })).toMatchObject({ sandboxes: would.sandboxes, failed: [] });
  expect(await names()).toEqual(['comes-back', 'runs']);
});

test('df adds up what lies there, and with too little free nothing new is begun, which says what to do', async () => {
  const { parts, freeBytes } = await daemon.call('system.df', {});
  expect(parts.map(({ name }) => name)).toEqual(expect.arrayContaining(['hutch.db', 'sandboxes']));
  expect(parts.every(({ bytes }) => bytes > 0)).toBe(true);
  await using full = await DaemonUnderTest.start();
  await full.call('sandbox.create', { name: 'runs' });
  await full.kill9();
  await full.startAgain({ env: { HUTCH_LIMITS_FREE: `${Math.ceil(freeBytes / 2 ** 30) + 64}G` } });
  const error = await full.call('sandbox.create', {}).catch((cause: unknown) => cause);
  expect(error).toMatchObject({ code: 'resource_exhausted', body: { hint: expect.stringContaining('hutch df') } });
  // What runs is not stopped for a start that would be refused.
  await expect(full.call('sandbox.restart', { ref: 'runs' })).rejects.toMatchObject({ code: 'resource_exhausted' });
  expect((await full.call('sandbox.list', {})).sandboxes).toMatchObject([{ name: 'runs', state: 'running', startCount: 1 }]);
  const { checks } = await full.call('doctor.check', {});
  expect(checks.find(({ name }) => name === 'disk space')).toMatchObject({
    status: 'missing',
    detail: expect.stringContaining('limits.free'),
  });
});
