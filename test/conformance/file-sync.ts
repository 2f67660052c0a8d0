// Files of the owner's home in a new sandbox, on every backend: they are there before its main process begins, and nowhere else.
import { execFile } from 'node:child_process';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { refusal, type Subject } from './subject.ts';

const run = promisify(execFile);

export function fileSync(subject: Subject): void {
  const { daemon } = subject;

  test('file sync: a new sandbox has files of its owner’s home before its main process begins, and no template has them', async () => {
    const secret = `not-for-templates-${subject.name}`;
    const home = join(subject.home, 'owner'); // its daemon's HOME is the directory above
    await mkdir(join(home, 'deep/er'), { recursive: true });
    await writeFile(join(home, 'key'), secret, { mode: 0o644 });
    await writeFile(join(home, 'deep/er/späß'), 'below\n');
    await symlink('../key', join(home, 'deep/link'));
    await symlink('.', join(home, 'deep/round'));
    const look = 'cd && cat .key && stat -c "%a %u:%g" .key d d/er d/er/späß d/link && cat d/link d/er/späß && ls d';
    const { id, fileSync } = await subject.make({
      fileSync: [
        { host: '~/owner/key', guest: '~/.key' },
        { host: join(home, 'deep'), guest: '~/d', mode: 0o640 },
        { host: '~/owner/none', guest: '~/none' },
      ],
      main: { argv: ['sh', '-c', `{ ${look}; } > /tmp/looking 2>&1; mv /tmp/looking /tmp/looked; sleep 1000`] },
    });
    expect(fileSync).toHaveLength(3);
    const expected = `${secret}600 0:0\n750 0:0\n750 0:0\n640 0:0\n640 0:0\n${secret}below\ner\nlink\n`;
    await eventually('the main process has looked', async () => (await subject.sh(id, 'ls /tmp')).includes('looked'));
    expect(await subject.sh(id, 'cat /tmp/looked')).toBe(expected);
    // All but what is as large as it was before there were any sandboxes.
    const without = ['images', 'kernels', 'initramfs', 'bases'].map((dir) => `--exclude-dir=${dir}`);
    const { stdout } = await run('grep', ['-rlF', ...without, secret, join(subject.home, 'data')]).catch(
      (error: { stdout: string }) => error,
    );
    expect(stdout.split('\n').filter((path) => path !== '' && !path.includes('/sandboxes/'))).toEqual([]);
    await subject.remove(id);
  });

  test('file sync: what leads out of the owner’s home, or is not for a home inside, is refused by name, and no sandbox is made', async () => {
    await mkdir(join(subject.home, 'owner2/dir'), { recursive: true });
    await symlink('/etc/hostname', join(subject.home, 'owner2/out'));
    await symlink('/etc', join(subject.home, 'owner2/dir/etc'));
    const tried = async (host: string, guest: string): Promise<unknown> =>
      await refusal(subject.make({ name: 'refused', fileSync: [{ host, guest }] }));
    expect(await tried('~/owner2/out', '~/x')).toMatchObject({
      code: 'permission_denied',
      message: expect.stringContaining('owner2/out leads to /etc/hostname'),
    });
    expect(await tried('~/owner2/dir', '~/x')).toMatchObject({
      code: 'permission_denied',
      message: expect.stringContaining('leads to /etc'),
    });
    expect(await tried('/etc/hostname', '~/x')).toMatchObject({ code: 'permission_denied' });
    expect(await tried('~/owner2/../../../etc/hostname', '~/x')).toMatchObject({ code: 'permission_denied' });
    expect(await tried('~/data', '~/x')).toMatchObject({ code: 'permission_denied', message: expect.stringContaining("Hutch's own") });
    await mkdir(join(subject.home, 'owner3'));
    expect(await tried('~/owner3', '/etc/x')).toMatchObject({ code: 'invalid_argument', message: expect.stringContaining('/etc/x') });
    expect(await tried('~/owner3', '~/../x')).toMatchObject({ code: 'invalid_argument' });
    expect(await tried('owner3', '~/x')).toMatchObject({ code: 'invalid_argument' });
    const { sandboxes } = await daemon.call('sandbox.list', {});
    expect(sandboxes.map(({ name }) => name)).not.toContain('refused');
  });
}
