// What the daemon says about itself and about the machine.
import { isId, type SandboxId } from '../domain/ids.ts';
import type { Core } from './core.ts';
import { checkMachine } from './doctor.ts';
import type { Handlers } from './handlers.ts';

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
      const checks = [...(await checkMachine(deps, op)), core.warm.check()];
      return { ok: checks.every((check) => check.status !== 'missing'), checks };
    },

    'doctor.leaks': async ({ op }) => {
      const { store, host, places, backends, leftovers } = deps;
      const known = new Set<SandboxId>(await store.query('liveSandboxIds', {}));
      // What is being made now has no row yet.
      for (const { sandboxId } of await store.query('intents', {})) if (sandboxId !== null) known.add(sandboxId);
      const leaks = (await Promise.all(backends.map((backend) => backend.leaks(op, known)))).flat().map((leak) => ({ ...leak }));
      for (const dir of [places.dataDir, places.runDir, places.logDir].map((root) => `${root}/sandboxes`)) {
        if ((await host.stat(op, dir)) === null) continue;
        for (const name of await host.list(op, dir))
          if (!isId('sbx', name) || !known.has(name)) leaks.push({ kind: 'directory', what: `${dir}/${name}` });
      }
      for (const { sandboxId, uid } of await store.query('uids', {}))
        if (!known.has(sandboxId)) leaks.push({ kind: 'uid', what: `${uid} (${sandboxId})` });
      leaks.push(...(await leftovers(op)).map((leak) => ({ ...leak })));
      const seen = new Set<string>();
      return { leaks: leaks.filter(({ kind, what }) => !seen.has(`${kind} ${what}`) && seen.add(`${kind} ${what}`) !== undefined) };
    },

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
