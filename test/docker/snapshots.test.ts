// Snapshots of containers: the disk of one is an image of the Engine's, which goes with the snapshot and is nobody else's.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { clearSnapshots, type SmallWorld, startSmall } from './small-world.ts';
import { importTool } from './tool-image.ts';
import { type DockerWorld, refused } from './world.ts';

const run = promisify(execFile);
const OURS = 'hutch/snapshot:';

let small: SmallWorld;
let world: DockerWorld;
let image: string;
beforeAll(async () => {
  small = await startSmall({}, ['sh', 'cat', 'chmod', 'chown', 'hostname', 'ln', 'ls', 'readlink', 'rm', 'stat', 'touch'], {
    path: 'etc/issue',
    content: 'hello\n',
  });
  ({ world, image } = small);
}, 120_000);
afterAll(async () => await small?.[Symbol.asyncDispose](), 120_000);
afterEach(async () => await clearSnapshots(world), 60_000);

type Listed = { readonly Id: string; readonly RepoTags: readonly string[] | null };
/** What snapshots have in the Engine, by their ids. */
async function kept(): Promise<readonly string[]> {
  const { body } = await world.engine.ask('GET', '/images/json');
  const tags = (body as readonly Listed[]).flatMap(({ RepoTags }) => RepoTags ?? []);
  return tags.filter((tag) => tag.startsWith(OURS)).map((tag) => tag.slice(OURS.length));
}

const sh = async (ref: string, script: string): Promise<string> => {
  const { stdout, stderr, exitCode } = await world.daemon.run(ref, ['sh', '-c', script]);
  return exitCode === 0 ? stdout : `exit code ${exitCode}: ${stderr}`;
};
const LOOK =
  'cat /root/a; ls /etc/issue 2>/dev/null || echo gone; stat -c %a:%u:%g /root/b; readlink /root/c; cat /dev/shm/m 2>/dev/null || echo no memory';
const KEPT = 'one\ngone\n4750:7:8\na\nno memory\n';

test('the disk of a container is kept while it runs on: what begins there, goes back to it or is brought here has that', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { image, name: 'web', env: { A: 'b' }, labels: { team: 'x' } });
  await sh(
    id,
    'echo one > /root/a; rm /etc/issue; echo x > /root/b; chown 7:8 /root/b; chmod 4750 /root/b; ln -s a /root/c; echo m > /dev/shm/m',
  );
  await daemon.call('sandbox.pause', { ref: id });
  const first = await daemon.call('snapshot.create', { ref: id, diskOnly: true, name: 'first' });
  expect(first).toMatchObject({ contents: 'disk', parentId: null, backend: 'docker' });
  expect(first.apparentBytes).toBeGreaterThan(first.ownBytes);
  expect(await world.state(id)).toBe('paused');
  await daemon.call('sandbox.resume', { ref: id });
  expect(await kept()).toEqual([first.id]);

  const begun = await daemon.call('sandbox.create', { from: 'first', name: 'begun', labels: { own: 'y' } });
  expect(begun).toMatchObject({ labels: { team: 'x', own: 'y' } });
  expect(await sh(begun.id, `${LOOK}; echo $A; hostname`)).toBe(`${KEPT}b\nbegun\n`);
  const { children } = await daemon.call('sandbox.fork', { ref: 'first', count: 2 });
  for (const { sandbox } of children) expect(await sh(sandbox.id, LOOK)).toBe(KEPT);
  await world.gone(...children.map(({ sandbox }) => sandbox.id));

  // In place: the other container is gone, and this one has its name.
  const before = (await world.container(id)).Id;
  await sh(id, 'echo two > /root/a; touch /etc/issue; rm -r /root/b');
  expect(await daemon.call('sandbox.restore', { ref: id, snapshot: 'first' })).toMatchObject({ id, name: 'web', state: 'running' });
  expect(await sh(id, LOOK)).toBe(KEPT);
  const containers = (await engine.containers()).filter(({ Labels }) => Labels['dev.hutch.sandbox'] === id);
  expect(containers).toMatchObject([{ Names: [`/hutch-${id}`] }]);
  expect(containers[0]?.Id).not.toBe(before);

  // What stands on another one has what that has, and is refused to lose it.
  await sh(id, 'echo three > /root/a');
  const second = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  expect(second).toMatchObject({ parentId: first.id });
  expect(second.ownBytes).toBeLessThan(1_000_000);
  await refused(daemon.call('snapshot.remove', { snapshot: 'first' }));

  // What differs: of two, and of a sandbox as it is now, of which nothing stays in the Engine.
  const told = async (snapshot: string, to: string) =>
    (await daemon.call('snapshot.diff', { snapshot, to })).changes
      .filter(({ path }) => path.startsWith('/root/'))
      .map(({ path, change, what }) => `${change} ${path} ${what.join()}`.trim());
  expect(await told('first', second.id)).toEqual(['changed /root/a content']);
  await sh(begun.id, 'rm /root/c; chmod 700 /root/b; echo > /root/new; rm /root/a; echo one > /root/a; ln /root/new /root/same');
  expect(await told('first', begun.id)).toEqual(['changed /root/b mode', 'removed /root/c', 'added /root/new', 'added /root/same']);
  expect([...(await kept())].sort()).toEqual([first.id, second.id].sort());
  await daemon.call('snapshot.verify', { snapshot: second.id });

  // In one file, to who has nothing of it: all of its layers are in it.
  const { body } = await daemon.send('GET', `/v1/snapshots/${second.id}/export`);
  await world.gone(id, begun.id);
  await daemon.call('snapshot.remove', { snapshot: first.id, cascade: true });
  expect(await kept()).toEqual([]);
  const answer = await daemon.send('PUT', '/v1/snapshots?name=third', { body });
  expect(answer.status, answer.body.toString().slice(0, 500)).toBeLessThan(300);
  expect(await kept()).toEqual([]); // it comes there when it is wanted
  const third = await daemon.call('sandbox.create', { from: 'third' });
  expect(await sh(third.id, LOOK)).toBe(KEPT.replace('one', 'three'));
  await daemon.call('snapshot.verify', { snapshot: 'third' });
  await daemon.call('snapshot.remove', { snapshot: 'third', cascade: true });
  // A container stands on it still: it goes with that.
  expect(await kept()).toHaveLength(1);
  await world.gone(third.id);
  expect(await kept()).toEqual([]);
  expect(await daemon.leaks()).toEqual([]);
});

