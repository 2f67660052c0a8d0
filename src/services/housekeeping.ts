// What the daemon does while nobody asks: says that it is alive (the time of a crash is known by that),
// drops records and logs whose time is over, and sees whether its data directory is still there.
import type { Operation } from '../host/operation.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import type { Handlers } from './handlers.ts';
import { newPlaceWatch } from './lost-place.ts';
import { settleAllHoldings } from './settle-holdings.ts';
import { ownCaller } from './supervisor.ts';
import type { TemplateKeeper } from './template/keeper.ts';

const BEAT_EVERY_MS = 10_000;
const LOOK_EVERY_MS = 5_000;
const PRUNE_EVERY_MS = 60 * 60_000;
/** Logs of sandboxes that removed themselves, for clients that missed the end. */
const LAST_LOGS_MS = 10 * 60_000;
const LAST_LOGS_MAX = 256;
/** Logs of creations that failed. */
const FAILED_LOGS_MS = 7 * 24 * 60 * 60_000;
const FAILED_LOGS_MAX = 64;

export function startHousekeeping(core: Core, keeper: TemplateKeeper, images: Pick<Handlers, 'image.prune'>): Disposable {
  const guarded = (what: string, work: (op: Operation, call: Call) => Promise<void>) => () =>
    void core.operations
      .run({ verb: 'daemon.housekeeping', caller: ownCaller(core), reads: true }, (call) => work(call.op, call))
      .catch((err: unknown) => core.deps.log.warn({ what, err }, 'housekeeping failed'));
  const beat = guarded('beat', async (op) => {
    // Without a sandbox that runs there is no crash to date.
    if (core.runs.all().length > 0) await core.deps.store.commit(op, [{ change: 'beat' }], 'relaxed');
    await core.warm.tend(op);
  });
  const prune = guarded('prune', async (op, call) => {
    await pruneStore(core, op);
    await pruneLogs(core, op);
    await pruneTemplates(core, op);
    await settleAllHoldings(core, op);
    await tidyBackends(core, op);
    if (core.deps.images !== null) await pruneCache(call, images);
    await keeper.sweep(call);
    await keeper.lookAtAll();
  });
  const look = guarded('place', newPlaceWatch(core));
  const timers = [setInterval(beat, BEAT_EVERY_MS), setInterval(look, LOOK_EVERY_MS), setInterval(prune, PRUNE_EVERY_MS)];
  look();
  prune();
  return {
    [Symbol.dispose]() {
      for (const timer of timers) clearInterval(timer);
    },
  };
}

async function pruneStore(core: Core, op: Operation): Promise<void> {
  const { host, store, settings } = core.deps;
  const nowMs = host.nowMs();
  const { eventsMs, operationsMs, deletedMs } = settings.retention;
  for (let more = true; more; ) {
    const [result] = await store.commit(
      op,
      [
        {
          change: 'prune',
          eventsBeforeMs: nowMs - eventsMs,
          operationsBeforeMs: nowMs - operationsMs,
          tombstonesBeforeMs: nowMs - deletedMs,
          nowMs,
        },
      ],
      'relaxed',
    );
    more = result.more;
  }
}

/** Of a kernel, agent, image or emulator that was replaced, or of a shape that nobody asks for any more. */
async function pruneTemplates(core: Core, op: Operation): Promise<void> {
  const { backends, store, host, settings } = core.deps;
  for (const backend of backends) {
    const removed = (await backend.prune?.(op, settings.retention.templatesMs)) ?? [];
    for (const { template, bytes } of removed) {
      const detail = { backend: backend.name, template, bytes };
      op.log.info(detail, 'a template that was not used for long is removed');
      const event = { type: 'template.removed', atMs: host.nowMs(), projectId: store.defaultProjectId, detail } as const;
      await store.commit(op, [{ change: 'addEvent', ...event }], 'relaxed');
    }
  }
}

/** What lies here only to save work later. */
async function pruneCache(call: Call, images: Pick<Handlers, 'image.prune'>): Promise<void> {
  const gone = await images['image.prune'](call, { stale: true });
  for (const { id, sizeBytes, why } of gone.images)
    call.op.log.info({ image: id, sizeBytes, why }, 'an image that nobody wants is removed');
  for (const { digest, sizeBytes, why } of gone.layers) call.op.log.info({ layer: digest, sizeBytes, why }, 'a layer is removed');
  for (const { name, sizeBytes, why } of gone.mounts) call.op.log.info({ mount: name, sizeBytes, why }, 'a cache mount is removed');
}

/** Of releases of Hutch that nothing saved goes on with any more. */
async function tidyBackends({ deps: { backends } }: Core, op: Operation): Promise<void> {
  for (const backend of backends)
    for (const { path, bytes } of (await backend.tidy?.(op)) ?? [])
      op.log.info({ backend: backend.name, path, bytes }, 'what nothing saved goes on with any more is removed');
}

async function pruneLogs(core: Core, op: Operation): Promise<void> {
  const { logDir } = core.deps.places;
  await pruneDir(core, op, `${logDir}/ended`, LAST_LOGS_MS, LAST_LOGS_MAX);
  await pruneDir(core, op, `${logDir}/failed`, FAILED_LOGS_MS, FAILED_LOGS_MAX);
}

/** Removes what is older than `ageMs`, and the oldest of what is more than `max`. */
async function pruneDir(core: Core, op: Operation, dir: string, ageMs: number, max: number): Promise<void> {
  const { host } = core.deps;
  if ((await host.stat(op, dir)) === null) return;
  const entries: { path: string; atMs: number }[] = [];
  for (const name of await host.list(op, dir)) {
    const path = `${dir}/${name}`;
    const info = await host.stat(op, path);
    if (info !== null) entries.push({ path, atMs: Number(info.changedNs / 1_000_000n) });
  }
  entries.sort((left, right) => right.atMs - left.atMs);
  const nowMs = host.nowMs();
  for (const [index, { path, atMs }] of entries.entries()) if (index >= max || nowMs - atMs > ageMs) await host.remove(op, path);
}
