// Bad days of snapshots of containers: an Engine that is killed in the middle, or whose disk is full, and a registry between two; and
// what there is to be said of them on good ones.
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { expectBytesCounted } from '../faults/stored-bytes.ts';
import { LOGIN, Registry } from '../support/debian-registry.ts';
import { eventually } from '../support/eventually.ts';
import { clearSnapshots, type SmallWorld, startSmall } from './small-world.ts';
import { type DockerWorld, dockerConfigOf, refused } from './world.ts';

const isLong = process.env['HUTCH_TEST_LONG'] !== undefined;
const seed = Number(process.env['HUTCH_TEST_SEED'] ?? 1);
const OURS = 'hutch/snapshot:';
const DATA_MIB = 200;
const MIB = 1024 * 1024;

let small: SmallWorld;
let world: DockerWorld;
let image: string;
beforeAll(async () => {
  small = await startSmall({ dataMiB: DATA_MIB }, ['sh', 'cat', 'dd', 'ls', 'rm', 'echo', 'df']);
  ({ world, image } = small);
}, 120_000);
afterAll(async () => await small?.[Symbol.asyncDispose](), 120_000);
afterEach(async () => await clearSnapshots(world), 60_000);

type Listed = { readonly Id: string; readonly RepoTags: readonly string[] | null };
async function listed(): Promise<readonly Listed[]> {
  return (await world.engine.ask('GET', '/images/json')).body as readonly Listed[];
}
const isNameless = ({ RepoTags }: Listed): boolean => RepoTags === null || RepoTags.length === 0 || RepoTags.includes('<none>:<none>');
/** What snapshots have in the Engine, by their ids. */
const kept = async (): Promise<readonly string[]> =>
  (await listed())
    .flatMap(({ RepoTags }) => RepoTags ?? [])
    .filter((tag) => tag.startsWith(OURS))
    .map((tag) => tag.slice(OURS.length))
    .sort();
const dirs = async (): Promise<readonly string[]> =>
  (await readdir(join(world.daemon.home, 'data/snapshots')).catch(() => [] as string[])).sort();

const sh = async (ref: string, script: string): Promise<string> => {
  const { stdout, stderr, exitCode } = await world.daemon.run(ref, ['sh', '-c', script]);
  return exitCode === 0 ? stdout : `exit code ${exitCode}: ${stderr}`;
};
const write = (mib: number, path: string): string => `dd if=/dev/zero of=${path} bs=1M count=${mib} 2> /dev/null`;

