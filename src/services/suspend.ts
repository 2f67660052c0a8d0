// Suspending: the memory of a sandbox goes to the disk, durably, and then its process ends; and waking it up: another
// process takes up both where they were. What is saved lies in `suspended` of the sandbox's directory. At the last
// moment before it may run again that is renamed to `woken`: from there on its disk may be written, so what was saved
// does not fit to it any more and is never used again.
import type { Checkpoints, Started } from '../backends/backend.ts';
import { newId } from '../domain/ids.ts';
import type { Intent } from '../domain/records.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import { configurationOf } from './bring-up.ts';
import type { Call } from './call.ts';
import { Claims } from './claims.ts';
import type { Core } from './core.ts';
import { backendOf, placesOf, savedDir } from './deps.ts';
import { catchUp } from './guest-clock.ts';
import { asItWas, letGo } from './let-go.ts';
import { refuseMounted } from './mounts.ts';
import { releaseRun, runOf } from './release.ts';
import type { Run } from './run.ts';
import { reachStarted } from './runs.ts';
import { readSecrets } from './secrets.ts';
import { inPlace } from './start-up.ts';
import type { Supervisor } from './supervisor.ts';
import { type Dead, describeDeath } from './take-down.ts';
import { tellGuest } from './tell-guest.ts';

const RELEASE_MS = 60_000;
const CONFIGURE_MS = 90_000;
const FREEZE_MS = 30_000;

export class Suspension {
  readonly #core: Core;
  readonly #supervisor: Supervisor;
  readonly #claims = new Claims();

  constructor(core: Core, supervisor: Supervisor) {
    this.#core = core;
    this.#supervisor = supervisor;
  }

