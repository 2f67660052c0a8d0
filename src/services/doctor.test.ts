import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { NO_KVM, RUNS_NOTHING_AS_ROOT } from '../backends/backend.ts';
import {
  asRoot,
  chosen,
  closedTo,
  mitigation,
  networkOf,
  notNeeded,
  onXfs,
  whatOpeningGives,
  withCommand,
  withoutDevice,
} from './doctor.ts';

test('where sandboxes run one way, what another way lacks is a warning; what all of them need stays missing', () => {
  const status = (name: string, status: 'ok' | 'warning' | 'missing') => notNeeded({ name, status, detail: '', fix: null }).status;
  expect([status('backend docker', 'missing'), status('QEMU', 'missing'), status('mkfs', 'missing')]).toEqual([
    'warning',
    'warning',
    'warning',
  ]);
  expect([status('disk space', 'missing'), status('backend qemu', 'ok'), status('passt', 'warning')]).toEqual(['missing', 'ok', 'warning']);
});

test('what runs a sandbox that names no backend is told, and where none does, which one works when it is asked for', () => {
  expect(chosen('qemu', ['qemu', 'docker'])).toMatchObject({ status: 'ok', detail: expect.stringMatching(/^qemu;/) });
  // Configured, and away.
  expect(chosen('docker', ['qemu'])).toMatchObject({ status: 'missing', detail: expect.stringMatching(/^docker, .* does not work here/) });
  expect(chosen(null, ['docker'])).toMatchObject({ status: 'warning', detail: expect.stringContaining('--backend docker') });
  expect(chosen(null, [])).toMatchObject({ status: 'warning', detail: expect.stringMatching(/^none works/) });
});

test('what keeps sandboxes from /dev/kvm is told with the command that lets them in', () => {
  const groupFile = 'root:x:0:\nkvm:x:104:\nme:x:1000:\n';
  const fix = (mode: number, gid: number, uid: number, groups: readonly number[]) =>
    closedTo({ mode, gid }, { uid, groups, groupFile })?.fix;
  const open = 'chmod 666 /dev/kvm; hutch daemon stop';
  const join = 'usermod -aG kvm "$USER"; hutch daemon stop; newgrp kvm';
  expect(fix(0o666, 0, 1000, [1000])).toBeUndefined();
  expect(fix(0o660, 104, 0, [0])).toBeUndefined(); // root's sandboxes are in the device's group
  expect(fix(0o660, 104, 1000, [104, 1000])).toBeUndefined(); // a group that is not the first one counts
  expect(fix(0o660, 104, 1000, [1000])).toBe(join);
  expect(fix(0o660, 4242, 1000, [1000])).toBe(open); // no such group here: nobody can join it
  expect(fix(0o600, 104, 1000, [104, 1000])).toBe(open);
  expect(fix(0o600, 0, 0, [0])).toBe(open);
});

test('nobody is told to open a /dev/kvm under which no guest runs', () => {
  const closed = { why: 'only root may open it', fix: 'chmod 666 /dev/kvm; hutch daemon stop' };
  const alone = `${NO_KVM}/dev/kvm is root's alone: neither its group nor others may use it`;
  expect(whatOpeningGives(closed, ['QEMU 7.2', alone], 0).fix).toBe(closed.fix);
  const vain = whatOpeningGives(closed, ['QEMU 7.2', `${alone}, and ${RUNS_NOTHING_AS_ROOT}`], 0);
  expect(vain).toEqual({ detail: expect.stringContaining(RUNS_NOTHING_AS_ROOT), fix: null });
  // Who is not root cannot try.
  expect(whatOpeningGives(closed, [], 1000)).toEqual({ detail: expect.stringContaining('is seen when it is open'), fix: closed.fix });
});

test('a command that takes root is told as its user has to type it', () => {
  expect(asRoot('apt-get install passt', 0)).toBe('apt-get install passt');
  expect(asRoot('apt-get install passt', 1000)).toBe('sudo apt-get install passt');
  expect(asRoot('echo off > /sys/x', 1000)).toBe("sudo sh -c 'echo off > /sys/x'");
  expect(asRoot('hutch daemon stop && mount /x || systemctl start y; newgrp z', 1000)).toBe(
    'hutch daemon stop && sudo mount /x || sudo systemctl start y; newgrp z',
  );
});

/** Each way in which a check can end, with what /proc/cpuinfo says of that machine. */
const CPU = {
  amd: 'vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm',
  intel: 'flags\t\t: fpu vmx',
  off: 'flags\t\t: fpu',
  guest: 'flags\t\t: fpu hypervisor',
};

test('whatever doctor says mends a machine can be pasted into a shell as it stands; other advice is told beside it', () => {
  const check = (fix: string | null) => withCommand({ name: 'x', status: 'missing', detail: 'why', fix });
  expect(check('install it: apt-get install runsc')).toMatchObject({ detail: 'why', fix: 'apt-get install runsc' });
  expect(check('start it, or install it: systemctl start docker || apt-get install docker.io')).toMatchObject({
    detail: 'why; start it, or install it',
    fix: 'systemctl start docker || apt-get install docker.io',
  });
  expect(check('use one that runs Linux containers')).toMatchObject({ detail: 'why; use one that runs Linux containers', fix: null });
  expect(check('see: hutch doctor')).toMatchObject({ detail: 'why', fix: null });

  expect(withoutDevice(CPU.amd).fix).toBe('modprobe kvm_amd');
  expect(withoutDevice(CPU.intel).fix).toBe('modprobe kvm_intel');
  expect(withoutDevice(CPU.off).fix).toBe('systemctl reboot --firmware-setup');
  expect(withoutDevice(CPU.guest)).toMatchObject({ detail: expect.stringContaining('turn that on where the machine is run'), fix: null });
  expect(mitigation(['mds'], CPU.amd).fix).toContain('-y install amd64-microcode');
  expect(mitigation(['mds'], CPU.guest)).toEqual({
    detail: 'not mitigated: mds; this is a virtual machine: its host may need the same',
    fix: 'apt-get update && apt-get -y dist-upgrade && systemctl reboot',
  });
  expect(networkOf('qemu', ['none'], ['no network: passt is not installed']).fix).toBe('apt-get install passt nftables');
  expect(networkOf('qemu', ['none'], ['x', 'no network: External interface not usable'])).toMatchObject({
    detail: 'works: none; no network: External interface not usable',
    fix: null,
  });
  for (const uid of [0, 1000])
    for (const fix of [onXfs('/var/lib/hutch', 2 ** 36), onXfs('/a b/$c', 0), mitigation(['mds'], CPU.intel).fix])
      expect(spawnSync('sh', ['-n', '-c', asRoot(fix, uid)], { encoding: 'utf8' }).stderr).toBe('');
});
