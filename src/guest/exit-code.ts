// Exit codes as a shell gives them: the program's own, or 128 and the signal that ended it.
import { HutchError } from '../domain/errors.ts';
import { AgentError, errnoOf } from './failure.ts';
import type { Exit } from './messages.ts';

/** Linux on x86_64 and arm64. */
const SIGNALS: Readonly<Record<string, number>> = {
  HUP: 1,
  INT: 2,
  QUIT: 3,
  ILL: 4,
  TRAP: 5,
  ABRT: 6,
  BUS: 7,
  FPE: 8,
  KILL: 9,
  USR1: 10,
  SEGV: 11,
  USR2: 12,
  PIPE: 13,
  ALRM: 14,
  TERM: 15,
  STKFLT: 16,
  CHLD: 17,
  CONT: 18,
  STOP: 19,
  TSTP: 20,
  TTIN: 21,
  TTOU: 22,
  URG: 23,
  XCPU: 24,
  XFSZ: 25,
  VTALRM: 26,
  PROF: 27,
  WINCH: 28,
  IO: 29,
  PWR: 30,
  SYS: 31,
};
const SIGNAL_MAX = 64;

/** `TERM`, `SIGTERM`, `RTMIN+3` or `15` as a number; null when there is no such signal. */
export function signalNumber(signal: string): number | null {
  const name = signal.toUpperCase().replace(/^SIG/, '');
  const known = SIGNALS[name];
  if (known !== undefined && Object.hasOwn(SIGNALS, name)) return known;
  const realtime = /^RTMIN(?:\+(\d{1,2}))?$/.exec(name);
  const number = realtime === null ? (/^\d{1,2}$/.test(name) ? Number(name) : 0) : 34 + Number(realtime[1] ?? 0);
  return number >= 1 && number <= SIGNAL_MAX ? number : null;
}

export const EXIT_NOT_EXECUTABLE = 126;
export const EXIT_NOT_FOUND = 127;

/** 0 to 255. */
export function exitCode(exit: Pick<Exit, 'code' | 'signal'>): number {
  if (exit.signal === null) return exit.code ?? 255; // neither: the agent lied, and it was surely no success
  return 128 + (signalNumber(exit.signal) ?? 127);
}

/**
 * The code for a program that could not be started: 127 when it is not there, 126 when it may not or
 * cannot be executed, or not as the user or in the directory that was asked for. Null when the failure is another: then Hutch
 * failed, not the command.
 */
export function startFailureCode(error: unknown): typeof EXIT_NOT_EXECUTABLE | typeof EXIT_NOT_FOUND | null {
  if (!(error instanceof HutchError)) return null;
  if (!(error.cause instanceof AgentError)) return null;
  if (error.code === 'invalid_argument') return EXIT_NOT_EXECUTABLE;
  const { errno } = error.cause;
  if (errno === null) return null;
  if (error.code === 'not_found' && errno === 'ENOENT') return EXIT_NOT_FOUND;
  return error.code === 'unavailable' ? null : EXIT_NOT_EXECUTABLE;
}

/** Of what `startFailureCode` has a code for: what a person is told of `program`, and what helps. */
export function startFailureText(program: string, error: HutchError): { readonly message: string; readonly hint?: string } {
  const errno = errnoOf(error);
  const cannot = `cannot run ${program}`;
  if (errno === 'EACCES') {
    const hint = 'it is no program (chmod +x makes it one), or its user may not run it or reach it; as root: -u root';
    return { message: `${cannot}: permission denied`, hint };
  }
  if (errno === 'ENOEXEC')
    return {
      message: `${cannot}: it is no program of this machine`,
      hint: 'a script begins with a line like #!/bin/sh; programs are of x86_64',
    };
  if (errno === 'EMFILE' || errno === 'ENFILE')
    return {
      message: `${cannot}: the sandbox has no file descriptors left`,
      hint: 'on gVisor, whose runtime keeps one for each hard link that is made, these give them back: hutch suspend NAME && hutch resume NAME',
    };
  return { message: `${cannot}: ${error.message}` };
}
