// In which order a daemon and what it starts put files on the disk, give them names and take those away, beside the end of a machine:
// strace tells.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

/** `path`: of a file that was renamed since, its later one. */
export type Step =
  | { readonly what: 'synced' | 'named' | 'unnamed'; readonly path: string }
  | { readonly what: 'died'; readonly pid: number };

const CALLS = 'trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir';

/** What happens while `act` does. `also`: of whose end is to be told. */
export async function traced(daemon: DaemonUnderTest, also: readonly number[], act: () => Promise<unknown>): Promise<readonly Step[]> {
  const out = join(daemon.home, 'trace');
  const pids = [daemon.pid, ...also];
  const attach = pids.flatMap((pid) => ['-p', String(pid)]);
  const strace = spawn('strace', ['-f', '-y', '-qq', '-e', CALLS, '-o', out, ...attach], { stdio: 'inherit' });
  try {
    await eventually('strace has them', () => pids.every((pid) => /TracerPid:\s+[1-9]/.test(readFileSync(`/proc/${pid}/status`, 'utf8'))));
    await act();
  } finally {
    strace.kill('SIGINT');
    await once(strace, 'exit');
  }
  return stepsIn(readFileSync(out, 'utf8'));
}

function stepsIn(trace: string): readonly Step[] {
  const steps: Step[] = [];
  const begun = new Map<number, string>();
  for (const line of trace.split('\n')) {
    const [, id = '', said = ''] = /^(\d+)\s+(.*)$/.exec(line) ?? [];
    const pid = Number(id);
    if (said.startsWith('+++ ')) steps.push({ what: 'died', pid });
    else if (said.endsWith('<unfinished ...>')) begun.set(pid, said);
    else {
      const call = said.startsWith('<... ') ? `${begun.get(pid) ?? ''}${said}` : said;
      if (call.endsWith(' = 0')) steps.push(...stepOf(call));
    }
  }
  return withLaterNames(steps);
}

type Renamed = Step & { readonly from?: string };

function stepOf(call: string): readonly Renamed[] {
  const [, name = ''] = /^(\w+)\(/.exec(call) ?? [];
  if (name.endsWith('sync')) return [{ what: 'synced', path: /<([^>]*)>/.exec(call)?.[1] ?? '' }];
  const paths = [...call.matchAll(/"([^"]*)"/g)].map(([, path = '']) => path);
  if (name.startsWith('rename')) return [{ what: 'named', path: paths[1] ?? '', from: paths[0] ?? '' }];
  return [{ what: 'unnamed', path: paths[0] ?? '' }];
}

function withLaterNames(steps: readonly Renamed[]): readonly Step[] {
  return steps.map((step, at) => {
    if (step.what !== 'synced') return step;
    const renamed = steps.slice(at).find(({ from }) => from === step.path);
    return renamed?.what === 'named' ? { ...step, path: renamed.path } : step;
  });
}

/** What of these files, and of the directories that they are named in, was not on the disk by then: in words. */
export function unsynced(steps: readonly Step[], until: number, files: readonly string[], root: string): readonly string[] {
  const before = steps.slice(0, until);
  const lastOf = (what: Step['what'], is: (path: string) => boolean): number =>
    before.findLastIndex((step) => step.what === what && 'path' in step && is(step.path));
  const missing = files.filter((file) => lastOf('synced', (path) => path === file) < 0);
  const dirs = new Set(files.map((file) => dirname(file)));
  for (const dir of dirs) if (dir.startsWith(`${root}/`)) dirs.add(dirname(dir));
  for (const dir of [...dirs].filter((each) => each === root || each.startsWith(`${root}/`))) {
    const named = lastOf('named', (path) => dirname(path) === dir);
    if (lastOf('synced', (path) => path === dir) <= named || lastOf('synced', (path) => path === dir) < 0) missing.push(`${dir}/`);
  }
  return missing;
}
