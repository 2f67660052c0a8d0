// Ctrl-C, SIGTERM and SIGHUP. The first one asks the verb to end (its signal aborts, or its own
// handler runs); the second one ends the CLI at once. Always true: a signal never kills us before
// what was set up (a raw terminal) is put back.
import { HutchError } from '../domain/errors.ts';
import { exitOf } from './exit-codes.ts';

export const SIGNALS = {
  SIGINT: { name: 'INT', exit: 'interrupted' },
  SIGTERM: { name: 'TERM', exit: 'terminated' },
  SIGHUP: { name: 'HUP', exit: 'hungUp' },
} as const;
export type OurSignal = keyof typeof SIGNALS;

export type Interrupts = {
  /** Aborts at the first signal that no handler takes. */
  readonly signal: AbortSignal;
  /** The code to end with after a signal; null when there was none. */
  readonly exitCode: number | null;
  /** Takes the signals until disposed; `times` counts from 1. The third one always ends the CLI. */
  handle(handler: (signal: OurSignal, times: number) => void): Disposable;
};

/** Signals after which nobody is asked any more. */
const TIMES_MAX = 3;

export function newInterrupts(): Interrupts {
  const controller = new AbortController();
  const handlers: ((signal: OurSignal, times: number) => void)[] = [];
  let times = 0;
  let exitCode: number | null = null;
  const onSignal = (signal: OurSignal): void => {
    times += 1;
    exitCode ??= exitOf(SIGNALS[signal].exit);
    const handler = handlers.at(-1);
    if (times >= TIMES_MAX || (times > 1 && handler === undefined)) process.exit(exitCode);
    else if (handler === undefined) controller.abort(new HutchError({ code: 'cancelled', message: 'interrupted' }));
    else handler(signal, times);
  };
  for (const signal of Object.keys(SIGNALS) as OurSignal[]) process.on(signal, () => onSignal(signal));
  return {
    signal: controller.signal,
    get exitCode() {
      return exitCode;
    },
    handle(handler) {
      handlers.push(handler);
      return {
        [Symbol.dispose]() {
          const at = handlers.indexOf(handler);
          if (at >= 0) handlers.splice(at, 1);
        },
      };
    },
  };
}
