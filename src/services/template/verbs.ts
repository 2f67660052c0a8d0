// What can be asked about templates.
import type { Template } from '../../domain/template.ts';
import { viewOfBuild } from '../build-records.ts';
import type { Builds } from '../builds.ts';
import type { Call } from '../call.ts';
import type { Core } from '../core.ts';
import { backendOf } from '../deps.ts';
import type { Handlers } from '../handlers.ts';
import { waitFor } from '../operations.ts';
import { snapshotDir } from '../snapshots.ts';
import type { Output, Parsed } from '../verbs.ts';
import { type Recipe, TemplateBuilder } from './build.ts';
import { findTemplate } from './find.ts';
import { TemplateKeeper } from './keeper.ts';

type Verbs = Extract<keyof Handlers, `template.${string}`>;
type View = Output<'template.set'>;

const REMOVE_MS = 10 * 60_000;

export type UserTemplates = Pick<Handlers, Verbs> & { readonly keeper: TemplateKeeper };

export function templateVerbs(core: Core, handlers: Pick<Handlers, 'sandbox.create' | 'sandbox.delete'>, builds: Builds): UserTemplates {
  const { store, host } = core.deps;
  const builder: TemplateBuilder = new TemplateBuilder({ core, handlers, builds }, (call, template, before) =>
    keeper.built(call, template, before),
  );
  const keeper: TemplateKeeper = new TemplateKeeper(core, builder, builds.records);

  async function viewOf(template: Template): Promise<View> {
    const { id, projectId, name, digest, snapshotId, imageId, buildId, warm, createdAtMs, builtAtMs } = template;
    const snapshot = await store.query('snapshot', { id: snapshotId });
    if (snapshot === null) throw new Error('a template is on a snapshot that is not there');
    const users = (await store.query('snapshotUsers', {})).filter((user) => user.id === snapshotId);
    const { kernelId, backend, shape, network } = snapshot.spec;
    const building = builder.building(projectId, name);
    return {
      ...{ id, projectId, name, digest },
      state: building !== null ? 'building' : keeper.isOutdated(id) ? 'outdated' : 'ready',
      why: keeper.why(id),
      ...{ snapshotId, imageId, kernelId, backend, shape, network, buildId, building: building === '' ? null : building },
      warm: { ...warm, ...core.warm.stateOf(id) },
      ...{ ownBytes: snapshot.ownBytes, apparentBytes: snapshot.apparentBytes, usedBy: users.map(({ sandbox }) => sandbox) },
      ...{ createdAtMs, builtAtMs },
    };
  }

  return {
    keeper,
    'template.build': async (call, { name, noCache = false, image = core.deps.settings.image, ...rest }) =>
      viewOfBuild((await builder.begin(call, { name, recipe: { ...rest, image }, of: null, noCache })).record),
    'template.list': async ({ caller }) => {
      const templates = [];
      for (const template of await store.query('templates', { projectId: caller.projectId })) templates.push(await viewOf(template));
      return { templates };
    },
    'template.get': async ({ caller }, { template: text }) => {
      const template = await findTemplate(core, caller.projectId, text);
      const snapshot = await store.query('snapshot', { id: template.snapshotId });
      return { ...(await viewOf(template)), recipe: template.recipe as Recipe, machine: { ...snapshot?.detail } };
    },
    'template.set': async (call, { template: text, warm }) => {
      const { op } = call;
      const { id, name, snapshotId } = await findTemplate(core, call.caller.projectId, text);
      call.target(id);
      const made = await store.query('snapshot', { id: snapshotId });
      const backend = made === null ? null : backendOf(core.deps, op, made.spec.backend);
      if (warm.max > 0 && backend?.ahead === undefined)
        throw op.error('failed_precondition', `the backend ${backend?.name} keeps no sandboxes of a template ready: none of ${name}`, {
          hint: 'take the backend qemu for it; what starts from a template is quick without as well',
        });
      const [template] = await call.commit([{ change: 'warmTemplate', id, warm, atMs: host.nowMs() }]);
      await core.warm.keep(id, warm);
      return await viewOf(template);
    },
    'template.remove': async (call, { template: text, force }) => await remove(call, { template: text, force }),
  };

  async function remove(call: Call, { template: text, force }: Parsed<'template.remove'>): Promise<Output<'template.remove'>> {
    const { op, caller } = call;
    const { id, name, projectId, snapshotId } = await findTemplate(core, caller.projectId, text);
    call.target(id);
    const building = builder.building(projectId, name);
    if (building !== null && building !== '')
      throw op.error('conflict', `template ${name} is being built (${building})`, {
        hint: `end that first: hutch image build-cancel ${building}`,
      });
    let taken = core.snapshotFiles.take(snapshotId);
    if (taken === null) {
      // Maybe one that nobody has asked for: it goes with the template.
      await waitFor(op, core.warm.underWay(id), 'a sandbox that is being made ready');
      taken = core.snapshotFiles.take(snapshotId);
    }
    using held = taken;
    if (held === null)
      throw op.error('failed_precondition', `a sandbox is being made from template ${name} at this moment`, { hint: 'try again' });
    const [{ removed }] = await call.commit([{ change: 'removeTemplate', id, force: force ?? false, atMs: host.nowMs() }]);
    keeper.forget(id);
    await core.warm.forget(id);
    using late = op.releasing(REMOVE_MS);
    for (const snapshot of removed) await host.remove(late, snapshotDir(core, snapshot.id));
    return { id, name, ownBytes: removed.reduce((sum, { ownBytes }) => sum + ownBytes, 0) };
  }
}
