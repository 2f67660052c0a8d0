// Quotas as an operator sees and sets them. They are enforced where sandboxes and images are recorded, in the store.
import type { ProjectId } from '../domain/ids.ts';
import { type Bounds, type ProjectQuota, QUOTA_NAMES } from '../domain/quota.ts';
import { requireReference } from '../domain/reference.ts';
import type { Core } from './core.ts';
import type { Deps } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { isOperator, requireOperator } from './operator.ts';

/** Who has bounds may not set them. */
const SET = 'quotas are set';

/** What holds for a project, as every creation asks: kept until somebody changes a quota or a tier, which only this daemon does. */
export class QuotaBounds {
  readonly #store: Deps['store'];
  #known = new Map<ProjectId, Promise<ProjectQuota['bounds']>>();

  constructor(store: Deps['store']) {
    this.#store = store;
  }

  async of(projectId: ProjectId): Promise<ProjectQuota['bounds']> {
    const known = this.#known;
    const bounds = known.get(projectId) ?? this.#store.query('quotaBounds', { projectId });
    known.set(projectId, bounds);
    bounds.catch(() => known.delete(projectId));
    return await bounds;
  }

  forget(): void {
    this.#known = new Map();
  }
}

type QuotaVerbs = Extract<keyof Handlers, `quota.${string}`>;

export function quotaVerbs(core: Core): Pick<Handlers, QuotaVerbs> {
  const { store, host } = core.deps;

  async function find(text: string) {
    const quotas = await store.query('quotas', { atMs: host.nowMs() });
    const candidates = quotas.map((quota) => ({ id: quota.projectId, name: quota.project, quota }));
    return requireReference('project', text, candidates).quota;
  }

  const shown = (quota: Awaited<ReturnType<typeof find>>) => ({
    ...quota,
    own: { ...quota.own },
    bounds: { ...quota.bounds },
    use: { ...quota.use },
  });

  return {
    'quota.list': async (call) => {
      const quotas = await store.query('quotas', { atMs: host.nowMs() });
      const ofAll = isOperator(store, call);
      return { projects: quotas.filter(({ projectId }) => ofAll || projectId === call.caller.projectId).map(shown) };
    },
    'quota.set': async (call, { project, tier, bounds }) => {
      requireOperator(store, call, SET);
      const before = await find(project);
      call.target(before.projectId);
      const own = merged(before.own, bounds);
      await call.commit([{ change: 'setQuota', projectId: before.projectId, tier: tier === undefined ? before.tier : tier, own }]);
      core.quotaBounds.forget();
      return shown(await find(before.projectId));
    },
    'quota.tiers': async () => ({ tiers: (await store.query('tiers', {})).map(({ name, bounds }) => ({ name, bounds: { ...bounds } })) }),
    'quota.setTier': async (call, { tier, bounds }) => {
      requireOperator(store, call, SET);
      const before = (await store.query('tiers', {})).find(({ name }) => name === tier);
      const now = merged(before?.bounds ?? {}, bounds);
      await call.commit([{ change: 'setTier', name: tier, bounds: now }]);
      core.quotaBounds.forget();
      return { name: tier, bounds: { ...now } };
    },
    'quota.removeTier': async (call, { tier }) => {
      requireOperator(store, call, SET);
      await call.commit([{ change: 'removeTier', name: tier }]);
      return { name: tier };
    },
  };
}

/** What is said now comes before what was; `inherit` takes back what was said. */
function merged(before: Bounds, now: Readonly<Record<string, number | null | 'inherit' | undefined>>): Bounds {
  const bounds: Record<string, number | null> = {};
  for (const name of QUOTA_NAMES) {
    const said = now[name] === undefined ? before[name] : now[name];
    if (said !== undefined && said !== 'inherit') bounds[name] = said;
  }
  return bounds;
}
