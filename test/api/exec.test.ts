// Commands over the API: their output, input, exit, terminal; and that nothing is lost, doubled or
// made up when connections, clients or the daemon go away.
import { createHash, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ApiError, DaemonUnderTest } from '../support/daemon-under-test.ts';
import { eventually } from '../support/eventually.ts';

let daemon: DaemonUnderTest;
beforeAll(async () => {
  daemon = await DaemonUnderTest.start();
  await daemon.call('sandbox.create', { name: 'box', env: { FROM_SANDBOX: 'yes', SHARED: 'sandbox' }, secrets: { TOKEN: 's3cret-value' } });
});
afterAll(async () => {
  await daemon[Symbol.asyncDispose]();
});

test('stdout and stderr come apart, the exit after the last byte', async () => {
  const client = await daemon.exec('box', { argv: ['sh', '-c', 'echo out; echo err >&2; exit 7'] });
  expect(await client.exit()).toMatchObject({ exitCode: 7, signal: null, stdoutBytes: 4, stderrBytes: 4 });
  expect([client.stdout.toString(), client.stderr.toString()]).toEqual(['out\n', 'err\n']);
  expect(client.messages.map((message) => message['type'])).toEqual(['started', 'exit']);
  expect((await client.closed).code).toBe(1000);
});

test('the first message may come with the request for the socket, and is taken once', async () => {
  const path = '/v1/sandboxes/box/exec';
  const carried = (text: string) => daemon.socket(path, { 'Hutch-First-Message': text });
  const request = { argv: ['sh', '-c', 'echo "$1"', 'sh', 'ü 100%\t"'] };
  const client = await carried(encodeURIComponent(JSON.stringify(request)));
  expect(await client.exit()).toMatchObject({ exitCode: 0 });
  expect(client.stdout.toString()).toBe('ü 100%\t"\n');
  expect(client.upgraded?.['hutch-first-message']).toBe('taken');
  await expect(carried('%ff%zz')).rejects.toMatchObject({ code: 'invalid_argument' });
  for (const wrong of ['no json', '{"argv":[]}', '{"argv":["true"],"unknown":1}'])
    await expect((await carried(encodeURIComponent(wrong))).exit(), wrong).rejects.toMatchObject({ code: 'invalid_argument' });
  expect((await daemon.exec('box', { argv: ['true'] })).upgraded?.['hutch-first-message']).toBeUndefined();
});

test('a signal gives 128 and its number', async () => {
  expect(await (await daemon.exec('box', { argv: ['sh', '-c', 'kill -TERM $$'] })).exit()).toMatchObject({
    exitCode: 143,
    signal: 'TERM',
    reason: 'signalled',
  });
});

test('a program that is not there ends with 127, one that cannot be executed with 126', async () => {
  const missing = await (await daemon.exec('box', { argv: ['no-such-program'] })).exit();
  expect(missing).toMatchObject({ exitCode: 127, reason: 'not-started', error: { code: 'not_found' } });
  expect(missing.error?.message).toContain('no-such-program');
  expect(await (await daemon.exec('box', { argv: ['/etc/passwd'] })).exit()).toMatchObject({ exitCode: 126, reason: 'not-started' });
});

test('the environment is the image’s, then the sandbox’s, then the call’s', async () => {
  const { stdout } = await daemon.run('box', ['sh', '-c', 'echo $IMAGE $FROM_SANDBOX $SHARED $TOKEN $CALL'], { env: { CALL: 'call' } });
  expect(stdout).toBe('yes yes sandbox s3cret-value call\n');
  expect((await daemon.run('box', ['sh', '-c', 'echo $SHARED'], { env: { SHARED: 'call' } })).stdout).toBe('call\n');
});

