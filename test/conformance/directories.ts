// Directories of this machine in a sandbox, on every backend that shows them.
import { mkdirSync, renameSync, symlinkSync, unlinkSync, watch, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { refusal, type Subject } from './subject.ts';

export function directories(subject: Subject): void {
  const { daemon, can } = subject;

  // Not claimed, they are refused by name (honesty.ts); the reference has them by symlinks of its own.
  if (!can.hostDirectories || subject.name === 'reference') return;
  test('directories: one that is swapped for a symlink while its sandbox starts is never shown', { timeout: 120_000 }, async () => {
    // Whoever has the directory above it mounted in another sandbox can do this.
    const [dir, away, secret] = ['meant', 'meant.away', 'secret'].map((name) => join(subject.home, `swapped-${name}`)) as [
      string,
      string,
      string,
    ];
    mkdirSync(dir);
    mkdirSync(secret);
    writeFileSync(join(dir, 'meant'), '');
    writeFileSync(join(secret, 'secret'), '');
    const { id } = await subject.make({ name: 'swapped', mounts: [{ source: dir, target: '/srv/swapped' }], start: false });
    let refused = 0;
    for (let round = 0; round < 5 && refused === 0; round += 1) {
      // The path has been looked at before the first file of a start is made, and the mount comes after it.
      let isSwapped = false;
      const watcher = watch(join(subject.home, 'run/sandboxes'), { recursive: true }, () => {
        if (isSwapped) return;
        isSwapped = true;
        renameSync(dir, away);
        symlinkSync(secret, dir);
      });
      try {
        const said = await daemon.call('sandbox.start', { ref: id }).then(
          () => null,
          (error: unknown) => error,
        );
        if (said === null) expect(await subject.sh(id, 'ls /srv/swapped')).toBe('meant\n');
        else {
          expect(await refusal(Promise.reject(said as Error))).toMatchObject({
            code: 'failed_precondition',
            message: expect.stringContaining(`${dir} was replaced while it was mounted`),
            hint: expect.stringContaining('put the directory back'),
          });
          refused += 1;
        }
      } finally {
        watcher.close();
        if (isSwapped) {
          unlinkSync(dir);
          renameSync(away, dir);
        }
      }
      if ((await subject.get(id)).state === 'running') await daemon.call('sandbox.stop', { ref: id, force: true });
    }
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'ls /srv/swapped')).toBe('meant\n');
    await subject.remove(id);
  });
}
