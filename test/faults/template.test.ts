// Templates over real machines: what is built is what sandboxes start from, the one before serves until it is, and whatever goes
// wrong with a build leaves it serving.
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, expect, test } from 'vitest';
import type { Input, Output } from '../../src/services/verbs.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually as soon } from '../support/eventually.ts';
import { all, expectInOrder, expectNoLeaks, isLong, options, seed, shellOf } from './world.ts';

const run = promisify(execFile);
const TEST_MS = isLong ? 3_600_000 : 180_000;
const IMAGE = 'debian';
/** A bound against what hangs, not for a busy machine. */
const eventually = (what: string, check: () => boolean | Promise<boolean>): Promise<void> => soon(what, check, 240_000);

const env = (more: Readonly<Record<string, string>> = {}) =>
  options({
    HUTCH_SANDBOX_BACKEND: 'qemu',
    HUTCH_SANDBOX_STOP_GRACE: '2s',
    HUTCH_SANDBOX_WARM: '0',
    HUTCH_SANDBOX_NETWORK: 'none',
    ...more,
  });

const daemon = await DaemonUnderTest.start(env());
afterAll(() => daemon[Symbol.asyncDispose]());
const sh = shellOf(daemon);

afterEach(async () => {
  await daemon.deleteAll();
  for (const { id } of (await daemon.call('template.list', {})).templates)
    await daemon.call('template.remove', { template: id, force: true });
});

type Recipe = Omit<Input<'template.build'>, 'name' | 'image'>;
type Build = Output<'build.get'>;

async function begin(name: string, recipe: Recipe): Promise<Build> {
  return await daemon.call('template.build', { name, image: IMAGE, ...recipe });
}

/** What it came to, with all that it said. */
async function ended({ id }: Build): Promise<{ readonly build: Build; readonly said: string }> {
  const lines: string[] = [];
  for await (const line of daemon.lines('build.logs', { build: id, follow: true })) lines.push(line.text);
  await eventually('the build is over', async () => (await daemon.call('build.get', { build: id })).state !== 'running');
  return { build: await daemon.call('build.get', { build: id }), said: lines.join('\n') };
}

async function built(name: string, recipe: Recipe): Promise<Output<'template.get'>> {
  const { build, said } = await ended(await begin(name, recipe));
  expect([build.state, build.error], said).toEqual(['done', null]);
  const template = await daemon.call('template.get', { template: name });
  expect(build).toMatchObject({
    template: name,
    stepsDone: build.stepsTotal,
    snapshot: { id: template.snapshotId, digest: template.digest },
  });
  return template;
}

const script = (text: string): string[] => ['sh', '-c', text];
const versioned = (version: string): Recipe => ({
  env: { COLOUR: 'blue' },
  start: script(`echo ${version} > /srv/version; echo begun; sleep 1; echo $COLOUR > /dev/shm/ready; exec sleep 987654`),
  ready: { path: '/dev/shm/ready' },
});

