import { expect, test } from 'vitest';
import { imageConfigOf } from './image.ts';
import { imageRules } from './image-rules.ts';

const NOTHING = { main: null, env: {}, user: null, workdir: null };
const sources = (...[config, spec]: Parameters<typeof imageRules>) =>
  Object.fromEntries(Object.entries(imageRules(config, spec)).map(([what, { from }]) => [what, from]));

test('whose word holds is said of all that an image says about processes', () => {
  const config = imageConfigOf({
    ...{ Entrypoint: ['/run.sh'], Cmd: ['serve'], Env: ['A=1', 'B=2'], User: 'app', WorkingDir: '/srv', StopSignal: 'SIGQUIT' },
    ExposedPorts: { '80/tcp': {} },
  });
  const main = { argv: ['/run.sh', 'serve'], tty: false, stdin: 'null' } as const;
  const whole = { env: 'image', user: 'image', workdir: 'image', stopSignal: 'image', exposedPorts: 'nobody' };
  expect(sources(config, { ...NOTHING, main })).toEqual({ ...whole, main: 'image' });
  expect(sources(config, NOTHING)).toEqual({ ...whole, main: 'nobody' });
  const given = { main: { ...main, argv: ['serve'] }, env: { B: '3', C: '4' }, user: 'root', workdir: '/' };
  expect(sources(config, given)).toEqual({ ...whole, main: 'request', env: 'both', user: 'request', workdir: 'request' });
  expect(imageRules(config, given).env.rule).toContain('holds of B');

  const empty = imageConfigOf({});
  expect(sources(empty, NOTHING)).toEqual({
    ...{ main: 'nobody', env: 'nobody', user: 'default', workdir: 'default', stopSignal: 'default', exposedPorts: 'nobody' },
  });
  expect(sources(empty, { ...NOTHING, env: { A: '1' } })['env']).toBe('request');
});

test('a stop signal that cannot be sent is said to be none', () => {
  const of = (StopSignal: string) => imageRules(imageConfigOf({ StopSignal }), NOTHING).stopSignal;
  for (const said of ['SIGTERM', 'term', '15', '3', 'SIGQUIT']) expect(of(said).from, said).toBe('image');
  for (const said of ['SIGRTMIN+3', '64', 'nonsense'])
    expect(of(said), said).toEqual({ from: 'default', rule: expect.stringContaining(said) });
});
