// Builds: each has a record and a log in a directory of its own, and goes on when its client has gone. What it makes is an image like
// any other. Always true: a build that is recorded as running has an operation under way; the start of a daemon ends those of
// the one before.
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import { type BuildId, isId, newId, type SandboxId } from '../domain/ids.ts';
import { shownReference } from '../domain/image-reference.ts';
import { NO_PACKAGE_SETTINGS } from '../domain/package-settings.ts';
import type { Operation } from '../host/operation.ts';
import { ArchiveError } from '../images/archive-error.ts';
import { BuildCache } from '../images/build/cache.ts';
import { type Received, receiveContext } from '../images/build/context.ts';
import { parseDockerfile } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import { neededStages, targetOf } from '../images/build/graph.ts';
import type { BuildStaging } from '../images/build/staging.ts';
import { expandAt, globalsOf } from '../images/build/state.ts';
import { buildImage } from '../images/build.ts';
import { listOr, SHARED_DIR_MODE } from '../images/layout.ts';
import type { ImageLibrary } from '../images/library.ts';
import { parseConfig, runConfig } from '../images/oci/manifest.ts';
import { PAGE_ROWS_MAX } from '../store/contract.ts';
import { baseImage } from './build-base.ts';
import { BuildLog, type LogLine } from './build-log.ts';
import { Locks } from './build-mounts.ts';
import { BuildQuota } from './build-quota.ts';
import { type BuildRecord, buildRecord } from './build-record.ts';
import { BUILD_LABEL, removeBuildSandbox } from './build-sandbox.ts';
import { StageBuilder } from './build-stage.ts';
import type { Built, StageParts } from './build-stage-parts.ts';
import type { Call, Caller } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { taggable } from './images.ts';
import { waitFor } from './operations.ts';
import type { Output, Parsed } from './verbs.ts';

type BuildVerbs = Extract<keyof Handlers, `build.${string}`>;
type BuildView = Output<'build.get'>;

const BUILDS_AT_ONCE = 4;
const RECORD_BYTES_MAX = 256 * 1024;
const LOG_BYTES_MAX = 64 * 1024 * 1024;
const RELEASE_MS = 60_000;
const BUILDS_KEPT = 200;

export type Builds = Pick<Handlers, BuildVerbs> & {
  /** At the start of a daemon: what the last one was building has failed, and its sandboxes go. */
  reconcile(op: Operation): Promise<void>;
  /** Layers that the cache of builds has. */
  cachedLayers(op: Operation): Promise<ReadonlySet<string>>;
};

type Running = { readonly log: BuildLog; readonly opId: string; record: BuildRecord };