test('the first sandbox of a template starts from it: files, processes and memory are there, and it is itself', {
  timeout: TEST_MS,
}, async () => {
  const template = await built('web', versioned('one'));
  expect(template).toMatchObject({
    name: 'web',
    state: 'ready',
    why: null,
    backend: 'qemu',
    warm: { min: 0, max: 0, ready: 0 },
    usedBy: [],
  });
  expect(template.digest).toMatch(/^sha256:[0-9a-f]{64}$/);
  expect(await all(daemon)).toEqual([]); // what it was written down of is gone
  const made = await daemon.call('sandbox.create', {
    ...{ template: 'web', name: 'mine', secrets: { HIDDEN: 'h' }, labels: { for: 'test' } },
    main: { argv: script('echo $HIDDEN $COLOUR $(hostname) $(cat /srv/version /dev/shm/ready); exec sleep 1000') },
  });
  expect(made).toMatchObject({ name: 'mine', state: 'running', labels: { for: 'test' } });
  await eventually('its main process has spoken', async () => (await daemon.send('GET', '/v1/sandboxes/mine/logs')).body.includes('\n'));
  expect((await daemon.send('GET', '/v1/sandboxes/mine/logs')).body.toString()).toContain('h blue mine one blue\n');
  await daemon.call('sandbox.create', { from: 'web', name: 'other' });
  const { execs } = await daemon.call('exec.list', { ref: 'other' });
  expect(execs.map(({ execId, exit }) => [execId, exit])).toEqual([['start', null]]);
  expect(await sh('other', 'env; cat /proc/*/environ | tr "\\0" "\\n"')).not.toContain('HIDDEN');
  expect(await sh('mine', 'cat /etc/machine-id')).not.toBe(await sh('other', 'cat /etc/machine-id'));
  expect((await daemon.call('template.get', { template: 'web' })).usedBy.toSorted()).toEqual(['mine', 'other']);
  const [image] = (await daemon.call('image.list', {})).images;
  expect(image?.usedBy).toEqual(expect.arrayContaining(['mine', 'other', 'template web']));

  const refused = async (input: Input<'sandbox.create'>): Promise<string> =>
    await daemon.call('sandbox.create', input).then(String, String);
  expect(await refused({ template: 'web', memoryMiB: 1024 })).toContain('memoryMiB is that of template web: it cannot be chosen');
  expect(
    await refused({ template: 'web', backend: made.backend, memoryMiB: made.shape.memoryMiB, image: 'web' }),
    'what is so anyway may be said',
  ).toContain('image is that of');
  expect(await refused({ template: 'web', from: 'web' })).toContain('template and from exclude each other');
  expect(await refused({ template: 'nosuch' })).toContain("not_found: there is no template 'nosuch'");
  await expect(daemon.call('template.remove', { template: 'web' })).rejects.toThrow('template web is used by sandboxes mine, other');
  await expect(daemon.call('snapshot.remove', { snapshot: template.snapshotId, cascade: true })).rejects.toThrow(
    'is what sandboxes of template web start from',
  );
  await daemon.call('template.remove', { template: 'web', force: true });
  expect(await sh('mine', 'cat /srv/version')).toBe('one\n');
  expect((await daemon.call('snapshot.list', { all: true })).snapshots).toEqual([]);
  await expectInOrder(daemon);
});

/** In that many files of what templates begin with. Memory is mostly zeros: each is the end of a line to this grep. */
async function filesWith(text: string): Promise<number> {
  const dirs = ['data/snapshots', 'data/templates'].map((dir) => join(daemon.home, dir));
  const found = await run('grep', ['-rlazF', text, ...dirs], { env: { ...process.env, LC_ALL: 'C' } }).catch((error: unknown) => {
    if ((error as { code?: unknown }).code === 1) return { stdout: '' }; // in none
    throw error;
  });
  return found.stdout.split('\n').filter(Boolean).length;
}

test('scrub hooks run before a template is written down, and secrets of its sandboxes are in no file of it', {
  timeout: TEST_MS,
}, async () => {
  const random = () => randomBytes(16).toString('hex');
  const [plain, hidden] = [random(), random()];
  const hook = 'rm /root/token /dev/shm/token';
  await built('web', {
    // In two halves: what is looked for is in the memory of the guest, and in no record of what was asked for.
    start: script(
      `mkdir -p /etc/hutch/scrub.d; printf "#!/bin/sh\\n${hook}\\n" > /etc/hutch/scrub.d/10; chmod +x /etc/hutch/scrub.d/10
       echo fetched > /root/token; echo fetched > /dev/shm/token
       printf %s%s ${plain.slice(0, 16)} ${plain.slice(16)} > /dev/shm/plain; exec sleep 987654`,
    ),
    ready: { path: '/dev/shm/plain' },
    scrub: true,
  });
  expect(await filesWith(plain), 'what is in its memory is found').toBeGreaterThan(0);
  await daemon.call('sandbox.create', { template: 'web', name: 'mine', secrets: { HIDDEN: hidden } });
  const left = await sh(
    'mine',
    'echo $HIDDEN | tee /root/hidden > /dev/shm/hidden; sync; cat /root/token /dev/shm/token 2>/dev/null || echo none',
  );
  expect(left).toBe('none\n');
  expect(await sh('mine', 'cat /root/hidden')).toBe(`${hidden}\n`);
  expect(await filesWith(hidden)).toBe(0);
  await expectInOrder(daemon);
});

