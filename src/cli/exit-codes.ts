// Every exit code of the CLI, in one table. docs/cli.md is made from it and the tests read it.
// `run`, `exec`, `shell` and `attach` give the command's own code; what is ours there is 124 to 130.
import type { ErrorCode } from '../domain/errors.ts';

export const EXIT_CODES = {
  ok: { code: 0, when: 'it worked' },
  failed: { code: 1, when: 'anything that has no code of its own; `doctor` and `ledger verify` that found something wrong' },
  usage: { code: 2, when: 'the command line, or a value in it, is wrong' },
  notFound: { code: 3, when: 'there is no such thing' },
  conflict: {
    code: 4,
    when: 'it is not possible in this state: a name that is taken, a sandbox that is stopped, a reference with two meanings',
  },
  quota: { code: 5, when: 'a limit or quota is reached, or the disk is full' },
  deadline: { code: 6, when: 'it took too long' },
  unavailable: { code: 7, when: 'the daemon, or a sandbox, does not answer' },
  timedOut: { code: 124, when: '`run`, `exec`: the time given by --timeout was up' },
  hutchFailed: { code: 125, when: '`run`, `exec`, `shell`, `attach`: Hutch itself failed, whatever the reason' },
  notExecutable: {
    code: 126,
    when: '`run`, `exec`: the command is there and cannot be executed, or not as that user or in that directory',
  },
  commandNotFound: { code: 127, when: '`run`, `exec`: there is no such command in the sandbox' },
  hungUp: { code: 129, when: 'ended by SIGHUP' },
  interrupted: { code: 130, when: 'ended by Ctrl-C: what was under way is cancelled and cleaned up' },
  readerGone: { code: 141, when: 'whoever read our output went away, as `head` does' },
  terminated: { code: 143, when: 'ended by SIGTERM' },
} as const satisfies Record<string, { readonly code: number; readonly when: string }>;

export type ExitName = keyof typeof EXIT_CODES;

const BY_ERROR = {
  invalid_argument: 'usage',
  unauthenticated: 'failed',
  permission_denied: 'failed',
  not_found: 'notFound',
  conflict: 'conflict',
  failed_precondition: 'conflict',
  payload_too_large: 'quota',
  resource_exhausted: 'quota',
  cancelled: 'interrupted',
  internal: 'failed',
  unimplemented: 'failed',
  unavailable: 'unavailable',
  deadline_exceeded: 'deadline',
} as const satisfies Record<ErrorCode, ExitName>;

export function exitOf(name: ExitName): number {
  return EXIT_CODES[name].code;
}

export function exitOfError(code: ErrorCode): number {
  return exitOf(BY_ERROR[code]);
}

/** From the mildest to the worst. */
const SEVERITY: readonly ExitName[] = ['ok', 'usage', 'notFound', 'conflict', 'quota', 'deadline', 'unavailable', 'failed', 'interrupted'];

/** Of several references in one command the worst counts. */
export function worstExit(codes: readonly number[]): number {
  const rank = (code: number) => SEVERITY.findIndex((name) => exitOf(name) === code);
  return codes.reduce((worst, code) => (rank(code) > rank(worst) ? code : worst), 0);
}
