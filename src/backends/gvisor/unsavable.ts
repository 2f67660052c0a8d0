// What in a sandbox that stands still the runtime cannot save: files that are open, or directories that somebody is in, and that
// have been deleted. It would find that out itself, and end the sandbox. What gives the sandbox its files has a descriptor of the
// host's for each, so the host's kernel tells.
import { basename } from 'node:path';
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
/** open(2), on x86-64. */
const O_NOFOLLOW = 0o400000;

type Parts = { readonly host: Host; readonly rights: Rights; readonly processes: Processes };

/** In words; null: nothing. */
export async function unsavable(op: Operation, parts: Parts, plan: SandboxPlan): Promise<string | null> {
  const { host } = parts;
  const found: string[] = [];
  for (const ref of await runtimeOf(op, host, plan.runDir)) {
    if (!(await isGofer(op, host, ref))) continue;
    for (const target of await goneInUse(op, parts, plan, ref)) {
      const path = target.slice(ROOT.length, -DELETED.length);
      // The door to the agent is taken away by us; nothing else there can be.
      if (!path.startsWith(`${LINK}/`)) found.push(path);
    }
  }
  const [first] = found;
  if (first === undefined) return null;
  const others = new Set(found).size - 1;
  return others === 0
    ? `${first} was deleted while it was in use, and still is`
    : `${first} and ${others} more were deleted while they were in use, and still are`;
}

async function isGofer(op: Operation, host: Host, { pid }: ProcessRef): Promise<boolean> {
  const line = new TextDecoder().decode(await host.readFile(op, `/proc/${pid}/cmdline`, COMMAND_BYTES_MAX));
  return basename(line.split('\0')[0] ?? '') === GOFER;
}

/** What its descriptors point to, as it sees that, of what is gone; without those that only name a file. */
async function goneInUse(
  op: Operation,
  { host, rights, processes }: Parts,
  plan: SandboxPlan,
  { pid }: ProcessRef,
): Promise<readonly string[]> {
  // Another user's, of our user namespace.
  const now = await processes.inspect(op, plan);
  if (!now.alive) return [];
  const run = async (...argv: readonly string[]): Promise<string> =>
    new TextDecoder().decode((await host.run(op, rights.argvOf(now.pid, argv))).stdout);
  const gone = await run('find', `/proc/${pid}/fd`, '-lname', `${ROOT}/*${DELETED}`, '-printf', '%f %Y %l\\0');
  const found = [...gone.matchAll(/(\d+) (\S+) ([^\0]*)\0/g)].map(([, fd = '', type = '', target = '']) => ({ fd, type, target }));
  if (found.length === 0) return [];
  const flags = await run('grep', '-rs', '^flags:', `/proc/${pid}/fdinfo`);
  const names = new Set([...flags.matchAll(/(\d+):flags:\s*([0-7]+)$/gm)].filter(([, , octal = '']) => isName(octal)).map(([, fd]) => fd));
  return found.filter(({ fd, type }) => type !== 'f' || !names.has(fd)).map(({ target }) => target);
}

/**
 * The runtime names a file by one descriptor, which follows no link, and reads and writes it by others. Of a file that was linked it keeps
 * such a name for good (2022): of each object that git has written, which is linked to its place and then has its first name removed.
 */
function isName(octalFlags: string): boolean {
  return (Number.parseInt(octalFlags, 8) & O_NOFOLLOW) !== 0;
}