test('undo of a container: its disk is kept before each exec, a bounded number, and one word brings it back', {
  timeout: 120_000,
}, async () => {
  const { daemon } = world;
  const { id } = await daemon.call('sandbox.create', { image, undo: 2 });
  const { id: good } = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  for (const number of [1, 2, 3]) await sh(id, `echo ${number} >> /root/a`);
  expect((await kept()).filter((one) => one !== good)).toHaveLength(2);
  expect(await daemon.call('sandbox.undo', { ref: id })).toMatchObject({ before: 'sh -c echo 3 >> /root/a', left: 1 });
  await daemon.call('sandbox.set', { ref: id, undo: 0 });
  expect(await sh(id, 'cat /root/a')).toBe('1\n2\n');
  // What its container stands on goes with that.
  expect(await kept()).toHaveLength(2);
  await daemon.call('sandbox.restore', { ref: id, snapshot: good });
  expect(await kept()).toEqual([good]);
  await world.gone(id);
  await daemon.call('snapshot.remove', { snapshot: good });
  expect(await kept()).toEqual([]);
});

test('a snapshot that an Engine has no more, or has otherwise, leaves the sandbox running, with the reason', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { image });
  await sh(id, 'echo one > /root/a');
  const [first, second, third] = [
    await daemon.call('snapshot.create', { ref: id, diskOnly: true }),
    await daemon.call('snapshot.create', { ref: id, diskOnly: true }),
    await daemon.call('snapshot.create', { ref: id, diskOnly: true }),
  ];
  const container = (await world.container(id)).Id;
  await sh(id, 'echo two > /root/a');
  await engine.ask('DELETE', `/images/${OURS}${first.id}?force=true`);
  const note = join(daemon.home, 'data/snapshots', second.id, 'snapshot.json');
  await writeFile(note, '{"version":1,');
  const held = (await engine.ask('GET', `/images/${OURS}${third.id}/json`)).body as { GraphDriver: { Data: { UpperDir: string } } };
  const layer = held.GraphDriver.Data.UpperDir;
  await rename(layer, `${layer}.gone`);
  for (const [snapshot, why] of [
    [first, /removed its image/],
    [second, /is damaged/],
    [third, /./],
  ] as const) {
    const { body } = await refused(daemon.call('sandbox.restore', { ref: id, snapshot: snapshot.id }));
    expect(body.message).toMatch(why);
    await refused(daemon.call('sandbox.create', { from: snapshot.id }));
    expect((await world.container(id)).Id).toBe(container);
    expect(await sh(id, 'cat /root/a')).toBe('two\n');
  }
  await refused(daemon.call('snapshot.verify', { snapshot: third.id }));
  await rename(`${layer}.gone`, layer);
  // One that an Engine gives otherwise than it was written is told by its bytes.
  await writeFile(join(layer, 'root/a'), 'not\n');
  await refused(daemon.call('snapshot.verify', { snapshot: third.id }));
  expect(await engine.containers()).toHaveLength(1);
  await world.gone(id);
});

