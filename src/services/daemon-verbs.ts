// What the daemon says about itself and about the machine.
import type { Core } from './core.ts';
import { checkMachine, chosen } from './doctor.ts';
import type { Handlers } from './handlers.ts';
import { findLeaks } from './leaks.ts';

export function daemonVerbs(
  core: Core,
  startedAtMs: number,
): Pick<Handlers, 'config.get' | 'backends.list' | 'doctor.check' | 'doctor.leaks' | 'daemon.version' | 'daemon.stop'> {
  const { deps } = core;
  return {
    'config.get': async () => ({ values: deps.settings.values.map((value) => ({ ...value })) }),

    'backends.list': async ({ op }) => {
      const { preferred, probes } = await core.templates.list(op);
      const backends = probes.map(([{ name }, probe]) => {
        if (!probe.ok) return { name, can: null, why: probe.why, fix: probe.hint };
        const { limits, networks, notes, ...can } = probe.can;
        return { name, can: { ...can, limits: { ...limits }, networks: [...networks], notes: [...notes] }, why: null, fix: null };
      });
      return { default: preferred, backends };
    },

    'doctor.check': async ({ op }) => {
      const [machine, { preferred, probes }] = await Promise.all([checkMachine(deps, op), core.templates.list(op)]);
      const works = probes.filter(([, { ok }]) => ok).map(([{ name }]) => name);
      const checks = [...machine, chosen(preferred, works), core.warm.check()];
      return { ok: checks.every((check) => check.status !== 'missing'), checks };
    },

    'doctor.leaks': async ({ op }) => ({ leaks: await findLeaks(core, op) }),

    'daemon.version': async ({ op }) => ({
      version: deps.versions.daemon,
      apiVersion: 'v1',
      pid: process.pid,
      startedAtMs,
      schemaVersion: deps.store.schemaVersion,
      agentDigest: deps.versions.agentDigest,
      qemuVersion: await deps.versions.qemu(op),
    }),

    'daemon.stop': async () => {
      deps.stopDaemon();
      return {};
    },
  };
}
