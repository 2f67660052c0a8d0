// Snapshots that go to another machine: what is made there is as the sandbox was; what is not whole, does not fit or lies is refused with a
// reason and leaves nothing, also where a daemon dies of it.
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { type PackedPart, readArchive, writeArchive } from '../../src/images/snapshot/archive.ts';
import { artifactOf, type SnapshotConfig } from '../../src/images/snapshot/artifact.ts';
import type { Output } from '../../src/services/verbs.ts';
import { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { LOGIN, Registry } from '../support/debian-registry.ts';
import { eventually } from '../support/eventually.ts';
import { all, COUNTER, countOf, expectInOrder, isLong, numbers, options, seed, shellOf, startDaemon } from './world.ts';

const TEST_MS = isLong ? 3_600_000 : 240_000;
const logins = mkdtempSync(join(tmpdir(), 'hutch-travel-'));
const OWN = {
  DOCKER_CONFIG: logins,
  HUTCH_SANDBOX_BACKEND: 'qemu',
  HUTCH_SANDBOX_STOP_GRACE: '2s',
  HUTCH_SANDBOX_WARM: '0',
};
const POINTS = isLong ? 120 : 2;

const [here, there] = await Promise.all([startDaemon(OWN), startDaemon(OWN)]);
afterAll(async () => {
  await Promise.all([here, there].map((daemon) => daemon[Symbol.asyncDispose]()));
  rmSync(logins, { recursive: true, force: true });
});
afterEach(async () => {
  for (const daemon of [here, there]) {
    await daemon.deleteAll();
    const { snapshots } = await daemon.call('snapshot.list', { all: true });
    for (const { id, depth } of snapshots) if (depth === 0) await daemon.call('snapshot.remove', { snapshot: id, cascade: true });
  }
});

const ZSTD = Buffer.from('28b52ffd', 'hex');
const kept = (daemon: DaemonUnderTest): string[] =>
  existsSync(join(daemon.home, 'data/snapshots')) ? readdirSync(join(daemon.home, 'data/snapshots')).sort() : [];

async function exported(daemon: DaemonUnderTest, snapshot: string, carry: 'needed' | 'all' | 'nothing' = 'nothing'): Promise<Buffer> {
  const { status, headers, body } = await daemon.send('GET', `/v1/snapshots/${snapshot}/export?carry=${carry}`);
  expect([status, Number(headers['content-length'])], body.toString('latin1', 0, 500)).toEqual([200, body.byteLength]);
  return body;
}

type Refused = { readonly code: string; readonly message: string; readonly hint?: string };

async function imported(daemon: DaemonUnderTest, file: Uint8Array, name?: string): Promise<Output<'snapshot.import'>> {
  const { status, body } = await daemon.send('PUT', `/v1/snapshots${name === undefined ? '' : `?name=${name}`}`, { body: file });
  expect(status, body.toString()).toBe(200);
  return JSON.parse(body.toString()) as Output<'snapshot.import'>;
}

async function refused(daemon: DaemonUnderTest, file: Uint8Array, name?: string): Promise<Refused> {
  const before = kept(daemon);
  const { status, body } = await daemon.send('PUT', `/v1/snapshots${name === undefined ? '' : `?name=${name}`}`, { body: file });
  expect([status, kept(daemon)], body.toString()).toEqual([status === 409 ? 409 : 412, before]);
  return JSON.parse(body.toString()) as Refused;
}

/** The same parts under another description, with digests that are right. */
async function saying(file: Buffer, change: (config: SnapshotConfig) => object): Promise<Buffer> {
  const parts = new Map<number, Buffer>();
  const { config, described } = await readArchive(once(file), {
    begin: async (said, all) => ({ config: said, described: all }),
    wants: () => true,
    async part(_, at, bytes, also) {
      const content = await gathered(bytes);
      for (const number of [at, ...also]) parts.set(number, content);
    },
  });
  const packed = described.parts.map((part, at): PackedPart => ({ ...part, open: () => once(parts.get(at) ?? Buffer.alloc(0)) }));
  const said = { ...config, ...change(structuredClone(config)) } as SnapshotConfig;
  return await gathered(writeArchive(artifactOf(said, packed.slice(0, said.parts.length)), packed.slice(0, said.parts.length)));
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

async function gathered(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const found: Uint8Array[] = [];
  for await (const chunk of chunks) found.push(Buffer.from(chunk));
  return Buffer.concat(found);
}

for (const backend of ['qemu', 'gvisor'] as const) {
  test(`${backend}: a snapshot goes to another machine, and what is made there is as the sandbox was`, { timeout: TEST_MS }, async () => {
    const [sh, far] = [shellOf(here), shellOf(there)];
    const made = { backend, name: 'web', labels: { for: 'test' }, env: { PLAIN: 'p' }, secrets: { HIDDEN: 'h' } };
    await here.call('sandbox.create', { ...made, main: { argv: ['sh', '-c', COUNTER] } });
    await sh('web', 'echo one > /root/a; head -c 3000000 /dev/urandom > /root/noise');
    await here.call('snapshot.create', { ref: 'web', name: 'first' });
    await sh('web', 'echo two > /root/b; echo memory > /dev/shm/m');
    const sum = await sh('web', 'sha256sum < /root/noise');
    const second = await here.call('snapshot.create', { ref: 'web', name: 'second' });
    const counted = await countOf(sh, 'web');
    await here.call('snapshot.create', { ref: 'web', name: 'plain', diskOnly: true });
    expect(second.parentId).not.toBeNull();

    const file = await exported(here, 'second');
    expect((await exported(here, 'second')).equals(file), 'the same snapshot gives the same file').toBe(true);
    await eventually('what was packed is gone', () => kept(here).length === 3);
    const arrived = await imported(there, file);
    expect(arrived).toMatchObject({ name: 'second', parentId: null, sandboxId: null, misfit: null, secretNames: ['HIDDEN'] });
    expect([arrived.backend, arrived.contents, arrived.shape]).toEqual([backend, 'memory and disk', second.shape]);
    expect(await refused(there, file)).toMatchObject({ code: 'conflict', message: expect.stringContaining('the name second is taken') });
    await there.call('snapshot.verify', { snapshot: 'second' });
    await there.call('quota.set', { project: 'default', bounds: { snapshotMiB: Math.ceil(arrived.ownBytes / 2 ** 20) } });
    const tooMuch = await there.send('PUT', '/v1/snapshots?name=more', { body: file });
    await there.call('quota.set', { project: 'default', bounds: { snapshotMiB: 'inherit' } });
    expect([JSON.parse(tooMuch.body.toString()), kept(there)]).toMatchObject([{ code: 'resource_exhausted' }, [arrived.id]]);
    expect(tooMuch.body.toString()).toContain('the quota snapshotMiB of project default is');

    const { id, labels, env } = await there.call('sandbox.create', { from: 'second', name: 'far' });
    expect([labels, env]).toEqual([{ for: 'test' }, { PLAIN: 'p' }]);
    expect(await far('far', 'cat /root/a /root/b /dev/shm/m')).toBe('one\ntwo\nmemory\n');
    expect(await far('far', 'sha256sum < /root/noise')).toBe(sum);
    expect(await countOf(far, 'far'), 'what ran goes on').toBeLessThan(counted + 5_000);
    expect(await far('far', 'env | grep -c HIDDEN || true')).toBe('0\n');
    // It can be kept there, and goes back.
    if (backend === 'qemu') {
      await there.call('snapshot.create', { ref: id, name: 'third' });
      expect(await imported(here, await exported(there, 'third'), 'back')).toMatchObject({ name: 'back', misfit: null });
    }
    await imported(there, await exported(here, 'plain'));
    await there.call('sandbox.create', { from: 'plain', name: 'booted' });
    expect(await far('booted', 'cat /root/a /root/b; ls /dev/shm')).toBe('one\ntwo\n');
    await expectInOrder(there);
  });
}

for (const backend of isLong ? (['qemu', 'gvisor'] as const) : (['qemu'] as const)) {
  test(`${backend}: a snapshot brings the image that Hutch made, and the kernel, to a machine that has neither`, {
    timeout: TEST_MS,
  }, async () => {
    const { id } = await here.call('sandbox.create', { backend, name: 'web', network: 'none' });
    await shellOf(here)('web', 'echo disk > /root/a; echo memory > /dev/shm/a');
    await here.call('snapshot.create', { ref: 'web', name: 'ready' });
    const { imageId, kernelId } = await here.call('sandbox.get', { ref: id });
    const file = await exported(here, 'ready', 'needed');
    await using bare = await DaemonUnderTest.start(options({ ...OWN, HUTCH_TEST_BARE: '1' }));
    const nothing = await refused(bare, await exported(here, 'ready'));
    expect(nothing).toMatchObject({
      code: 'failed_precondition',
      hint: expect.stringMatching(/without --without-image, and it comes along/),
    });
    if (isLong) {
      // An image whose bytes are others is not taken up, and no kernel stays that came with it.
      const digest = `sha256:${'1'.repeat(64)}`;
      const lie = await saying(file, ({ image, machine }) => ({
        image: { ...image, digest },
        machine: JSON.parse(JSON.stringify(machine).replaceAll(image.digest, digest)) as SnapshotConfig['machine'],
      }));
      expect((await refused(bare, lie)).message).toMatch(/not the one that it names|image/);
    }
    const { images: none } = await bare.call('image.list', {});
    expect([none, (await bare.call('kernel.list', {})).kernels]).toEqual([[], []]);
    expect(await imported(bare, file)).toMatchObject({ name: 'ready', misfit: null, imageId, kernelId });
    await bare.call('sandbox.create', { from: 'ready', name: 'there' });
    expect(await shellOf(bare)('there', 'cat /root/a /dev/shm/a')).toBe('disk\nmemory\n');
    // Nobody else gets them, and what stands on them keeps them.
    expect((await bare.call('image.list', {})).images).toMatchObject([{ id: imageId, names: [] }]);
    expect((await bare.call('kernel.list', {})).kernels).toMatchObject(
      kernelId === null ? [] : [{ id: kernelId, by: 'snapshot', isDefault: false }],
    );
    await expect(bare.call('image.remove', { image: imageId ?? '' })).rejects.toThrow(/is used by/);
    // From there it goes on as it came; what is there already is not taken up again.
    if (isLong)
      expect(await imported(there, await exported(bare, 'ready', 'needed'), 'third')).toMatchObject({ misfit: null, imageId, kernelId });
    await bare.call('sandbox.delete', { ref: 'there', force: true });
  });
}

test('which files differ between snapshots and sandboxes is told, and nothing of a guest is mounted for it', {
  timeout: TEST_MS,
}, async () => {
  const sh = shellOf(here);
  const removed = ['/etc/motd', '/usr/share/doc/adduser/copyright'];
  for (const backend of ['qemu', 'gvisor'] as const) {
    await here.call('sandbox.create', { backend, name: backend, network: 'none' });
    await sh(backend, 'echo one > /root/same; echo one > /root/other; echo one > /root/mode; ln -s a /root/link; mkdir /root/dir');
    await here.call('snapshot.create', { ref: backend, name: `${backend}-before`, diskOnly: true });
    await sh(
      backend,
      `touch /root/same; echo two > /root/other; chmod 600 /root/mode; ln -sf b /root/link; rm -r /root/dir; echo x > '/root/new file'
       rm ${removed.join(' ')}; chmod 600 /etc/issue; echo x >> /etc/issue.net; touch /etc/fstab`,
    );
    await here.call('snapshot.create', { ref: backend, name: `${backend}-after`, diskOnly: backend === 'gvisor' });
  }
  const changes = [
    ['changed', '/etc/issue', 'mode'],
    ['changed', '/etc/issue.net', 'content'],
    ['removed', '/etc/motd'],
    ['removed', '/root/dir'],
    ['changed', '/root/link', 'target'],
    ['changed', '/root/mode', 'mode'],
    ['added', '/root/new file'],
    ['changed', '/root/other', 'content'],
    ['removed', '/usr/share/doc/adduser/copyright'],
  ];
  const told = async (snapshot: string, to: string) => await here.call('snapshot.diff', { snapshot, to });
  const expectChanges = async (snapshot: string, to: string): Promise<void> => {
    const found = await told(snapshot, to);
    expect(
      found.changes.map(({ change, path, what }) => [change, path, ...what]),
      `${snapshot} and ${to}`,
    ).toEqual(changes);
    expect([found.counts, found.left]).toEqual([{ added: 1, removed: 3, changed: 5 }, 0]);
  };
  await expectChanges('qemu-before', 'qemu-after');
  expect((await told('gvisor-after', 'gvisor-before')).counts).toEqual({ added: 3, removed: 1, changed: 5 });
  // With a sandbox as it is, whatever it is at; it stays what it was. What it has not put on its disk yet counts.
  await sh('qemu', 'touch /etc/hosts');
  await expectChanges('qemu-before', 'qemu');
  await here.call('sandbox.suspend', { ref: 'qemu' });
  await here.call('sandbox.pause', { ref: 'gvisor' });
  await expectChanges('qemu-before', 'qemu');
  await expectChanges('gvisor-before', 'gvisor');
  expect((await all(here)).map(({ name, state }) => [name, state]).sort()).toEqual([
    ['gvisor', 'paused'],
    ['qemu', 'suspended'],
  ]);
  for (const ref of ['qemu', 'gvisor']) await here.call('sandbox.resume', { ref });
  await sh('qemu', 'echo more > /root/more');
  expect(await told('qemu', 'qemu-after')).toMatchObject({
    ...{ from: expect.stringMatching(/^sbx/), to: expect.stringMatching(/^snp/) },
    ...{ counts: { added: 0, removed: 1, changed: 0 }, changes: [{ path: '/root/more', change: 'removed' }] },
  });
  await here.call('sandbox.stop', { ref: 'gvisor', force: true });
  await expectChanges('gvisor-before', 'gvisor');
  await expect(told('gvisor-before', 'nobody')).rejects.toThrow(/there is no snapshot or sandbox 'nobody'/);
  // Of one image, and of two backends; what both are called is the snapshot.
  await here.call('sandbox.rename', { ref: 'gvisor', name: 'gvisor-after' });
  const across = await told('qemu-after', 'gvisor-after');
  expect(across.to).toMatch(/^snp/);
  expect(across.changes.filter(({ path }) => changes.some(([, changed]) => changed === path))).toEqual([]);
  expect(kept(here)).toHaveLength(4);
  await expectInOrder(here);
});

test(`what is damaged, lies or does not fit is refused, and leaves nothing (seed ${seed})`, { timeout: TEST_MS }, async () => {
  const random = numbers(seed + 7);
  await here.call('sandbox.create', { name: 'web', network: 'none' });
  await here.call('snapshot.create', { ref: 'web', name: 'good' });
  await here.call('snapshot.create', { ref: 'web', name: 'plain', diskOnly: true });
  const [whole, file] = [await exported(here, 'good'), await exported(here, 'plain')];
  const at = (): number => Math.floor(random.next().value * file.byteLength);
  for (let nth = 0; nth < (isLong ? 60 : 3); nth += 1) {
    const cut = at();
    expect(await refused(there, file.subarray(0, cut)), `cut after ${cut}`).toMatchObject({ code: 'failed_precondition' });
    const flipped = Buffer.from(file);
    const byte = file.indexOf(ZSTD, at() % file.lastIndexOf(ZSTD)) + 5; // within the content of a part: the last frame of one has nine bytes
    flipped[byte] = (flipped[byte] ?? 0) ^ 16;
    const { message } = await refused(there, flipped);
    expect(message, `flipped at ${byte}`).toMatch(/^the archive cannot be used: /);
  }
  const digest = `sha256:${'0'.repeat(64)}`;
  const lies: readonly (readonly [(config: SnapshotConfig) => object, RegExp])[] = [
    [() => ({ image: { digest, names: ['web:1'], travels: true } }), /needs what is not here: image sha256:0+ \(web:1\)/],
    [() => ({ kernel: { digest, version: '9.9' } }), /needs what is not here: kernel sha256:0+ \(9\.9\)/],
    [() => ({ kernel: null }), /names no kernel where it needs one/],
    [() => ({ backend: 'docker' }), /one where none is booted/],
    [() => ({ name: 'Not A Name' }), /is no name/],
    [({ made }) => ({ made: { ...made, env: { 'a=b': 'c' } } }), /made as is damaged: 'env/],
    [({ made }) => ({ made: { ...made, mounts: [{ source: '/etc', target: '/etc', readOnly: false }] } }), /made as is damaged/],
    [({ made }) => ({ made: { ...made, shape: { cpus: 1, memoryMiB: 512, diskMiB: 256 } } }), /its shape is not/],
    [() => ({ contents: 'memory and disk' }), /contradicts itself/],
    [() => ({ machine: {} }), /says of its machine is damaged/],
    [({ machine }) => ({ machine: { ...machine, takenAtMs: 'never' } }), /says of its machine is damaged/],
    [
      ({ machine }) => ({ machine: { ...machine, disk: { ...(machine['disk'] as object), map: '0'.repeat(64) } } }),
      /map of its disk is not/,
    ],
    [({ parts }) => ({ parts: parts.slice(0, -1) }), /parts of it are missing/],
    [({ parts }) => ({ parts: parts.map((part, nth) => (nth === 0 ? { ...part, name: 'other' } : part)) }), /a part 'other'/],
    [({ parts }) => ({ parts: parts.map((part) => ({ ...part, bytes: part.bytes * 2 })) }), /where '\w+.*should be/],
    [
      ({ parts }) => ({ parts: parts.map((part) => ({ ...part, dataBytes: Math.min(part.bytes, 2 ** 40) })) }),
      /less than is said|takes \d+ MiB/,
    ],
  ];
  const ofMemory: typeof lies = [
    [({ made }) => ({ made: { ...made, shape: { cpus: 1, memoryMiB: 1024, diskMiB: 8192 } } }), /its shape is not/],
    [
      ({ machine }) => ({ machine: { ...machine, memory: { ...(machine['memory'] as object), base: '0'.repeat(16) } } }),
      /base is not what was saved/,
    ],
  ];
  for (const [from, all] of [
    [file, lies],
    [whole, ofMemory],
  ] as const)
    for (const [change, why] of all) expect((await refused(there, await saying(from, change))).message).toMatch(why);
  const { hint } = await refused(there, await saying(file, () => ({ image: { digest, names: ['ghcr.io/owner/web:1'], travels: true } })));
  expect(hint).toMatch(/^where its registry has it: hutch image pull ghcr\.io\/owner\/web:1; else/);
  expect(hint).toContain(`hutch image export -o needed.tar ${digest}`);
  const own = await refused(there, await saying(file, () => ({ image: { digest, names: [], travels: false } })));
  expect(own.hint).toMatch(/no other machine has that image/);
  expect(await refused(there, file, 'No-Name')).toMatchObject({ code: expect.stringMatching(/^(failed_precondition|conflict)$/) });

  // Of another machine: it is here, says why it does not go on, and does so only with force.
  const other = ({ machine }: SnapshotConfig) => {
    const fingerprint = { ...(machine['fingerprint'] as object), emulator: '99.0', agent: digest };
    return { machine: { ...machine, fingerprint } };
  };
  const misfit = await imported(there, await saying(whole, other), 'misfit');
  expect(misfit.misfit).toMatch(/the version of QEMU \(99\.0 then, .* now\).*are not what they were/);
  await expect(there.call('sandbox.create', { from: 'misfit', name: 'never' })).rejects.toThrow(/the version of QEMU/);
  await there.call('sandbox.create', { from: 'misfit', name: 'forced', force: true });
  expect(await shellOf(there)('forced', 'echo works')).toBe('works\n');
  await expectInOrder(there);
});

test('a snapshot goes through Debian’s registry, its layers once, to who has the login and is let have it', {
  timeout: TEST_MS,
}, async () => {
  await using registry = await Registry.start();
  const name = `${registry.name}/team/ready`;
  const login = (password: string): void => {
    const auth = Buffer.from(`${LOGIN.username}:${password}`).toString('base64');
    writeFileSync(join(logins, 'config.json'), JSON.stringify({ auths: { [registry.name]: { auth } } }));
  };
  await here.call('sandbox.create', { name: 'web', network: 'none' });
  await shellOf(here)('web', 'echo one > /root/a; echo memory > /dev/shm/m');
  await here.call('snapshot.create', { ref: 'web', name: 'first' });
  await shellOf(here)('web', 'echo two > /root/a');
  await here.call('snapshot.create', { ref: 'web', name: 'second' });
  login('wrong');
  await expect(here.call('snapshot.push', { snapshot: 'first', name, carry: 'nothing' })).rejects.toMatchObject({
    body: { code: 'permission_denied' },
  });
  login(LOGIN.password);
  const first = await here.call('snapshot.push', { snapshot: 'first', name: `${name}:1` });
  expect(first.parts.map(({ how }) => how)).not.toContain('existed');
  const second = await here.call('snapshot.push', { snapshot: 'second', name: `${name}:2` });
  const sent = second.parts.filter(({ how }) => how === 'uploaded').map((part) => part.name);
  expect(
    sent.filter((part) => /^(memory|disk)\/(base|1)$|^rootfs$|^archive$/.test(part)),
    'layers that are there already',
  ).toEqual([]);
  expect(sent).toContain('memory/2');
  await eventually('what was packed is gone', () => kept(here).length === 2);

  const arrived = await there.call('snapshot.pull', { name: `${name}@${second.digest}`, as: 'pulled' });
  expect(arrived).toMatchObject({ name: 'pulled', digest: second.digest, misfit: null });
  await there.call('sandbox.create', { from: 'pulled', name: 'far' });
  expect(await shellOf(there)('far', 'cat /root/a /dev/shm/m')).toBe('two\nmemory\n');
  await expect(there.call('snapshot.pull', { name: `${name}:2`, as: 'pulled' })).rejects.toThrow(/the name pulled is taken/);
  await there.call('quota.set', { project: 'default', bounds: { snapshotMiB: 1 } });
  await expect(there.call('snapshot.pull', { name: `${name}:2`, as: 'more' })).rejects.toThrow(
    /the quota snapshotMiB of project default is 1/,
  );
  await there.call('quota.set', { project: 'default', bounds: { snapshotMiB: 'inherit' } });
  await expect(there.call('snapshot.pull', { name: `${name}:3` })).rejects.toMatchObject({ body: { code: 'not_found' } });
  await expect(there.call('image.pull', { name: `${name}:2` })).rejects.toThrow(/is no image/);

  await there.terminate();
  await there.startAgain(options({ ...OWN, HUTCH_IMAGES_ALLOW: 'registry.example/*' }));
  await expect(there.call('snapshot.pull', { name: `${name}:2` })).rejects.toThrow(/may not be pulled: images.allow does not list it/);
  await there.terminate();
  await there.startAgain(options(OWN));
  expect(kept(there)).toEqual([arrived.id]);
});

test(`the daemon is killed, or the host fails, at ${isLong ? 'every' : 'some'} point of an import and of an export (seed ${seed})`, {
  timeout: TEST_MS,
}, async () => {
  const random = numbers(seed + 3);
  await here.call('sandbox.create', { name: 'web', network: 'none' });
  await here.call('snapshot.create', { ref: 'web', name: 'good', diskOnly: true });
  const file = await exported(here, 'good');
  await here.call('snapshot.remove', { snapshot: 'good' });
  await imported(there, file, 'good');
  for (let point = 0; point < POINTS; point += 1) {
    const verb = point % 2 === 0 ? 'snapshot.import' : 'snapshot.export';
    const action = ['die-before', 'die-after', 'fail'][Math.floor(random.next().value * 3)];
    const n = isLong ? 1 + Math.floor(point / 2) : 1 + Math.floor(random.next().value * 24);
    const fault = `${action}:${n}:${verb}`;
    await there.terminate();
    await there.startAgain(options({ ...OWN, HUTCH_TEST_FAULT: fault }));
    await (verb === 'snapshot.import'
      ? there.send('PUT', '/v1/snapshots?name=maybe', { body: file })
      : there.send('GET', '/v1/snapshots/good/export')
    ).catch(() => {});
    await there.kill9();
    await there.startAgain(options(OWN));
    const { snapshots } = await there.call('snapshot.list', {});
    expect(kept(there), fault).toEqual(snapshots.map(({ id }) => id).sort());
    for (const { id } of snapshots) await there.call('snapshot.verify', { snapshot: id });
    if (snapshots.length > 1) await there.call('snapshot.remove', { snapshot: 'maybe' });
    expect((await exported(there, 'good')).byteLength, fault).toBe(file.byteLength);
  }
});