test('the old one serves until the new one is ready, and goes when nothing stands on it', { timeout: TEST_MS }, async () => {
  const first = await built('web', versioned('one'));
  const building = await begin('web', versioned('two'));
  await expect(begin('web', versioned('three'))).rejects.toThrow(`template web is being built already (${building.id})`);
  await daemon.call('sandbox.create', { template: 'web', name: 'before' });
  expect(await daemon.call('template.get', { template: 'web' })).toMatchObject({
    state: 'building',
    building: building.id,
    digest: first.digest,
  });
  expect((await ended(building)).build.state).toBe('done');
  await daemon.call('sandbox.create', { template: 'web', name: 'after' });
  expect([await sh('before', 'cat /srv/version'), await sh('after', 'cat /srv/version')]).toEqual(['one\n', 'two\n']);
  const second = await daemon.call('template.get', { template: 'web' });
  expect(second).toMatchObject({ id: first.id, createdAtMs: first.createdAtMs, usedBy: ['after'] });
  expect(second.digest).not.toBe(first.digest);
  const kept = async () => (await daemon.call('snapshot.list', { all: true })).snapshots.map(({ id, usedBy }) => [id, usedBy]);
  expect(await kept()).toEqual([
    [first.snapshotId, ['before']],
    [second.snapshotId, ['after']],
  ]);
  await daemon.call('sandbox.delete', { ref: 'before', force: true });
  await daemon.terminate();
  await daemon.startAgain();
  expect(await kept()).toEqual([[second.snapshotId, ['after']]]);
  await expectInOrder(daemon);
});

const FAILURES: readonly (readonly [string, Recipe, RegExp, string])[] = [
  [
    'a step',
    { steps: ['true', 'echo broken >&2; exit 9'] },
    /^step 2 of template web: exit code 9: .*echo broken.*its last words: broken/,
    'broken',
  ],
  [
    'a start command',
    { start: script('echo oops; exit 3'), ready: { port: 1 } },
    /^the start command of template web: exit code 3: echo oops; exit 3; its last words: oops/,
    'oops',
  ],
  ['a start command that is not there', { start: ['nosuch'] }, /^the start command of template web: exit code 127: nosuch/, ''],
  [
    'a ready check',
    { start: script('echo still here; exec sleep 1000'), ready: { command: script('echo not yet; exit 7'), timeoutMs: 1_500 } },
    /^the ready check of template web was not met within 1\.5 s: echo not yet; exit 7: exit code 7; its last words: not yet/,
    'still here',
  ],
  [
    'a port',
    { ready: { port: 4_000, timeoutMs: 500 } },
    /^the ready check of template web was not met within 0\.5 s: port 4000 answers/,
    '',
  ],
  [
    'a scrub hook',
    {
      start: script('mkdir -p /etc/hutch/scrub.d; printf "#!/bin/sh\\nexit 4\\n" > /etc/hutch/scrub.d/10; chmod +x /etc/hutch/scrub.d/10'),
      ready: { command: ['test', '-x', '/etc/hutch/scrub.d/10'] }, // else a busy machine scrubs before there is a hook
      scrub: true,
    },
    /^the scrub hooks of template web in \/etc\/hutch\/scrub\.d: exit code 4; its last words: \/etc\/hutch\/scrub\.d\/10: exit code 4/,
    '/etc/hutch/scrub.d/10',
  ],
];

