// Exclusive locks that end with their holder, even by kill -9, and hold across containers that share
// the file: flock(2). Node has no call for it, but such a lock belongs to the open file, not to the
// process that asked: a short-lived `flock` takes it on our descriptor, and the kernel drops it when
// that descriptor is closed, by us or by our death. (Node opens files close-on-exec, so no child of
// ours keeps it.)
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import { heed } from './errors.ts';
import type { Operation } from './operation.ts';

const FLOCK_HELD_BY_ANOTHER = 1;

/** The holder's pid stands in the file while it is held: for messages only, never a proof. */
export function lockFile(op: Operation, env: Readonly<Record<string, string>>, path: string): Promise<AsyncDisposable | null> {
  return heed(
    op,
    `lock ${path}`,
    async () => {
      await using undo = new AsyncDisposableStack();
      const file = undo.use(await fs.open(path, 'a+', 0o600));
      const flock = spawn('flock', ['--exclusive', '--nonblock', '3'], { stdio: ['ignore', 'ignore', 'ignore', file.fd], env });
      const [exitCode] = await once(flock, 'close');
      if (exitCode === FLOCK_HELD_BY_ANOTHER) return null;
      if (exitCode !== 0) throw op.error('internal', `cannot lock ${path}: flock ended with ${exitCode}`);
      await file.truncate(0);
      await file.write(`${process.pid}\n`);
      return undo.move();
    },
    (late) => void late?.[Symbol.asyncDispose](),
  );
}