test('a command takes as many arguments and variables as its kernel does, and what is more is refused by name', async () => {
  const large = Array.from({ length: 12 }, (_, index) => String.fromCharCode(97 + index).repeat(131_071));
  const many = Array.from({ length: 20_000 }, (_, index) => `${index}`);
  const words = [...large, ...many];
  const { stdout } = await daemon.run(
    'box',
    ['sh', '-c', 'echo $# $(printf %s "$VALUE" | wc -c); printf %s "$@" | sha256sum', 'sh', ...words],
    {
      env: { VALUE: 'v'.repeat(131_065) },
    },
  );
  expect(stdout).toBe(`${words.length} 131065\n${createHash('sha256').update(words.join('')).digest('hex')}  -\n`);
  const refused = async (argv: string[]) => String(await daemon.run('box', argv).catch((error: unknown) => (error as Error).message));
  expect(await refused(['true', 'a', 'ü'.repeat(65_536)])).toContain('argv[2]: has 131,072 bytes; at most 131,071 are possible');
  expect(await refused(['true', ...large, ...large])).toContain('argv[1]: is the largest of arguments and variables, which take 3,1');
});

test('a message of a megabyte is the most once a command runs', async () => {
  const client = await daemon.exec('box', { argv: ['sleep', '60'], stdin: 'open' });
  client.input(Buffer.alloc(1024 * 1024));
  expect((await client.closed).code).toBe(1009);
});

test('user and directory are as asked', async () => {
  expect((await daemon.run('box', ['sh', '-c', 'id -un; pwd'], { user: 'user', cwd: '~' })).stdout).toBe('user\n/home/user\n');
  const nobody = await daemon.exec('box', { argv: ['true'], user: 'nobody-here' });
  expect(await nobody.exit()).toMatchObject({ exitCode: 126, error: { message: expect.stringContaining('nobody-here') } });
});

test('input of any size passes unchanged and is acknowledged', async () => {
  const bytes = randomBytes(3_000_000);
  const client = await daemon.exec('box', { argv: ['sha256sum'], stdin: 'open' });
  for (let at = 0; at < bytes.byteLength; at += 65_536) client.input(bytes.subarray(at, at + 65_536));
  client.send({ type: 'inputEnd' });
  expect((await client.exit()).exitCode).toBe(0);
  expect(client.stdout.toString().slice(0, 64)).toBe(createHash('sha256').update(bytes).digest('hex'));
  const acks = client.messages.filter((message) => message['type'] === 'inputAck').map((message) => Number(message['offset']));
  expect(acks.length).toBeGreaterThan(0);
  expect(acks).toEqual([...acks].sort((left, right) => left - right));
  expect(acks.at(-1)).toBeGreaterThan(bytes.byteLength - 600_000);
});

test('binary output passes unchanged', async () => {
  const client = await daemon.exec('box', {
    argv: ['sh', '-c', 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i+1)); done'],
  });
  await client.exit();
  expect([...client.stdout]).toEqual(Array.from({ length: 256 }, (_, index) => index));
});

test('a terminal has its size from the start and hears of another one', async () => {
  const client = await daemon.exec('box', {
    argv: ['sh', '-c', 'stty size; read line; stty size; tty'],
    terminal: { cols: 91, rows: 33, term: 'xterm' },
    stdin: 'open',
  });
  await client.sawOutput('33 91');
  client.send({ type: 'resize', cols: 120, rows: 50 });
  await eventually('the new size has arrived', async () => (await daemon.call('exec.list', { ref: 'box' })).execs.length > 0);
  client.input('go on\n');
  await client.exit();
  expect(client.stdout.toString()).toContain('50 120');
  expect(client.stdout.toString()).toContain('/dev/');
});

test('a signal from the client reaches the whole process group', async () => {
  const client = await daemon.exec('box', {
    argv: ['sh', '-c', 'trap "echo heard; exit 5" INT; echo ready; while :; do sleep 0.05; done'],
  });
  await client.sawOutput('ready');
  client.send({ type: 'signal', signal: 'INT' });
  expect((await client.exit()).exitCode).toBe(5);
  expect(client.stdout.toString()).toContain('heard');
});

