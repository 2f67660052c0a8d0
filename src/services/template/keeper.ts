// What keeps templates fit to be started from: each is looked at when it is used, and when a daemon starts; one that was made with
// another kernel, agent, emulator or processor is built anew behind everybody's back. Snapshots that no tag is on any more go when
// nothing stands on them.
import type { Forced } from '../../backends/snapshots.ts';
import { HutchError } from '../../domain/errors.ts';
import type { TemplateId } from '../../domain/ids.ts';
import type { SandboxSpec } from '../../domain/sandbox.ts';
import type { Snapshot } from '../../domain/snapshot.ts';
import type { Template } from '../../domain/template.ts';
import type { Operation } from '../../host/operation.ts';
import type { BuildRecords } from '../build-records.ts';
import type { Call } from '../call.ts';
import type { Core } from '../core.ts';
import { backendOf } from '../deps.ts';
import { kindOf } from '../from-snapshot.ts';
import { kernelFor } from '../kernels.ts';
import { waitFor } from '../operations.ts';
import { removeSnapshots, snapshotDir, snapshotsOf } from '../snapshots.ts';
import { ownCaller } from '../supervisor.ts';
import type { Kind } from '../warm-member.ts';
import type { Recipe, TemplateBuilder } from './build.ts';

/** How often one that is used is looked at. */
const LOOK_EVERY_MS = 10_000;
/** One that could not be built anew is tried again after this, twice as long each time. */
const RETRY_FIRST_MS = 60_000;
const RETRY_MAX_MS = 60 * 60_000;

type Known = {
  lookedAtMs: number;
  why: string | null;
  failures: number;
  retryAtMs: number;
  rebuilding: Promise<void> | null;
  trouble: string | null;
};

export class TemplateKeeper {
  readonly #core: Core;
  readonly #builder: TemplateBuilder;
  readonly #records: BuildRecords;
  readonly #known = new Map<TemplateId, Known>();

  constructor(core: Core, builder: TemplateBuilder, records: BuildRecords) {
    this.#core = core;
    this.#builder = builder;
    this.#records = records;
  }

  /** Why it is not what would be made now; null: it is, as far as is known. */
  why(id: TemplateId): string | null {
    const known = this.#known.get(id);
    return known?.trouble ?? known?.why ?? null;
  }

