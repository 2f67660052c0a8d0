// What is gVisor's own, from outside, with the real runsc. What all backends share is in the
// conformance suite.
import { readdirSync, readFileSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { Subject } from '../conformance/subject.ts';
import { eventually } from '../support/eventually.ts';

const subject = await Subject.start('gvisor');
if (typeof subject === 'string') test.skip(`gvisor: ${subject}`, () => {});
else {
  const { daemon } = subject;
  afterAll(() => subject[Symbol.asyncDispose]());

  test('what is written anywhere is there after a stop, a start and another daemon, with owner and mode', async () => {
    const { id } = await subject.make();
    await subject.sh(
      id,
      'echo one > /root/a; echo two > /tmp/b; install -m 4750 -o 1000 -g 1001 /bin/true /usr/local/bin/own; rm /etc/issue; ln -s a /root/l',
    );
    await daemon.call('sandbox.stop', { ref: id });
    await daemon.terminate();
    await daemon.startAgain();
    await daemon.call('sandbox.start', { ref: id });
    expect(
      await subject.sh(id, "cat /root/a /tmp/b; stat -c '%a %u %g' /usr/local/bin/own; test -e /etc/issue || echo gone; readlink /root/l"),
    ).toBe('one\ntwo\n4750 1000 1001\ngone\na\n');
    await subject.remove(id);
  });

  test('programs of today see files on a kernel that refuses one of their flags', async () => {
    const box = await subject.box();
    expect(
      await subject.sh(
        box,
        'ls -ld /etc/passwd | cut -c1-10; stat -c %n /etc/passwd; su nobody -s /bin/sh -c "ls -l /etc/passwd" | cut -c1-10',
      ),
    ).toBe('-rw-r--r--\n/etc/passwd\n-rw-r--r--\n');
  });

  test('nothing that lies on the host can be written but the private layer', async () => {
    const box = await subject.box();
    const tries = ['/run/hutch/link/x', '/run/hutch/agent', '/run/hutch/link/agent.sock'].map(
      (path) => `(echo x > ${path}) 2>/dev/null; echo $?`,
    );
    const codes = (await subject.sh(box, `${tries.join('; ')}; rm -f /run/hutch/link/agent.sock 2>/dev/null; echo $?`)).trim().split('\n');
    expect(codes).toHaveLength(4);
    expect(codes).not.toContain('0');
    expect(await subject.sh(box, 'echo still reached')).toBe('still reached\n');
  });

  test('the kernel in user space killed is a crash: nothing of it is left, and the disk is', { timeout: 120_000 }, async () => {
    const { id } = await subject.make();
    await subject.sh(id, 'echo kept > /root/a; sync');
    const kernels = processesOf(id).filter(({ argv }) => argv[0] === 'runsc-sandbox');
    expect(kernels).toHaveLength(1);
    process.kill(kernels[0]?.pid ?? 0, 'SIGKILL');
    expect(await daemon.until(id, 'stopped')).toMatchObject({ ended: { cause: 'crashed', actor: 'host' } });
    await eventually('its processes are gone', async () => processesOf(id).length === 0);
    expect(cgroupsOf(id)).toEqual([]);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(id);
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'cat /root/a')).toBe('kept\n');
    await subject.remove(id);
    expect(processesOf(id)).toEqual([]);
    expect(cgroupsOf(id)).toEqual([]);
  });

  test('a sandbox that takes more memory than it may ends as a whole, and says why', { timeout: 120_000 }, async (here) => {
    if (subject.can.limits.memory !== 'host-process') here.skip('no cgroups here');
    const { id } = await subject.make({ memoryMiB: 128 });
    expect(await subject.sh(id, "grep MemTotal /proc/meminfo | awk '{ print $2 }'")).toBe(`${128 * 1024}\n`);
    await daemon
      .exec(id, { argv: ['python3', '-c', 'b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1'] })
      .catch(() => {});
    expect(await daemon.until(id, 'stopped')).toMatchObject({ ended: { oomKilled: true } });
    await subject.remove(id);
  });
}

function processesOf(id: string): { pid: number; argv: string[] }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => {
      try {
        return { pid: Number(name), argv: readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0') };
      } catch {
        return { pid: 0, argv: [] }; // ended since
      }
    })
    .filter(({ argv }) => argv.some((arg) => arg.includes(id)));
}

function cgroupsOf(id: string): string[] {
  return readdirSync('/sys/fs/cgroup', { recursive: false, encoding: 'utf8' })
    .flatMap((controller) => {
      try {
        return readdirSync(`/sys/fs/cgroup/${controller}`).map((name) => `/sys/fs/cgroup/${controller}/${name}/${id}`);
      } catch {
        return []; // a file, or gone since
      }
    })
    .filter((path) => {
      try {
        return readdirSync(path).length > 0;
      } catch {
        return false;
      }
    });
}
