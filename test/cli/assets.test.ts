// Everything that sandboxes are made from, looked at, kept and collected. Nothing here is started.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { image, tar } from '../images/archives.ts';
import { type FakeRegistry, fakeRegistry } from '../images/registry.ts';
import { MACHINES, World } from './world.ts';

type Asset = {
  id: string;
  kind: string;
  name: string | null;
  lastUsedAtMs: number | null;
  labels: Record<string, string>;
  references: { kind: string; what: string }[];
  leases: { id: string }[];
};
type Collected = { removed: { id: string; kind: string }[]; bytes: number };

let world: World;
let registry: FakeRegistry;

beforeAll(async () => {
  world = await World.make(MACHINES);
  registry = await fakeRegistry();
}, 120_000);

afterAll(async () => {
  await registry[Symbol.asyncDispose]();
  await world[Symbol.asyncDispose]();
}, 120_000);

const assets = async (...flags: string[]) => (await world.json<{ assets: Asset[] }>('assets', 'ls', ...flags)).assets;
const one = async (id: string) => (await assets()).find((asset) => asset.id === id);
const collected = async (...flags: string[]) => await world.json<Collected>('assets', 'gc', ...flags);
const rootfs = ({ removed }: Collected) => removed.filter(({ kind }) => kind === 'rootfs').map(({ id }) => id);

let made = 0;
/** An image that nothing names any more. */
async function nameless(): Promise<string> {
  made += 1;
  const bring = async (content: string) => {
    const { stdout } = await world.run(['image', 'import', '--name', `name-${made}:1`, '-', '--json'], {
      input: tar({ path: 'a', content }),
    });
    return (JSON.parse(stdout) as { images: { id: string }[] }).images[0]?.id ?? '';
  };
  const first = await bring(`first ${made}`);
  await bring(`second ${made}`);
  return first;
}

test('kernels, root file systems, initrds and disks are listed with what keeps each', { timeout: 180_000 }, async () => {
  const id = await nameless();
  await world.ok('create', '--no-start', '--name', 'web', '--image', 'name-1:1');
  const all = await assets();
  expect(all.find(({ kind }) => kind === 'kernel')?.references).toEqual([
    { kind: 'default', what: expect.any(String) },
    { kind: 'sandbox', what: 'web' },
  ]);
  expect(all.find(({ name }) => name === 'name-1:1')?.references).toEqual([
    { kind: 'name', what: 'name-1:1' },
    { kind: 'sandbox', what: 'web' },
  ]);
  expect(all.find((asset) => asset.id === id)?.references).toEqual([]);
  expect(all.find(({ kind }) => kind === 'disk')).toMatchObject({ name: 'web', references: [{ kind: 'sandbox', what: 'web' }] });
  expect(all.some(({ kind, references }) => kind === 'initrd' && references.length === 1)).toBe(true);
  expect(await world.ok('admin', 'assets', 'ls', '--kind', 'disk')).toMatch(/^disk .*sandbox web$/m);
  await world.ok('rm', 'web');
  expect((await assets('--kind', 'disk')).length).toBe(0);
});

test('a dry run changes nothing, and looking at something is no use of it', { timeout: 180_000 }, async () => {
  const id = await nameless();
  const before = await assets();
  expect(rootfs(await collected('--dry-run', '--unused', '0s'))).toContain(id);
  await world.ok('assets', 'inspect', id);
  await world.ok('image', 'inspect', id);
  expect(await assets()).toEqual(before);
  expect(before.find((asset) => asset.id === id)?.lastUsedAtMs).toBeNull();
  // Nothing is a week old, but for the initrds that this checkout made.
  expect((await collected()).removed.filter(({ kind }) => kind !== 'initrd')).toEqual([]);
  expect(rootfs(await collected('--unused', '0s'))).toContain(id);
  expect(await one(id)).toBeUndefined();
});

