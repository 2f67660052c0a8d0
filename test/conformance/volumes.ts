// Volumes: named disks that outlive sandboxes, on every backend that claims them.
import { execFile } from 'node:child_process';
import { open, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { refusal, type Subject } from './subject.ts';

const MIB = 2 ** 20;

export function volumes(subject: Subject): void {
  const { daemon, can } = subject;

  if (!can.volumes) {
    test('volumes: not claimed, they are refused by name', async () => {
      await daemon.call('volume.create', { name: 'kept', sizeMiB: 16 });
      expect(await refusal(subject.make({ mounts: [{ source: 'kept', target: '/kept' }] }))).toMatchObject({
        code: 'failed_precondition',
        message: expect.stringContaining('volumes'),
        hint: expect.stringContaining('hutch backends'),
      });
      await daemon.call('volume.remove', { volume: 'kept' });
    });
    return;
  }

  test('volumes: what is on one outlives its sandboxes, who writes is alone with it, and it grows', { timeout: 180_000 }, async () => {
    await daemon.call('volume.create', { name: 'kept', sizeMiB: 64 });
    const mounts = [{ source: 'kept', target: '/srv/kept' }];
    const first = await subject.make({ mounts });
    await subject.sh(first.id, 'echo one > /srv/kept/a; chmod 600 /srv/kept/a; mkdir /srv/kept/d; ln -s a /srv/kept/l');
    const sizeOf = async (ref: string): Promise<number> => Number(await subject.sh(ref, "df -B1 /srv/kept | awk 'END { print $2 }'"));
    const before = await sizeOf(first.id);
    expect(before).toBeGreaterThan(48 * MIB);
    // Somebody has it: nobody else gets it, to read or to write, and it stays and does not change.
    const second = await subject.make({ mounts, start: false, name: 'second' });
    const refused = [
      () => daemon.call('sandbox.start', { ref: second.id }),
      () => subject.make({ mounts: [{ source: 'kept', target: '/k', readOnly: true }] }),
      () => daemon.call('volume.grow', { volume: 'kept', sizeMiB: 128 }),
      () => daemon.call('volume.remove', { volume: 'kept' }),
    ];
    for (const ask of refused)
      expect(await refusal(ask())).toMatchObject({ code: 'failed_precondition', message: expect.stringContaining(first.name) });
    // What is removed from it is this machine's again.
    const takes = async (): Promise<number> => (await daemon.call('volume.get', { volume: 'kept' })).allocatedBytes;
    const little = await takes();
    await subject.sh(first.id, 'head -c 8000000 /dev/urandom > /srv/kept/big; sync');
    expect(await takes()).toBeGreaterThan(little + 7 * MIB);
    await subject.sh(first.id, 'rm /srv/kept/big; sync');
    await eventually('the room is given back', async () => (await takes()) < little + 3 * MIB, 30_000);
    await subject.remove(first.id);
    expect(await refusal(daemon.call('volume.grow', { volume: 'kept', sizeMiB: 32 }))).toMatchObject({
      message: expect.stringContaining('only grow'),
    });
    expect(await daemon.call('volume.grow', { volume: 'kept', sizeMiB: 128 })).toMatchObject({
      sizeMiB: 128,
      usedBy: [{ sandbox: 'second', alive: false }],
    });
    await daemon.call('sandbox.start', { ref: second.id });
    expect(await subject.sh(second.id, "cat /srv/kept/l; stat -c '%a' /srv/kept/a; ls /srv/kept")).toBe('one\n600\na\nd\nl\nlost+found\n');
    expect(await sizeOf(second.id)).toBeGreaterThan(before + 48 * MIB);
    await daemon.call('sandbox.restart', { ref: second.id });
    expect(await subject.sh(second.id, 'echo two > /srv/kept/b; cat /srv/kept/a')).toBe('one\n');
    await daemon.call('sandbox.stop', { ref: second.id });
    const reader = await subject.make({ mounts: [{ source: 'kept', target: '/srv/kept', readOnly: true }] });
    const tries =
      'cat /srv/kept/b; (echo x > /srv/kept/c) 2>/dev/null || echo refused; mount -o remount,rw /srv/kept 2>/dev/null; (echo x > /srv/kept/c) 2>/dev/null; sync; ls /srv/kept | grep -c c || true';
    expect(await subject.sh(reader.id, tries)).toMatch(/^two\nrefused\n/);
    await subject.remove(reader.id);
    const again = await subject.make({ mounts });
    expect(await subject.sh(again.id, 'ls /srv/kept')).toBe('a\nb\nd\nl\nlost+found\n');
    await subject.remove(again.id);
    expect(await refusal(daemon.call('volume.remove', { volume: 'kept' }))).toMatchObject({
      message: expect.stringContaining('mounted by sandbox second'),
    });
    await subject.remove(second.id);
    const { id } = await daemon.call('volume.remove', { volume: 'kept' });
    expect(await stat(join(subject.home, 'data/volumes', id)).catch(() => null)).toBeNull();
  });

  test('volumes: one that is full says so inside, and one that is damaged or gone keeps its sandbox from the start', {
    timeout: 180_000,
  }, async () => {
    const { id } = await daemon.call('volume.create', { name: 'small', sizeMiB: 16 });
    const box = await subject.make({ mounts: [{ source: 'small', target: '/small' }], name: 'bearer' });
    expect(await subject.sh(box.id, 'dd if=/dev/zero of=/small/big bs=1M count=32 2>&1; sync; echo up')).toMatch(
      /No space left on device[\s\S]*up\n$/,
    );
    await daemon.call('sandbox.stop', { ref: box.id });
    {
      await using file = await open(join(subject.home, 'data/volumes', id, 'disk.img'), 'r+');
      await file.write(Buffer.alloc(MIB, 0x5a), 0, MIB, 0);
    }
    expect(await refusal(daemon.call('sandbox.start', { ref: box.id }))).toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('the volume at /small cannot be used'),
    });
    expect((await subject.get(box.id)).state).toBe('stopped');
    await rm(join(subject.home, 'data/volumes', id, 'disk.img'));
    expect(await refusal(daemon.call('sandbox.start', { ref: box.id }))).toMatchObject({
      code: 'failed_precondition',
      message: expect.stringContaining('the volume at /small is gone'),
    });
    expect(await daemon.call('volume.get', { volume: 'small' })).toMatchObject({ name: 'small', allocatedBytes: 0 });
    await subject.remove(box.id);
    await daemon.call('volume.remove', { volume: 'small' });
  });

  // Elsewhere nothing is mounted where this machine sees it.
  if (subject.name !== 'docker') return;

  test('volumes: a daemon that is killed while it mounts one leaves it to the next, whole and free', { timeout: 180_000 }, async () => {
    const { id: volume } = await daemon.call('volume.create', { name: 'torn', sizeMiB: 64 });
    const { id } = await subject.make({ name: 'torn', mounts: [{ source: 'torn', target: '/srv/torn' }] });
    await subject.sh(id, 'echo kept > /srv/torn/file');
    await daemon.call('sandbox.stop', { ref: id });
    const place = join(subject.home, 'data/docker/volumes', id);
    const isMounted = async (): Promise<boolean> => (await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${place}/`);
    await daemon.kill9();
    // As it is in the middle of a start.
    await promisify(execFile)('mount', ['-o', 'loop', join(subject.home, 'data/volumes', volume, 'disk.img'), join(place, '0')]);
    expect(await isMounted()).toBe(true);
    await daemon.startAgain();
    await daemon.call('sandbox.start', { ref: id });
    expect(await isMounted()).toBe(false);
    expect(await subject.sh(id, 'cat /srv/torn/file; echo more > /srv/torn/file')).toBe('kept\n');
    await daemon.call('sandbox.restart', { ref: id });
    expect(await subject.sh(id, 'cat /srv/torn/file')).toBe('more\n');
    await subject.remove(id);
    expect(await isMounted()).toBe(false);
    expect(await stat(place).catch(() => null)).toBeNull();
    await daemon.call('volume.remove', { volume });
  });
}
