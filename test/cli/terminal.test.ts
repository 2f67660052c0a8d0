// `-it` in a real terminal: tmux is the terminal, and its screen is what a person would see.
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { DetachKeys, parseDetachKeys } from '../../src/cli/terminal.ts';
import { eventually } from '../support/eventually.ts';
import { Screen } from './screen.ts';
import { World } from './world.ts';

const run = promisify(execFile);
let world: World;

beforeAll(async () => {
  world = await World.make();
  await world.ok('create', '--name', 'box');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

async function runs(command: string): Promise<void> {
  await eventually(`${command} to run`, async () => (await world.ok('exec', '--no-stdin', 'box', 'ps')).includes(command));
}

test('the window has its size right at the start, and follows a resize', async () => {
  await using screen = await Screen.open(world, { cols: 91, rows: 31 });
  await screen.enter('$H run --rm -it -- sh -c "stty size; read x; stty size"');
  await screen.shows('31 91');
  await screen.resize(100, 40);
  await screen.press('Enter');
  await screen.shows('40 100');
  await screen.shows(/^ours>$/m);
});

test('vi edits a file, full screen, and leaves the terminal as it was', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H exec -it box -- busybox vi /root/note');
  await screen.shows(/^- \/root\/note/m);
  await screen.type('ihello world');
  await screen.shows(/^hello world$/m);
  await screen.press('Escape');
  await screen.shows(/^- \/root\/note/m); // out of the insert mode: what follows is no part of an escape sequence
  await screen.enter(':wq');
  await screen.shows(/^ours>$/m);
  expect(await world.ok('exec', 'box', 'cat', '/root/note')).toBe('hello world');
  await screen.enter('stty -a | grep -c -- "-icanon"');
  await screen.shows(/^0$/m); // not raw any more
});

test('UTF-8 passes both ways, however it is cut', async () => {
  await using screen = await Screen.open(world);
  await screen.enter(
    "$H exec -it box -- sh -c \"stty -echo; echo go; head -n 1 | od -An -tx1; printf 'gr\\303'; sleep 0.3; printf '\\274n \\342\\230'; sleep 0.3; printf '\\203\\n'\"",
  );
  await screen.shows(/^go/m);
  await screen.enter('ß☃');
  await screen.shows('c3 9f e2 98 83 0a');
  await screen.shows('grün ☃');
  await screen.shows(/^ours>$/m);
});

test('top draws and is ended by a key', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H exec -it box -- busybox top');
  await screen.shows(/PID/);
  await screen.type('q');
  await screen.shows(/^ours>$/m);
});

test('Ctrl-C, Ctrl-Z and fg reach the shell inside', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H exec -it --env "PS1=box> " box -- sh -i');
  await screen.shows(/^box>/m);
  await screen.enter('sleep 500');
  await runs('sleep 500'); // keys typed before it does are for the shell's own editor
  await screen.press('C-c');
  await screen.enter('echo "code $?"');
  await screen.shows(/^code 130/m);
  await screen.enter('sleep 400');
  await runs('sleep 400');
  await screen.press('C-z');
  await screen.shows(/Stopped/);
  await screen.enter('fg');
  await screen.shows(/^sleep 400/m);
  await screen.press('C-c');
  await screen.enter('echo again');
  await screen.shows(/^again/m);
  await screen.enter('exit 7');
  await screen.shows(/^ours>$/m);
  await screen.enter('echo "ended with $?"');
  await screen.shows('ended with 7');
});

test('the detach keys let go, and the main process goes on', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H run -it --name stay --env "PS1=inside> " -- sh -i');
  await screen.shows(/^inside>/m);
  await screen.press('C-p', 'C-q');
  await screen.shows('detached');
  await screen.shows(/^ours>$/m);
  expect((await world.json<{ state: string }>('inspect', 'stay')).state).toBe('running');
  await screen.enter('$H attach stay');
  await screen.enter('echo "still $((40 + 2))"');
  await screen.shows(/^still 42/m);
  await screen.enter('exit 3');
  await screen.shows(/^ours>$/m);
  await screen.enter('echo "ended with $?"');
  await screen.shows('ended with 3');
  await world.ok('rm', 'stay');
});

