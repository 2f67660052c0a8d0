// OpenSSH's own programs against the daemon's SSH gateway.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, stat, utimes, writeFile } from 'node:fs/promises';
import { type AddressInfo, createConnection, createServer } from 'node:net';
import { basename, join } from 'node:path';
import { Duplex } from 'node:stream';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { echoServer } from '../conformance/echo-server.ts';
import { eventually } from '../support/eventually.ts';
import { freePort } from '../support/free-port.ts';
import { outcomeOf, type Result, World } from './world.ts';

const isLong = process.env['HUTCH_TEST_LONG'] !== undefined;

let world: World;
let config: string;
beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box');
  config = join(world.dir, 'ssh_config');
  await writeFile(config, `${await world.ok('ssh-config')}\n`);
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

function start(program: string, args: readonly string[], file = config) {
  return spawn(program, ['-F', file, ...args], { env: { ...world.env }, cwd: world.dir });
}

async function using(program: string, args: readonly string[], input = '', file = config): Promise<Result> {
  const child = start(program, args, file);
  child.stdin.on('error', () => {}); // it may end without reading
  child.stdin.end(input);
  return await outcomeOf(child, args);
}

test('ssh runs a command with its input, both outputs and its code, as the user who is asked for', async () => {
  expect(await using('ssh', ['box.hutch', 'cat; echo bad >&2; exit 7'], 'good\n')).toMatchObject({
    code: 7,
    stdout: 'good\n',
    stderr: 'bad\n',
  });
  const words = 'printf "%s|" "$0" a "b c"; id -u';
  const [ssh, exec] = [
    await using('ssh', ['-l', 'root', 'box.hutch', words]),
    await world.run(['exec', '-u', 'root', 'box', '--', 'id', '-u']),
  ];
  expect(ssh.stdout.split('|').slice(1)).toEqual(['a', 'b c', exec.stdout]);
  expect(await using('ssh', ['-l', 'nobody-at-all', 'box.hutch', 'true'])).toMatchObject({
    code: 126,
    stderr: expect.stringContaining('hutch: '),
  });
  const terminal = await using('ssh', ['-tt', 'box.hutch', 'stty size; tty']);
  expect(terminal.stdout).toMatch(/^\d+ \d+\r\n\/dev\/pts\/\d+\r\n$/);
  expect((await using('ssh', ['box.hutch'], 'echo from a shell; exit 3\n')).stdout).toBe('from a shell\n');
  expect(await world.run(['ssh', 'box', '--', 'echo', 'by', 'hutch'])).toMatchObject({ code: 0, stdout: 'by hutch\n' });
  expect(await world.run(['ssh', '-u', 'root', 'box', '--', 'id', '-u'])).toMatchObject({ code: 0, stdout: exec.stdout });
  expect(await world.run(['ssh', '-u', 'nobody-at-all', 'box', '--', 'true'])).toMatchObject({
    code: 126,
    stderr: expect.stringContaining('nobody-at-all'),
  });
});

test('a user whose shell lets nobody in is told what does open a shell, by ssh and by hutch ssh alike', async () => {
  await world.ok('create', '--name', 'shut'); // its own: the file is damaged
  await world.ok('exec', 'shut', '--', 'sh', '-c', 'echo svc:x:70:70::/:/bin/false >> /etc/passwd');
  const hint =
    'hint: the shell of user svc is /bin/false, which lets nobody in; as root: hutch shell -u root shut; as svc: hutch exec -it -u svc shut -- sh';
  expect(await using('ssh', ['-l', 'svc', 'shut.hutch', 'true'])).toMatchObject({ code: 1, stdout: '', stderr: `${hint}\n` });
  expect(await using('ssh', ['-tt', '-l', 'svc', 'shut.hutch'])).toMatchObject({ code: 1, stderr: expect.stringContaining(`${hint}\r\n`) });
  expect(await world.run(['ssh', '-u', 'svc', 'shut', '--', 'true'])).toMatchObject({ code: 1, stderr: `${hint}\n` });
  // A command that fails is no such case, nor is a sandbox without that file.
  const failed = { code: 1, stdout: '', stderr: '' };
  expect(await using('ssh', ['shut.hutch', 'exit 1'])).toMatchObject(failed);
  await world.ok('exec', 'shut', '--', 'rm', '/etc/passwd');
  expect(await using('ssh', ['shut.hutch', 'exit 1'])).toMatchObject(failed);
  await world.ok('rm', '-f', 'shut');
});