test('an Engine that is killed in the middle of a snapshot, an export, a way back or an arrival costs what was asked, and nothing else', {
  timeout: 240_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { image });
  await sh(id, `echo one > /root/a; ${write(30, '/root/large')}`);
  const good = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  await sh(id, 'echo two > /root/a');
  const door = await world.throughDoor();
  /** The sandbox ends with its Engine, and begins again where it was. */
  const killed = async (request: RegExp, act: () => Promise<unknown>): Promise<string> => {
    const acting = act().then(
      (answer) => `answered ${JSON.stringify(answer)}`,
      (error: Error) => error.message,
    );
    await eventually(`${request} is under way`, () => door.underWay.some((line) => request.test(line)));
    await engine.kill9();
    const said = await acting;
    await engine.startAgain();
    await eventually('it has ended', async () => (await world.state(id)) === 'stopped', 60_000);
    await daemon.call('sandbox.start', { ref: id });
    return said;
  };
  const cases = [
    async () => {
      expect(await killed(/commit/, () => daemon.call('snapshot.create', { ref: id, diskOnly: true }))).toMatch(/^unavailable/);
      expect((await daemon.call('snapshot.list', {})).snapshots.map((one) => one.id)).toEqual([good.id]);
    },
    async () => {
      const reading = async () => (await daemon.send('GET', `/v1/snapshots/${good.id}/export`)).status;
      expect(await killed(/images\/.*\/get/, reading)).toBe('answered 503');
    },
    async () => {
      const back = await killed(/containers\/create/, () => daemon.call('sandbox.restore', { ref: id, snapshot: good.id }));
      expect(back).toMatch(/^unavailable/);
    },
    async () => {
      const file = (await daemon.send('GET', `/v1/snapshots/${good.id}/export`)).body;
      const { status, body } = await daemon.send('PUT', '/v1/snapshots?name=brought', { body: file });
      expect(status, body.toString()).toBe(200);
      const begin = () => daemon.call('sandbox.create', { from: 'brought', name: 'begun' });
      expect(await killed(/images\/load/, begin)).toMatch(/^unavailable/);
      const back = () => daemon.call('sandbox.restore', { ref: id, snapshot: 'brought', foreign: true });
      expect(await killed(/images\/load/, back)).toMatch(/^unavailable/);
      expect((await daemon.call('sandbox.list', {})).sandboxes.map((one) => one.id)).toEqual([id]);
      expect(await sh(id, 'cat /root/a')).toBe('two\n');
      await begin();
      expect(await sh('begun', 'cat /root/a; ls /root')).toBe('one\na\nlarge\n');
      await daemon.call('sandbox.delete', { ref: 'begun', force: true });
      await daemon.call('snapshot.remove', { snapshot: 'brought' });
    },
  ];
  for (const one of isLong ? cases : cases.slice(seed % cases.length).slice(0, 1)) {
    await one();
    expect(await sh(id, 'cat /root/a')).toBe('two\n');
    expect(await dirs()).toEqual([good.id]);
  }
  await door[Symbol.asyncDispose]();
  await daemon.call('snapshot.verify', { snapshot: good.id });
  await daemon.call('sandbox.restore', { ref: id, snapshot: good.id });
  expect(await sh(id, 'cat /root/a')).toBe('one\n');
  await daemon.kill9();
  await daemon.startAgain();
  expect([await kept(), await dirs()]).toEqual([[good.id], [good.id]]);
  expect((await listed()).filter(isNameless)).toEqual([]);
  expect((await engine.containers()).flatMap(({ Names }) => Names)).toEqual([`/hutch-${id}`]);
  expect(await daemon.leaks()).toEqual([]);
  await world.gone(id);
});

test('a full disk of the Engine is told as that, and what was kept before is whole', { timeout: 240_000 }, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { image });
  await sh(id, 'echo one > /root/a');
  const good = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  await sh(id, write(DATA_MIB / 2 + 20, '/root/large'));
  const full = {
    code: 'resource_exhausted',
    message: expect.stringContaining('no space left'),
    hint: expect.stringContaining('docker system df'),
  };
  expect((await refused(daemon.call('snapshot.create', { ref: id, diskOnly: true }))).body).toMatchObject(full);
  expect([await kept(), await dirs(), await world.state(id)]).toEqual([[good.id], [good.id], 'running']);
  expect((await listed()).filter(isNameless)).toEqual([]);
  await sh(id, `${write(100, '/root/more')} || true`); // to the last byte
  const exported = await daemon.send('GET', `/v1/snapshots/${good.id}/export`);
  if (exported.status !== 200) expect(JSON.parse(exported.body.toString())).toMatchObject(full);
  // Going back makes room.
  await daemon.call('sandbox.restore', { ref: id, snapshot: good.id });
  expect(await sh(id, 'cat /root/a; ls /root')).toBe('one\na\n');
  await daemon.call('snapshot.verify', { snapshot: good.id });
  await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  expect(await daemon.leaks()).toEqual([]);
  await world.gone(id);
});

