// hutch df and hutch prune: what takes the disk, and what nobody has wanted for long.
import { join } from 'node:path';
import { HutchError } from '../domain/errors.ts';
import { wantsRestart } from '../domain/restart.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import type { Operation } from '../host/operation.ts';
import type { QueryMap } from '../store/contract.ts';
import type { Call } from './call.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import type { Handlers } from './handlers.ts';
import { isOperator } from './operator.ts';

type Stopped = Sandbox & { readonly state: 'stopped' };

export function systemVerbs(core: Core, lifecycle: Pick<Handlers, 'sandbox.delete'>): Pick<Handlers, 'system.df' | 'system.prune'> {
  const { host, store, places, backends } = core.deps;
  return {
    'system.df': async ({ op }) => {
      const { freeBytes, totalBytes } = await host.fileSystem(op, places.dataDir);
      const names = await host.list(op, places.dataDir);
      const parts = [];
      for (const name of names) {
        const isSandboxes = name === 'sandboxes';
        const bytes = await allocated(op, join(places.dataDir, name));
        parts.push({ name, bytes, reclaimableBytes: isSandboxes ? await ofStopped(op) : null });
      }
      return { dataDir: places.dataDir, totalBytes, freeBytes, parts: parts.sort((left, right) => right.bytes - left.bytes) };
    },

    'system.prune': async (call, { olderThanMs, dryRun = false }) => {
      const { op } = call;
      const sandboxes = [];
      const failed = [];
      for (const sandbox of await stoppedBefore(call.caller.projectId, host.nowMs() - olderThanMs)) {
        const { id } = sandbox;
        const bytes = await allocated(op, placesOf(places, id).dir);
        try {
          if (!dryRun) await remove(call, sandbox);
          sandboxes.push({ id, name: sandbox.spec.name, stoppedAtMs: sandbox.ended.atMs, bytes });
        } catch (error) {
          if (op.signal.aborted || !(error instanceof HutchError)) throw error;
          failed.push({ id, error: error.toBody() });
        }
      }
      const templates = [];
      // They are all projects': who has none of their own makes them anew, for a minute.
      for (const backend of isOperator(store, call) ? backends : []) {
        const gone = (await backend.prune?.(op, olderThanMs, dryRun ? 'only-list' : 'remove')) ?? [];
        for (const one of gone) templates.push({ backend: backend.name, ...one });
      }
      const bytes = [...sandboxes, ...templates].reduce((sum, one) => sum + one.bytes, 0);
      return { sandboxes, templates, failed, bytes };
    },
  };

  /** Only what it was when it was chosen: one that was started since stays. */
  async function remove(call: Call, { id, generation }: Stopped): Promise<void> {
    const now = await core.sandboxes.get(call.op, id);
    if (now.generation === generation) await lifecycle['sandbox.delete'](call, { ref: id });
  }

  /** What is to be started again by itself is not left over. */
  async function stoppedBefore(projectId: Sandbox['projectId'] | null, atMs: number): Promise<readonly Stopped[]> {
    const found: Stopped[] = [];
    for (let cursor: string | null = null; ; ) {
      const filter = projectId === null ? {} : { projectId };
      const page: QueryMap['sandboxes']['result'] = await store.query('sandboxes', { ...filter, states: ['stopped'], cursor });
      for (const sandbox of page.sandboxes)
        if (sandbox.state === 'stopped' && sandbox.ended.atMs <= atMs && !wantsRestart(sandbox)) found.push(sandbox);
      cursor = page.nextCursor;
      if (cursor === null) return found;
    }
  }

  async function ofStopped(op: Operation): Promise<number> {
    let bytes = 0;
    for (const { id } of await stoppedBefore(null, host.nowMs())) bytes += await allocated(op, placesOf(places, id).dir);
    return bytes;
  }

  /** What it takes of the disk, holes left out, each file once. What goes while it is counted is not an error. */
  async function allocated(op: Operation, path: string): Promise<number> {
    if ((await host.stat(op, path)) === null) return 0;
    const { stdout } = await host.run(op, ['du', '-s', '-x', '--block-size=1', '--', path]);
    return Number.parseInt(new TextDecoder().decode(stdout), 10) || 0;
  }
}
