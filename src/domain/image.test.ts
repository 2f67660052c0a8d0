import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isStopSignal, ownCommandOf, stopSignalOf } from './image.ts';

test('an image’s stop signal is understood by name and number, in any case, with SIG or without', () => {
  for (const said of ['SIGQUIT', 'QUIT', 'sigquit', '3']) expect(stopSignalOf({ stopSignal: said })).toBe('QUIT');
  expect(stopSignalOf({ stopSignal: '15' })).toBe('TERM');
  expect(stopSignalOf({ stopSignal: '28' })).toBe('WINCH');
});

test('whatever an image says, what is sent is a signal that the agent knows', () => {
  const known =
    /^(HUP|INT|QUIT|ILL|TRAP|ABRT|BUS|FPE|KILL|USR[12]|SEGV|PIPE|ALRM|TERM|STKFLT|CHLD|CONT|STOP|TSTP|TTIN|TTOU|URG|XCPU|XFSZ|VTALRM|PROF|WINCH|IO|PWR|SYS)$/;
  fc.assert(
    fc.property(fc.option(fc.oneof(fc.string(), fc.integer({ min: -5, max: 99 }).map(String))), (stopSignal) =>
      known.test(stopSignalOf({ stopSignal })),
    ),
  );
  for (const stopSignal of [null, '', 'SIGRTMIN+3', '0', '32', 'SIG', 'NOPE']) expect(stopSignalOf({ stopSignal })).toBe('TERM');
});

test('what an image is made for is its entrypoint, then its command', () => {
  expect(ownCommandOf({ entrypoint: ['/entry', '-x'], command: ['serve'] })).toEqual(['/entry', '-x', 'serve']);
  expect(ownCommandOf({ entrypoint: [], command: [] })).toEqual([]);
});

test('a stop signal is a number or a name, of the real-time ones too', () => {
  for (const said of ['SIGTERM', 'quit', '9', '37', 'SIGRTMIN', 'SIGRTMIN+3', 'rtmax-14', 'SIGPOLL'])
    expect(isStopSignal(said), said).toBe(true);
  for (const said of ['', '0', '-9', 'SIGFOO', 'SIGRTMIN+16', 'SIGRTMIN-1', '9 ', 'SIGSIGTERM'])
    expect(isStopSignal(said), said).toBe(false);
});