test('they go through Debian’s registry, and begin from there in an Engine that has nothing of them', { timeout: 240_000 }, async () => {
  const { daemon, engine } = world;
  await using store = await Registry.start();
  const auth = Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64');
  await mkdir(dockerConfigOf(engine), { recursive: true });
  await writeFile(join(dockerConfigOf(engine), 'config.json'), JSON.stringify({ auths: { [store.name]: { auth } } }));
  const { id } = await daemon.call('sandbox.create', { image });
  await sh(id, 'echo one > /root/a');
  const first = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  await daemon.call('sandbox.restore', { ref: id, snapshot: first.id });
  await sh(id, 'echo two > /root/b');
  const second = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  const name = `${store.name}/team/disk`;
  const how = async (snapshot: string, tag: string) => {
    const { parts, digest } = await daemon.call('snapshot.push', { snapshot, name: `${name}:${tag}` });
    return { digest, layers: parts.filter((part) => part.name.startsWith('layer/')).map((part) => part.how) };
  };
  expect((await how(first.id, '1')).layers).toEqual(['uploaded']);
  const { digest, layers } = await how(second.id, '2');
  expect(layers).toEqual(['existed', 'uploaded']); // it stands on the first
  await world.gone(id);
  for (const { id: own } of [second, first]) await daemon.call('snapshot.remove', { snapshot: own });
  expect(await kept()).toEqual([]);
  expect(await daemon.call('snapshot.pull', { name: `${name}@${digest}`, as: 'pulled' })).toMatchObject({
    digest,
    misfit: null,
    contents: 'disk',
  });
  const begun = await daemon.call('sandbox.create', { from: 'pulled' });
  expect(await sh(begun.id, 'cat /root/a /root/b')).toBe('one\ntwo\n');
  await world.gone(begun.id);
  await daemon.call('snapshot.remove', { snapshot: 'pulled' });
  expect([await kept(), await dirs()]).toEqual([[], []]);
});

test('what is said of snapshots of containers: their tree, sizes, bill, and what a policy lets go', { timeout: 240_000 }, async () => {
  const { daemon } = world;
  const { id, name: sandbox } = await daemon.call('sandbox.create', { image });
  const keep = (name: string) => daemon.call('snapshot.create', { ref: id, diskOnly: true, name });
  await sh(id, write(10, '/root/a'));
  const first = await keep('first');
  await sh(id, write(5, '/root/b'));
  const second = await keep('second');
  const third = await keep('third'); // the same again
  await daemon.call('sandbox.restore', { ref: id, snapshot: 'first' });
  const fourth = await keep('fourth');
  const sizes = [first, second, third, fourth].map(({ ownBytes }) => Math.round(ownBytes / MIB));
  expect(sizes).toEqual([10, 15, 0, 0]);
  const listing = async () => (await daemon.call('snapshot.list', {})).snapshots.map(({ name, depth }) => [name, depth]);
  expect(await listing()).toEqual([
    ['first', 0],
    ['second', 1],
    ['third', 2],
    ['fourth', 1],
  ]);
  const { removed } = await daemon.call('snapshot.remove', { snapshot: 'second', cascade: true });
  expect(removed.map((one) => one.name)).toEqual(['third', 'second']);
  expect(await kept()).toEqual([first.id, fourth.id].sort());
  const policy = await daemon.call('snapshot.prune', { bytesMax: 0 });
  expect(policy.removed.map((one) => one.name)).toEqual(['fourth']);
  expect(policy.stayed).toMatchObject([{ name: 'first', why: `together they take too much, but sandbox ${sandbox} stands on it` }]);
  expect([await kept(), await dirs()]).toEqual([[first.id], [first.id]]);
  const billed: unknown[] = [];
  for await (const line of daemon.lines('ledger.list', {})) {
    const { kind, snapshotId, shape } = line as { kind: string; snapshotId: string; shape: { storageBytes: number } };
    const whose = [first, second, third, fourth].find((one) => one.id === snapshotId);
    if (kind.startsWith('snap.') && whose !== undefined) billed.push([kind, whose.name, shape.storageBytes === whose.ownBytes]);
  }
  expect(billed).toEqual([
    ...['first', 'second', 'third', 'fourth'].map((name) => ['snap.storage.start', name, true]),
    ...['third', 'second', 'fourth'].map((name) => ['snap.storage.stop', name, true]),
  ]);
  await world.gone(id);
});

