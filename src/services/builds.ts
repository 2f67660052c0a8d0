// Builds: each has a record and a log in a directory of its own, and goes on when its client has gone. What it makes is an image like
// any other. Always true: a build that is recorded as running has an operation under way; the start of a daemon ends those of
// the one before.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HutchError } from '../domain/errors.ts';
import { newId, type SandboxId } from '../domain/ids.ts';
import { shownReference } from '../domain/image-reference.ts';
import { NO_PACKAGE_SETTINGS } from '../domain/package-settings.ts';
import type { Operation } from '../host/operation.ts';
import { BuildCache } from '../images/build/cache.ts';
import { type Received, receiveContext } from '../images/build/context.ts';
import { parseDockerfile } from '../images/build/dockerfile.ts';
import { neededStages, targetOf } from '../images/build/graph.ts';
import { StageRoot } from '../images/build/layers.ts';
import { receiveSettings } from '../images/build/own.ts';
import { BuildStaging } from '../images/build/staging.ts';
import { expandAt, globalsOf, isKnownArg } from '../images/build/state.ts';
import { buildImage } from '../images/build.ts';
import type { ImageLibrary } from '../images/library.ts';
import { parseConfig, runConfig } from '../images/oci/manifest.ts';
import { PAGE_ROWS_MAX } from '../store/contract.ts';
import { argsOf, labelsOf, requirePlatform, several } from './build-asked.ts';
import { baseImage, type Raw } from './build-base.ts';
import { BEGINNING, Beginnings } from './build-beginning.ts';
import { type BuildCacheKeeping, newBuildCacheKeeping } from './build-cache.ts';
import { asHutchError, isAbort, named, unlessBad } from './build-errors.ts';
import { Lending } from './build-lending.ts';
import { BuildLog } from './build-log.ts';
import { Locks } from './build-mounts.ts';
import { BuildQuota } from './build-quota.ts';
import type { BuildRecord } from './build-record.ts';
import { Beginning, BuildRecords, type Running, viewOfBuild } from './build-records.ts';
import { BUILD_LABEL, removeBuildSandbox } from './build-sandbox.ts';
import { StageBuilder } from './build-stage.ts';
import type { Built, StageParts } from './build-stage-parts.ts';
import { BuildTurns } from './build-turns.ts';
import type { Call, Caller } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { taggable } from './images.ts';
import { waitFor } from './operations.ts';
import { requireOwnNames } from './operator.ts';
import type { Output, Parsed } from './verbs.ts';

type BuildVerbs = Extract<keyof Handlers, `build.${string}`>;

const BUILDS_AT_ONCE = 4;
const RELEASE_MS = 60_000;

/** What is built, and what is done with the image then. */
export type BuildAsked = {
  readonly input: Parsed<'build.start'>;
  /** The context, with its Dockerfile; null: there is nothing to build. */
  readonly source: AsyncIterable<Uint8Array> | null;
  readonly names: readonly string[];
  readonly template: string | null;
  /** Whether quotas of builds count it. */
  readonly counts: boolean;
  /** Beside those of the Dockerfile. */
  readonly stepsMore: number;
  /** How a failure is told. */
  readonly reworded?: (op: Operation, error: HutchError) => HutchError;
  /** When it is over, however it ended. */
  readonly over?: () => void;
  readonly next: ((call: Call, now: Running, image: BuildRecord['image']) => Promise<BuildRecord['snapshot']>) | null;
};

export type Builds = Pick<Handlers, BuildVerbs> & {
  /** As `build.start`; goes on by itself. @throws HutchError for what is refused before anything is built. */
  begin(call: Call, asked: BuildAsked): Promise<BuildRecord>;
  readonly records: BuildRecords;
  /** At the start of a daemon: what the last one was building has failed, and its sandboxes go. */
  reconcile(op: Operation): Promise<void>;
  readonly kept: BuildCacheKeeping;
};

