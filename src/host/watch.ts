// Changes of a directory's entries, by inotify.
import { watch } from 'node:fs';
import { abortError, systemError, throwIfAborted } from './errors.ts';
import type { Operation } from './operation.ts';

/**
 * Watches from the moment of this call, not from the first `next()`: so a caller can watch, look, and
 * then wait without missing what happens between. Changes that nobody has waited for yet are one.
 * The watch ends with the loop, or with the signal.
 */
export function watchDir(op: Operation, path: string): AsyncIterable<void> {
  const what = `watch ${path}`;
  throwIfAborted(op, what);
  let changed = false;
  let failure: Error | undefined;
  let wake: (() => void) | undefined;
  const tell = (): void => {
    wake?.();
    wake = undefined;
  };
  const watcher = open(op, path);
  const close = (): void => {
    op.signal.removeEventListener('abort', onAbort);
    watcher.close();
  };
  const fail = (error: Error): void => {
    failure ??= error;
    close();
    tell();
  };
  const onAbort = (): void => fail(abortError(op, what));
  watcher.on('change', () => {
    changed = true;
    tell();
  });
  watcher.on('error', (error) => fail(systemError(op, what, error)));
  op.signal.addEventListener('abort', onAbort, { once: true });

  return {
    async *[Symbol.asyncIterator]() {
      try {
        for (;;) {
          if (failure !== undefined) throw failure;
          if (changed) {
            changed = false;
            yield;
          } else {
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
          }
        }
      } finally {
        close();
      }
    },
  };
}

function open(op: Operation, path: string): ReturnType<typeof watch> {
  try {
    return watch(path, { persistent: false });
  } catch (error) {
    throw systemError(op, `watch ${path}`, error);
  }
}
