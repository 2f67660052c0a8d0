import { expect, test } from 'vitest';
import { HutchError } from '../domain/errors.ts';
import { exitCode, signalNumber, startFailureCode, startFailureText } from './exit-code.ts';
import { AgentError } from './failure.ts';

test('a program that returned gives its code, one that a signal ended 128 and the signal', () => {
  expect(exitCode({ code: 3, signal: null })).toBe(3);
  expect(exitCode({ code: null, signal: 'KILL' })).toBe(137);
  expect(exitCode({ code: null, signal: 'SIGTERM' })).toBe(143);
  expect(exitCode({ code: null, signal: 'RTMIN+1' })).toBe(163);
});

test('an exit that says nothing is no success', () => {
  expect(exitCode({ code: null, signal: null })).toBe(255);
});

test('signals are known by name and number, and nothing else is one', () => {
  expect(signalNumber('term')).toBe(15);
  expect(signalNumber('9')).toBe(9);
  for (const none of ['', 'NOPE', '0', '65', 'RTMIN+40', 'constructor', '__proto__']) expect(signalNumber(none)).toBeNull();
});

test('a program that is not there is 127, one that cannot run 126, and our own failures are neither', () => {
  const failed = (code: 'invalid_argument' | 'not_found' | 'permission_denied' | 'internal' | 'unavailable', errno: string | null) =>
    new HutchError({ code, message: 'x', cause: new AgentError('x', errno) });
  expect(startFailureCode(failed('not_found', 'ENOENT'))).toBe(127);
  expect(startFailureCode(failed('permission_denied', 'EACCES'))).toBe(126);
  expect(startFailureCode(failed('internal', 'ENOEXEC'))).toBe(126);
  expect(startFailureCode(failed('invalid_argument', null))).toBe(126); // a user that the guest does not have
  expect(startFailureCode(failed('internal', null))).toBeNull();
  expect(startFailureCode(new HutchError({ code: 'unavailable', message: 'x' }))).toBeNull();
  expect(startFailureCode(new Error('x'))).toBeNull();
  expect(startFailureText('/etc/passwd', failed('permission_denied', 'EACCES')).message).toBe('cannot run /etc/passwd: permission denied');
  expect(startFailureText('/a', failed('internal', 'ENOEXEC'))).toEqual({
    message: 'cannot run /a: it is no program of this machine',
    hint: expect.stringContaining('#!/bin/sh'),
  });
  expect(startFailureText('/a', failed('internal', 'EMFILE'))).toEqual({
    message: 'cannot run /a: the sandbox has no file descriptors left',
    hint: expect.stringContaining('hutch resume'),
  });
  expect(startFailureText('/b', failed('not_found', 'ENOENT'))).toEqual({ message: 'cannot run /b: x' });
});
