// Files of one's own in sandboxes, by the CLI: those of the configuration and of `--sync`.
import { appendFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { World } from '../cli/world.ts';

let world: World;

beforeAll(async () => {
  world = await World.make();
  await mkdir(world.home, { mode: 0o711 });
  const entry = (host: string, guest: string, mode = '') => `[[file_sync]]\nhost = "${host}"\nguest = "${guest}"\n${mode}\n`;
  await writeFile(
    join(world.home, 'config.toml'),
    entry('~/.gitconfig', '~/.gitconfig') + entry('~/.absent', '~/.absent', 'mode = "0644"'),
  );
  await writeFile(join(world.dir, '.gitconfig'), '[user]\n\tname = Somebody\n');
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
});

test('file_sync of the configuration is in each new sandbox, --sync beside it, and what is missing here is a warning', async () => {
  await mkdir(join(world.dir, 'settings'));
  await writeFile(join(world.dir, 'settings/token'), 't0ken');
  const look = 'cat ~/.gitconfig ~/.config/tool/token && stat -c %a ~/.gitconfig ~/.config/tool ~/.config/tool/token';
  const run = await world.run(['run', '--rm', '--no-net', '--sync', './settings:~/.config/tool:0640', '--', 'sh', '-c', look]);
  expect(run).toMatchObject({
    code: 0,
    stdout: '[user]\n\tname = Somebody\nt0ken600\n750\n640\n',
    stderr: 'hutch: warning: ~/.absent is not there, so the sandbox has no ~/.absent\n',
  });
  expect(await world.json('config', 'show')).toMatchObject({
    values: expect.arrayContaining([
      expect.objectContaining({ key: 'sandbox.file_sync', value: '~/.gitconfig:~/.gitconfig,~/.absent:~/.absent:0644' }),
    ]),
  });
});

test('a sandbox that is made without being started has them with its first start, and keeps them as they became', async () => {
  await world.ok('create', '--no-start', '--name', 'later');
  await appendFile(join(world.dir, '.gitconfig'), '# of later\n');
  await world.ok('start', 'later');
  const read = async (): Promise<string> => await world.ok('exec', 'later', '--', 'tail', '-n', '1', '/root/.gitconfig');
  expect(await read()).toBe('# of later');
  await world.ok('exec', 'later', '--', 'sh', '-c', 'echo "# its own" >> ~/.gitconfig');
  await world.ok('restart', 'later');
  expect(await read()).toBe('# its own');
});

test('--sync says what it cannot read, and by name what leads out of the home', async () => {
  for (const [text, why] of [
    ['./settings', 'names no files to put in'],
    ['./settings:x', 'must be absolute, or begin with ~/'],
    ['./settings:~/x:rwx', 'octal digits'],
    ['/etc/hostname:~/x', '/etc/hostname lies outside of the home'],
  ] as const)
    expect(await world.run(['create', '--name', 'wrong', '--sync', text]), text).toMatchObject({
      code: expect.not.toSatisfy((code: number) => code === 0) as number,
      stderr: expect.stringContaining(why) as string,
    });
  expect((await world.run(['inspect', 'wrong'])).code).not.toBe(0);
});