test('what fails is named with its exit code and its last words, and the one before goes on serving', { timeout: TEST_MS }, async () => {
  const { digest } = await built('web', { ready: { waitMs: 0 } });
  for (const [what, recipe, message, tail] of FAILURES) {
    const { build } = await ended(await begin('web', recipe));
    expect([what, build.state, build.error?.message]).toEqual([what, 'failed', expect.stringMatching(message)]);
    expect(build.logTail.join('\n'), what).toContain(tail);
    expect(await all(daemon), what).toEqual([]);
  }
  expect(await daemon.call('template.get', { template: 'web' })).toMatchObject({ digest, state: 'ready' });
  const cancelled = await begin('web', { start: script('exec sleep 1000'), ready: { path: '/nowhere', timeoutMs: 600_000 } });
  await eventually(
    'it waits to be ready',
    async () => (await daemon.call('build.get', { build: cancelled.id })).step?.startsWith('ready') === true,
  );
  await daemon.call('build.cancel', { build: cancelled.id });
  expect((await ended(cancelled)).build.state).toBe('cancelled');
  expect(await all(daemon)).toEqual([]);
  expect((await daemon.call('template.get', { template: 'web' })).digest).toBe(digest);
  expect((await daemon.call('snapshot.list', { all: true })).snapshots).toHaveLength(1);
  await expectNoLeaks(daemon);
});

test('a daemon that is killed while it builds leaves the one before, and nothing else', { timeout: TEST_MS }, async () => {
  let serving = (await built('web', { start: script('echo one > /srv/version') })).digest;
  const steps = ['boot', 'ready', 'snapshot'];
  for (const step of isLong ? steps : [steps[seed % steps.length] ?? 'boot']) {
    const { id } = await begin('web', {
      start: script('echo two > /srv/version; sleep 1; touch /dev/shm/up'),
      ready: { path: '/dev/shm/up' },
    });
    await eventually(`it is at ${step}`, async () => (await daemon.call('build.get', { build: id })).step?.startsWith(step) === true);
    await daemon.kill9();
    await daemon.startAgain();
    const { state, error, snapshot } = await daemon.call('build.get', { build: id });
    const { snapshotId, digest, state: now } = await daemon.call('template.get', { template: 'web' });
    // The tag may have moved before the build was on record as done.
    const hasMoved = digest !== serving;
    serving = digest;
    if (state === 'done') expect(snapshot, step).toEqual({ id: snapshotId, digest });
    else expect([state, error?.code, now, step !== 'snapshot' && hasMoved], step).toEqual(['failed', 'unavailable', 'ready', false]);
    expect((await daemon.call('snapshot.list', { all: true })).snapshots, step).toHaveLength(1);
    expect(await all(daemon), step).toEqual([]);
    await expectNoLeaks(daemon);
  }
  await daemon.call('sandbox.create', { template: 'web', name: 'web' });
  expect(['one\n', 'two\n']).toContain(await sh('web', 'cat /srv/version'));
});

function pretend(snapshotId: string, fingerprint: Readonly<Record<string, string>>): void {
  const path = join(daemon.home, 'data/snapshots', snapshotId, 'manifest.json');
  const { sum: _, ...written } = JSON.parse(readFileSync(path, 'utf8'));
  writeFileSync(path, JSON.stringify({ ...written, fingerprint: { ...written.fingerprint, ...fingerprint } }));
}

test(`one that was made with another kernel, agent, emulator or processor is built anew by itself: what can go on serves meanwhile (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  const first = await built('web', { start: script('echo made >> /srv/version') });
  pretend(first.snapshotId, { kernel: 'another' });
  // Its memory has its kernel: it goes on.
  await daemon.call('sandbox.create', { template: 'web', name: 'old' });
  let second = first;
  await eventually('it is built anew', async () => {
    second = await daemon.call('template.get', { template: 'web' });
    return second.digest !== first.digest && second.state === 'ready';
  });
  expect([await sh('old', 'cat /srv/version'), second.state, second.usedBy]).toEqual(['made\n', 'ready', []]);
  // Where nothing can go on, whoever wants one waits.
  pretend(second.snapshotId, seed % 2 === 0 ? { emulator: '1.2.3' } : { cpu: 'another' });
  await daemon.call('sandbox.create', { template: 'web', name: 'new' });
  expect(await daemon.call('template.get', { template: 'web' })).toMatchObject({ state: 'ready', why: null, usedBy: ['new'] });
  expect((await daemon.call('template.get', { template: 'web' })).digest).not.toBe(second.digest);
  expect(await sh('new', 'cat /srv/version')).toBe('made\n');
  await expectInOrder(daemon);
});
