// Limits, as far as the backend says that they hold here: `enforced` holds, anything else is said.
import { expect, test } from 'vitest';
import type { Subject } from './subject.ts';

const DISK_MIB = 512;
const PIDS = 20;
const STEP_BYTES = 16 * 1024 * 1024;

export function limits(subject: Subject): void {
  const { daemon, can } = subject;

  test('limits: each that is not enforced has a note that names it', () => {
    for (const [limit, how] of Object.entries(can.limits)) {
      if (how !== 'enforced') expect(can.notes.join('\n').toLowerCase(), `${limit} is ${how}`).toContain(limit);
    }
  });

  test('limits: memory that is enforced ends what takes too much, and nothing else', { timeout: 120_000 }, async (here) => {
    if (can.limits.memory !== 'enforced') return here.skip('this backend does not enforce memory');
    const { id, shape } = await subject.make();
    const bytes = 2 * shape.memoryMiB * 1024 * 1024;
    const python = `held = []\nwhile len(held) * ${STEP_BYTES} < ${bytes}: held.append(b"x" * ${STEP_BYTES})\nprint("held all of it")`;
    const hog = `echo 1000 > /proc/self/oom_score_adj; command -v python3 >/dev/null && exec python3 -c '${python}'; head -c ${bytes} /dev/zero | tail -c ${bytes} | wc -c`;
    const greedy = await daemon.run(id, ['sh', '-c', hog]);
    expect(greedy.stdout, 'what it could hold').not.toMatch(new RegExp(`all of it|${bytes}`));
    expect(await subject.sh(id, 'echo alive')).toBe('alive\n');
    expect((await daemon.call('sandbox.stats', { ref: id })).oomKills).toBeGreaterThan(0);
    await subject.remove(id);
  });

  test('limits: a disk that is enforced is full in time, and goes on when there is room', { timeout: 120_000 }, async (here) => {
    if (can.limits.disk !== 'enforced') return here.skip('this backend does not enforce the disk');
    const { id } = await subject.make({ diskMiB: DISK_MIB });
    const fill = `fallocate -l ${DISK_MIB + 64}M /root/big || { rm -f /root/big; false; }`;
    expect(await daemon.run(id, ['sh', '-c', fill])).toMatchObject({ exitCode: 1, stderr: expect.stringMatching(/No space left/) });
    expect(await subject.sh(id, 'echo room > /root/small; cat /root/small')).toBe('room\n');
    expect((await daemon.call('sandbox.stats', { ref: id })).disk.totalBytes).toBeLessThanOrEqual(DISK_MIB * 1024 * 1024);
    await subject.remove(id);
  });

  test('limits: processors that are enforced bound what many busy processes get', { timeout: 120_000 }, async (here) => {
    if (can.limits.cpu !== 'enforced') return here.skip('this backend does not enforce processors');
    const { id, shape } = await subject.make();
    const before = await daemon.call('sandbox.stats', { ref: id });
    await subject.sh(id, 'for n in 1 2 3 4; do timeout 2 sh -c "while :; do :; done" & done; wait; true');
    const after = await daemon.call('sandbox.stats', { ref: id });
    const elapsedUs = (after.uptimeMs - before.uptimeMs) * 1_000;
    expect((after.cpu.usedUs - before.cpu.usedUs) / elapsedUs).toBeLessThan(shape.cpus * 1.25);
    await subject.remove(id);
  });

  test('limits: processes that are enforced are bounded where the kernel is shared', { timeout: 120_000 }, async (here) => {
    if (can.limits.processes !== 'enforced') return here.skip('this backend does not enforce the number of processes');
    if (can.isolation === 'vm') return here.skip('a machine’s processes are its own kernel’s');
    const { id } = await subject.make();
    const { exitCode } = await daemon.run(id, ['sh', '-c', 'i=0; while [ $i -lt 6000 ]; do sleep 300 & i=$((i+1)); done 2>/dev/null']);
    expect(exitCode, 'six thousand processes').not.toBe(0);
    await subject.remove(id);
  });

  test('limits: as many processes as were asked for and no more, from each start on', { timeout: 120_000 }, async (here) => {
    if (can.limits.processes === 'no') return here.skip('this backend does not limit processes');
    const { id, shape } = await subject.make({ pids: PIDS });
    expect(shape.pids).toBe(PIDS);
    const begin = async (count: number) =>
      await daemon.run(id, [
        'sh',
        '-c',
        `(i=0; while [ $i -lt ${count} ]; do sleep 300 & i=$((i+1)); done; echo all of them); kill -KILL 0`,
      ]);
    expect((await begin(PIDS)).stdout, 'with the agent and the shells they are more').toBe('');
    expect(await subject.sh(id, 'echo alive')).toBe('alive\n');
    await daemon.call('sandbox.restart', { ref: id });
    expect((await begin(PIDS)).stdout).toBe('');
    expect((await begin(PIDS / 2)).stdout).toBe('all of them\n');

    const { now, atNextStart } = await daemon.call('sandbox.set', { ref: id, pids: 2 * PIDS });
    expect({ now, atNextStart }).toEqual(
      can.changes.processes === 'live' ? { now: ['pids'], atNextStart: [] } : { now: [], atNextStart: ['pids'] },
    );
    if (atNextStart.length > 0) await daemon.call('sandbox.restart', { ref: id });
    expect((await subject.get(id)).shape.pids).toBe(2 * PIDS);
    expect((await begin(PIDS)).stdout).toBe('all of them\n');
    await subject.remove(id);
  });

  test('limits: a sandbox sees its own processes and no others', async () => {
    const box = await subject.box();
    expect(Number(await subject.sh(box, 'ls -d /proc/[0-9]* | wc -l'))).toBeLessThan(120);
    expect((await daemon.run(box, ['sh', '-c', `cat /proc/[0-9]*/cmdline | tr "\\0" "\\n"`])).stdout).not.toContain(
      'conformance/daemon.ts',
    );
  });
}
