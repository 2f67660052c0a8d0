// At the start of the daemon nobody is at work: what only whoever is at work has is left over from a daemon that was killed.
import type { Host } from '../host/host.ts';
import type { Operation } from '../host/operation.ts';
import { lineOf, lookedInto, pathOf } from './belongings.ts';
import type { Core } from './core.ts';
import type { Away } from './when-back.ts';

const MOUNTS_BYTES_MAX = 16 * 1024 * 1024;

/** One that cannot be removed is told by `hutch doctor --leaks`. */
export async function removeLeftWork({ deps }: Core, op: Operation, away: Away): Promise<void> {
  const { host, places, backends } = deps;
  for (const backend of backends) if (!away.has(backend.name)) await backend.endWork?.(op);
  for (const { root, place } of lookedInto()) {
    const dir = pathOf(places, root, place);
    if ((await host.stat(op, dir))?.type !== 'directory') continue;
    for (const name of await host.list(op, dir)) {
      if (lineOf(root, place, name)?.owner !== 'work') continue;
      const path = `${dir}/${name}`;
      try {
        await unmountBelow(op, host, path);
        await host.remove(op, path);
        op.log.info({ path }, 'what a daemon that was killed was at work on is removed');
      } catch (cause) {
        if (op.signal.aborted) throw cause;
        op.log.warn({ path, cause }, 'what a daemon that was killed was at work on cannot be removed');
      }
    }
  }
}

/** Of several over each other the last comes off first. */
async function unmountBelow(op: Operation, host: Host, path: string): Promise<void> {
  for (const at of (await mountPoints(op, host)).toReversed()) if (at.startsWith(`${path}/`)) await host.run(op, ['umount', at]);
}

export async function mountPoints(op: Operation, host: Host): Promise<readonly string[]> {
  const mounts = new TextDecoder().decode(await host.readFile(op, '/proc/self/mountinfo', MOUNTS_BYTES_MAX));
  return [...mounts.matchAll(/^\d+ \d+ \S+ \S+ (\S+)/gm)].map(([, path = '']) => path);
}