export function newBuilds(core: Core, handlers: Pick<Handlers, 'sandbox.create' | 'sandbox.delete'>): Builds {
  const { deps } = core;
  const { host, store } = deps;
  const root = join(deps.places.dataDir, 'builds');
  const running = new Map<BuildId, Running>();
  /** Records of builds that are over, which nothing changes any more: read once. */
  const ended = new Map<BuildId, BuildRecord>();
  const locks = new Locks();
  const quota = new BuildQuota(core);
  let slots = BUILDS_AT_ONCE;
  const waiting: (() => void)[] = [];

  const dirOf = (id: BuildId) => join(root, id);
  const recordPath = (id: BuildId) => join(dirOf(id), 'build.json');
  const logPath = (id: BuildId) => join(dirOf(id), 'log.ndjson');

  function library(op: Operation): ImageLibrary {
    if (deps.images !== null) return deps.images;
    throw op.error('failed_precondition', 'this daemon keeps no images');
  }

  const cacheOf = (op: Operation) => new BuildCache(host, join(root, 'cache'), library(op).blobs);

  async function write(op: Operation, record: BuildRecord): Promise<void> {
    await host.writeFileAtomic(op, recordPath(record.id), JSON.stringify(record), 0o600);
    if (record.state !== 'running') ended.set(record.id, record);
  }

  async function read(op: Operation, id: BuildId): Promise<BuildRecord | null> {
    const known = running.get(id)?.record ?? ended.get(id);
    if (known !== undefined) return known;
    if ((await host.stat(op, recordPath(id))) === null) return null;
    const parsed = buildRecord.safeParse(JSON.parse(Buffer.from(await host.readFile(op, recordPath(id), RECORD_BYTES_MAX)).toString()));
    if (!parsed.success) return null;
    const record = parsed.data as BuildRecord;
    if (record.state !== 'running') ended.set(id, record);
    return record;
  }

  async function remove(op: Operation, id: BuildId): Promise<void> {
    await host.remove(op, dirOf(id));
    ended.delete(id);
  }

  async function all(op: Operation): Promise<readonly BuildRecord[]> {
    const found: BuildRecord[] = [];
    for (const name of await listOr(op, host, root)) {
      if (!isId('bld', name)) continue;
      const record = await read(op, name).catch(
        (cause: unknown) => void op.log.warn({ build: name, cause }, 'the record of a build cannot be read'),
      );
      if (record != null) found.push(record);
    }
    return found.sort((a, b) => b.createdAtMs - a.createdAtMs);
  }

  /** By id, or a unique prefix of it. */
  async function find({ op, caller }: Call, text: string): Promise<BuildRecord> {
    const whole = isId('bld', text) ? await read(op, text) : null;
    if (whole !== null && whole.projectId === caller.projectId) return whole;
    const own = (await all(op)).filter(({ projectId }) => projectId === caller.projectId);
    const fitting = own.filter(({ id }) => id.startsWith(text) || (text.length >= 3 && id.slice(3).startsWith(text)));
    const [only] = fitting;
    if (fitting.length === 1 && only !== undefined) return only;
    if (fitting.length > 1)
      throw op.error(
        'conflict',
        `several builds begin with ${text}: ${fitting
          .slice(0, 5)
          .map(({ id }) => id)
          .join(', ')}`,
      );
    throw op.error('not_found', `there is no build '${text.slice(0, 64)}'`, { hint: 'see: hutch image builds' });
  }

  async function turn(op: Operation): Promise<Disposable> {
    if (slots > 0) slots -= 1;
    else await waitFor(op, new Promise<void>((resolve) => waiting.push(resolve)), 'builds before it');
    return {
      [Symbol.dispose]() {
        const next = waiting.shift();
        if (next === undefined) slots += 1;
        else next();
      },
    };
  }

  async function start(call: Call, input: Parsed<'build.start'>, source: AsyncIterable<Uint8Array>): Promise<BuildView> {
    const { op, caller } = call;
    const tags = several(input.tag).map((tag) => shownReference(taggable(tag)));
    const args = argsOf(op, several(input.arg));
    const id = newId('bld', (count) => host.randomBytes(count));
    call.target(id);
    const images = library(op);
    await using undo = new AsyncDisposableStack();
    await quota.begin(op, id, caller.projectId);
    undo.defer(() => quota.neverBegan(op, id));
    const staged = await images.blobs.stage(op, `build-${id}`);
    undo.defer(async () => await staged[Symbol.asyncDispose]());
    await host.makeDir(op, staged.path, SHARED_DIR_MODE);
    const staging: BuildStaging = { host, blobs: images.blobs, path: staged.path };
    const context = await receive(op, staging, source, input.dockerfile ?? null);
    const plan = planOf(op, context, args, input.target ?? null);
    const record: BuildRecord = {
      ...{ id, projectId: caller.projectId, state: 'running', names: tags, target: input.target ?? null, backend: input.backend ?? null },
      ...{
        step: null,
        stepsDone: 0,
        stepsTotal: plan.steps,
        error: null,
        logTail: [],
        image: null,
        createdAtMs: host.nowMs(),
        endedAtMs: null,
        opId: core.operations.ownId(),
      },
    };
    await host.makeDir(op, dirOf(id), 0o700);
    await write(op, record);
    undo.move();
    carryOut(caller, record, { staged, staging, context, plan, args, input });
    return viewOf(record);
  }

  async function receive(
    op: Operation,
    staging: BuildStaging,
    source: AsyncIterable<Uint8Array>,
    dockerfile: string | null,
  ): Promise<Received> {
    try {
      return await receiveContext(op, host, staging.path, source, dockerfile);
    } catch (error) {
      for (let at: unknown = error, depth = 0; at instanceof Error && depth < 4; at = at.cause, depth += 1) {
        if (at instanceof ArchiveError) throw op.error('invalid_argument', `the context cannot be used: ${at.message}`);
      }
      throw error;
    }
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
    readonly staged: AsyncDisposable;
    readonly staging: BuildStaging;
    readonly context: Received;
    readonly plan: ReturnType<typeof planOf>;
    readonly args: ReadonlyMap<string, string>;
    readonly input: Parsed<'build.start'>;
  };

  /** Goes on by itself, in an operation of its own. */
  function carryOut(caller: Caller, record: BuildRecord, work: Work): void {
    const opId = record.opId ?? core.operations.ownId();
    void core.operations
      .run({ verb: 'daemon.build', caller, reads: false, opId }, async (call) => {
        const { op } = call;
        call.target(record.id);
        const log = new BuildLog(op, host, logPath(record.id));
        const now: Running = { log, opId, record };
        running.set(record.id, now);
        await using _staged = work.staged;
        try {
          if (slots === 0) now.record = { ...now.record, step: 'waiting for builds before it' };
          using _turn = await turn(op);
          using limited = await quota.timed(op, caller.projectId);
          const image = await build(limited === null ? call : { ...call, op: limited }, now, work).catch((error: unknown) =>
            Promise.reject(limited?.signal.aborted && !op.signal.aborted ? limited.signal.reason : error),
          );
          now.record = { ...now.record, state: 'done', image, step: null };
        } catch (error) {
          const failure = asHutchError(op, work.context, error);
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
          await write(late, now.record).catch((cause: unknown) =>
            op.log.error({ build: record.id, err: cause }, 'the end of a build could not be recorded'),
          );
          await quota.ended(late, record.id);
          running.delete(record.id);
          await log.end();
          await forgetOld(late);
        }
      })
      .catch(() => {}); // it is in its record
  }

  async function build(call: Call, now: Running, work: Work): Promise<NonNullable<BuildRecord['image']>> {
    const { op, caller } = call;
    const { context, plan, staging, args, input } = work;
    const images = library(op);
    const cache = cacheOf(op);
    const stages = new Map<number, Promise<Built>>();
    const bases = new Map<string, ReturnType<typeof baseImage>>();
    const abort = new AbortController();
    const endings: Promise<void>[] = [];
    const begun = new Map<number, string>();
    const own: Operation = { ...op, signal: AbortSignal.any([op.signal, abort.signal]) };
    const epoch = args.get('SOURCE_DATE_EPOCH');
    const parts: StageParts = {
      sandbox: { core, handlers, caller, buildId: now.record.id, staging },
      ...{ cache, context, dockerfile: plan.dockerfile, globals: plan.globals, log: now.log },
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
        const found = bases.get(name) ?? baseImage(asking, { boots: deps.boots, library: images, staging, cache }, name);
        bases.set(name, found);
        return found;
      },
      image: async (asking, built) => (await publish(asking, images, built, [], epoch)).digest,
      lent: deps.settings.packageSettings ? context.settings : NO_PACKAGE_SETTINGS,
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
      now.record = { ...now.record, step: 'packing the image' };
      op.progress({ step: 'build', detail: 'packing the image' });
      const { digest, id, sizeBytes } = await publish(op, images, built, now.record.names, epoch);
      now.log.note('build', `image ${digest}${now.record.names.length === 0 ? '' : `, named ${now.record.names.join(', ')}`}`);
      return { id, digest, sizeBytes };
    } finally {
      await Promise.all(endings);
    }
  }

  /** The image of a stage: made where it is not there, recorded, and named. */
  async function publish(op: Operation, images: ImageLibrary, built: Built, names: readonly string[], epoch: string | undefined) {
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
    const what = names[0] ?? digest.slice(0, 19);
    const image =
      there ??
      (await buildImage(op, host, images.paths, images.blobs, {
        ...{ what, name: null, digest, configBytes, createdAtMs: host.nowMs(), manifest: null },
        config: runConfig(op, parseConfig(op, configBytes, what), what),
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

  async function* lines(op: Operation, id: BuildId, after: number, follow: boolean): AsyncGenerator<LogLine> {
    let cursor = after;
    let offset = 0;
    for (;;) {
      const now = running.get(id);
      const news = now?.log.news;
      const isLast = !follow || now === undefined || now.log.isOver;
      if ((await host.stat(op, logPath(id))) !== null) {
        const bytes = Buffer.from(await host.readRange(op, logPath(id), offset, LOG_BYTES_MAX));
        const end = bytes.lastIndexOf(0x0a) + 1;
        offset += end;
        for (const text of bytes.subarray(0, end).toString().split('\n')) {
          if (text === '') continue;
          const line = JSON.parse(text) as LogLine;
          if (line.cursor <= cursor) continue;
          cursor = line.cursor;
          yield line;
        }
      }
      if (isLast) return;
      await waitFor(op, news ?? Promise.resolve(), 'more of the log');
    }
  }

  /** The oldest that are over. */
  async function forgetOld(op: Operation): Promise<void> {
    if ((await listOr(op, host, root)).length <= BUILDS_KEPT) return;
    const over = (await all(op)).filter(({ state }) => state !== 'running');
    for (const { id } of over.slice(BUILDS_KEPT)) await remove(op, id);
  }

  return {
    'build.start': start,
    'build.list': async ({ op, caller }) => ({
      builds: (await all(op)).filter(({ projectId }) => projectId === caller.projectId).map(viewOf),
    }),
    'build.get': async (call, { build: text }) => viewOf(await find(call, text)),
    'build.logs': async (call, { build: text, after, follow }) => {
      const { id } = await find(call, text);
      return lines(call.op, id, after ?? 0, follow ?? false);
    },
    'build.cancel': async (call, { build: text }) => {
      const { id } = await find(call, text);
      call.target(id);
      const now = running.get(id);
      if (now !== undefined) await core.operations.cancel(call.op, now.opId, 'whoever asked for it');
      return viewOf((await read(call.op, id)) ?? (await find(call, text)));
    },
    'build.delete': async (call, { build: text }) => {
      const record = await find(call, text);
      call.target(record.id);
      const now = running.get(record.id);
      if (now !== undefined) await core.operations.cancel(call.op, now.opId, 'its removal');
      await remove(call.op, record.id);
      return { id: record.id };
    },
    async reconcile(op) {
      await quota.endAll(op);
      for (const record of await all(op)) {
        if (record.state !== 'running' || running.has(record.id)) continue;
        const error = op
          .error('unavailable', 'the daemon ended while this was being built', { hint: 'build it again: what was done is cached' })
          .toBody();
        await write(op, { ...record, state: 'failed', error, endedAtMs: host.nowMs() });
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
    cachedLayers: async (op) => await cacheOf(op).layers(op),
  };
}

function several(value: string | readonly string[] | undefined): readonly string[] {
  return value === undefined ? [] : typeof value === 'string' ? [value] : value;
}

function argsOf(op: Operation, pairs: readonly string[]): ReadonlyMap<string, string> {
  return new Map(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw op.error('invalid_argument', `arg: ${JSON.stringify(pair.slice(0, 40))} is no NAME=VALUE`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
}

function named<T>(op: Operation, context: Received, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof DockerfileError ? inFile(op, context, error) : error;
  }
}

function inFile(op: Operation, { dockerfile }: Received, { line, instruction, message }: DockerfileError): HutchError {
  return op.error('invalid_argument', `${dockerfile.name}:${line}: ${instruction === null ? '' : `${instruction}: `}${message}`);
}

function asHutchError(op: Operation, context: Received, error: unknown): HutchError {
  if (error instanceof DockerfileError) return inFile(op, context, error);
  if (error instanceof HutchError) return error;
  if (error instanceof ArchiveError) return op.error('failed_precondition', `what is built cannot be used: ${error.message}`);
  op.log.error({ err: error }, 'a build failed for a reason of ours');
  return op.error('internal', `the build failed: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
}

function isAbort(reason: unknown): boolean {
  return reason instanceof Error && reason.name === 'AbortError';
}

function viewOf(record: BuildRecord): BuildView {
  const { stepsDone, stepsTotal, state } = record;
  const { projectId: _projectId, ...rest } = record;
  return {
    ...rest,
    names: [...record.names],
    logTail: [...record.logTail],
    progressPercent: state === 'done' ? 100 : stepsTotal === 0 ? 0 : Math.min(99, Math.floor((stepsDone * 100) / stepsTotal)),
  };
}
