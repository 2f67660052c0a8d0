// Which backend runs a sandbox, what it can do here, and what must be there before a sandbox of a shape
// starts quickly: asked of the backends once, remembered as long as this daemon runs.
import type { Backend, Capabilities, Mounted } from '../backends/backend.ts';
import type { BackendName, NetworkMode, Shape } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { type Boot, backendOf, type Deps } from './deps.ts';
import type { Run } from './run.ts';
import type { TemplatesBehind } from './template-behind.ts';

const NOTHING_MOUNTED: Mounted = { volumes: 0, directories: 0 };

export type Templates = {
  /** The one that is asked for, else the best that works here and is a boundary. @throws HutchError `failed_precondition`. */
  backend(op: Operation, asked: BackendName | undefined): Promise<Backend>;
  /**
   * The network that is asked for, if it works here; the configured one where it does, else none: a
   * machine that can give no network still runs sandboxes. `doctor` says why.
   */
  network(op: Operation, backend: Backend, asked: NetworkMode | undefined): Promise<NetworkMode>;
  /** Refuses a limit that is asked for and would not hold. @throws HutchError `failed_precondition`. */
  checkAsked(op: Operation, backend: Backend, asked: Asked): Promise<void>;
  /** Tells, as progress, which limits that everybody counts on do not hold here. */
  tellUnlimited(op: Operation, backend: Backend): Promise<void>;
  /** What this one can do here; null: it does not work, and says why when it is used. */
  can(op: Operation, backend: Backend): Promise<Capabilities | null>;
  /** Each with what it can do here, in the order of preference; and what runs a sandbox that names none. */
  list(op: Operation): Promise<{ readonly preferred: BackendName | null; readonly probes: readonly (readonly [Backend, Probe])[] }>;
  /** Makes the template of a shape, unless that was done before. */
  ready(op: Operation, backend: Backend, shape: Shape, boot: Boot, mounted?: Mounted): Promise<void>;
  /** One has started that did without it (`Started.unprepared`): it is made behind that; then `whenMade` is called. */
  follow(run: Pick<Run, 'backend' | 'plan'>, boot: Boot, whenMade: () => void): void;
};

export type Asked = { readonly [K in keyof Shape]?: number | undefined };

const LIMITED_BY = { cpus: 'cpu', memoryMiB: 'memory', diskMiB: 'disk', pids: 'processes' } as const satisfies Record<keyof Shape, string>;

type Probe = Awaited<ReturnType<Backend['probe']>>;

/** Shapes that are remembered. One that is forgotten is looked up again. */
const REMEMBERED_MAX = 1_000;

export function newTemplates(deps: Deps, behind: Pick<TemplatesBehind, 'want'>): Templates {
  const { settings, backends } = deps;
  const made = new Set<string>();
  const probes = new Map<Backend, Probe>();

  async function probed(op: Operation, backend: Backend): Promise<Probe> {
    const known = probes.get(backend);
    if (known !== undefined) return known;
    op.progress({ step: 'trying what this machine can do', detail: backend.name }); // takes seconds, once in a daemon's life
    const probe = await backend.probe(op);
    // What does not work may be mended while we run.
    if (probe.ok && probe.can.networks.includes(settings.network)) probes.set(backend, probe);
    return probe;
  }

  function remember(key: string): void {
    if (made.size >= REMEMBERED_MAX) made.clear();
    made.add(key);
  }

  return {
    async backend(op, asked) {
      const wanted = asked ?? (settings.backend === 'auto' ? undefined : settings.backend);
      if (wanted !== undefined) return backendOf(deps, op, wanted);
      const [only] = backends;
      if (only !== undefined && backends.length === 1) return only; // its own error says more than a probe
      const reasons: string[] = [];
      /** Works, and runs only what it is asked to run: what is no boundary. */
      let asking: Backend | null = null;
      /** Works, but slowly: taken when nothing better does. */
      let slow: Backend | null = null;
      for (const backend of backends) {
        const probe = await probed(op, backend);
        if (!probe.ok) reasons.push(`${backend.name}: ${probe.why}`);
        else if (!probe.can.securityBoundary) {
          asking ??= backend;
          reasons.push(`${backend.name}: only when asked for, as it is no security boundary`);
        } else if (probe.can.acceleration !== 'tcg') return backend;
        else slow ??= backend;
      }
      if (slow !== null) return slow;
      const how = asking === null ? '' : ' without being asked for';
      throw op.error('failed_precondition', `no backend works on this machine${how} (${reasons.join('; ')})`, {
        hint: asking === null ? 'see: hutch doctor' : `ask for it: --backend ${asking.name}, or sandbox.backend in the configuration`,
      });
    },

    async network(op, backend, asked) {
      const wanted = asked ?? settings.network;
      if (wanted === 'none') return wanted;
      const probe = await probed(op, backend);
      if (!probe.ok || probe.can.networks.includes(wanted)) return wanted; // a backend that does not work says so itself
      if (asked === undefined) {
        op.progress({ step: 'network', detail: probe.can.notes.find((note) => note.startsWith('no network')) ?? 'no network works here' });
        return 'none';
      }
      throw op.error('failed_precondition', `the network ${wanted} does not work on this machine`, {
        hint: 'see why: hutch doctor; without any network: --no-net',
      });
    },

    async checkAsked(op, backend, asked) {
      const keys = (Object.keys(LIMITED_BY) as (keyof Shape)[]).filter((key) => asked[key] !== undefined);
      if (keys.length === 0) return;
      const probe = await probed(op, backend);
      if (!probe.ok) return; // it says so itself
      for (const key of keys) {
        if (probe.can.limits[LIMITED_BY[key]] !== 'no') continue;
        throw op.error('failed_precondition', `${key} cannot be limited by the backend ${backend.name} on this machine`, {
          hint: `leave it out, or take a backend whose limit ${LIMITED_BY[key]} is enforced: hutch backends`,
        });
      }
    },

    async tellUnlimited(op, backend) {
      const probe = await probed(op, backend);
      if (!probe.ok) return;
      const { limits } = probe.can;
      if (limits.cpu !== 'no' && limits.memory !== 'no') return;
      const missing = (Object.keys(limits) as (keyof typeof limits)[]).filter((limit) => limits[limit] === 'no');
      op.progress({
        step: 'limits',
        detail: `not limited by ${backend.name} on this machine: ${missing.join(', ')} (why: hutch backends)`,
      });
    },

    async can(op, backend) {
      const probe = await probed(op, backend);
      return probe.ok ? probe.can : null;
    },

    async list(op) {
      const probes = await Promise.all(backends.map(async (backend) => [backend, await probed(op, backend)] as const));
      const preferred = await this.backend(op, undefined).then(
        ({ name }) => name,
        () => null,
      );
      return { preferred, probes };
    },

    async ready(op, backend, shape, boot, mounted = NOTHING_MOUNTED) {
      const key = keyOf(backend, shape, boot, mounted);
      if (made.has(key)) return;
      await backend.prepare(op, { shape, boot: boot.files, mounted });
      remember(key);
    },

    follow({ backend, plan: { shape, volumes = [], mounts = [] } }, boot, whenMade) {
      const mounted = { volumes: volumes.length, directories: mounts.length };
      const key = keyOf(backend, shape, boot, mounted);
      behind.want(key, { backend, shape, boot, mounted }, () => {
        remember(key);
        whenMade();
      });
    },
  };
}

function keyOf({ name }: Backend, { cpus, memoryMiB }: Shape, { files }: Boot, { volumes, directories }: Mounted): string {
  return JSON.stringify([name, cpus, memoryMiB, files, volumes, directories > 0]);
}
