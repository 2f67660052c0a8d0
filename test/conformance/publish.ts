// Published ports: one behaviour on every backend, because the daemon itself answers at them.
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer, type Server } from 'node:net';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { byeServer, echoServer } from './echo-server.ts';
import { refusal, type Subject } from './subject.ts';

const GUEST_PORT = 7_412;

export function publish(subject: Subject): void {
  const { daemon } = subject;

  const main = { argv: echoServer(GUEST_PORT) };

  /** What comes back before the other end closes; a reset is an error. */
  const echoed = async (port: number, bytes: Uint8Array): Promise<string> => {
    const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true });
    const hash = createHash('sha256');
    socket.on('data', (chunk) => hash.update(chunk));
    const ended = once(socket, 'end');
    socket.end(bytes);
    await ended;
    socket.destroy();
    return hash.digest('hex');
  };

  const answers = async (port: number): Promise<boolean> =>
    await echoed(port, Buffer.from('x')).then(
      (hash) => hash === createHash('sha256').update('x').digest('hex'),
      () => false,
    );

  const portOf = async (ref: string): Promise<number> => (await subject.get(ref)).publish[0]?.hostPort ?? 0;

  const occupied = async (port: number): Promise<Server & Disposable> => {
    const server = createServer();
    server.listen({ host: '127.0.0.1', port });
    await once(server, 'listening');
    return Object.assign(server, { [Symbol.dispose]: () => void server.close() });
  };

  test('publish: a port of this machine answers for one inside, with every byte, from each start on', { timeout: 120_000 }, async () => {
    const { id, publish: ports } = await subject.make({ main, publish: [{ guestPort: GUEST_PORT }] });
    expect(ports).toEqual([{ hostAddress: '127.0.0.1', hostPort: expect.any(Number), guestPort: GUEST_PORT }]);
    const port = ports[0]?.hostPort ?? 0;
    await eventually('it answers', () => answers(port), 30_000);
    const bytes = randomBytes(2_000_000);
    expect(await echoed(port, bytes)).toBe(createHash('sha256').update(bytes).digest('hex'));
    expect((await daemon.call('port.list', { ref: id })).published).toEqual([{ ...ports[0], problem: null }]);

    await daemon.call('sandbox.stop', { ref: id, force: true });
    expect(await answers(port), 'nobody answers for one that is stopped').toBe(false);
    expect(await portOf(id)).toBe(port);
    expect(await daemon.call('port.list', { ref: id })).toEqual({ ports: [], published: [{ ...ports[0], problem: null }] });
    await daemon.call('sandbox.start', { ref: id });
    await eventually('it answers again', () => answers(port), 30_000);
    await subject.remove(id);
    expect(await answers(port)).toBe(false);
    (await occupied(port))[Symbol.dispose]();
  });

  test('publish: a connection where nobody listens inside is reset, not held, and one whose server has ended at once ends', {
    timeout: 120_000,
  }, async () => {
    const main = { argv: byeServer(GUEST_PORT) };
    const { id, publish: ports } = await subject.make({ main, publish: [{ guestPort: 9 }, { guestPort: GUEST_PORT }] });
    const to = (guestPort: number): number => ports.find((one) => one.guestPort === guestPort)?.hostPort ?? 0;
    const socket = connect({ host: '127.0.0.1', port: to(9) });
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toBe('ECONNRESET');
    // What it says and its end may come together, and of both there is one event.
    const heard = async (): Promise<string> => {
      const client = connect({ host: '127.0.0.1', port: to(GUEST_PORT), allowHalfOpen: true });
      let said = '';
      client.on('data', (chunk) => {
        said += String(chunk);
      });
      await once(client, 'end').finally(() => client.destroy());
      return said.trim();
    };
    await eventually(
      'it listens',
      () =>
        heard()
          .catch(() => null)
          .then((said) => said === 'bye'),
      30_000,
    );
    for (let round = 0; round < 4; round += 1)
      expect(await Promise.all(Array.from({ length: 4 }, heard))).toEqual(['bye', 'bye', 'bye', 'bye']);
    await subject.remove(id);
  });

  test('publish: no two sandboxes have one port, whether they run or not, and the refusal names the owner', async () => {
    const { id, name } = await subject.make({ start: false, publish: [{ guestPort: 80 }] });
    const hostPort = await portOf(id);
    expect(hostPort).toBeGreaterThan(0);
    for (const hostAddress of ['127.0.0.1', '0.0.0.0', '::']) {
      const refused = await refusal(subject.make({ name: 'second', publish: [{ hostAddress, hostPort, guestPort: 80 }] }));
      expect(refused).toMatchObject({ code: 'conflict', message: expect.stringContaining(`sandbox ${name}`) });
    }
    const twice = [
      { hostPort, guestPort: 1 },
      { hostPort, guestPort: 2 },
    ];
    await subject.remove(id);
    expect(await refusal(subject.make({ name: 'second', publish: twice }))).toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('this sandbox already'),
    });
    const second = await subject.make({ name: 'second', start: false, publish: [{ hostPort, guestPort: 80 }] });
    await subject.remove(second.id);
    expect(await daemon.leaks()).toEqual([]);
  });

  test('metald A.10.12: a port that is taken between reservation and start fails the start, names who has it, and leaves nothing half started', async () => {
    const { id } = await subject.make({ start: false, main, publish: [{ guestPort: GUEST_PORT }] });
    const port = await portOf(id);
    {
      using _taken = await occupied(port);
      const refused = await refusal(daemon.call('sandbox.start', { ref: id }));
      expect(refused).toMatchObject({ code: 'conflict', message: expect.stringContaining(`(pid ${process.pid})`) });
      expect(refused.message).toContain(`127.0.0.1:${port}`);
      expect(await subject.get(id)).toMatchObject({ state: 'created', openComputeSinceMs: null });
      expect(await daemon.leaks()).toEqual([]);
      const made = await refusal(
        subject.make({
          name: 'never',
          publish: [
            { hostPort: port + 1, guestPort: 1 },
            { hostPort: port, guestPort: 2 },
          ],
        }),
      );
      expect(made.code).toBe('conflict');
      expect((await daemon.call('sandbox.list', {})).sandboxes.map(({ name }) => name)).not.toContain('never');
    }
    await daemon.call('sandbox.start', { ref: id });
    await eventually('it answers', () => answers(port), 30_000);
    await subject.remove(id);
  });

  test('publish: a start that fails gives its ports back', async () => {
    const { id } = await subject.make({ start: false, publish: [{ guestPort: 80 }] });
    const port = await portOf(id);
    {
      await using _ = await subject.fault('fail', 'start', id);
      await refusal(daemon.call('sandbox.start', { ref: id }));
    }
    (await occupied(port))[Symbol.dispose]();
    await subject.remove(id);
    {
      await using _ = await subject.fault('fail', 'create');
      await refusal(subject.make({ publish: [{ hostPort: port, guestPort: 80 }] }));
    }
    const again = await subject.make({ start: false, publish: [{ hostPort: port, guestPort: 80 }] });
    await subject.remove(again.id);
  });

  test('publish: the next daemon answers at the ports of what it adopts, and at one that was taken as soon as it is free', {
    timeout: 120_000,
  }, async () => {
    const { id } = await subject.make({ main, publish: [{ guestPort: GUEST_PORT }, { guestPort: GUEST_PORT }] });
    const [one = 0, other = 0] = (await subject.get(id)).publish.map(({ hostPort }) => hostPort);
    await eventually('it answers', () => answers(one), 30_000);
    await daemon.kill9();
    const taken = await occupied(other);
    await daemon.startAgain();
    await eventually('it answers again', () => answers(one), 30_000);
    const problemOf = async () =>
      (await daemon.call('port.list', { ref: id })).published.find(({ hostPort }) => hostPort === other)?.problem ?? null;
    // Never as if it were answered at, however soon one asks.
    expect(await problemOf()).not.toBe(null);
    await eventually('the taken one is told of', async () => (await problemOf())?.includes(`(pid ${process.pid})`) === true);
    taken[Symbol.dispose]();
    await eventually('it answers at that one too', () => answers(other), 30_000);
    expect(await problemOf()).toBe(null);
    await subject.remove(id);
  });

  test('publish: a running sandbox gets ports and loses them, and what it has is kept across a restart and a dead daemon', {
    timeout: 120_000,
  }, async () => {
    const { id, name } = await subject.make({ main });
    const one = await daemon.call('port.publish', { ref: id, guestPort: GUEST_PORT });
    expect(one).toEqual({ hostAddress: '127.0.0.1', hostPort: expect.any(Number), guestPort: GUEST_PORT });
    await eventually('it answers', () => answers(one.hostPort), 30_000);
    expect(await daemon.call('port.publish', { ref: id, ...one }), 'the same again').toEqual(one);
    const other = await daemon.call('port.publish', { ref: id, guestPort: GUEST_PORT });
    expect(other.hostPort).not.toBe(one.hostPort);

    const second = await subject.make({ name: 'second', start: false });
    for (const [ref, hostAddress] of [
      [second.id, '0.0.0.0'],
      [second.id, '127.0.0.1'],
      [id, '0.0.0.0'],
    ] as const) {
      const refused = await refusal(daemon.call('port.publish', { ref, ...one, hostAddress }));
      expect(refused).toMatchObject({
        code: 'conflict',
        message: expect.stringContaining(ref === id ? 'this sandbox' : `sandbox ${name}`),
      });
    }
    // The same port of this machine for another one inside: what it has goes on.
    expect(await refusal(daemon.call('port.publish', { ref: id, ...one, guestPort: 81 }))).toMatchObject({ code: 'conflict' });
    expect(await answers(one.hostPort), 'after the refusals').toBe(true);
    expect((await subject.get(second.id)).publish).toEqual([]);
    const kept = await daemon.call('port.publish', { ref: second.id, guestPort: 80 });
    expect(await answers(kept.hostPort), 'it does not run').toBe(false);
    await subject.remove(second.id);

    const { removed } = await daemon.call('port.unpublish', { ref: id, hostPort: other.hostPort });
    expect(removed).toEqual([other]);
    (await occupied(other.hostPort))[Symbol.dispose]();
    expect(await answers(one.hostPort), 'the one that is left').toBe(true);
    expect(await refusal(daemon.call('port.unpublish', { ref: id, hostPort: other.hostPort }))).toMatchObject({
      code: 'not_found',
      message: expect.stringContaining(name),
    });

    await daemon.call('sandbox.stop', { ref: id, force: true });
    await daemon.call('sandbox.start', { ref: id });
    await eventually('it answers after a restart', () => answers(one.hostPort), 30_000);
    await daemon.kill9();
    await daemon.startAgain();
    await eventually('the next daemon answers', () => answers(one.hostPort), 30_000);
    expect((await subject.get(id)).publish).toEqual([one]);
    await subject.remove(id);
    (await occupied(one.hostPort))[Symbol.dispose]();
  });

  test('publish: a port of a running sandbox that somebody has is refused with his name, and stays as it was', async () => {
    const { id } = await subject.make({ main });
    const free = createServer().listen({ host: '127.0.0.1', port: 0 });
    await once(free, 'listening');
    const { port: hostPort } = free.address() as { port: number };
    expect(await refusal(daemon.call('port.publish', { ref: id, hostPort, guestPort: GUEST_PORT }))).toMatchObject({
      code: 'conflict',
      message: expect.stringContaining(`(pid ${process.pid})`),
    });
    free.close();
    expect((await subject.get(id)).publish).toEqual([]);
    await daemon.call('port.publish', { ref: id, hostPort, guestPort: GUEST_PORT });
    await eventually('it answers once it is free', () => answers(hostPort), 30_000);
    await subject.remove(id);
  });

  test('publish: while it is paused a connection waits, and is answered when it goes on', { timeout: 60_000 }, async (here) => {
    if (!subject.can.pause) return here.skip('this backend does not pause');
    const { id } = await subject.make({ main, publish: [{ guestPort: GUEST_PORT }] });
    const port = await portOf(id);
    await eventually('it answers', () => answers(port), 30_000);
    await daemon.call('sandbox.pause', { ref: id });
    const waiting = echoed(port, Buffer.from('patient'));
    await daemon.call('sandbox.resume', { ref: id });
    expect(await waiting).toBe(createHash('sha256').update('patient').digest('hex'));
    await subject.remove(id);
  });
}
