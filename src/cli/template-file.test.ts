import { expect, test } from 'vitest';
import { readTemplateFile } from './template-file.ts';

const WHOLE = `name = "web"
image = "debian"
cpus = 2
memory = "1G"
disk = "4G"
pids = 100
network = "none"
backend = "qemu"
kernel = "6.1"
user = "app"
workdir = "/srv"
steps = ["apt-get install -y make", """
cd /srv
make"""]
start = "make serve"
scrub = true
[env]
A = "b"
[ready]
command = ["curl", "localhost"]
timeout = "90s"
`;

test('the file of a template is what the API is asked', () => {
  expect(readTemplateFile(WHOLE, 'web.toml')).toEqual({
    ...{
      name: 'web',
      image: 'debian',
      cpus: 2,
      memoryMiB: 1024,
      diskMiB: 4096,
      pids: 100,
      network: 'none',
      backend: 'qemu',
      kernel: '6.1',
    },
    ...{
      user: 'app',
      workdir: '/srv',
      steps: ['apt-get install -y make', 'cd /srv\nmake'],
      start: ['sh', '-c', 'make serve'],
      scrub: true,
    },
    ...{ env: { A: 'b' }, ready: { command: ['curl', 'localhost'], timeoutMs: 90_000 } },
  });
  expect(readTemplateFile('image = "debian"', '-', { name: 'other' })).toEqual({ name: 'other', image: 'debian' });
  for (const [check, expected] of [
    ['port = 80', { port: 80 }],
    ['path = "/x"', { path: '/x' }],
    ['wait = "2s"', { waitMs: 2_000 }],
    ['command = "true"', { command: ['sh', '-c', 'true'] }],
  ] as const)
    expect(readTemplateFile(`name = "a"\nimage = "b"\n[ready]\n${check}`, 't').ready).toEqual(expected);
});

test('what is wrong in the file of a template is said with its line', () => {
  const said = (text: string): string => {
    try {
      return JSON.stringify(readTemplateFile(`name = "a"\nimage = "b"\n${text}`, 't.toml'));
    } catch (error) {
      return String(error);
    }
  };
  expect(said('strat = "x"')).toContain('t.toml:3: there is no key strat in a template');
  expect(said('memory = 512')).toContain('t.toml:3: memory must be a size in quotes');
  expect(said('memory = "512 apples"')).toContain('t.toml:3: memory');
  expect(said('steps = "make"')).toContain('t.toml:3: steps must be a list of texts');
  expect(said('network = "lan"')).toContain('t.toml:3: network must be one of');
  expect(said('start = []')).toContain('t.toml:3: start must be');
  expect(said('[env]\nA = 1')).toContain('t.toml:4: env.A must be a text in quotes');
  expect(said('env = "A"')).toContain('t.toml:3: env is a table');
  expect(said('[ready]\nport = 80\npath = "/x"')).toContain('one of command, port, path and wait stands in [ready]');
  expect(said('[ready]\ntimeout = "5s"')).toContain('one of command, port, path and wait stands in [ready]');
  expect(said('[ready]\nport = "80"')).toContain('t.toml:4: ready.port must be a whole number');
  expect(said('[steps]\na = 1')).toContain('there is no key steps.a');
  expect(said('x = ')).toContain('t.toml:3:');
  expect(() => readTemplateFile('image = "b"', 't.toml')).toThrow('t.toml: name is missing');
  expect(readTemplateFile('name = "b"', 't.toml')).toEqual({ name: 'b' }); // the image that a sandbox has that names none
});
