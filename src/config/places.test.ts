import { expect, test } from 'vitest';
import { placesOf } from './places.ts';

const ada = { HOME: '/home/ada' };

test('as root it lies where the system keeps things', () => {
  expect(placesOf({ uid: 0, env: { HOME: '/root', XDG_DATA_HOME: '/elsewhere' } })).toEqual({
    dataDir: '/var/lib/hutch',
    runDir: '/run/hutch',
    logDir: '/var/log/hutch',
    configPaths: ['/etc/hutch/config.toml'],
    socketPath: '/run/hutch/hutch.sock',
    storePath: '/var/lib/hutch/hutch.db',
    lockPath: '/var/lib/hutch/hutch.lock',
    ownerKeyPath: '/var/lib/hutch/owner.key',
  });
});

test('as a user it lies where XDG says', () => {
  const env = {
    ...ada,
    XDG_DATA_HOME: '/data/ada/',
    XDG_RUNTIME_DIR: '/run/user/1000',
    XDG_STATE_HOME: '/state',
    XDG_CONFIG_HOME: '/config',
  };
  expect(placesOf({ uid: 1000, env })).toMatchObject({
    dataDir: '/data/ada/hutch',
    runDir: '/run/user/1000/hutch',
    logDir: '/state/hutch',
    configPaths: ['/config/hutch/config.toml', '/etc/hutch/config.toml'],
  });
});

test('without XDG variables, or with relative ones, it lies below the home directory', () => {
  expect(placesOf({ uid: 1000, env: { ...ada, XDG_DATA_HOME: 'data', XDG_RUNTIME_DIR: '' } })).toMatchObject({
    dataDir: '/home/ada/.local/share/hutch',
    runDir: '/home/ada/.local/state/hutch/run',
    logDir: '/home/ada/.local/state/hutch',
    configPaths: ['/home/ada/.config/hutch/config.toml', '/etc/hutch/config.toml'],
  });
});

test('HUTCH_HOME moves all of it, for root too', () => {
  for (const uid of [0, 1000]) {
    expect(placesOf({ uid, env: { HUTCH_HOME: '/srv/hutch/' } })).toMatchObject({
      dataDir: '/srv/hutch/data',
      runDir: '/srv/hutch/run',
      logDir: '/srv/hutch/log',
      configPaths: ['/srv/hutch/config.toml'],
    });
  }
});

test('what cannot work is refused by name', () => {
  expect(() => placesOf({ uid: 1000, env: { HUTCH_HOME: 'here' } })).toThrow("HUTCH_HOME: 'here' is not an absolute path");
  expect(() => placesOf({ uid: 1000, env: {} })).toThrow("HOME: '' is not an absolute path");
  expect(() => placesOf({ uid: 0, env: { HUTCH_HOME: `/${'x'.repeat(60)}` } })).toThrow(/has 65 bytes; at most 60 leave room/);
});
