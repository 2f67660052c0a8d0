// What in a sandbox that stands still the runtime cannot save: files that are open, or directories that somebody is in, and that
// have been deleted. It would find that out itself, and end the sandbox. What gives the sandbox its files has a descriptor of the
// host's for each, so the host's kernel tells.
import { basename } from 'node:path';
import { HutchError } from '../../domain/errors.ts';
import type { Host, ProcessRef } from '../../host/host.ts';
import type { Operation } from '../../host/operation.ts';
import type { SandboxPlan } from '../backend.ts';
import { LINK } from './bundle.ts';
import { runtimeOf } from './leaks.ts';
import type { Processes } from './process.ts';
import type { Rights } from './rights.ts';

const DELETED = ' (deleted)';
/** Where it has the sandbox's root. */
const ROOT = '/root';
const GOFER = 'runsc-gofer';
const COMMAND_BYTES_MAX = 64 * 1024;

type Parts = { readonly host: Host; readonly rights: Rights; readonly processes: Processes };

/** In words; null: nothing. */
export async function unsavable(op: Operation, parts: Parts, plan: SandboxPlan): Promise<string | null> {
  const { host } = parts;
  const found: string[] = [];
  for (const ref of await runtimeOf(op, host, plan.runDir)) {
    if (!(await isGofer(op, host, ref))) continue;
    for (const target of await targetsOf(op, parts, plan, ref)) {
      const path = target.slice(ROOT.length, -DELETED.length);
      // The door to the agent is taken away by us; nothing else there can be.
      if (target.startsWith(`${ROOT}/`) && target.endsWith(DELETED) && !path.startsWith(`${LINK}/`)) found.push(path);
    }
  }
  const [first] = found;
  if (first === undefined) return null;
  const others = new Set(found).size - 1;
  return `${first}${others === 0 ? '' : ` and ${others} more`} was deleted while it was in use, and still is`;
}

async function isGofer(op: Operation, host: Host, { pid }: ProcessRef): Promise<boolean> {
  const line = new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX));
  return basename(line.split('\0')[0] ?? '') === GOFER;
}

/** What its descriptors point to, as it sees that. */
async function targetsOf(
  op: Operation,
  { host, rights, processes }: Parts,
  plan: SandboxPlan,
  { pid }: ProcessRef,
): Promise<readonly string[]> {
  if (rights.userId !== null) {
    // Another user's, of our user namespace.
    const now = await processes.inspect(op, plan);
    if (!now.alive) return [];
    const { stdout } = await host.run(op, rights.argvOf(now.pid, ['find', `/proc/${pid}/fd`, '-type', 'l', '-printf', '%l\\0']));
    return new TextDecoder().decode(stdout).split('\0');
  }
  const dir = `/proc/${pid}/fd`;
  return await Promise.all(
    (await host.list(op, dir)).map(async (name) => {
      try {
        return await host.readLink(op, `${dir}/${name}`);
      } catch (error) {
        if (error instanceof HutchError && error.code === 'not_found') return '';
        throw error;
      }
    }),
  );
}