  /** In the sandbox's turn. One that cannot be suspended goes on as it was. */
  async suspend(call: Call, sandbox: Sandbox): Promise<Sandbox> {
    const { op } = call;
    if (sandbox.state === 'suspended') return sandbox;
    const run = sandbox.state === 'paused' ? await runOf(this.#core, op, sandbox) : this.#core.runs.of(op, sandbox);
    const { backend } = run;
    await this.#claims.need(op, backend, 'suspend');
    refuseMounted(op, sandbox, 'it may be changed while the memory that knows it lies on the disk');
    const { checkpoints } = backend;
    if (checkpoints === undefined) throw new Error(`the backend ${backend.name} claims suspend, and makes no checkpoints`);
    const { saved } = this.#placesOf(sandbox);
    await this.#core.deps.host.remove(op, saved); // of a try that a crash cut short
    const [intent] = await call.commit([this.#intent('suspend', sandbox)]);
    op.progress({ step: 'saving its memory' });
    await this.#core.stats.last(op, run, sandbox);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await asItWas(late, sandbox, run);
      if (sandbox.state === 'running') void catchUp(run.op, this.#core.deps.host, run);
      await this.#core.deps.store
        .commit(late, [{ change: 'finishIntent', id: intent.id }], 'relaxed')
        .catch((cause: unknown) => op.log.warn({ cause }, 'an intent was left behind'));
    });
    await freeze(op, sandbox, run);
    const dead = await this.#save(op, checkpoints, run, saved);
    undo.move();
    // It is on the disk, and nowhere else: who finds its process dead does this again until it is on record.
    run.suspended = async (late) => void (await this.#recordSuspended(late, sandbox, run, intent.id, dead));
    return await this.#recordSuspended(call, sandbox, run, intent.id, dead);
  }

  /** What has ended its process is not given up for what failed afterwards. */
  async #save(op: Operation, checkpoints: Checkpoints, run: Run, saved: string): Promise<Dead> {
    try {
      return await checkpoints.save(op, run.plan, saved);
    } catch (error) {
      using late = op.releasing(RELEASE_MS);
      const isWhole = (await checkpoints.isWhole?.(late, saved).catch(() => false)) === true;
      const evidence = isWhole ? await run.backend.inspect(late, run.plan) : null;
      if (evidence === null || evidence.alive) throw error;
      op.log.warn({ sandbox: run.id, cause: error }, 'a sandbox was saved, and then something failed');
      return evidence;
    }
  }

  async #recordSuspended(call: Call, sandbox: Sandbox, run: Run, intentId: number, dead: Dead): Promise<Sandbox> {
    const { host } = this.#core.deps;
    const [after] = await call.commit([
      {
        change: 'applyEvent',
        sandboxId: sandbox.id,
        event: {
          type: 'suspended',
          atMs: host.nowMs(),
          opId: call.op.id,
          snapshotId: newId('snp', (count) => host.randomBytes(count)),
          evidence: describeDeath(dead, sandbox.spec.backend),
        },
      },
      { change: 'finishIntent', id: intentId },
    ]);
    this.#core.sandboxes.changed(after);
    await releaseRun(this.#core, call.op, run);
    return after;
  }

  /** In the sandbox's turn. What cannot be woken up stays suspended. */
  async wakeUp(call: Call, sandbox: Sandbox): Promise<Sandbox> {
    const { op } = call;
    const { deps, runs, publisher } = this.#core;
    const { host } = deps;
    const backend = backendOf(deps, op, sandbox.spec.backend);
    const { checkpoints } = backend;
    if (checkpoints === undefined) throw op.error('failed_precondition', `the backend ${backend.name} makes no checkpoints here`);
    runs.checkRoom(op);
    const boot = await deps.boots.of(op, sandbox.spec, backend.needs);
    const [intent] = await call.commit([this.#intent('wake', sandbox)], 'relaxed');
    const uid = deps.settings.uids === null ? null : await deps.store.query('uid', { sandboxId: sandbox.id });
    const run = runs.open(op, sandbox, boot.files, uid);
    const { saved, woken } = this.#placesOf(sandbox);
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => {
      using late = op.releasing(RELEASE_MS);
      await this.#notWoken(late, call, sandbox, run, intent.id);
    });
    await publisher.open(op, run);
    op.progress({ step: 'taking up its memory' });
    const startedAtMs = host.nowMs();
    const started = await inPlace(this.#core, op, () =>
      checkpoints.restore(op, run.plan, saved, async (late) => {
        await host.remove(late, woken);
        await host.rename(late, saved, woken);
      }),
    );
    const { pid, startTicks } = started.evidence;
    const beganMs = host.monotonicMs();
    // Its guest is told while the disk writes the record: if that fails, its process is ended.
    const telling = this.#tell(op, sandbox, run, started);
    telling.catch(() => {}); // awaited below
    const after = await this.#recordWoken(call, sandbox, startedAtMs, `pid ${pid}, started at tick ${startTicks}`);
    const recordedMs = host.monotonicMs();
    // It runs, and is on record: from here on nothing is undone.
    undo.move();
    this.#core.sandboxes.changed(after);
    this.#supervisor.adopt(run, after);
    await this.#makeItself(call, after, telling, intent.id);
    const stagesMs = { ...started.stagesMs, recorded: recordedMs - beganMs, told: host.monotonicMs() - recordedMs };
    op.log.debug({ sandbox: run.id, stagesMs }, 'a suspended sandbox goes on');
    return after;
  }

  async #recordWoken(call: Call, sandbox: Sandbox, startedAtMs: number, evidence: string): Promise<Sandbox> {
    const { timeoutMs } = sandbox.spec;
    const [after] = await call.commit([
      {
        change: 'applyEvent',
        sandboxId: sandbox.id,
        event: {
          type: 'started',
          atMs: startedAtMs,
          opId: call.op.id,
          reason: 'hibernate-wake',
          deadlineAtMs: timeoutMs === null ? null : startedAtMs + timeoutMs,
          evidence,
        },
      },
    ]);
    return after;
  }

  /** Of one that is on record as running. `telling`: see `#tell`. */
  async #makeItself(call: Call, sandbox: Sandbox, telling: Promise<void>, intentId: number): Promise<void> {
    const { host, store } = this.#core.deps;
    // Nobody comes back to what was saved, also if it has died since.
    using late = call.op.releasing(RELEASE_MS);
    const [told, removed] = await Promise.allSettled([telling, host.remove(late, this.#placesOf(sandbox).woken)]);
    for (const each of [told, removed]) if (each.status === 'rejected') throw each.reason;
    await store.commit(call.op, [{ change: 'finishIntent', id: intentId }], 'relaxed');
  }

  /** The guest is told what time it is and gets fresh entropy, then its network is let in. */
  async #tell(op: Operation, sandbox: Sandbox, run: Run, started: Pick<Started, 'network' | 'disk'>): Promise<void> {
    const { deps } = this.#core;
    const boot = await deps.boots.of(op, sandbox.spec, run.backend.needs);
    const secrets = await readSecrets(op, deps.host, placesOf(deps.places, sandbox.id).secretsPath, sandbox.spec.secretNames);
    using limited = op.within(CONFIGURE_MS, 'configuring the guest');
    const agent = await reachStarted(limited, sandbox.spec.name, run);
    // Its boot goes on.
    const { bootId: _, ...configuration } = configurationOf(deps.host, { sandbox, boot, secrets }, started, run.backend);
    await tellGuest(limited, deps.host, run, agent, {
      ...configuration,
      cutConnections: started.network !== null,
      generation: `${sandbox.id}.woken.${sandbox.generation}`,
    });
    if (started.network !== null) await run.backend.linkUp(limited, run.plan);
  }

  /** Its process is ended, if there is one. Whatever was saved stays, unless the machine has gone on: then it has ended now. */
  async #notWoken(op: Operation, call: Call, sandbox: Sandbox, run: Run, intentId: number): Promise<void> {
    const { deps, runs } = this.#core;
    try {
      runs.forget(run);
      const dead = await run.backend.kill(op, run.plan, 'now');
      await this.#takeBack(op, sandbox, run);
      await run.backend.cleanUp(op, run.plan);
      if ((await deps.host.stat(op, this.#placesOf(sandbox).saved)) === null) await this.lost(op, call, sandbox, dead);
      await deps.store.commit(op, [{ change: 'finishIntent', id: intentId }], 'relaxed');
    } catch (cause) {
      op.log.warn({ sandbox: run.id, cause }, 'a sandbox that could not be woken up left something behind');
    }
  }

  /** It was about to run, and never did: what was saved is what it was. */
  async #takeBack(op: Operation, sandbox: Sandbox, run: Run): Promise<boolean> {
    const { host } = this.#core.deps;
    const { saved, woken } = this.#placesOf(sandbox);
    if ((await host.stat(op, saved)) !== null || (await host.stat(op, woken)) === null) return false;
    if ((await run.backend.checkpoints?.isUnused?.(op, run.plan)) !== true) return false;
    await host.rename(op, woken, saved);
    return true;
  }

  /** What was saved is used up or thrown away: the sandbox is a stopped one, with its disk. */
  async lost(op: Operation, call: Call, sandbox: Sandbox, dead: Dead | null): Promise<Sandbox> {
    const { host, store } = this.#core.deps;
    const nowMs = host.nowMs();
    const ended = {
      cause: dead === null ? 'stopped' : 'crashed',
      exitCode: null,
      oomKilled: false,
      actor: dead === null ? call.caller.actor : 'host',
      atMs: nowMs,
    } as const;
    const [after] = await store.commit({ id: call.op.id, actor: call.caller.actor }, [
      {
        change: 'applyEvent',
        sandboxId: sandbox.id,
        event: {
          type: 'ended',
          atMs: nowMs,
          opId: call.op.id,
          reason: dead === null ? 'stop-user' : 'stop-crash',
          ended,
          diedAtMs: nowMs,
          evidence: dead === null ? 'suspended: no process' : describeDeath(dead, sandbox.spec.backend),
        },
      },
    ]);
    const { saved, woken } = this.#placesOf(sandbox);
    await Promise.all([host.remove(op, saved), host.remove(op, woken), this.#core.publisher.close(sandbox.id)]);
    this.#core.sandboxes.changed(after);
    return after;
  }

  /** At the start of the daemon: the last one died while it suspended this one. */
  async finishSuspend(call: Call, sandbox: Sandbox, intent: Intent): Promise<void> {
    const { op } = call;
    const { deps } = this.#core;
    if (sandbox.openComputeSinceMs !== null) {
      const run = await runOf(this.#core, op, sandbox);
      const { checkpoints } = run.backend;
      const { saved } = this.#placesOf(sandbox);
      // First: a save that goes on without its daemon ends the process.
      const isWhole = (await checkpoints?.isWhole?.(op, saved)) === true;
      const evidence = await run.backend.inspect(op, run.plan);
      if (evidence.alive) {
        // It may stand still, and it has what was saved: it goes on.
        if (sandbox.state === 'running') await run.backend.resume(op, run.plan);
        else if (run.backend.closeDoor !== undefined) await run.backend.pause(op, run.plan);
        await deps.host.remove(op, saved);
      } else if (isWhole) {
        await this.#recordSuspended(call, sandbox, run, intent.id, evidence);
        return;
      }
    }
    await deps.store.commit(op, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
  }

  /** At the start of the daemon: the last one died while it woke this one up. */
  async finishWakeUp(call: Call, sandbox: Sandbox, intent: Intent): Promise<void> {
    const { op } = call;
    const { deps } = this.#core;
    const { saved, woken } = this.#placesOf(sandbox);
    const isUsed = (await deps.host.stat(op, saved)) === null && (await deps.host.stat(op, woken)) !== null;
    if (sandbox.state === 'suspended') {
      const run = await runOf(this.#core, op, sandbox);
      const evidence = await run.backend.inspect(op, run.plan);
      if (evidence.alive && isUsed) {
        // Whether it was let go on is not known; what it is told does no harm to one that was.
        await run.backend.resume(op, run.plan);
        const { pid, startTicks } = evidence;
        this.#core.sandboxes.changed(
          await this.#recordWoken(call, sandbox, deps.host.nowMs(), `pid ${pid}, started at tick ${startTicks}`),
        );
        return; // adopted next, with its intent: what its guest has not been told is told then
      }
      const dead = evidence.alive ? await run.backend.kill(op, run.plan, 'now') : evidence;
      const isSavedStill = isUsed && (await this.#takeBack(op, sandbox, run));
      await releaseRun(this.#core, op, run);
      if (isUsed && !isSavedStill) await this.lost(op, call, sandbox, dead);
    }
    if (sandbox.state === 'running') return;
    await deps.store.commit(op, [{ change: 'finishIntent', id: intent.id }], 'relaxed');
  }

  /** After it was adopted: the last daemon died before its guest was told what it is to know, or that could not be recorded. */
  async finishTelling(call: Call, sandbox: Sandbox, run: Run, intentId: number): Promise<void> {
    const started = await run.backend.checkpoints?.again?.(call.op, run.plan);
    if (started !== undefined) await this.#makeItself(call, sandbox, this.#tell(call.op, sandbox, run, started), intentId);
  }

  #intent(kind: 'suspend' | 'wake', { id, projectId }: Sandbox) {
    return { change: 'addIntent', kind, projectId, sandboxId: id, atMs: this.#core.deps.host.nowMs() } as const;
  }

  #placesOf({ id }: Sandbox): { readonly saved: string; readonly woken: string } {
    const { dir } = placesOf(this.#core.deps.places, id);
    return { saved: savedDir(this.#core.deps.places, id), woken: `${dir}/woken` };
  }
}

async function freeze(op: Operation, sandbox: Sandbox, run: Run): Promise<void> {
  using limited = op.within(FREEZE_MS, 'preparing the guest for its suspension');
  await letGo(limited, sandbox, run);
}
