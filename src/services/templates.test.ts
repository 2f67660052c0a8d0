// Which backend runs a sandbox, of machines that can do this and that.
import { expect, test } from 'vitest';
import { testOperation } from '../../test/support/operation.ts';
import type { BackendName } from '../domain/sandbox.ts';
import type { Deps } from './deps.ts';
import { newTemplates } from './templates.ts';

const op = testOperation();
const vm = (acceleration: 'kvm' | 'tcg') => ({ securityBoundary: true, acceleration });
const GVISOR = { securityBoundary: true, acceleration: 'none' };
const DOCKER = { securityBoundary: false, acceleration: 'none' };

type Machine = Readonly<Record<'qemu' | 'gvisor' | 'docker', object | null>>;

/** In the daemon's own order; null: it does not work there. */
function on(machine: Machine, configured: 'auto' | BackendName = 'auto') {
  const backends = Object.entries(machine).map(([name, can]) => ({
    name,
    probe: async () => (can === null ? { ok: false, why: `no ${name}`, hint: 'none' } : { ok: true, can: { ...can, networks: ['allow'] } }),
  }));
  return newTemplates({ backends, settings: { backend: configured, network: 'allow' } } as unknown as Deps, { want: () => {} });
}

test('a sandbox that names no backend runs on QEMU with KVM, else on gVisor, else on QEMU under emulation, and never on Docker', async () => {
  const chosen = async (machine: Machine) => (await on(machine).backend(op, undefined)).name;
  expect(await chosen({ qemu: vm('kvm'), gvisor: GVISOR, docker: DOCKER })).toBe('qemu');
  expect(await chosen({ qemu: vm('tcg'), gvisor: GVISOR, docker: DOCKER })).toBe('gvisor');
  expect(await chosen({ qemu: vm('tcg'), gvisor: null, docker: DOCKER })).toBe('qemu');
  await expect(on({ qemu: null, gvisor: null, docker: DOCKER }).backend(op, undefined)).rejects.toMatchObject({
    code: 'failed_precondition',
    message: expect.stringMatching(/without being asked for \(qemu: no qemu; gvisor: no gvisor; docker: only when asked for/),
    hint: expect.stringContaining('--backend docker'),
  });
  await expect(on({ qemu: null, gvisor: null, docker: null }).backend(op, undefined)).rejects.toMatchObject({ hint: 'see: hutch doctor' });
});

test('the configuration chooses another backend, and each call what it wants', async () => {
  const machine = { qemu: vm('kvm'), gvisor: GVISOR, docker: DOCKER };
  expect((await on(machine, 'docker').backend(op, undefined)).name).toBe('docker');
  expect((await on(machine, 'docker').backend(op, 'gvisor')).name).toBe('gvisor');
  expect((await on(machine).backend(op, 'docker')).name).toBe('docker');
  // What is asked for is not exchanged for another one: that says itself why it does not work.
  expect((await on({ ...machine, docker: null }).backend(op, 'docker')).name).toBe('docker');
});
