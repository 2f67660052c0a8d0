// What is gVisor's own, from outside, with the real runsc. What all backends share is in the
// conformance suite.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { Subject } from '../conformance/subject.ts';
import { METADATA, REFUSALS } from '../network/neighbours.ts';
import { eventually } from '../support/eventually.ts';

/** From <linux/capability.h>. */
const CAP_SYS_RESOURCE = 24n;

const subject = await Subject.start('gvisor');
if (typeof subject === 'string') test.skip(`gvisor: ${subject}`, () => {});
else {
  const { daemon } = subject;
  afterAll(() => subject[Symbol.asyncDispose]());

  // The first unpacks the image.
  test('what is written anywhere is there after a stop, a start and another daemon, with owner and mode; what nothing goes on with is gone', {
    timeout: 180_000,
  }, async () => {
    const { id } = await subject.make();
    await subject.sh(
      id,
      'echo one > /root/a; echo two > /tmp/b; install -m 4750 -o 1000 -g 1001 /bin/true /usr/local/bin/own; rm /etc/issue; ln -s a /root/l',
    );
    await daemon.call('sandbox.stop', { ref: id });
    await daemon.terminate();
    const nobodys = join(subject.home, 'data/bases/agent-0123456789abcdef');
    mkdirSync(nobodys);
    writeFileSync(join(nobodys, 'hutch-agent'), 'of another release');
    await daemon.startAgain();
    await daemon.call('sandbox.start', { ref: id });
    expect(
      await subject.sh(id, "cat /root/a /tmp/b; stat -c '%a %u %g' /usr/local/bin/own; test -e /etc/issue || echo gone; readlink /root/l"),
    ).toBe('one\ntwo\n4750 1000 1001\ngone\na\n');
    await eventually('the agent of another release is gone', () => !existsSync(nobodys));
    await subject.remove(id);
  });

  // This release keeps one for each hard link.
  test('its file server may have as many files open as this machine allows a process', async () => {
    const box = await subject.box();
    const gofers = processesOf(box).filter(({ argv }) => argv[0] === 'runsc-gofer');
    const read = (path: string) => readFileSync(path, 'utf8');
    const limit = (pid: number | 'self') => Number(/^Max open files\s+\d+\s+(\d+)/m.exec(read(`/proc/${pid}/limits`))?.[1]);
    const mayRaise = (BigInt(`0x${/^CapEff:\s+([0-9a-f]+)/m.exec(read('/proc/self/status'))?.[1]}`) >> CAP_SYS_RESOURCE) % 2n === 1n;
    expect(gofers.map(({ pid }) => limit(pid))).toEqual([mayRaise ? Number(read('/proc/sys/fs/nr_open')) : limit('self')]);
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
    const tries = ['/run/hutch/link/x', '/run/hutch/link/hutch-agent', '/run/hutch/link/agent.sock'].map(
      (path) => `(echo x > ${path}) 2>/dev/null; echo $?`,
    );
    const codes = (await subject.sh(box, `${tries.join('; ')}; rm -f /run/hutch/link/agent.sock 2>/dev/null; echo $?`)).trim().split('\n');
    expect(codes).toHaveLength(4);
    expect(codes).not.toContain('0');
    expect(await subject.sh(box, 'echo still reached')).toBe('still reached\n');
  });

  test.each([
    ['the kernel in user space', (argv: readonly string[]) => argv[0] === 'runsc-sandbox'],
    ['what gives it its files', (argv: readonly string[]) => argv[0] === 'runsc-gofer'],
    ['runsc itself', (argv: readonly string[]) => /runsc$/.test(argv[0] ?? '') && argv.includes('run')],
    ['the shim', (argv: readonly string[]) => /hutch-shim$/.test(argv[0] ?? '')],
  ])('%s killed is a crash: nothing of it is left, and the disk is', { timeout: 120_000 }, async (_what, isIt) => {
    const { id } = await subject.make();
    await subject.sh(id, 'echo kept > /root/a; sync');
    const found = processesOf(id).filter(({ argv }) => isIt(argv));
    expect(found).toHaveLength(1);
    process.kill(found[0]?.pid ?? 0, 'SIGKILL');
    expect(await daemon.until(id, 'stopped')).toMatchObject({ ended: { cause: 'crashed', actor: 'host' } });
    await eventually('its processes and cgroups are gone', async () => processesOf(id).length === 0 && cgroupsOf(id).length === 0);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(id);
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'cat /root/a')).toBe('kept\n');
    await subject.remove(id);
    expect(processesOf(id)).toEqual([]);
    expect(cgroupsOf(id)).toEqual([]);
  });

  test('what its kernel says of its own end is in logs --vmm', { timeout: 120_000 }, async (here) => {
    const { id } = await subject.make();
    const kernel = processesOf(id).filter(({ argv }) => argv[0] === 'runsc-sandbox');
    expect(kernel).toHaveLength(1);
    if (!kernel[0]?.argv.some((arg) => arg.startsWith('--panic-log'))) here.skip('this release keeps no such words');
    // No more threads for it: its runtime (Go's) ends it with a trace of all that it did.
    execFileSync('prlimit', ['--pid', `${kernel[0]?.pid}`, '--nproc=1:1']);
    await daemon.exec(id, { argv: ['python3', '-c', 'import os\nfor _ in range(5): os.fork()'] }).catch(() => {});
    expect(await daemon.until(id, 'stopped')).toMatchObject({ ended: { cause: 'crashed', actor: 'host' } });
    expect((await daemon.call('why.get', { ref: id })).sentence).toContain('its kernel in user space ended by itself');
    const { body } = await daemon.send('GET', `/v1/sandboxes/${id}/logs?source=vmm`);
    expect(body.toString('latin1')).toMatch(/fatal error: newosproc[\s\S]*goroutine/);
    await subject.remove(id);
  });

  test('what a crash left of a start is out of the way of the next one', { timeout: 120_000 }, async () => {
    const { id } = await subject.make({ start: false });
    const runDir = join(daemon.home, 'run', 'sandboxes', id);
    // As a machine that lost its power, or a daemon that was killed in the middle, leaves them: another's bundle and state, a
    // socket that nobody listens on, the place where a namespace was bound, cgroups.
    mkdirSync(join(runDir, 'runsc'), { recursive: true });
    mkdirSync(join(runDir, 'link'));
    writeFileSync(join(runDir, 'config.json'), '{"ociVersion":"1.0.2","process":{"args":["/stale"]}}');
    writeFileSync(join(runDir, 'runsc', `${id}_sandbox:${id}.state`), '{"id":"stale"');
    writeFileSync(join(runDir, 'runsc', `${id}.lock`), '');
    writeFileSync(join(runDir, 'netns'), '');
    const listener = createServer().listen(join(runDir, 'link', 'agent.sock'));
    await once(listener, 'listening');
    renameSync(join(runDir, 'link', 'agent.sock'), join(runDir, 'link', 'kept')); // closing would remove it
    listener.close();
    renameSync(join(runDir, 'link', 'kept'), join(runDir, 'link', 'agent.sock'));
    const box = await subject.box(); // its cgroups lie where those of the other will
    for (const path of cgroupsOf(box)) mkdirSync(join(dirname(path), id));
    await daemon.call('sandbox.start', { ref: id });
    expect(await subject.sh(id, 'echo up')).toBe('up\n');
    await daemon.call('sandbox.stop', { ref: id });
    expect(cgroupsOf(id)).toEqual([]);
    expect(existsSync(runDir)).toBe(false);
    await subject.remove(id);
  });

  test('the private layer is a disk of its size, and no device of it stays', { timeout: 120_000 }, async (here) => {
    if (subject.can.limits.disk !== 'enforced') here.skip('no loop devices here');
    const { id } = await subject.make({ diskMiB: 1024 });
    const devices = (): number => loopDevices().filter((file) => file.includes(id)).length;
    const mebibytes = Number(await subject.sh(id, "df -m / | awk 'NR > 1 { print $2 }'"));
    expect(mebibytes).toBeGreaterThan(800);
    expect(mebibytes).toBeLessThanOrEqual(1024);
    expect(devices()).toBe(1);
    await subject.sh(id, 'echo kept > /root/a');
    // Each start finds the device of the one before gone, or waits until it is.
    for (let i = 0; i < 3; i += 1) await daemon.call('sandbox.restart', { ref: id });
    expect(await subject.sh(id, 'cat /root/a')).toBe('kept\n');
    expect(devices()).toBe(1);
    await daemon.call('sandbox.stop', { ref: id });
    await eventually('its device is gone', () => devices() === 0);
    await subject.remove(id);
  });

  test('a private layer that is a directory, as of a machine without loop devices, is used on as such', { timeout: 120_000 }, async () => {
    const { id } = await subject.make({ start: false });
    const layer = join(daemon.home, 'data/sandboxes', id, 'vm/layer');
    rmSync(join(layer, 'disk.img'), { force: true });
    mkdirSync(join(layer, 'upper'), { mode: 0o755, recursive: true });
    mkdirSync(join(layer, 'work'), { mode: 0o700, recursive: true });
    await daemon.call('sandbox.start', { ref: id });
    await subject.sh(id, 'echo kept > /root/a');
    await daemon.call('sandbox.restart', { ref: id });
    expect(await subject.sh(id, 'cat /root/a')).toBe('kept\n');
    expect(readFileSync(join(layer, 'upper/root/a'), 'utf8')).toBe('kept\n');
    await daemon.call('sandbox.stop', { ref: id });
    rmSync(layer, { recursive: true });
    await expect(daemon.call('sandbox.start', { ref: id })).rejects.toMatchObject({ body: { code: 'failed_precondition' } });
    await subject.remove(id);
  });

  test('a refused connection is told at once; the end of what carries the network is told, and a new start brings it back', {
    timeout: 120_000,
  }, async (here) => {
    if (!subject.can.networks.includes('allow')) here.skip('no network here');
    const { id } = await subject.make({ network: 'allow' });
    const ofPasst = () => processesOf(id).filter(({ argv }) => /passt(\.avx2)?$/.test(argv[0] ?? ''));
    expect(ofPasst()).toHaveLength(1);
    const refused = await daemon.run(id, ['python3', '-c', REFUSALS, METADATA, '127.0.0.1']);
    expect(refused.stdout.trim(), 'a refusal is told at once').toBe('ConnectionRefusedError ConnectionRefusedError');
    const why = async (): Promise<string> => (await daemon.call('why.get', { ref: id })).sentence;
    expect(await why()).not.toContain('network');
    process.kill(ofPasst()[0]?.pid ?? 0, 'SIGKILL');
    await eventually('it is on record', async () => (await why()).includes('Its network is lost'));
    expect(await subject.sh(id, 'echo goes on')).toBe('goes on\n');
    await daemon.terminate();
    await daemon.startAgain(); // which hears of it too, and records it once
    await subject.sh(id, 'true');
    const { events } = await daemon.call('why.get', { ref: id });
    expect(events.filter(({ type }) => type === 'sandbox.network-lost')).toHaveLength(1);
    await daemon.call('sandbox.restart', { ref: id });
    expect(await why()).not.toContain('network');
    expect(ofPasst()).toHaveLength(1);
    await subject.remove(id);
  });

  test('a flood on stdout that nobody reads grows neither the daemon nor the sandbox', { timeout: 120_000 }, async () => {
    const box = await subject.box();
    const kernel = processesOf(box).find(({ argv }) => argv[0] === 'runsc-sandbox')?.pid ?? 0;
    const memory = () => ({ daemon: residentBytes(daemon.pid), sandbox: residentBytes(kernel) });
    const flood = async (bytes: number, id: string) => {
      const client = await daemon.exec(box, { argv: ['head', '-c', String(bytes), '/dev/zero'] }, { execId: id });
      client.keep = false;
      await client.saw('started');
      return client;
    };
    await (await flood(20_000_000, 'first')).exit(); // what a first time costs
    const before = memory();
    let read = 0;
    const heard = await flood(200_000_000, 'heard');
    heard.onBytes = (_channel, bytes) => {
      read += bytes.length;
    };
    const unheard = await flood(200_000_000, 'unheard');
    unheard.socket.pause();
    await heard.exit();
    const after = memory();
    expect(read).toBeGreaterThan(199_000_000 - 1_000_000);
    for (const who of ['daemon', 'sandbox'] as const) expect(after[who] - before[who], who).toBeLessThan(64 * 2 ** 20);
    unheard.socket.terminate();
    await daemon.call('exec.signal', { ref: box, execId: 'unheard', signal: 'KILL' });
  });

  test('thirty are made at once, each is itself, and nothing of them stays', { timeout: 240_000 }, async () => {
    const made = await Promise.all(Array.from({ length: 30 }, () => subject.make({ memoryMiB: 128 })));
    expect(await Promise.all(made.map(({ id }) => subject.sh(id, 'hostname')))).toEqual(made.map(({ name }) => `${name}\n`));
    await subject.remove(...made.map(({ id }) => id));
    for (const { id } of made) expect([...processesOf(id), ...cgroupsOf(id)]).toEqual([]);
  });

  test('a limit of processes is claimed where this runsc keeps to one, and where it does not it is refused', async (here) => {
    const { limits } = subject.can;
    if (limits.memory === 'no') here.skip('no cgroups here');
    const most = 8;
    // A cgroup of its own, of which none of Hutch's knows.
    const script = `mount -t cgroup -o pids cgroup /mnt; mkdir /mnt/own; echo ${most} > /mnt/own/pids.max
      sh -c 'echo $$ > /mnt/own/cgroup.procs; i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); echo $i > /tmp/begun; done' 2>/dev/null
      cat /tmp/begun; umount /mnt`;
    const { id } = await subject.make();
    const begun = Number(await subject.sh(id, script));
    const keepsTo = begun < most;
    expect([begun, limits.processes]).toEqual([begun, keepsTo ? 'host-process' : 'no']);
    if (!keepsTo) await expect(subject.make({ pids: 20 })).rejects.toThrow('pids cannot be limited');
    await subject.remove(id);
  });

  test('a sandbox that takes more memory than it may ends as a whole, and says why', { timeout: 120_000 }, async (here) => {
    if (subject.can.limits.memory !== 'host-process') here.skip('no cgroups here');
    const { id } = await subject.make({ memoryMiB: 128 });
    expect(await subject.sh(id, "grep MemTotal /proc/meminfo | awk '{ print $2 }'")).toBe(`${128 * 1024}\n`);
    const argv = ['python3', '-c', 'b = bytearray(600 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1'];
    const killed = { exitCode: 137, signal: 'KILL', oomKilled: true, reason: 'signalled' };
    const error = { retryable: false, hint: expect.stringContaining('--memory') };
    expect(await (await daemon.exec(id, { argv })).exit()).toMatchObject({ ...killed, error });
    expect(await daemon.until(id, 'stopped')).toMatchObject({ ended: { cause: 'crashed', oomKilled: true, exitCode: null } });
    await subject.remove(id);

    const main = { argv, attach: true };
    const gone = await daemon.call('sandbox.create', { backend: 'gvisor', memoryMiB: 128, main, autoRemove: true });
    expect(await (await daemon.attach(gone.id, 'main')).exit()).toMatchObject({ ...killed, error });
    const kept = await daemon.call('sandbox.create', { backend: 'gvisor', memoryMiB: 128, main: { argv } });
    const { exitCode, sandbox } = await daemon.call('sandbox.wait', { ref: kept.id });
    expect([exitCode, sandbox.ended?.exitCode]).toEqual([137, 137]);
    expect(await (await daemon.attach(kept.id, 'main')).exit(), 'and whoever comes later hears the same').toMatchObject(killed);
    await subject.remove(kept.id);
  });
}

/** The file behind each loop device of this machine. */
function loopDevices(): string[] {
  return readdirSync('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .map((name) => {
      try {
        return readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8');
      } catch {
        return ''; // it shows none
      }
    });
}

function residentBytes(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024;
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
  return cgroupParents()
    .map((parent) => join(parent, id))
    .filter((path) => existsSync(path));
}

/** Directories of this machine's daemons that hold cgroups of sandboxes. */
function cgroupParents(): string[] {
  const inside = (dir: string): string[] => {
    try {
      return readdirSync(dir, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map(({ name }) => join(dir, name));
    } catch {
      return []; // gone since
    }
  };
  const controllers = ['/sys/fs/cgroup', ...inside('/sys/fs/cgroup')];
  return controllers.flatMap(inside).filter((path) => /\/hutch-[^/]+$/.test(path));
}