test('scp and sftp carry files both ways, whole, with mode and time', async () => {
  const big = Buffer.alloc(3_000_000, 'hutch and its files; ');
  await mkdir(join(world.dir, 'tree/deep'), { recursive: true });
  await writeFile(join(world.dir, 'tree/deep/big'), big, { mode: 0o640 });
  await writeFile(join(world.dir, 'tree/small'), 'small');
  for (const name of ['tree/deep/big', 'tree/small', 'tree/deep', 'tree'])
    await utimes(join(world.dir, name), 1_500_000_000, 1_500_000_000);
  const at = (name: string): string => join(world.dir, name);
  expect(await using('scp', ['-rp', 'tree', 'box.hutch:/root/'])).toMatchObject({ code: 0 });
  expect(await world.ok('exec', 'box', '--', 'stat', '-c', '%s %a %Y', '/root/tree/deep/big')).toBe(`${big.byteLength} 640 1500000000`);
  const dates = ['tree', 'tree/deep', 'tree/small'].map((name) => `/root/${name}`);
  expect(await world.ok('exec', 'box', '--', 'stat', '-c', '%Y', ...dates)).toBe('1500000000\n1500000000\n1500000000');
  expect(await using('scp', ['-rp', 'box.hutch:/root/tree', 'back'])).toMatchObject({ code: 0 });
  expect((await readFile(at('back/deep/big'))).equals(big)).toBe(true);
  const { mode, mtimeMs } = await stat(at('back/deep/big'));
  expect([mode & 0o777, mtimeMs]).toEqual([0o640, 1_500_000_000_000]);
  const batch = [
    'mkdir d',
    'put tree/deep/big d/x',
    'put tree/deep/big d/y',
    'rename d/x d/y', // over another, as OpenSSH's own server does it
    'ln -s y d/l',
    'chmod 600 d/y',
    'reget d/y again',
    'ls -1 d',
    'rm d/l',
    'rm d/y',
    'rmdir d',
  ];
  await writeFile(at('again'), big.subarray(0, 1_000_001));
  await writeFile(at('batch'), `${batch.join('\n')}\n`);
  const sftp = await using('sftp', ['-vv', '-b', 'batch', 'box.hutch:/root']);
  expect(sftp, sftp.stderr).toMatchObject({ code: 0, stdout: expect.stringContaining('d/l') });
  expect(sftp.stderr).toContain('extension "limits@openssh.com"');
  expect((await readFile(at('again'))).equals(big)).toBe(true);
  expect(await using('sftp', ['-q', '-b', '-', 'box.hutch'], 'get /root/none\n')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('not found'),
  });
  expect(await world.ok('exec', 'box', '--', 'ls', '/root')).toBe('tree');
});

test('ssh -L brings a port of the sandbox here', async () => {
  const server = world.spawn(['exec', 'box', '--', ...echoServer(7007)]);
  const port = await freePort();
  const forward = start('ssh', ['-N', '-o', 'ExitOnForwardFailure=yes', '-L', `127.0.0.1:${port}:127.0.0.1:7007`, 'box.hutch']);
  try {
    await eventually('the port answers', async () => (await said(port)) === 'there and back\n');
  } finally {
    forward.kill();
    server.kill();
  }
});

