// Ports of a sandbox, and its figures: counters with units that never go backwards.
import { createHash, randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { echoServer } from './echo-server.ts';
import type { Subject } from './subject.ts';

const PORT = 7_411;

export function reach(subject: Subject): void {
  const { daemon } = subject;
  let servers = 0;

  const listen = async (box: string) => {
    servers += 1;
    const execId = `echo-server-${servers}`;
    const client = await daemon.exec(box, { argv: echoServer(PORT) }, { execId });
    await client.saw('started');
    await eventually('it is listed', async () => (await daemon.call('port.list', { ref: box })).ports.some(({ port }) => port === PORT));
    return async () => {
      await daemon.call('exec.signal', { ref: box, execId, signal: 'KILL' });
      await client.exit();
    };
  };

  test('ports: a listener on the loopback inside is listed, and carries bytes both ways', async () => {
    const box = await subject.box();
    const end = await listen(box);
    const listed = (await daemon.call('port.list', { ref: box })).ports.find(({ port }) => port === PORT);
    expect(listed).toMatchObject({ protocol: 'tcp', port: PORT });
    expect(['127.0.0.1', '0.0.0.0', '::']).toContain(listed?.address); // busybox has no choice of address
    const bytes = randomBytes(300_000);
    const client = await daemon.socket(`/v1/sandboxes/${box}/connect?port=${PORT}`);
    await client.saw('connected');
    let got = Buffer.alloc(0);
    client.socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (isBinary) got = Buffer.concat([got, data]);
    });
    for (let at = 0; at < bytes.byteLength; at += 50_000) client.socket.send(bytes.subarray(at, at + 50_000));
    await eventually('all of it came back', () => got.byteLength === bytes.byteLength);
    expect(createHash('sha256').update(got).digest('hex')).toBe(createHash('sha256').update(bytes).digest('hex'));
    client.socket.terminate();
    await end();
    await eventually(
      'it is listed no more',
      async () => !(await daemon.call('port.list', { ref: box })).ports.some(({ port }) => port === PORT),
    );
  });

  test('ports: a watch says what listens, and tells each port that is opened or closed', async () => {
    const box = await subject.box();
    const seen: string[] = [];
    const gone = new AbortController();
    const watch = async () => {
      for await (const { kind, port } of daemon.lines('port.watch', { ref: box }, { signal: gone.signal }))
        if (port === PORT) seen.push(kind);
    };
    const first = watch().catch(() => {});
    const end = await listen(box);
    await eventually('it is told, as there already or as new', () => seen.length === 1);
    const second = watch().catch(() => {});
    await eventually('the second watch says that it listens', () => seen.length === 2);
    expect(seen[1]).toBe('listening');
    await end();
    await eventually('both say that it is closed', () => seen.filter((kind) => kind === 'closed').length === 2);
    const again = await listen(box);
    await eventually('both say that it is opened', () => seen.slice(4).filter((kind) => kind === 'opened').length === 2);
    gone.abort();
    await Promise.all([first, second]);
    await again();
  });

  test('ports: a unix socket inside carries bytes both ways, and one that is not there is an answer', async (here) => {
    const box = await subject.box();
    if ((await daemon.run(box, ['python3', '-c', ''])).exitCode !== 0) return here.skip('nothing in the image makes one');
    const path = `/tmp/echo-${randomBytes(4).toString('hex')}.sock`;
    const server = `import socket
s=socket.socket(socket.AF_UNIX); s.bind("${path}"); s.listen(8)
c,_=s.accept()
while True:
  d=c.recv(65536)
  if not d: break
  c.sendall(d)`;
    const served = await daemon.exec(box, { argv: ['python3', '-c', server] });
    await served.saw('started');
    const connect = async (to: string) => await daemon.socket(`/v1/sandboxes/${box}/connect?unix=${encodeURIComponent(to)}`);
    await subject.sh(box, `while [ ! -S ${path} ]; do sleep 0.05; done`);
    const client = await connect(path);
    await client.saw('connected');
    const bytes = randomBytes(200_000);
    let got = Buffer.alloc(0);
    client.socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (isBinary) got = Buffer.concat([got, data]);
    });
    client.socket.send(bytes);
    await eventually('all of it came back', () => got.byteLength === bytes.byteLength);
    expect(got.equals(bytes)).toBe(true);
    client.send({ type: 'end' });
    expect((await served.exit()).exitCode).toBe(0);
    const none = await connect('/tmp/none.sock');
    await none.closed;
    expect(none.message('error')).toMatchObject({ error: { code: 'not_found' } });
  });

  test('ports: where nobody listens is an answer', async () => {
    const client = await daemon.socket(`/v1/sandboxes/${await subject.box()}/connect?port=9`);
    await client.closed;
    expect(client.message('error')).toMatchObject({ error: { code: 'unavailable' } });
    expect(client.message('connected')).toBeUndefined();
  });

  test('ports: two sandboxes may listen on one port', async () => {
    const [box, { id }] = await Promise.all([subject.box(), subject.make()]);
    const ends = [await listen(box), await listen(id)];
    await Promise.all(ends.map((end) => end()));
    await subject.remove(id);
  });

  test('metald A.12.1: figures are counters with their units, and never go backwards', async () => {
    const box = await subject.box();
    const before = await daemon.call('sandbox.stats', { ref: box });
    await subject.sh(box, 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 2000000 /dev/zero > /tmp/written; sync');
    const after = await daemon.call('sandbox.stats', { ref: box });
    for (const counter of [
      (stats: typeof before) => stats.cpu.usedUs,
      (stats: typeof before) => stats.host.cpuUs,
      (stats: typeof before) => stats.disk.writtenBytes ?? -1,
      (stats: typeof before) => stats.disk.readBytes ?? -1,
      (stats: typeof before) => stats.network.rxBytes,
      (stats: typeof before) => stats.network.txBytes,
      (stats: typeof before) => stats.oomKills,
      (stats: typeof before) => stats.uptimeMs,
      (stats: typeof before) => stats.takenAtMs,
    ])
      expect(counter(after), String(counter)).toBeGreaterThanOrEqual(counter(before));
    // Work was done: a counter that stands still was never connected (processor time as percent, or always zero).
    expect(after.cpu.usedUs - before.cpu.usedUs).toBeGreaterThan(1_000);
    expect(after.cpu.usedUs - before.cpu.usedUs).toBeLessThan((after.uptimeMs - before.uptimeMs + 1_000) * 1_000 * 64);
    expect(after.memory.totalBytes).toBeGreaterThan(50_000_000);
    expect(after.memory.usedBytes).toBeGreaterThan(0);
    expect(after.memory.usedBytes).toBeLessThanOrEqual(after.memory.totalBytes);
    expect(after.disk.usedBytes).toBeGreaterThan(0);
    if (subject.name === 'qemu') expect(after.pressure?.cpuSomeUs, 'a machine has a kernel of its own').toBeGreaterThan(0);
    for (const [what, us] of Object.entries(after.pressure ?? {})) {
      expect(us, what).toBeGreaterThanOrEqual(Object.entries(before.pressure ?? {}).find(([name]) => name === what)?.[1] ?? Number.NaN);
    }
    expect(after.processes).toBeGreaterThan(0);
    expect(after.host.pssBytes).toBeGreaterThan(0);
  });

  test('metald A.10.12: what is written to the disk is counted', { timeout: 60_000 }, async () => {
    const box = await subject.box();
    const written = async () => (await daemon.call('sandbox.stats', { ref: box })).disk.writtenBytes ?? Number.NaN;
    const before = await written();
    await subject.sh(box, 'dd if=/dev/zero of=/root/written bs=1M count=8 conv=fsync 2>/dev/null');
    await eventually('it is counted', async () => (await written()) - before >= 8 * 2 ** 20);
    await subject.sh(box, 'rm /root/written');
  });

  test('metrics: reading them changes nothing, and two readings agree', async () => {
    const box = await subject.box();
    const { generation, changedAtMs } = await subject.get(box);
    const [one, two] = await Promise.all([daemon.call('sandbox.stats', { ref: box }), daemon.call('sandbox.stats', { ref: box })]);
    expect(one.memory.totalBytes).toBe(two.memory.totalBytes);
    expect(one.cpu.count).toBe(two.cpu.count);
    expect(Math.abs(one.cpu.usedUs - two.cpu.usedUs)).toBeLessThan(10_000_000);
    expect(await subject.get(box)).toMatchObject({ generation, changedAtMs });
  });
}