test('an answer that is lost, and a daemon that dies, leave whole snapshots alone and nothing in the Engine', {
  timeout: 180_000,
}, async () => {
  const { daemon, engine } = world;
  const { id } = await daemon.call('sandbox.create', { image });
  await sh(id, 'echo one > /root/a');
  const door = await world.throughDoor();
  {
    // The Engine makes it, and nobody hears of that.
    using _lost = door.lose(/^POST \/v[\d.]+\/commit/);
    await refused(daemon.call('snapshot.create', { ref: id, diskOnly: true }));
  }
  const snapshot = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  expect(await kept()).toContain(snapshot.id);
  await sh(id, 'echo two > /root/a');
  door.hold(/^POST .*\/start/);
  const restoring = daemon.call('sandbox.restore', { ref: id, snapshot: snapshot.id }).catch(() => {});
  await eventually('the other container is to start', () => door.underWay.some((line) => line.includes('/start')));
  await daemon.kill9();
  await restoring;
  await door[Symbol.asyncDispose]();
  await daemon.startAgain();
  // It is followed by one that does the rest.
  await eventually('it has gone back', async () => (await world.state(id)) === 'running');
  expect(await sh(id, 'cat /root/a')).toBe('one\n');
  const names = async () => (await engine.containers()).flatMap(({ Names }) => Names).join();
  await eventually('one container is left, by its own name', async () => (await names()) === `/hutch-${id}`);
  const taking = daemon.call('snapshot.create', { ref: id, diskOnly: true }).catch(() => {});
  await eventually('a second image', async () => (await kept()).length > 1);
  await daemon.kill9();
  await taking;
  await daemon.startAgain();
  const whole = (await daemon.call('snapshot.list', {})).snapshots.map((one) => one.id);
  expect([...(await kept())].sort()).toEqual([...whole].sort());
  expect((await readdir(join(daemon.home, 'data/snapshots'))).sort()).toEqual([...whole].sort());
  expect(await sh(id, 'cat /root/a')).toBe('one\n');
  expect(await daemon.leaks()).toEqual([]);
  await world.gone(id);
});

test('what others made of a snapshot’s image is theirs, and a volume of the Engine’s own is refused by name', {
  timeout: 120_000,
}, async () => {
  const { daemon, engine } = world;
  const tool = await importTool(engine, 'local/tool', '1');
  const { id } = await daemon.call('sandbox.create', { image: 'docker://local/tool:1' });
  const snapshot = await daemon.call('snapshot.create', { ref: id, diskOnly: true });
  const again = await daemon.call('sandbox.create', { from: snapshot.id });
  expect(again.imageId).toBe(snapshot.imageId);
  const { body } = await daemon.send('GET', `/v1/snapshots/${snapshot.id}/export`);
  expect(body.toString()).toContain('docker://local/tool:1');
  // By hand, with all labels of ours.
  await engine.ask('POST', `/commit?container=${(await world.container(again.id)).Id}&repo=mine&tag=1`, {});
  await engine.ask('POST', `/images/${OURS}${snapshot.id}/tag?repo=mine&tag=2`);
  await world.gone(again.id, id);
  await daemon.call('snapshot.remove', { snapshot: snapshot.id, cascade: true });
  const { body: left } = await engine.ask('GET', '/images/json');
  const tags = (left as readonly Listed[]).flatMap(({ RepoTags }) => RepoTags ?? []);
  expect(tags).toEqual(expect.arrayContaining(['mine:1', 'mine:2', 'local/tool:1']));
  expect((await engine.ask('GET', `/images/${tool}/json`)).status).toBe(200);
  for (const name of ['mine:1', 'mine:2']) await engine.ask('DELETE', `/images/${name}?force=true`);

  await run('docker', ['-H', `unix://${engine.socketPath}`, 'create', '--name', 'volume', 'local/tool:1']);
  await engine.ask('POST', '/commit?container=volume&repo=local/volume&tag=1&changes=VOLUME%20/srv/db', {});
  await engine.ask('DELETE', '/containers/volume');
  const made = await daemon.call('sandbox.create', { image: 'docker://local/volume:1' });
  for (const keeping of [daemon.call('snapshot.create', { ref: made.id, diskOnly: true }), daemon.call('image.commit', { ref: made.id })])
    expect((await refused(keeping)).body.message).toContain('/srv/db');
  expect(existsSync(join(daemon.home, 'data/snapshots')) ? await readdir(join(daemon.home, 'data/snapshots')) : []).toEqual([]);
  await world.gone(made.id);
});