export function newBuilds(core: Core, handlers: Pick<Handlers, 'sandbox.create' | 'sandbox.delete'>): Builds {
  const { deps } = core;
  const { host, store } = deps;
  const root = join(deps.places.dataDir, 'builds');
  const records = new BuildRecords(host, root);
  const { running } = records;
  const locks = new Locks();
  const quota = new BuildQuota(core);
  const turns = new BuildTurns(BUILDS_AT_ONCE);
  const configs = new Map<string, Raw>();

  function library(op: Operation): ImageLibrary {
    if (deps.images !== null) return deps.images;
    throw op.error('failed_precondition', 'this daemon keeps no images');
  }

  let cache: BuildCache | null = null;
  const cacheOf = (op: Operation): BuildCache => {
    cache ??= new BuildCache(host, join(root, 'cache'), library(op).blobs);
    return cache;
  };

  async function start(call: Call, input: Parsed<'build.start'>, source: AsyncIterable<Uint8Array>): Promise<Output<'build.start'>> {
    const tags = several(input.tag).map((tag) => shownReference(taggable(tag)));
    await requireOwnNames(store, call, tags);
    const over = Promise.withResolvers<void>();
    const { record, recorded, lending } = await accepted(call, {
      ...{ input, source, names: tags, template: null, counts: true, stepsMore: 0, next: null },
      over: over.resolve,
    });
    if (input.waitMs !== undefined) await overWithin(call, record, Promise.race([over.promise, lending.wanted]), input.waitMs);
    if (running.has(record.id)) await recorded();
    const now = (await records.read(call.op, record.id)) ?? record;
    const log = input.log === true && now.state !== 'running' ? await records.shortLog(call.op, record.id) : null;
    return { ...viewOfBuild(now), ...(log === null ? {} : { log: [...log] }) };
  }

  /** Who goes meanwhile has not been told what to cancel: that is done for them. */
  async function overWithin({ op }: Call, { id }: BuildRecord, over: Promise<void>, waitMs: number): Promise<void> {
    const timer = new AbortController();
    try {
      await waitFor(op, Promise.race([over, sleep(waitMs, undefined, { signal: timer.signal }).catch(() => {})]), 'the end of the build');
    } catch (error) {
      const now = running.get(id);
      using late = op.releasing(RELEASE_MS);
      if (now !== undefined) await core.operations.cancel(late, now.opId, 'whoever asked for it');
      throw error;
    } finally {
      timer.abort();
    }
  }

  async function begin(call: Call, asked: BuildAsked): Promise<BuildRecord> {
    const { record, recorded } = await accepted(call, asked);
    await recorded();
    return record;
  }

  /** `recorded`: nobody hears of the build, and nothing is made, before that is done. What comes out of the cache is over by then. */
  async function accepted(
    call: Call,
    asked: BuildAsked,
  ): Promise<{ readonly record: BuildRecord; readonly recorded: () => Promise<void>; readonly lending: Lending }> {
    const { op, caller } = call;
    const { input, source } = asked;
    const args = argsOf(op, several(input.arg));
    const labels = labelsOf(op, several(input.label));
    requirePlatform(op, input.platform);
    const id = newId('bld', (count) => host.randomBytes(count));
    call.target(id);
    await using undo = new AsyncDisposableStack();
    if (asked.counts) {
      await quota.begin(op, id, caller.projectId);
      undo.defer(() => quota.neverBegan(op, id));
    }
    const staging = source === null ? null : undo.use(new BuildStaging(host, library(op).blobs, `build-${id}`));
    const work = staging === null || source === null ? null : await receive(op, staging, source, { input, args, labels });
    const record: BuildRecord = {
      ...{ id, projectId: caller.projectId, state: 'running', names: [...asked.names], target: input.target ?? null },
      ...{ backend: input.backend ?? null, step: null, stepsDone: 0, stepsTotal: (work?.plan.steps ?? 0) + asked.stepsMore },
      ...{ error: null, logTail: [], image: null, template: asked.template, snapshot: null },
      ...{ createdAtMs: host.nowMs(), endedAtMs: null, opId: core.operations.ownId() },
    };
    await host.makeDir(op, records.dirOf(id), 0o700);
    const beginning = new Beginning(() => records.write(op, record));
    undo.move();
    const given = deps.settings.packageSettings ? (work?.context.settings ?? NO_PACKAGE_SETTINGS) : NO_PACKAGE_SETTINGS;
    const lending = new Lending(deps.settings.packageSettings && input.settings === 'later' ? null : given);
    const failure = (failing: Operation, error: unknown): HutchError => {
      const told = asHutchError(failing, work?.context ?? null, error);
      return asked.reworded?.(failing, told) ?? told;
    };
    carryOut(
      caller,
      record,
      { staging, beginning, lending, failure, ...(asked.over === undefined ? {} : { over: asked.over }) },
      async (own, now) => {
        const image = work === null ? null : await build(own, now, work, beginning.done);
        if (asked.next === null) return { image, snapshot: null };
        await beginning.done();
        return { image, snapshot: await asked.next(own, now, image) };
      },
    );
    return { record, recorded: beginning.done, lending };
  }

  async function receive(
    op: Operation,
    staging: BuildStaging,
    source: AsyncIterable<Uint8Array>,
    { input, args, labels }: Pick<Work, 'input' | 'args' | 'labels'>,
  ): Promise<Work> {
    const context = await unlessBad(op, 'the context', () => receiveContext(op, staging, source, input.dockerfile ?? null));
    return { staging, context, plan: planOf(op, context, args, input.target ?? null), args, labels, input };
  }

  function planOf(op: Operation, context: Received, args: ReadonlyMap<string, string>, target: string | null) {
    return named(op, context, () => {
      const dockerfile = parseDockerfile(context.dockerfile.text);
      const globals = globalsOf(dockerfile.globals, args, target, dockerfile.escapeChar);
      const last = targetOf(dockerfile, target);
      const name = (text: string, stage: { readonly from: { readonly line: number; readonly name: 'FROM' } }) =>
        expandAt(stage.from, text, (each) => globals.values.get(each) ?? undefined, dockerfile.escapeChar);
      const stages = neededStages(dockerfile, last, name);
      return { dockerfile, globals, last, stages, steps: stages.reduce((sum, { steps }) => sum + steps.length, 0) };
    });
  }

  type Work = {
    readonly staging: BuildStaging;
    readonly context: Received;
    readonly plan: ReturnType<typeof planOf>;
    readonly args: ReadonlyMap<string, string>;
    /** Beside those of the Dockerfile, and before them. */
    readonly labels: Readonly<Record<string, string>>;
    readonly input: Parsed<'build.start'>;
  };

  /** Goes on by itself, in an operation of its own. */
  function carryOut(
    caller: Caller,
    record: BuildRecord,
    of: {
      readonly staging: AsyncDisposable | null;
      /** Its record, as it began. */
      readonly beginning: Beginning;
      readonly lending: Lending;
      readonly failure: (op: Operation, error: unknown) => HutchError;
      readonly over?: () => void;
    },
    make: (call: Call, now: Running) => Promise<Pick<BuildRecord, 'image' | 'snapshot'>>,
  ): void {
    const opId = record.opId ?? core.operations.ownId();
    void core.operations
      .run({ verb: 'daemon.build', caller, reads: false, opId }, async (call) => {
        const { op } = call;
        call.target(record.id);
        const log = new BuildLog(op, host, records.logPath(record.id));
        const now: Running = { log, opId, lending: of.lending, record };
        running.set(record.id, now);
        await using _staging = of.staging;
        try {
          if (turns.areTaken) now.record = { ...now.record, step: 'waiting for builds before it' };
          using _turn = await turns.take(op);
          using _building = core.warm.building();
          using limited = await quota.timed(op, caller.projectId);
          const made = await make(limited === null ? call : { ...call, op: limited }, now).catch((error: unknown) =>
            Promise.reject(limited?.signal.aborted && !op.signal.aborted ? limited.signal.reason : error),
          );
          now.record = { ...now.record, ...made, state: 'done', step: null };
        } catch (error) {
          const failure = of.failure(op, error);
          const isCancelled = call.wasCancelled();
          log.note('build', isCancelled ? 'cancelled' : `failed: ${failure.message}`);
          now.record = {
            ...now.record,
            state: isCancelled ? 'cancelled' : 'failed',
            error: failure.toBody(),
            logTail: [...log.tail].map((line) => line.slice(0, 1_000)),
          };
          throw failure;
        } finally {
          now.record = { ...now.record, endedAtMs: host.nowMs() };
          using late = op.releasing(RELEASE_MS);
          await log.flush();
          await of.beginning.over(); // or the end would be overwritten by the beginning
          // Each is on the disk before it is told; neither needs the other.
          await Promise.all([
            records
              .write(late, now.record)
              .catch((cause: unknown) => op.log.error({ build: record.id, err: cause }, 'the end of a build could not be recorded')),
            quota.ended(late, record.id),
          ]);
          running.delete(record.id);
          of.over?.();
          await log.end();
          await records.forgetOld(late);
        }
      })
      .catch(() => of.over?.()); // it is in its record
  }

  async function build(call: Call, now: Running, work: Work, recorded: () => Promise<void>): Promise<NonNullable<BuildRecord['image']>> {
    const { op, caller } = call;
    const { context, plan, staging, args, labels, input } = work;
    const images = library(op);
    const cache = cacheOf(op);
    const stages = new Map<number, Promise<Built>>();
    const bases = new Map<string, ReturnType<typeof baseImage>>();
    const abort = new AbortController();
    const endings: Promise<void>[] = [];
    const begun = new Map<number, string>();
    const declared = new Set(plan.dockerfile.globals.flatMap(({ args: named }) => named.map(({ key }) => key)));
    const own: Operation = { ...op, signal: AbortSignal.any([op.signal, abort.signal]) };
    const epoch = args.get('SOURCE_DATE_EPOCH');
    const beginnings = new Beginnings(async (asking, layers) => {
      asking.progress({ step: 'build', detail: 'packing what is built already' });
      const stage = {
        root: new StageRoot(host, staging.blobs, layers),
        state: { config: {}, author: null },
        history: layers.map(() => ({ created_by: 'hutch build' })),
        atMs: 0,
      };
      return (await publish(asking, images, stage, [], { epoch: undefined, recorded, called: BEGINNING })).digest;
    });
    const parts: StageParts = {
      sandbox: { core, handlers, caller, buildId: now.record.id, staging },
      ...{ cache, recorded, context, dockerfile: plan.dockerfile, globals: plan.globals, log: now.log },
      request: {
        ...{ args, noCache: input.noCache ?? false },
        shape: { cpus: input.cpus, memoryMiB: input.memoryMiB, diskMiB: input.diskMiB },
        epochSeconds: epoch !== undefined && /^\d{1,12}$/.test(epoch) ? Number(epoch) : null,
      },
      backend: async (asking) => (await core.templates.backend(asking, input.backend)).name,
      stage: (index) => {
        const found = stages.get(index);
        if (found === undefined) throw new Error('a stage waits for one that is not needed');
        return found;
      },
      base: (asking, name) => {
        const isAnew = input.pull === true;
        const found = bases.get(name) ?? baseImage(asking, { boots: deps.boots, library: images, staging, cache, configs, isAnew }, name);
        bases.set(name, found);
        return found;
      },
      image: async (asking, built) => (await publish(asking, images, built, [], { epoch, recorded })).digest,
      beginning: async (asking, layers) => ((await quota.boundsImages(caller.projectId)) ? null : await beginnings.of(asking, layers)),
      lent: (asking) => now.lending.settings(asking),
      mounts: { cacheDir: join(root, 'mounts'), locks },
      ending: (ending) => {
        ending.catch(() => {}); // it is waited for below
        endings.push(ending);
      },
      ended: () => Promise.allSettled(endings),
      stepBegun: (stage, step) => {
        begun.set(stage, step);
        if (!abort.signal.aborted) now.record = { ...now.record, step };
      },
      declared: (name) => declared.add(name),
      stepDone: () => {
        now.record = { ...now.record, stepsDone: now.record.stepsDone + 1 };
      },
    };
    // Each stage begins at once and waits for those that it needs: what is independent is built side by side.
    for (const stage of plan.stages) {
      const building = new StageBuilder(parts, stage).build(own);
      building.catch(() => {
        // The others would be for nothing, and the step that is told of is the one that failed.
        if (!abort.signal.aborted) now.record = { ...now.record, step: begun.get(stage.index) ?? null };
        abort.abort();
      });
      stages.set(stage.index, building);
    }
    try {
      const settled = await Promise.allSettled(stages.values());
      const failed = settled.filter((each) => each.status === 'rejected').map(({ reason }) => reason as unknown);
      if (failed.length > 0)
        throw failed.find((reason) => !(reason instanceof HutchError && reason.code === 'cancelled') && !isAbort(reason)) ?? failed[0];
      const built = await parts.stage(plan.last.index);
      const unused = [...args.keys()].filter((name) => !declared.has(name) && !isKnownArg(name)).toSorted();
      if (unused.length > 0) now.log.note('build', `[Warning] One or more build-args [${unused.join(' ')}] were not consumed`);
      now.record = { ...now.record, step: 'packing the image' };
      op.progress({ step: 'build', detail: 'packing the image' });
      const { digest, id, sizeBytes } = await publish(op, images, labelled(built, labels), now.record.names, { epoch, recorded });
      now.log.note('build', `image ${digest}${now.record.names.length === 0 ? '' : `, named ${now.record.names.join(', ')}`}`);
      return { id, digest, sizeBytes };
    } finally {
      await Promise.all(endings);
    }
  }

  /** The image of a stage: made where it is not there, recorded, and named. */
  async function publish(
    op: Operation,
    images: ImageLibrary,
    built: Pick<Built, 'root' | 'history' | 'atMs'> & { readonly state: Pick<Built['state'], 'config' | 'author'> },
    names: readonly string[],
    {
      epoch,
      recorded,
      called = names[0] ?? null,
    }: { readonly epoch: string | undefined; readonly recorded: () => Promise<void>; readonly called?: string | null },
  ) {
    const layers = built.root.layers;
    const configBytes = Buffer.from(
      JSON.stringify({
        ...(built.atMs === 0 && epoch === undefined
          ? {}
          : { created: new Date(epoch === undefined ? built.atMs : Number(epoch) * 1_000).toISOString() }),
        ...(built.state.author === null ? {} : { author: built.state.author }),
        ...{ architecture: 'amd64', os: 'linux', config: built.state.config },
        rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
        history: built.history,
      }),
    );
    const digest = `sha256:${createHash('sha256').update(configBytes).digest('hex')}`;
    using _held = images.blobs.hold(layers.map((layer) => layer.digest));
    const there = await images.open(op, digest);
    if (there === null) await recorded();
    const what = names[0] ?? digest.slice(0, 19);
    await using aside = host.aside();
    const image =
      there ??
      (await buildImage(op, host, images.paths, images.blobs, {
        ...{ what, name: called, digest, configBytes, createdAtMs: host.nowMs(), manifest: null },
        config: runConfig(op, parseConfig(op, configBytes, what), what),
        aside,
        layers: layers.map((layer) => ({ ...layer, file: Promise.resolve(images.blobs.path(layer.digest)) })),
      }));
    const { record } = image;
    await store.commit(op, [
      { change: 'putImage', image: { ...record, name: null } },
      ...names.map((name) => ({ change: 'nameImage', id: record.id, name, atMs: host.nowMs() }) as const),
    ]);
    core.presenter.forgetImages();
    return { id: record.id, digest, sizeBytes: record.sizeBytes };
  }

  return {
    begin,
    records,
    'build.start': start,
    'build.settings': async (call, { build: text }, source) => {
      const { id } = await records.find(call, text);
      call.target(id);
      const settings = await unlessBad(call.op, 'what is sent', () => receiveSettings(source));
      running.get(id)?.lending.give(settings); // what is over needs none
      return viewOfBuild(await records.find(call, id));
    },
    'build.list': async ({ op, caller }) => ({
      builds: (await records.all(op)).filter(({ projectId }) => projectId === caller.projectId).map(viewOfBuild),
    }),
    'build.get': async (call, { build: text }) => viewOfBuild(await records.find(call, text)),
    'build.logs': async (call, { build: text, after, follow }) => {
      const { id } = await records.find(call, text);
      return records.lines(call.op, id, after ?? 0, follow ?? false);
    },
    'build.cancel': async (call, { build: text }) => {
      const { id } = await records.find(call, text);
      call.target(id);
      const now = running.get(id);
      if (now !== undefined) await core.operations.cancel(call.op, now.opId, 'whoever asked for it');
      return viewOfBuild((await records.read(call.op, id)) ?? (await records.find(call, text)));
    },
    'build.delete': async (call, { build: text }) => {
      const record = await records.find(call, text);
      call.target(record.id);
      const now = running.get(record.id);
      if (now !== undefined) await core.operations.cancel(call.op, now.opId, 'its removal');
      await records.remove(call.op, record.id);
      return { id: record.id };
    },
    async reconcile(op) {
      await quota.endAll(op);
      await records.forgetUnwritten(op);
      for (const record of await records.all(op)) {
        if (record.state !== 'running' || running.has(record.id)) continue;
        const error = op
          .error('unavailable', 'the daemon ended while this was being built', { hint: 'build it again: what was done is cached' })
          .toBody();
        await records.write(op, { ...record, state: 'failed', error, endedAtMs: host.nowMs() });
      }
      for (let cursor: string | null = null; ; ) {
        const page: Awaited<ReturnType<typeof store.query<'sandboxes'>>> = await store.query('sandboxes', { limit: PAGE_ROWS_MAX, cursor });
        for (const sandbox of page.sandboxes) {
          if (sandbox.spec.labels[BUILD_LABEL] === undefined) continue;
          const caller: Caller = { actor: 'daemon', keyId: null, projectId: sandbox.projectId };
          await removeBuildSandbox({ core, handlers, caller }, op, sandbox.id as SandboxId);
        }
        if (page.nextCursor === null) return;
        cursor = page.nextCursor;
      }
    },
    kept: newBuildCacheKeeping(core, {
      ...{ cache: cacheOf, library, mountsDir: join(root, 'mounts'), isBuilding: () => running.size > 0 },
    }),
  };
}

function labelled(built: Built, labels: Readonly<Record<string, string>>): Built {
  if (Object.keys(labels).length === 0) return built;
  const { config } = built.state;
  return { ...built, state: { ...built.state, config: { ...config, Labels: { ...config.Labels, ...labels } } } };
}
