import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { runtimeOf } from './runtime.ts';

const DEBIAN = `  -cpu-num-from-quota
    \tset cpu number to cpu quota
  -fsgofer-host-uds
    \tDEPRECATED: use host-uds=all
  -host-uds value
    \tcontrols permission to access host Unix-domain sockets. Values: none|open|create|all, default: none
  -ignore-cgroups
    \tdon't configure cgroups.
  -net-raw runsc exec
    \tenable raw sockets.
  -overlay2 value
    \twrap mounts with overlayfs.
  -panic-log string
    \tfile path where panic reports and other Go's runtime messages are written.
  -platform string
    \tspecifies which platform to use: ptrace (default), kvm. (default "ptrace")
  -platform_device_path string
    \tpath to a platform-specific device file (e.g. /dev/kvm for KVM platform).
`;

test('options are taken from what the release says that it has', () => {
  expect(runtimeOf('/usr/bin/runsc', 'runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n', DEBIAN, '')).toEqual({
    path: '/usr/bin/runsc',
    version: '0.0~20221219.0',
    platforms: ['kvm', 'ptrace'],
    options: ['--host-uds=open', '--overlay2=none', '--net-raw', '--cpu-num-from-quota'],
    always: [],
    saving: [],
    canIgnoreCgroups: true,
    hasPanicLog: true,
  });
});

/** What a release really says, all of it. */
const recorded = (text: string): string => readFileSync(join(import.meta.dirname, '../../../test/vectors/runsc', `${text}.txt`), 'utf8');

test('whole help texts are understood: of the release in Debian, and of ones of 2025 and 2026', () => {
  expect(
    runtimeOf('runsc', 'runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n', recorded('flags-20221219'), recorded('checkpoint-20221219')),
  ).toEqual({
    path: 'runsc',
    version: '0.0~20221219.0',
    platforms: ['kvm', 'ptrace'],
    options: ['--host-uds=open', '--overlay2=none', '--net-raw', '--cpu-num-from-quota'],
    always: [],
    saving: [],
    canIgnoreCgroups: true,
    hasPanicLog: true,
  });
  expect(runtimeOf('runsc', 'runsc version release-20250205.0\nspec: 1.1.0-rc.1\n', recorded('flags-20250205'), '')).toEqual({
    path: 'runsc',
    version: '20250205.0',
    platforms: ['systrap', 'kvm', 'ptrace'],
    options: ['--host-uds=open', '--overlay2=none', '--directfs=false', '--net-raw', '--cpu-num-from-quota'],
    always: [],
    saving: [],
    canIgnoreCgroups: true,
    hasPanicLog: true,
  });
  expect(
    runtimeOf('runsc', 'runsc version release-20260905.0\nspec: 1.2.1\n', recorded('flags-20260905'), recorded('checkpoint-20260905')),
  ).toEqual({
    path: 'runsc',
    version: '20260905.0',
    platforms: ['systrap', 'kvm', 'ptrace'],
    options: ['--host-uds=open', '--overlay2=none', '--directfs=false', '--net-raw', '--cpu-num-from-quota'],
    always: ['--gofer-network-namespace=new'],
    saving: ['--compression=flate-best-speed'],
    canIgnoreCgroups: true,
    hasPanicLog: true,
  });
});

test('the fastest platform is tried first, and older names are understood', () => {
  const newer = DEBIAN.replace('ptrace (default), kvm. (default "ptrace")', 'systrap (default), ptrace, kvm.');
  expect(runtimeOf('runsc', 'runsc version release-20240930.0', newer, '')).toMatchObject({
    version: '20240930.0',
    platforms: ['systrap', 'kvm', 'ptrace'],
  });
  const older = DEBIAN.replace(/ {2}-host-uds value\n.*\n/, '').replace(/ {2}-overlay2 value\n.*\n/, '');
  expect(runtimeOf('runsc', '', older, '')).toMatchObject({
    version: 'unknown',
    options: ['--fsgofer-host-uds', '--net-raw', '--cpu-num-from-quota'],
  });
});

test('a release without sockets of the host, or without a platform that we know, cannot be used', () => {
  expect(runtimeOf('runsc', '', '  -platform string\n    \tptrace', '')).toMatchObject({ lacking: expect.stringContaining('socket') });
  expect(runtimeOf('runsc', '', DEBIAN.replace('ptrace (default), kvm. (default "ptrace")', 'vz'), '')).toMatchObject({
    lacking: expect.stringContaining('platform'),
  });
});