  isOutdated(id: TemplateId): boolean {
    return (this.#known.get(id)?.why ?? null) !== null;
  }

  /**
   * How a sandbox like that begins with it: `false` where all is the same, `brought` where its memory goes on although kernel or
   * agent are others by now. One that cannot go on is built anew first.
   * @throws HutchError `failed_precondition` when that fails.
   */
  async usable(
    op: Operation,
    template: Template,
    snapshot: Snapshot,
    spec: SandboxSpec,
  ): Promise<{ readonly template: Template; readonly forced: Forced }> {
    const why = await this.#difference(op, snapshot, spec, false);
    if (why === null) {
      void this.look(template);
      return { template, forced: false };
    }
    const serves = (await this.#difference(op, snapshot, spec, 'brought')) === null;
    const rebuilt = this.#rebuild(template, why, serves ? 'when-due' : 'now');
    if (serves) return { template, forced: 'brought' };
    op.progress({ step: 'template', detail: `${template.name} is built anew: ${why}` });
    await waitFor(op, rebuilt, 'the template that is built anew');
    const now = await this.#core.deps.store.query('template', { id: template.id });
    if (now !== null && now.snapshotId !== template.snapshotId) return { template: now, forced: false };
    throw op.error(
      'failed_precondition',
      `template ${template.name} cannot go on here, and could not be built anew: ${this.why(template.id) ?? why}`,
      {
        hint: `build it again: hutch template build; what the last build said: hutch template inspect ${template.name}`,
      },
    );
  }

  /** What a sandbox of it starts from now; null: there is none, or it is to be built anew first. */
  async kindOf(op: Operation, id: TemplateId): Promise<Kind | null> {
    const { deps } = this.#core;
    const template = await deps.store.query('template', { id });
    const snapshot = template === null ? null : await deps.store.query('snapshot', { id: template.snapshotId });
    if (template === null || snapshot === null) return null;
    const { spec } = snapshot;
    const forced = (await this.#difference(op, snapshot, spec, false)) === null ? false : 'brought';
    if (forced !== false && (await this.#difference(op, snapshot, spec, forced)) !== null) return null;
    const boot = await deps.boots.of(op, spec, backendOf(deps, op, spec.backend).needs);
    return kindOf(this.#core, op, id, snapshot, boot, snapshotDir(this.#core, snapshot.id), forced);
  }

  /** In the background. Never rejects. */
  async look(template: Template): Promise<void> {
    const known = this.#of(template.id);
    const nowMs = performance.now();
    if (nowMs - known.lookedAtMs < LOOK_EVERY_MS) return;
    known.lookedAtMs = nowMs;
    try {
      const why = await this.#core.operations.run({ verb: 'daemon.template', caller: ownCaller(this.#core), reads: true }, ({ op }) =>
        this.#outdated(op, template),
      );
      known.why = why;
      if (why !== null) void this.#rebuild(template, why, 'when-due');
    } catch (cause) {
      this.#core.deps.log.warn({ template: template.name, err: cause }, 'whether a template is what would be made now cannot be told');
    }
  }

  async lookAtAll(): Promise<void> {
    for (const template of await this.#core.deps.store.query('templates', {})) await this.look(template);
  }

  /** The tag has moved: what it was on before goes, unless something stands on it. */
  async built(call: Call, template: Template, before: Template | null): Promise<void> {
    this.#known.delete(template.id);
    await this.#core.warm.renew(template.id);
    if (before !== null) await this.sweep(call);
  }

  forget(id: TemplateId): void {
    this.#known.delete(id);
  }

  /** Snapshots that no template is on, and nothing stands on. */
  async sweep(call: Call): Promise<void> {
    const { store } = this.#core.deps;
    const tagged = new Set((await store.query('templates', {})).map(({ snapshotId }) => snapshotId));
    for (const snapshot of await store.query('snapshots', { kind: 'template' })) {
      if (tagged.has(snapshot.id)) continue;
      try {
        await removeSnapshots(this.#core, call, snapshot, false);
      } catch (error) {
        if (!(error instanceof HutchError) || error.code !== 'failed_precondition') throw error;
      }
    }
  }

  #of(id: TemplateId): Known {
    const found = this.#known.get(id) ?? {
      lookedAtMs: Number.NEGATIVE_INFINITY,
      why: null,
      failures: 0,
      retryAtMs: 0,
      rebuilding: null,
      trouble: null,
    };
    this.#known.set(id, found);
    return found;
  }

  /** As it would be made now: with the kernel that a new sandbox would boot. */
  async #outdated(op: Operation, template: Template): Promise<string | null> {
    const { deps } = this.#core;
    const snapshot = await deps.store.query('snapshot', { id: template.snapshotId });
    if (snapshot === null) return null; // another one has it by now
    const { spec } = snapshot;
    const backend = backendOf(deps, op, spec.backend);
    const kernel = await kernelFor(this.#core, op, backend, (template.recipe as Recipe).kernel);
    const { files } = await deps.boots.prepare(op, template.imageId, backend, kernel);
    return await this.#differs(op, snapshot, { ...spec, boot: files }, false);
  }

  async #difference(op: Operation, snapshot: Snapshot, spec: SandboxSpec, forced: Forced): Promise<string | null> {
    const { deps } = this.#core;
    const { files } = await deps.boots.of(op, spec, backendOf(deps, op, spec.backend).needs);
    return await this.#differs(op, snapshot, { ...spec, boot: files }, forced);
  }

  async #differs(
    op: Operation,
    snapshot: Snapshot,
    plan: Pick<SandboxSpec, 'name' | 'shape' | 'network'> & Parameters<NonNullable<ReturnType<typeof snapshotsOf>['fits']>>[1],
    forced: Forced,
  ): Promise<string | null> {
    try {
      await snapshotsOf(this.#core, op, snapshot).fits?.(op, plan, snapshotDir(this.#core, snapshot.id), { forced });
      return null;
    } catch (error) {
      if (!(error instanceof HutchError) || error.code !== 'failed_precondition') throw error;
      return error.message.replace(/^what was saved cannot go on here: /, '');
    }
  }

  /** One at a time. Never rejects: what came of it is known here. */
  #rebuild(template: Template, why: string, when: 'now' | 'when-due'): Promise<void> {
    const known = this.#of(template.id);
    known.why = why;
    if (known.rebuilding !== null) return known.rebuilding;
    if (when === 'when-due' && this.#core.deps.host.nowMs() < known.retryAtMs) return Promise.resolve();
    known.rebuilding = this.#carryOut(template, why)
      .then(
        () => {
          known.failures = 0;
        },
        (cause: unknown) => {
          known.trouble = cause instanceof Error ? cause.message : String(cause);
          known.retryAtMs = this.#core.deps.host.nowMs() + Math.min(RETRY_FIRST_MS * 2 ** known.failures++, RETRY_MAX_MS);
          this.#core.deps.log.warn(
            { template: template.name, err: cause },
            'a template could not be built anew; the old one goes on serving',
          );
        },
      )
      .finally(() => {
        known.rebuilding = null;
      });
    return known.rebuilding;
  }

  async #carryOut(template: Template, why: string): Promise<void> {
    const caller = { ...ownCaller(this.#core), projectId: template.projectId };
    const ended = await this.#core.operations.run({ verb: 'daemon.template', caller, reads: false }, async (call) => {
      call.target(template.id);
      call.op.log.info({ template: template.name, why }, 'a template is built anew');
      const { record, over } = await this.#builder.begin(call, {
        ...{ name: template.name, recipe: template.recipe as Recipe, of: template, noCache: false },
      });
      await over;
      return (await this.#records.read(call.op, record.id)) ?? record;
    });
    if (ended.state !== 'done') throw new Error(ended.error?.message ?? `its build was ${ended.state}`);
  }
}
