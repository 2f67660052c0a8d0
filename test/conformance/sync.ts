// A directory of this machine and one in a sandbox, kept alike over the API, on every backend.
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { Hutch } from '../../src/sdk/hutch.ts';
import { type SyncEvent, syncDirectory } from '../../src/sdk/sync/sync.ts';
import { eventually } from '../support/eventually.ts';
import type { Subject } from './subject.ts';

/** Each look starts a program in the sandbox, which an emulated one on a busy machine takes seconds for. */
const DEADLINE_MS = 90_000;

export function sync(subject: Subject): void {
  test('sync: a directory here and one in a sandbox stay alike both ways while they are watched', { timeout: 300_000 }, async () => {
    const ref = await subject.box();
    const dir = await mkdtemp(join(tmpdir(), 'hutch-sync-'));
    const over = new AbortController();
    const { socketPath, ownerKeyPath } = subject.daemon.ready;
    using hutch = Hutch.connect({ url: `unix:${socketPath}`, apiKey: (await readFile(ownerKeyPath, 'utf8')).trim() });
    try {
      await mkdir(join(dir, 'sub'));
      await writeFile(join(dir, 'sub/one'), 'one\n');
      const events: SyncEvent[] = [];
      const running = syncDirectory(await hutch.sandbox(ref), dir, '/tmp/alike', {
        twoWay: true,
        removes: true,
        watch: true,
        signal: over.signal,
        onEvent: (event) => void events.push(event),
      });
      running.catch(() => {}); // awaited below
      await eventually('both are alike', async () => events.at(-1)?.type === 'alike', DEADLINE_MS);
      expect(await subject.sh(ref, 'cat /tmp/alike/sub/one')).toBe('one\n');
      await subject.sh(ref, 'cd /tmp/alike; mkdir made; echo there > made/file; rm sub/one');
      await eventually(
        'it is here',
        async () => (await readFile(join(dir, 'made/file'), 'utf8').catch(() => '')) === 'there\n',
        DEADLINE_MS,
      );
      await eventually('it is gone here', async () => (await readFile(join(dir, 'sub/one')).catch(() => null)) === null, DEADLINE_MS);
      await writeFile(join(dir, 'made/file'), 'changed here\n');
      await eventually('it is there', async () => (await subject.sh(ref, 'cat /tmp/alike/made/file')) === 'changed here\n', DEADLINE_MS);
      expect(events.filter(({ type }) => type === 'conflict' || type === 'failed')).toEqual([]);
      over.abort();
      await expect(running).rejects.toThrow();
    } finally {
      over.abort();
      await rm(dir, { recursive: true, force: true });
      await subject.sh(ref, 'rm -rf /tmp/alike');
    }
  });
}
