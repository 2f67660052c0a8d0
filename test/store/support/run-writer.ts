// Starts the busy writer as a process of its own, under whatever the test wants to put around it, and
// collects what it says until it ends or is killed.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { WriterLine } from './busy-writer.ts';

const WRITER = fileURLToPath(new URL('./busy-writer.ts', import.meta.url));
const WRITER_MS_MAX = 50_000;

export type WriterRun = {
  readonly path: string;
  readonly commits: number;
  readonly concurrency: number;
  /** Put before the command: strace, unshare. */
  readonly around?: readonly string[];
  /** Does not close the store: it is killed. */
  readonly stay?: boolean;
  /** Killed at once when it has said so many lines. */
  readonly killAfterLines?: number;
};

export type WriterEnd = { readonly lines: readonly WriterLine[]; readonly code: number | null; readonly stderr: string };

export async function runWriter({ path, commits, concurrency, around = [], killAfterLines, stay = false }: WriterRun): Promise<WriterEnd> {
  const [program = '', ...args] = [
    ...around,
    process.execPath,
    WRITER,
    path,
    String(commits),
    String(concurrency),
    ...(stay ? ['stay'] : []),
  ];
  // A session of its own, so that what stands around it goes with it.
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const killAll = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  };
  const timer = setTimeout(killAll, WRITER_MS_MAX);
  let text = '';
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    stderr += chunk;
  });
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    if (killAfterLines !== undefined && text.split('\n').length > killAfterLines) killAll();
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  clearTimeout(timer);
  // The last line may be cut: then it was not said.
  const lines = text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as WriterLine);
  return { lines, code, stderr };
}