test('an exec id makes a retried start run once', async () => {
  const argv = ['sh', '-c', 'echo once >> /tmp/runs; echo said'];
  const first = await daemon.exec('box', { argv }, { execId: 'mine-1' });
  await first.exit();
  const again = await daemon.exec('box', { argv }, { execId: 'mine-1' });
  expect((await again.exit()).exitCode).toBe(0);
  expect(again.message('started')).toMatchObject({ existing: true, execId: 'mine-1' });
  expect(again.stdout.toString()).toBe('said\n');
  expect((await daemon.run('box', ['cat', '/tmp/runs'])).stdout).toBe('once\n');
});

test('an Idempotency-Key makes a retried start run once', async () => {
  const argv = ['sh', '-c', 'echo once >> /tmp/runs2'];
  for (const _ of [1, 2]) await (await daemon.exec('box', { argv }, { headers: { 'Idempotency-Key': 'exec-key-1' } })).exit();
  expect((await daemon.run('box', ['cat', '/tmp/runs2'])).stdout).toBe('once\n');
});

test('a client that goes away leaves its command, and another one goes on at the offset', async () => {
  const first = await daemon.exec(
    'box',
    { argv: ['sh', '-c', 'i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); usleep 3000; done'] },
    { execId: 'walker' },
  );
  await first.sawOutput('line 20');
  first.socket.terminate();
  await first.closed;
  const got = first.stdout.byteLength;
  const second = await daemon.attach('box', 'walker', { stdoutOffset: String(got) });
  expect((await second.exit()).exitCode).toBe(0);
  const all = Buffer.concat([first.stdout, second.stdout]).toString();
  expect(all).toBe(Array.from({ length: 200 }, (_, index) => `line ${index}\n`).join(''));
});

test('a killed daemon costs no byte of output and no byte of input', async () => {
  const total = 600_000;
  const bytes = randomBytes(total);
  const first = await daemon.exec(
    'box',
    { argv: ['sh', '-c', 'while head -c 20000 | grep -c . >/dev/null; do :; done; cat'], stdin: 'open' },
    { execId: 'echo' },
  );
  await first.saw('started');
  first.socket.terminate();
  const walker = await daemon.exec(
    'box',
    { argv: ['sh', '-c', 'i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); usleep 5000; done'] },
    { execId: 'survivor' },
  );
  const hasher = await daemon.exec('box', { argv: ['sh', '-c', 'usleep 700000; sha256sum'], stdin: 'open' }, { execId: 'hasher' });
  for (let at = 0; at < total; at += 50_000) hasher.input(bytes.subarray(at, at + 50_000));
  await walker.sawOutput('line 30');
  await daemon.kill9();
  await Promise.all([walker.closed, hasher.closed]);
  expect(walker.message('exit')).toBeUndefined();
  await daemon.startAgain();
  const [again, rest] = [
    await daemon.attach('box', 'survivor', { stdoutOffset: String(walker.stdout.byteLength) }),
    await daemon.attach('box', 'hasher', { input: 'true' }),
  ];
  const from = Number((await rest.saw('started'))['inputOffset']);
  expect(from).toBeLessThanOrEqual(total);
  for (let at = from; at < total; at += 50_000) rest.input(bytes.subarray(at, Math.min(at + 50_000, total)));
  rest.send({ type: 'inputEnd' });
  expect((await rest.exit()).exitCode).toBe(0);
  expect(rest.stdout.toString().slice(0, 64)).toBe(createHash('sha256').update(bytes).digest('hex'));
  expect((await again.exit()).exitCode).toBe(0);
  expect(Buffer.concat([walker.stdout, again.stdout]).toString()).toBe(
    Array.from({ length: 300 }, (_, index) => `line ${index}\n`).join(''),
  );
  await daemon.call('exec.signal', { ref: 'box', execId: 'echo', signal: 'KILL' });
});

