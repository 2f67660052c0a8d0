// The machine around the daemon is not as it should be: a program is missing, its clock steps back,
// names are as bad as names can be. Real machines all the same.
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { clockStepsBack } from './clock.ts';
import { expectInOrder, options, startDaemon } from './world.ts';

const SEARCHED = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

test('without passt there is no network: the error and doctor say why, and a sandbox without one works', async () => {
  const bin = mkdtempSync(join(tmpdir(), 'hutch-bin-'));
  chmodSync(bin, 0o755); // sandboxes' users look there too
  try {
    for (const dir of SEARCHED) {
      for (const name of existsSync(dir) ? readdirSync(dir) : []) {
        if (!name.startsWith('passt') && !existsSync(join(bin, name))) symlinkSync(join(dir, name), join(bin, name));
      }
    }
    await using daemon = await DaemonUnderTest.start(options({ HUTCH_TEST_PATH: bin }));
    const { checks } = await daemon.call('doctor.check', {});
    expect(checks.find(({ name }) => name === 'passt')).toMatchObject({ status: 'warning', fix: expect.stringContaining('passt') });
    expect(checks.find(({ name }) => name === 'network of qemu')).toMatchObject({
      status: 'warning',
      detail: 'works: none; no network: passt is not installed',
      fix: expect.stringContaining('apt-get install passt nftables'),
    });
    expect(JSON.stringify(checks)).toContain('passt is not installed');
    const error = await daemon.call('sandbox.create', { network: 'allow' }).then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(error instanceof ApiError ? error.body : error).toMatchObject({
      code: 'failed_precondition',
      hint: expect.stringContaining('--no-net'),
    });
    expect((await daemon.call('sandbox.create', { name: 'it' })).network).toBe('none');
    await expectInOrder(daemon);
  } finally {
    rmSync(bin, { recursive: true });
  }
});

test('doctor says of KVM what was tried, and not that a device is there', async () => {
  await using daemon = await DaemonUnderTest.start(options());
  const [{ checks }, { backends }] = [await daemon.call('doctor.check', {}), await daemon.call('backends.list', {})];
  const uses = backends.find(({ name }) => name === 'qemu')?.can?.acceleration;
  const kvm = checks.find(({ name }) => name === 'KVM');
  if (uses === 'kvm') expect(kvm).toMatchObject({ status: 'ok', detail: 'yes: a small guest ran under /dev/kvm' });
  else {
    expect(kvm).toMatchObject({ status: 'warning', detail: expect.stringMatching(/^no: /) });
    expect(checks.find(({ name }) => name === 'backend qemu')?.detail).toContain('; no KVM: ');
  }
});

test('a clock that steps back by an hour breaks no interval and holds up no time limit', { timeout: 240_000 }, async () => {
  await using daemon = await startDaemon();
  await clockStepsBack({ daemon, options });
});

const NAMES = [
  'a\nb',
  `quote"'\`$(id)`,
  '-rf',
  ' lead and trail ',
  'back\\slash\\n',
  '*?[x]{a,b}',
  'été-日本-🙂',
  '\u0007\u001b[31m',
  '%2e%2e%2f+&?#',
  '...',
  'x'.repeat(255),
];

test('files of any name are written, read, listed and removed, and no path leads elsewhere', async () => {
  await using daemon = await startDaemon();
  const { id } = await daemon.call('sandbox.create', { network: 'none' });
  const files = (path: string) => `/v1/sandboxes/${id}/files?${new URLSearchParams({ path })}`;
  const making = (path: string) => `${files(path)}&mkdirs=true`;
  for (const name of NAMES) {
    const path = `/names/${name}`;
    expect((await daemon.send('PUT', making(path), { body: `I am ${name}` })).status, name).toBe(200);
    expect((await daemon.run(id, ['cat', path])).stdout).toBe(`I am ${name}`);
    expect((await daemon.send('GET', files(path))).body.toString('utf8')).toBe(`I am ${name}`);
    expect(await daemon.call('file.stat', { ref: id, path })).toMatchObject({ name, path, type: 'file' });
  }
  const listed: string[] = [];
  for await (const entry of daemon.lines('file.list', { ref: id, path: '/names' })) listed.push(entry.name);
  expect(listed.sort()).toEqual([...NAMES].sort());

  // Up and up is still the guest's own root.
  expect((await daemon.send('PUT', making('/names/../../../../../../up'), { body: 'here' })).status).toBe(200);
  expect((await daemon.run(id, ['cat', '/up'])).stdout).toBe('here');
  expect(existsSync('/up')).toBe(false);

  // As long as a path may be, and one byte more.
  const deep = `/${'d/'.repeat(1_920)}`;
  const longest = deep + 'f'.repeat(4_095 - deep.length);
  expect((await daemon.send('PUT', making(longest), { body: 'deep' })).status).toBe(200);
  expect((await daemon.send('GET', files(longest))).body.toString('utf8')).toBe('deep');
  for (const path of [`${longest}ff`, '/nul\0byte', '/names/'.padEnd(8 + 256, 'y'), '']) {
    const { status, body } = await daemon.send('PUT', making(path), { body: 'never' });
    expect([status, JSON.parse(body.toString('utf8'))]).toMatchObject([400, { code: 'invalid_argument' }]);
  }
  for (const name of NAMES) await daemon.call('file.remove', { ref: id, path: `/names/${name}` });
  expect((await daemon.run(id, ['ls', '-A', '/names'])).stdout).toBe('');
});