test('after a detach it is said that --rm still holds, and it does', async () => {
  await using screen = await Screen.open(world, { cols: 140 });
  await screen.enter('$H run --rm -it --name brief --env "PS1=inside> " -- sh -i');
  await screen.shows(/^inside>/m);
  await screen.press('C-p', 'C-q');
  await screen.shows('detached; it is deleted when its command ends (--rm); go on with: hutch attach brief');
  await screen.shows(/^ours>$/m);
  await screen.enter('$H attach brief');
  await screen.shows(/^inside>[\s\S]*^inside>/m); // drawn again
  await screen.enter('exit 6');
  await screen.shows(/^ours>$/m);
  await screen.enter('echo "ended with $?"');
  await screen.shows('ended with 6');
  await eventually('it is deleted', async () => (await world.run(['inspect', 'brief'])).code === 3);
});

test('lines end once: our terminal adds nothing to what the one inside writes', async () => {
  await using screen = await Screen.open(world);
  const file = `${world.dir}/bytes`;
  await screen.tmux('pipe-pane', `cat >${file}`);
  await screen.enter('$H exec -it box -- sh -c "echo first; echo second"; echo "then $((40 + 2))"');
  await screen.shows(/^then 42$/m);
  await eventually('the bytes', async () => (await readFile(file, 'latin1')).includes('then 42\r\n'));
  expect(await readFile(file, 'latin1')).toContain('\nfirst\r\nsecond\r\nthen 42\r\n');
});

test('two that are attached see what comes from then on, and both may type', async () => {
  await using first = await Screen.open(world);
  await first.enter('$H run -it --name pair --env "PS1=inside> " -- sh -i');
  await first.shows(/^inside>/m);
  await first.enter('echo "before $((1 + 1))"');
  await first.shows(/^before 2/m);
  await using second = await Screen.open(world);
  await second.enter('$H attach pair');
  await second.shows(/^inside>/m); // drawn again for whoever comes
  await first.enter('echo "one $((2 + 2))"');
  for (const screen of [first, second]) await screen.shows(/^one 4/m);
  expect(await second.text()).not.toContain('before');
  await second.enter('echo "two $((3 + 3))"');
  for (const screen of [first, second]) await screen.shows(/^two 6/m);
  await first.enter('echo "three $((4 + 4))"; exit 5');
  for (const screen of [first, second]) {
    await screen.shows(/^three 8/m);
    await screen.shows(/^ours>$/m);
    await screen.enter('echo "ended with $?"');
    await screen.shows('ended with 5');
  }
  await world.ok('rm', 'pair');
});

test('the terminal is put back when the CLI is terminated', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H exec -it box -- sh -c "echo ready; sleep 700"');
  await screen.shows(/^ready/m);
  const pid = await cliPid('sleep 700');
  process.kill(pid, 'SIGTERM');
  await screen.shows(/^ours>$/m);
  await screen.enter('echo "ended with $?"; stty -a | grep -c -e "-icanon" -e "-opost"');
  await screen.shows('ended with 143');
  await screen.shows(/^0$/m);
});

test('a shell survives the death of the daemon', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H shell --env "PS1=box> " box');
  await screen.shows(/^box>/m);
  await screen.enter('x=41');
  await world.killDaemon();
  await screen.enter('echo "x is $((x + 1))"');
  await screen.shows('x is 42');
  await screen.enter('exit');
  await screen.shows(/^ours>$/m);
});

test('a first run shows progress on the terminal, and takes it away', async () => {
  await using screen = await Screen.open(world);
  await screen.enter('$H run --rm -- echo "the answer"');
  await screen.shows(/^the answer$/m);
  expect(await screen.text()).not.toContain('starting');
});

test('detach keys are found in any pieces, and what only began like them is passed on', () => {
  const keys = new DetachKeys(parseDetachKeys());
  const feed = (...bytes: number[]) => keys.push(Uint8Array.from(bytes));
  expect(feed(65, 0x10)).toEqual({ bytes: Uint8Array.of(65), detached: false });
  expect(feed(66)).toEqual({ bytes: Uint8Array.of(0x10, 66), detached: false });
  expect(feed(0x10, 0x10)).toEqual({ bytes: Uint8Array.of(0x10), detached: false });
  expect(feed(0x11, 67)).toEqual({ bytes: new Uint8Array(0), detached: true });
  expect(parseDetachKeys('ctrl-a,d')).toEqual(Uint8Array.of(1, 100));
  expect(() => parseDetachKeys('ctrl-')).toThrow('--detach-keys');
});

/** The CLI that runs a command: in our own process table, not inside. */
async function cliPid(part: string): Promise<number> {
  const { stdout } = await run('pgrep', ['-f', `hutch.cjs exec.*${part}`]);
  for (const pid of stdout.trim().split('\n').map(Number)) {
    const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '');
    if (environment.split('\0').includes(`HUTCH_HOME=${world.home}`)) return pid;
  }
  throw new Error(`no CLI runs ${part}`);
}