/** On the sandbox's loopback. */
async function isListening(port: number): Promise<boolean> {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  return (await world.ok('exec', 'box', '--', 'cat', '/proc/net/tcp')).includes(`0100007F:${hex} 00000000:0000 0A`);
}

test('ssh -R brings a port of this machine into the sandbox, as long as the connection lasts', async () => {
  const asked: string[] = [];
  const server = createServer((socket) => {
    socket.on('error', () => {});
    // To the end of what comes, and then as much back: both directions, each with an end of its own.
    let said = '';
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      said += text;
    });
    socket.on('end', () => {
      asked.push(said);
      socket.end(`${said.length} bytes came\n`);
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const there = (at: string): string => `head -c 300000 /dev/zero | nc 127.0.0.1 ${at}`;
  try {
    const script = `${there('9107')}; for n in 1 2 3; do ${there('9107')} & done; wait`;
    const answered = await using('ssh', ['-o', 'ExitOnForwardFailure=yes', '-R', `9107:127.0.0.1:${port}`, 'box.hutch', script]);
    expect(answered, answered.stderr).toMatchObject({ code: 0, stdout: '300000 bytes came\n'.repeat(4), stderr: '' });
    expect(asked.map((text) => text.length)).toEqual([300_000, 300_000, 300_000, 300_000]);
    // It is gone with its connection.
    expect(await isListening(9107)).toBe(false);
    // Begun and taken back by the client while its connection goes on: one that the sandbox chooses, on the loopback whatever is asked.
    const master = start('ssh', ['-N', '-M', '-S', 'master', 'box.hutch']);
    try {
      await eventually(
        'the connection is there',
        async () => (await using('ssh', ['-S', 'master', '-O', 'check', 'box.hutch'])).code === 0,
      );
      const asking = ['-S', 'master', '-R', `*:0:127.0.0.1:${port}`, 'box.hutch'];
      const number = (await using('ssh', ['-O', 'forward', ...asking])).stdout.trim();
      expect(await isListening(Number(number))).toBe(true);
      expect(await world.ok('exec', 'box', '--', 'sh', '-c', there(number))).toBe('300000 bytes came');
      const taken = ['-S', 'none', '-o', 'ExitOnForwardFailure=yes', '-R', `${number}:127.0.0.1:${port}`, 'box.hutch', 'true'];
      expect(await using('ssh', taken)).toMatchObject({
        code: 255,
        stderr: expect.stringContaining('remote port forwarding failed'),
      });
      expect(await using('ssh', ['-O', 'cancel', ...asking])).toMatchObject({ code: 0, stderr: '' });
      await eventually('it is taken back', async () => !(await isListening(Number(number))));
    } finally {
      master.kill();
    }
  } finally {
    server.close();
  }
});

test('ssh has the daemon’s own connection, and nothing of ours copies what is said; another client’s proxy does that', async () => {
  const copying = join(world.dir, 'copying_config');
  await writeFile(copying, `${await world.ok('ssh-config', '--stdio')}\n`);
  for (const [file, proxies] of [
    [config, 0],
    [copying, 1],
  ] as const) {
    const ssh = start('ssh', ['box.hutch', 'echo here; cat'], file);
    try {
      await eventually('it runs', async () => (ssh.stdout.read() as Buffer | null)?.toString() === 'here\n');
      const children = await readFile(`/proc/${ssh.pid}/task/${ssh.pid}/children`, 'utf8');
      expect(
        children.split(' ').filter((word) => word !== ''),
        children,
      ).toHaveLength(proxies);
      ssh.stdin.end('and back\n');
      expect((await outcomeOf(ssh)).stdout).toBe('and back\n');
    } finally {
      ssh.kill();
    }
  }
  expect(await world.run(['ssh', '--pass', 'box'])).toMatchObject({
    code: 125,
    stderr: expect.stringContaining('what ssh runs as its proxy'),
  });
  await world.ok('daemon', 'stop');
  expect(await using('ssh', ['box.hutch', 'echo started again'])).toMatchObject({ code: 0, stdout: 'started again\n' });
});

test('what is not offered is refused and the session goes on; a client that opens channel after channel has 64', async () => {
  const refused = await using('ssh', ['-o', 'ExitOnForwardFailure=no', '-R', '/tmp/s:127.0.0.1:9', 'box.hutch', 'echo here']);
  expect(refused).toMatchObject({ code: 0, stdout: 'here\n', stderr: expect.stringContaining('remote port forwarding failed') });
  const { Client } = (await import('ssh2')).default;
  const child = world.spawn(['ssh', '--stdio', 'box.hutch']);
  const client = new Client();
  client.on('error', () => {});
  const ready = once(client, 'ready');
  const privateKey = await readFile(/IdentityFile "(.*)"/.exec(await readFile(config, 'utf8'))?.[1] ?? '');
  client.connect({ sock: Duplex.from({ readable: child.stdout, writable: child.stdin }), username: 'hutch', privateKey });
  await ready;
  try {
    const opened = await Promise.all(
      Array.from(
        { length: 70 },
        () => new Promise<boolean>((resolve) => client.exec('cat', (error) => resolve(error === undefined))), // never ended: each stays
      ),
    );
    expect(opened.filter(Boolean)).toHaveLength(64);
    expect(await using('ssh', ['box.hutch', 'echo others'])).toMatchObject({ code: 0, stdout: 'others\n' });
  } finally {
    client.end();
    child.kill();
  }
});

test('rsync goes through it, and sends what has changed', async () => {
  const at = (name: string): string => join(world.dir, name);
  await mkdir(at('synced/deep'), { recursive: true });
  await writeFile(at('synced/deep/one'), 'one\n', { mode: 0o751 });
  await writeFile(at('synced/two'), Buffer.alloc(300_000, 'two'));
  // The reference backend’s root has none: the one of this machine, with its libraries.
  const { stdout: libraries } = await outcomeOf(spawn('ldd', ['/usr/bin/rsync']));
  const needed = libraries.split('\n').flatMap((line) => /(?:=> )?(\/\S+) \(0x/.exec(line)?.slice(1) ?? []);
  const loader = needed.find((path) => path.includes('/ld-'));
  await world.ok('exec', 'box', '--', 'mkdir', '-p', '/tmp/rsync');
  expect(await using('scp', ['/usr/bin/rsync', ...needed, 'box.hutch:/tmp/rsync/'])).toMatchObject({ code: 0 });
  const there = `--rsync-path=/tmp/rsync/${basename(loader ?? '')} --library-path /tmp/rsync /tmp/rsync/rsync`;
  const rsync = async (...args: string[]): Promise<Result> =>
    await outcomeOf(spawn('rsync', ['-e', `ssh -F ${config}`, there, ...args], { env: { ...world.env }, cwd: world.dir }), args);
  expect(await rsync('-a', 'synced/', 'box.hutch:/root/synced/')).toMatchObject({ code: 0 });
  expect(await world.ok('exec', 'box', '--', 'stat', '-c', '%s %a', '/root/synced/deep/one', '/root/synced/two')).toMatch(
    /^4 751\n300000 /,
  );
  await writeFile(at('synced/deep/one'), 'another\n');
  const again = await rsync('-ai', '--delete', 'synced/', 'box.hutch:/root/synced/');
  expect(again.stdout.split('\n').filter((line) => line.startsWith('<f'))).toEqual([expect.stringContaining('deep/one')]);
  expect(await rsync('-a', 'box.hutch:/root/synced/', 'back-again/')).toMatchObject({ code: 0 });
  expect(await readFile(at('back-again/deep/one'), 'utf8')).toBe('another\n');
  await world.ok('exec', 'box', '--', 'rm', '-r', '/root/synced', '/tmp/rsync');
});

// ControlMaster, VS Code and Ansible: one connection that stays, and many commands over it.
test('each of the commands over one connection runs, with its own output and code', async () => {
  const over = ['-o', `ControlPath=${join(world.dir, 'shared')}`, '-o', 'ConnectTimeout=60'];
  const master = start('ssh', [...over, '-M', 'box.hutch', 'echo first; cat']);
  try {
    await once(master.stdout, 'data');
    const said = await Promise.all(['a', 'b'].map((word) => using('ssh', [...over, 'box.hutch', `echo ${word}; exit 3`])));
    expect(said).toMatchObject([
      { code: 3, stdout: 'a\n' },
      { code: 3, stdout: 'b\n' },
    ]);
    expect((await using('ssh', [...over, 'box.hutch', 'cat'], 'told')).stdout).toBe('told');
  } finally {
    master.kill();
  }
});

// What VS Code does: a shell with its commands on stdin, ports through SOCKS, files beside.
test('an editor’s connection: a shell that is told what to do, ports by SOCKS and files, all over one connection', async () => {
  const server = world.spawn(['exec', 'box', '--', ...echoServer(7008)]);
  const port = await freePort();
  const control = join(world.dir, 'control');
  const editor = start('ssh', ['-T', '-M', '-S', control, '-D', `127.0.0.1:${port}`, '-o', 'ConnectTimeout=60', 'box.hutch', 'sh']);
  try {
    editor.stdin.write('cd /tmp && echo here\n');
    let shown = '';
    editor.stdout.on('data', (chunk) => {
      shown += String(chunk);
    });
    await eventually('the shell answers', () => shown === 'here\n', 60_000);
    editor.stdin.write('echo and here\n');
    await eventually('it answers again', () => shown === 'here\nand here\n', 60_000);
    const socks = [Buffer.of(5, 1, 0), Buffer.of(5, 1, 0, 1, 127, 0, 0, 1, 7008 >> 8, 7008 & 255)];
    await eventually('the port answers', async () => (await said(port, socks))?.endsWith('there and back\n') === true);
    await writeFile(join(world.dir, 'beside'), 'beside');
    expect(await using('scp', ['-o', `ControlPath=${control}`, 'beside', 'box.hutch:/tmp/beside'])).toMatchObject({ code: 0 });
    editor.stdin.end('cat /tmp/beside; exit 5\n');
    const code = await new Promise((resolve) => editor.once('close', resolve));
    expect([code, shown]).toEqual([5, 'here\nand here\nbeside']);
  } finally {
    editor.kill();
    server.kill();
  }
});

test('a wrong key, a wrong host key and a sandbox that is not there are refused, and who leaves hangs up', async () => {
  const text = await readFile(config, 'utf8');
  const stranger = join(world.dir, 'stranger');
  await outcomeOf(spawn('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', stranger]));
  const other = join(world.dir, 'other_config');
  await writeFile(other, text.replace(/IdentityFile .*/, `IdentityFile "${stranger}"`));
  expect(await using('ssh', ['box.hutch', 'true'], '', other)).toMatchObject({
    code: 255,
    stderr: expect.stringContaining('Permission denied (publickey)'),
  });
  const hosts = join(world.dir, 'hosts');
  await writeFile(
    hosts,
    `${/HostKeyAlias (.*)/.exec(text)?.[1]} ${(await readFile(`${stranger}.pub`, 'utf8')).split(' ').slice(0, 2).join(' ')}\n`,
  );
  await writeFile(other, text.replace(/UserKnownHostsFile .*/, `UserKnownHostsFile "${hosts}"`));
  expect(await using('ssh', ['box.hutch', 'true'], '', other)).toMatchObject({
    code: 255,
    stderr: expect.stringContaining('HOST IDENTIFICATION HAS CHANGED'),
  });
  expect(await using('ssh', ['none-such.hutch', 'true'])).toMatchObject({
    code: 255,
    stderr: expect.stringContaining("there is no sandbox 'none-such'"),
  });
  expect(await world.run(['ssh', 'none-such'])).toMatchObject({ code: 125, stderr: expect.stringContaining('there is no sandbox') });
  const left = start('ssh', ['box.hutch', 'trap "echo gone > /tmp/gone; exit" HUP; echo here; while :; do sleep 0.05; done']);
  await eventually('it runs', async () => (left.stdout.read() as Buffer | null)?.toString() === 'here\n');
  left.kill('SIGKILL');
  await eventually('it has heard', async () => (await world.run(['exec', 'box', '--', 'cat', '/tmp/gone'])).stdout === 'gone\n');
  await eventually('no connection is left', async () => !(await world.ok('ops', '--json')).includes('ssh.connect'));
});

test('who reads the output only in part ends the command, as a broken pipe does', async () => {
  for (const [flags, command] of [
    ['', 'trap "" HUP; yes'],
    ['-tt', 'yes'],
  ] as const) {
    const reader = spawn('sh', ['-c', `ssh -F "${config}" ${flags} box.hutch '${command}' 2>/dev/null | head -1`], {
      env: { ...world.env },
    });
    expect((await outcomeOf(reader)).stdout.trim()).toBe('y');
  }
  // What writes nothing more goes on.
  const line = 'echo one; sleep 1; : > /tmp/went-on';
  await outcomeOf(spawn('sh', ['-c', `ssh -F "${config}" box.hutch '${line}' | head -1`], { env: { ...world.env } }));
  await eventually('it went on', async () => (await world.run(['exec', 'box', '--', 'test', '-e', '/tmp/went-on'])).code === 0);
  await eventually('no connection is left', async () => !(await world.ok('ops', '--json')).includes('ssh.connect'));
});

test('many sessions at one time have each their own output', { timeout: isLong ? 600_000 : 120_000 }, async () => {
  const count = isLong ? 100 : 12;
  const all = await Promise.all(Array.from({ length: count }, (_, at) => using('ssh', ['box.hutch', `cat; echo ${at}`], `in ${at}\n`)));
  expect(all.map(({ stdout }) => stdout)).toEqual(Array.from({ length: count }, (_, at) => `in ${at}\n${at}\n`));
});

test.runIf(isLong)('a client that asks and asks, and reads no answer, is not listened to any more', { timeout: 600_000 }, async () => {
  const { Client } = (await import('ssh2')).default;
  const child = world.spawn(['ssh', '--stdio', 'box.hutch']);
  const key = await readFile(/IdentityFile "(.*)"/.exec(await readFile(config, 'utf8'))?.[1] ?? '');
  const client = new Client();
  client.on('error', () => {});
  const ready = once(client, 'ready');
  client.connect({ sock: Duplex.from({ readable: child.stdout, writable: child.stdin }), username: 'hutch', privateKey: key });
  await ready;
  child.stdout.removeAllListeners('readable').removeAllListeners('data').pause();
  const flood = client as unknown as { readonly _protocol: { ping(): void } };
  for (let nth = 0; nth < 150_000; nth += 1) flood._protocol.ping();
  let [before, quiet] = [-1, 0];
  await eventually('it is not read any more', () => {
    const left = child.stdin.writableLength;
    quiet = left === before ? quiet + 1 : 0;
    before = left;
    return quiet > 100;
  });
  expect(before).toBeGreaterThan(0);
  child.kill();
  expect(await world.ok('exec', 'box', '--', 'echo', 'here')).toBe('here');
});

function said(port: number, before: readonly Buffer[] = []): Promise<string | null> {
  return new Promise((resolve) => {
    let text = '';
    const socket = createConnection({ host: '127.0.0.1', port });
    socket.setTimeout(2_000, () => socket.destroy());
    for (const bytes of before) socket.write(bytes);
    socket.write('there and back\n');
    socket.on('data', (chunk) => {
      text += chunk.toString();
      if (text.endsWith('\n')) socket.destroy();
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve(text === '' ? null : text));
  });
}
