// Commands in a sandbox: output, input, exit, environment, signals, terminals, and going on after a lost connection.
import { createHash, randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { eventually } from '../support/eventually.ts';
import { codeOf, type Subject } from './subject.ts';

export function processes(subject: Subject): void {
  const { daemon } = subject;
  const exec = async (script: string, more: Record<string, unknown> = {}, execId?: string) =>
    await daemon.exec(await subject.box(), { argv: ['sh', '-c', script], ...more }, execId === undefined ? {} : { execId });

  test('exec: stdout and stderr come apart, the exit after the last byte', async () => {
    const client = await exec('echo out; echo err >&2; exit 7');
    expect(await client.exit()).toMatchObject({
      exitCode: 7,
      signal: null,
      reason: 'exited',
      stdoutBytes: 4,
      stderrBytes: 4,
      oomKilled: false,
    });
    expect([client.stdout.toString(), client.stderr.toString()]).toEqual(['out\n', 'err\n']);
  });

  test('exec: a signal gives 128 and its number, a program that cannot run 127 or 126', async () => {
    const box = await subject.box();
    const end = async (...argv: string[]) => await (await daemon.exec(box, { argv })).exit();
    expect(await end('sh', '-c', 'kill -KILL $$')).toMatchObject({ exitCode: 137, signal: 'KILL', reason: 'signalled' });
    expect(await end('sh', '-c', 'kill -TERM $$')).toMatchObject({ exitCode: 143, signal: 'TERM' });
    expect(await end('no-such-program')).toMatchObject({ exitCode: 127, reason: 'not-started', error: { code: 'not_found' } });
    expect(await end('/etc/passwd')).toMatchObject({
      exitCode: 126,
      reason: 'not-started',
      error: { message: 'cannot run /etc/passwd: permission denied', hint: expect.stringContaining('chmod +x') },
    });
  });

  test('a user, group or directory that is not there is 126, of a main process and of an exec alike', async () => {
    const box = await subject.box();
    for (const more of [{ user: 'nobody-here' }, { user: 'root:none-such' }, { cwd: '/none-such' }]) {
      const ended = await (await daemon.exec(box, { argv: ['true'], ...more })).exit();
      expect(ended).toMatchObject({
        exitCode: 126,
        reason: 'not-started',
        error: { message: expect.stringContaining('cannot run true: ') },
      });
    }
    const { id } = await subject.make({ main: { argv: ['true'] }, user: 'root:none-such' });
    expect((await daemon.until(id, 'stopped')).ended).toMatchObject({ exitCode: 126 });
    await subject.remove(id);
  });

  test('exec: environment, user and directory are as asked', async () => {
    const box = await subject.box();
    expect(await subject.sh(box, 'echo $FROM_SANDBOX $SHARED $CALL', { env: { SHARED: 'call', CALL: 'too' } })).toBe('yes call too\n');
    expect(await subject.sh(box, 'id -u; id -g; pwd', { user: '1000:1000', cwd: '/tmp' })).toBe('1000\n1000\n/tmp\n');
  });

  test('exec: input and binary output of any size pass unchanged', async () => {
    const bytes = randomBytes(1_000_000);
    const client = await daemon.exec(await subject.box(), { argv: ['cat'], stdin: 'open' });
    for (let at = 0; at < bytes.byteLength; at += 65_536) client.input(bytes.subarray(at, at + 65_536));
    client.send({ type: 'inputEnd' });
    expect((await client.exit()).exitCode).toBe(0);
    const digest = (what: Uint8Array) => createHash('sha256').update(what).digest('hex');
    expect(digest(client.stdout)).toBe(digest(bytes));
  });

  test('exec: one that is not fed reads an empty input', async () => {
    const client = await exec('cat; echo end');
    await client.exit();
    expect(client.stdout.toString()).toBe('end\n');
  });

  test('exec: a flood that nobody reads holds up its command, not its neighbours', async () => {
    const flood = await exec('yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', {}, 'flood');
    flood.keep = false;
    await flood.saw('started');
    flood.socket.pause();
    expect(await subject.sh(await subject.box(), 'echo alive')).toBe('alive\n');
    await daemon.call('exec.signal', { ref: await subject.box(), execId: 'flood', signal: 'KILL' });
    flood.socket.terminate();
  });

  test('exec: output that nobody reads holds up its command, or is dropped where that was asked for, and told', async () => {
    const box = await subject.box();
    const bytes = 6_000_000;
    const isOver = async (execId: string) =>
      (await daemon.call('exec.list', { ref: box })).execs.some((one) => one.execId === execId && !one.running);
    const unread = async (whenUnread: 'block' | 'drop') => {
      const client = await exec(`head -c ${bytes} /dev/zero`, { whenUnread }, `unread-${whenUnread}`);
      await client.saw('started');
      client.socket.pause();
      return client;
    };
    const [held, dropped] = [await unread('block'), await unread('drop')];
    await eventually('the one whose output may be dropped has ended', () => isOver('unread-drop'));
    expect(await isOver('unread-block')).toBe(false);
    for (const client of [held, dropped]) client.socket.resume();
    expect(await held.exit()).toMatchObject({ exitCode: 0, stdoutBytes: bytes });
    expect(held.stdout.byteLength).toBe(bytes);
    expect(await dropped.exit()).toMatchObject({ exitCode: 0, stdoutBytes: bytes });
    const lost = dropped.messages.filter(({ type }) => type === 'dropped').reduce((sum, message) => sum + Number(message['bytes']), 0);
    expect(lost).toBeGreaterThan(0);
    expect(dropped.stdout.byteLength + lost).toBe(bytes);
  });

  test('exec: several who follow one command each have all of its output, and one that lets go costs the others nothing', async () => {
    const box = await subject.box();
    const lines = Array.from({ length: 40 }, (_, at) => `line ${at}\n`).join('');
    const first = await exec('i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.02; done', {}, 'followed');
    await first.sawOutput('line 2');
    const others = await Promise.all([0, 1, 2].map(() => daemon.attach(box, 'followed', { stdoutOffset: '0' })));
    const [leaver, ...stayers] = others;
    leaver?.socket.terminate();
    for (const client of [first, ...stayers]) {
      expect(await client.exit()).toMatchObject({ exitCode: 0 });
      expect(client.stdout.toString()).toBe(lines);
    }
  });

  test('exec: --timeout kills the whole group', async () => {
    const client = await exec('sleep 300 & echo $! > /tmp/straggler; sleep 300', { timeoutMs: 400 });
    expect(await client.exit()).toMatchObject({ reason: 'lifetime' });
    await eventually(
      'the straggler is gone',
      async () => (await daemon.run(await subject.box(), ['sh', '-c', 'kill -0 $(cat /tmp/straggler)'])).exitCode !== 0,
    );
  });

  test('exec: a signal from outside reaches the group, and exec.list shows who runs', async () => {
    const box = await subject.box();
    const client = await exec('trap "echo heard; exit 5" INT; echo ready; while :; do sleep 0.05; done', { tag: 'mine' }, 'listener');
    await client.sawOutput('ready');
    expect((await daemon.call('exec.list', { ref: box })).execs).toContainEqual(
      expect.objectContaining({ execId: 'listener', running: true, tag: 'mine' }),
    );
    await daemon.call('exec.signal', { ref: box, execId: 'listener', signal: 'INT' });
    expect((await client.exit()).exitCode).toBe(5);
    expect(client.stdout.toString()).toContain('heard');
    expect(await codeOf(daemon.call('exec.signal', { ref: box, execId: 'never-was', signal: 'INT' }))).toBe('not_found');
  });

  test('exec: a client that went away goes on at its offset, and a repeated start runs once', async () => {
    const box = await subject.box();
    const script = 'echo once >> /tmp/runs; i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.01; done';
    const first = await exec(script, {}, 'walker');
    await first.sawOutput('line 10');
    first.socket.terminate();
    await first.closed;
    const second = await daemon.attach(box, 'walker', { stdoutOffset: String(first.stdout.byteLength) });
    expect((await second.exit()).exitCode).toBe(0);
    expect(Buffer.concat([first.stdout, second.stdout]).toString()).toBe(Array.from({ length: 60 }, (_, n) => `line ${n}\n`).join(''));
    expect((await (await exec(script, {}, 'walker')).exit()).exitCode).toBe(0);
    expect(await subject.sh(box, 'cat /tmp/runs')).toBe('once\n');
  });

  test('pty: it has its size from the start and hears of another one', async () => {
    const client = await exec('stty size; trap "stty size; exit 0" WINCH; echo ready; while :; do sleep 0.05; done', {
      terminal: { cols: 91, rows: 33, term: 'xterm' },
      stdin: 'open',
    });
    await client.sawOutput('ready');
    client.send({ type: 'resize', cols: 120, rows: 50 });
    expect((await client.exit()).exitCode).toBe(0);
    expect(client.stdout.toString()).toBe('33 91\r\nready\r\n50 120\r\n');
  });

  test('pty: Ctrl-D ends the input, echo shows what is typed', async (here) => {
    if (subject.can.isolation === 'user-space-kernel') here.skip('its kernel does not end the input: docs/backends.md');
    const terminal = { cols: 80, rows: 24, term: 'xterm' };
    const cat = await exec('echo up; cat; echo over', { terminal, stdin: 'open' });
    await cat.sawOutput('up');
    cat.input('typed\n');
    await cat.sawOutput('typed\r\ntyped\r\n');
    cat.input('\x04');
    expect((await cat.exit()).exitCode).toBe(0);
    expect(cat.stdout.toString()).toContain('over');
  });

  test('pty: Ctrl-C interrupts', async () => {
    const terminal = { cols: 80, rows: 24, term: 'xterm' };
    const sleeper = await exec('echo up; exec sleep 300', { terminal, stdin: 'open' });
    await sleeper.sawOutput('up');
    sleeper.input('\x03');
    expect(await sleeper.exit()).toMatchObject({ exitCode: 130, signal: 'INT' });
  });

  test('pty: it is a terminal of its own, and its name is a file', async () => {
    const client = await exec('test -t 0 && test -t 1 && test -t 2 && test -c "$(tty)" && echo $TERM', {
      terminal: { cols: 80, rows: 24, term: 'vt220' },
      stdin: 'open',
    });
    expect((await client.exit()).exitCode).toBe(0);
    expect(client.stdout.toString()).toBe('vt220\r\n');
  });
}