test('a lease keeps what it is of until it is given back or over, or as long as its sandbox is there', { timeout: 180_000 }, async () => {
  const [id, other] = [await nameless(), await nameless()];
  const lease = await world.ok('assets', 'acquire', '--ttl', '1h', '--holder', 'the release', id);
  expect(rootfs(await collected('--dry-run', '--unused', '0s'))).not.toContain(id);
  expect(rootfs(await collected('--unused', '0s'))).toEqual([other]);
  await world.ok('image', 'prune');
  const refused = await world.run(['image', 'rm', id]);
  expect([refused.code, refused.stderr]).toEqual([
    4,
    expect.stringMatching(new RegExp(`leased by the release \\(${lease}\\).*release ${lease}`, 's')),
  ]);
  expect(await world.ok('assets', 'renew', '--ttl', '2h', lease)).toBe(lease);
  await world.ok('assets', 'release', lease);
  expect((await world.run(['assets', 'renew', lease])).code).toBe(3);

  await world.ok('create', '--no-start', '--name', 'holder', '--image', 'name-1:1');
  const [short] = [await world.ok('assets', 'acquire', '--sandbox', 'holder', id)];
  const bare = await world.ok('assets', 'acquire', '--ttl', '1s', id);
  await new Promise((resolve) => setTimeout(resolve, 1_100));
  expect((await one(id))?.leases.map((each) => each.id)).toEqual([short]);
  expect((await world.run(['assets', 'renew', bare])).code).toBe(3);
  expect(rootfs(await collected('--unused', '0s'))).toEqual([]);
  await world.ok('rm', 'holder');
  expect((await one(id))?.leases).toEqual([]);
  expect(rootfs(await collected('--unused', '0s'))).toEqual([id]);
  // It is in nobody's way when the same comes again.
  expect((await world.run(['assets', 'acquire', id])).code).toBe(3);
});

test('labels are set, found and taken away, on a kernel too', { timeout: 180_000 }, async () => {
  const id = await nameless();
  const [kernel] = await assets('--kind', 'kernel');
  expect(await world.ok('assets', 'label', id, 'stage=test', 'owner=me')).toBe('owner=me\nstage=test');
  await world.ok('assets', 'label', kernel?.name ?? '', 'stage=test'); // as it is listed
  expect((await assets('-l', 'stage=test', '-l', 'owner')).map((asset) => asset.id)).toEqual([id]);
  expect((await assets('-l', 'stage=test')).map((asset) => asset.kind)).toEqual(['kernel', 'rootfs']);
  expect(await world.ok('assets', 'label', id, 'owner-', 'stage=done')).toBe('stage=done');
  const odd = await world.run(['assets', 'label', id, 'nonsense']);
  expect([odd.code, odd.stderr]).toEqual([2, expect.stringContaining('is no label')]);
  await world.ok('image', 'rm', id);
  expect(await assets('-l', 'stage=done')).toEqual([]);
});

test('an asset is meant by its name where no other one has it', { timeout: 180_000 }, async () => {
  await nameless();
  const named = (name: string) => world.json<Asset>('assets', 'inspect', name);
  expect((await named(`name-${made}:1`)).name).toBe(`name-${made}:1`);
  await world.ok('create', '--name', 'debian');
  const refused = await world.run(['assets', 'inspect', 'debian']);
  expect([refused.code, refused.stderr]).toEqual([4, expect.stringMatching(/several: rootfs img\S+, disk sbx/)]);
  await world.ok('rm', '-f', 'debian');
  expect((await named('debian')).kind).toBe('rootfs');
});

test('of a collection and creations or pulls at once nothing that is made loses what it is made from', { timeout: 120_000 }, async () => {
  const ids = [await nameless(), await nameless()];
  registry.put('team/app', '1', image([tar({ path: 'b', content: 'pulled' })]));
  const pulled = `${registry.name}/team/app:1`;
  const outcomes = await Promise.all([
    ...ids.map((id, at) => world.run(['create', '--no-start', '--name', `made-${at}`, '--image', id])),
    world.run(['image', 'pull', pulled]),
    ...[1, 2, 3].map(() => world.run(['assets', 'gc', '--unused', '0s'])),
  ]);
  for (const { code, stderr } of outcomes.slice(ids.length)) expect(code, stderr).toBe(0);
  for (const [at, id] of ids.entries()) {
    const outcome = outcomes[at];
    if (outcome?.code !== 0)
      expect(outcome?.stderr).toMatch(/there is no image|was removed a moment ago|not there any more|cannot be pulled/);
    else expect(await world.ok('image', 'verify', id)).toContain('what they were');
    expect((await one(id)) !== undefined).toBe(outcome?.code === 0);
  }
  expect(await world.ok('image', 'verify', pulled)).toContain('what they were');
});

test('leases outlive the daemon, also one that is killed', { timeout: 180_000 }, async () => {
  const id = await nameless();
  const lease = await world.ok('assets', 'acquire', '--ttl', '1h', id);
  await world.killDaemon();
  expect((await one(id))?.leases.map((each) => each.id)).toEqual([lease]);
  expect(rootfs(await collected('--unused', '0s'))).toEqual([]);
  await world.ok('assets', 'release', lease);
  expect(rootfs(await collected('--unused', '0s'))).toEqual([id]);
});
