import { expect, test } from 'vitest';
import { asRoot, closedTo, notNeeded } from './doctor.ts';

test('where sandboxes run one way, what another way lacks is a warning; what all of them need stays missing', () => {
  const status = (name: string, status: 'ok' | 'warning' | 'missing') => notNeeded({ name, status, detail: '', fix: null }).status;
  expect([status('backend docker', 'missing'), status('QEMU', 'missing'), status('mkfs', 'missing')]).toEqual([
    'warning',
    'warning',
    'warning',
  ]);
  expect([status('disk space', 'missing'), status('backend qemu', 'ok'), status('passt', 'warning')]).toEqual(['missing', 'ok', 'warning']);
});

test('what keeps sandboxes from /dev/kvm is told with the command that lets them in', () => {
  const groupFile = 'root:x:0:\nkvm:x:104:\nme:x:1000:\n';
  const fix = (mode: number, gid: number, uid: number, groups: readonly number[]) =>
    closedTo({ mode, gid }, { uid, groups, groupFile })?.fix;
  const open = 'chmod 666 /dev/kvm; hutch daemon stop';
  const join = 'usermod -aG kvm "$USER"; then log in again, and: hutch daemon stop';
  expect(fix(0o666, 0, 1000, [1000])).toBeUndefined();
  expect(fix(0o660, 104, 0, [0])).toBeUndefined(); // root's sandboxes are in the device's group
  expect(fix(0o660, 104, 1000, [104, 1000])).toBeUndefined(); // a group that is not the first one counts
  expect(fix(0o660, 104, 1000, [1000])).toBe(join);
  expect(fix(0o660, 4242, 1000, [1000])).toBe(open); // no such group here: nobody can join it
  expect(fix(0o600, 104, 1000, [104, 1000])).toBe(open);
  expect(fix(0o600, 0, 0, [0])).toBe(open);
});

test('a command that takes root is told as its user has to type it', () => {
  expect(asRoot('apt-get install passt', 0)).toBe('apt-get install passt');
  expect(asRoot('apt-get install passt', 1000)).toBe('sudo apt-get install passt');
  expect(asRoot('echo off > /sys/x', 1000)).toBe("sudo sh -c 'echo off > /sys/x'");
  expect(asRoot('put the data directory on XFS or btrfs', 1000)).toBe('put the data directory on XFS or btrfs');
});