test('layers that were kept to undo and that others hold too count for those when it goes', { timeout: 240_000 }, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { image, undo: 1 });
  /** As the Engine says it of each layer above the image, once. */
  const bytesInEngine = async (): Promise<number> => {
    const bytes = new Map<string, number>();
    for (const one of await kept()) {
      const asked = await Promise.all(['json', 'history'].map((what) => world.engine.ask('GET', `/images/${OURS}${one}/${what}`)));
      const [{ RootFS }, history] = asked.map(({ body }) => body) as [
        { readonly RootFS: { readonly Layers: readonly string[] } },
        readonly { readonly Size: number; readonly Comment: string }[],
      ];
      const sizes = history.filter(({ Size, Comment }) => Size > 0 && Comment.includes('sandbox of Hutch')).map(({ Size }) => Size);
      for (const [at, size] of sizes.entries()) bytes.set(RootFS.Layers.slice(0, RootFS.Layers.length - at).join(' '), size);
    }
    return [...bytes.values()].reduce((sum, each) => sum + each, 0);
  };
  const own = async (): Promise<readonly (readonly [string, number])[]> =>
    (await daemon.call('snapshot.list', { all: true })).snapshots.map(({ name, kind, ownBytes }) => [
      name ?? kind,
      Math.round(ownBytes / MIB),
    ]);
  await sh(id, write(10, '/root/a'));
  await sh(id, 'true');
  expect(await own()).toEqual([['undo', 10]]);
  await daemon.call('sandbox.undo', { ref: id });
  expect(await own()).toEqual([]); // its image stays in the Engine as long as the container stands on it
  await daemon.call('snapshot.create', { ref: id, diskOnly: true, name: 'mine' });
  expect(await own()).toEqual([['mine', 10]]);
  await sh(id, write(5, '/root/b'));
  await sh(id, 'true');
  await daemon.call('snapshot.create', { ref: id, diskOnly: true, name: 'later' });
  expect((await own()).toSorted()).toEqual([
    ['later', 0],
    ['mine', 10],
    ['undo', 5],
  ]);
  await daemon.call('sandbox.set', { ref: id, undo: 0 });
  await sh(id, 'true');
  expect((await own()).toSorted()).toEqual([
    ['later', 5],
    ['mine', 10],
  ]);
  await expectBytesCounted(daemon, await bytesInEngine());
  await world.gone(id);
  await daemon.call('snapshot.remove', { snapshot: 'mine', cascade: true });
  await expectBytesCounted(daemon);
});

test('a snapshot that was brought here counts twice once a sandbox has begun with it, as it lies here twice', {
  timeout: 240_000,
}, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { image });
  // No zeros, of which a file takes nothing.
  await sh(id, write(10, '/root/a').replace('/dev/zero', '/dev/urandom'));
  const made = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  const { body } = await daemon.send('GET', `/v1/snapshots/${made.id}/export`);
  await world.gone(id);
  await daemon.call('snapshot.remove', { snapshot: made.id });
  expect((await daemon.send('PUT', '/v1/snapshots?name=brought', { body })).status).toBeLessThan(300);
  const own = async (): Promise<number> => (await daemon.call('snapshot.get', { snapshot: 'brought' })).ownBytes;
  const asFiles = await own();
  expect(Math.round(asFiles / MIB)).toBe(10);
  await expectBytesCounted(daemon);

  const { children } = await daemon.call('sandbox.fork', { ref: 'brought', count: 1 });
  const twice = await own();
  expect(Math.round(twice / MIB)).toBe(20);
  await expectBytesCounted(daemon, twice - asFiles);
  const begun = await daemon.call('sandbox.create', { from: 'brought' });
  expect(await own()).toBe(twice);

  // Who stands on it has what it has of the Engine, and only its own beside that.
  await sh(begun.id, write(5, '/root/b'));
  const upon = await daemon.call('snapshot.create', { ref: begun.id, diskOnly: true });
  expect([Math.round(upon.ownBytes / MIB), await own()]).toEqual([5, twice]);

  // Once somebody has taken the image away, it is files again.
  await world.gone(begun.id, ...children.map(({ sandbox }) => sandbox.id));
  await daemon.call('snapshot.remove', { snapshot: upon.id });
  for (const one of await kept()) await world.engine.ask('DELETE', `/images/${OURS}${one}`);
  await daemon.kill9();
  await daemon.startAgain();
  await eventually('it counts once', async () => (await own()) === asFiles);
  await expectBytesCounted(daemon);
  await daemon.call('snapshot.remove', { snapshot: 'brought' });
});
