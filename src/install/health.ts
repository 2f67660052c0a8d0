// Whether the daemon of a release is well: it answers, it is of that release, it stays, and the sandboxes that ran before
// run on under it.
import { setTimeout as pause } from 'node:timers/promises';
import { errnoOf } from '../host/errors.ts';
import type { Operation } from '../host/operation.ts';
import { listSandboxes, type Running, runningDaemon, type Scene } from './scene.ts';
import type { Service } from './service.ts';

const LOOK_EVERY_MS = 200;
/** One that ends soon after it was ready is not well. */
const STAYS_MS = 1_500;
/** systemd starts what ended again, each second: three times is no accident. */
const RESTARTS_MAX = 3;

export type HealthWish = {
  readonly release: string;
  /** Sandboxes that must not be in `error`. */
  readonly running: readonly string[];
  readonly withinMs: number;
};

/** @throws HutchError `unavailable` with what is wrong, as soon as that is known, at the latest when the time is up. */
export async function untilHealthy(op: Operation, scene: Scene, service: Service, wish: HealthWish): Promise<Running> {
  using limited = op.within(wish.withinMs, `the daemon of ${wish.release}`);
  let why = 'it does not answer';
  try {
    for (let first: Running | null = null; ; ) {
      const unit = await service.state(limited);
      if (unit !== null && (unit.active === 'failed' || unit.restarts >= RESTARTS_MAX))
        throw op.error('unavailable', `the daemon of ${wish.release} does not stay: systemd has started it ${unit.restarts + 1} times`);
      const now = await runningDaemon(limited, scene);
      if (now === null) [first, why] = [null, 'it does not answer'];
      else if (now.release !== wish.release)
        [first, why] = [null, `process ${now.pid} answers, which is of ${now.release ?? 'another place'}`];
      else if (first === null || first.pid !== now.pid) [first, why] = [now, 'it does not stay'];
      else {
        await refuseLost(limited, scene, wish.running);
        return now;
      }
      await pause(first === null ? LOOK_EVERY_MS : STAYS_MS, undefined, { signal: limited.signal });
    }
  } catch (error) {
    // Our own deadline; a caller that gave up is told as that.
    if (op.signal.aborted || !limited.signal.aborted) throw error;
    if (errnoOf(error) !== null) throw error;
    throw op.error('unavailable', `the daemon of ${wish.release} was not well within ${wish.withinMs / 1_000} s: ${why}`, { cause: error });
  }
}

async function refuseLost(op: Operation, scene: Scene, running: readonly string[]): Promise<void> {
  if (running.length === 0) return;
  const now = await listSandboxes(op, scene);
  if (now === null) throw op.error('unavailable', 'the daemon does not list its sandboxes');
  const lost = now.filter(({ id, state }) => state === 'error' && running.includes(id));
  if (lost.length > 0) throw op.error('unavailable', `sandboxes that ran before are in error: ${lost.map(({ name }) => name).join(', ')}`);
}

/** The last lines of the daemon's log, for whoever asks why it was not well. */
export async function lastWords(op: Operation, { host, places }: Scene): Promise<string | null> {
  const path = places === null ? null : `${places.logDir}/hutchd.log`;
  if (path === null) return null;
  const info = await host.stat(op, path);
  if (info?.type !== 'file') return null;
  const bytes = await host.readRange(op, path, Math.max(0, info.sizeBytes - 4_096), 4_096);
  const lines = new TextDecoder().decode(bytes).trim().split('\n');
  const error = lines.findLast((line) => /"level":(?:50|60|"error")/.test(line));
  return /"msg":"((?:[^"\\]|\\.)*)"/.exec(error ?? '')?.[1] ?? null;
}