test('what is written while another client takes the input is not taken, and ends nobody’s output', async () => {
  const first = await daemon.exec('box', { argv: ['cat'], stdin: 'open' }, { execId: 'shared' });
  await first.saw('started');
  const second = await daemon.attach('box', 'shared', { input: 'true' });
  await first.saw('inputTaken');
  first.input('too late\n');
  second.input('in time\n');
  second.send({ type: 'inputEnd' });
  expect((await first.exit()).exitCode).toBe(0);
  expect(first.stdout.toString()).toBe('in time\n');
});

test('a cancelled operation ends its command', async () => {
  const client = await daemon.exec('box', { argv: ['sleep', '1000'] }, { execId: 'sleeper' });
  await client.saw('started');
  const { operations } = await daemon.call('operation.list', {});
  const running = operations.find((operation) => operation.verb === 'exec.start');
  expect(await daemon.call('operation.cancel', { opId: running?.id ?? '' })).toMatchObject({ state: 'cancelled' });
  const refused = await client.exit().catch((error: unknown) => error);
  expect((refused as ApiError).code).toBe('cancelled');
  await eventually(
    'the command is gone',
    async () => (await daemon.call('exec.list', { ref: 'box' })).execs.find((exec) => exec.execId === 'sleeper')?.running === false,
  );
});

test('a time limit ends the command', async () => {
  expect(await (await daemon.exec('box', { argv: ['sleep', '1000'], timeoutMs: 200 })).exit()).toMatchObject({ reason: 'lifetime' });
});

test('a flood that nobody reads holds up its command, and costs the daemon no memory', async () => {
  const total = 200_000_000;
  const client = await daemon.exec('box', { argv: ['sh', '-c', `yes 0123456789abcdef | head -c ${total}; echo over > /tmp/flood`] });
  client.keep = false;
  let bytes = 0;
  client.onBytes = (_channel, chunk) => {
    bytes += chunk.byteLength;
  };
  await client.saw('started');
  client.socket.pause();
  const before = await rss(daemon.pid);
  await standsStill(() => rss(daemon.pid));
  expect(await rss(daemon.pid)).toBeLessThan(before + 60_000_000);
  expect((await daemon.run('box', ['ls', '/tmp/flood'])).exitCode).toBe(1);
  client.socket.resume();
  expect((await client.exit()).exitCode).toBe(0);
  expect(bytes).toBe(total);
  expect(await rss(daemon.pid)).toBeLessThan(before + 60_000_000);
});

test('what breaks the rules of the socket ends it, not the command', async () => {
  const wrong = await daemon.socket('/v1/sandboxes/box/exec');
  wrong.send({ argv: [] });
  expect(((await wrong.exit().catch((error: unknown) => error)) as ApiError).body).toMatchObject({
    code: 'invalid_argument',
    message: expect.stringContaining('argv'),
  });
  const rude = await daemon.exec('box', { argv: ['sleep', '1000'] }, { execId: 'patient' });
  await rude.saw('started');
  rude.send({ type: 'explode' });
  expect(((await rude.exit().catch((error: unknown) => error)) as ApiError).code).toBe('invalid_argument');
  const { execs } = await daemon.call('exec.list', { ref: 'box' });
  expect(execs.find((exec) => exec.execId === 'patient')?.running).toBe(true);
  await daemon.call('exec.signal', { ref: 'box', execId: 'patient', signal: 'KILL' });
});

/** Resolves when a figure has been nearly the same for a while. */
async function standsStill(figure: () => Promise<number>): Promise<void> {
  let last = await figure();
  let since = performance.now();
  await eventually('it stands still', async () => {
    const now = await figure();
    if (Math.abs(now - last) > 1_000_000) since = performance.now();
    last = now;
    return performance.now() - since > 250;
  });
}

async function rss(pid: number): Promise<number> {
  return Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}
