// Faults at the door to the system. Each of these wraps any Host: the N-th call that touches the
// system fails, hangs, or is the last thing its process does. Which call that was stands in `hit`, so
// a test can walk N upwards until an operation no longer reaches it.
//
// Counted are the calls that take an operation (the clock and randomness do not); a stream counts
// once, when it is made. `only` counts the calls of one operation or verb and lets all others through.
import { appendFileSync } from 'node:fs';
import type { Host } from '../../src/host/host.ts';
import type { Operation } from '../../src/host/operation.ts';

export type HostCall = { readonly n: number; readonly method: string; readonly args: readonly unknown[] };

export type FaultOptions = {
  /** Count the calls of this operation or verb alone. */
  readonly only?: { readonly opId: string } | { readonly verb: string };
  /** Told of the call that is hit, before anything happens to it. */
  readonly onHit?: (call: HostCall) => void;
};

export type FaultyHost = Host & {
  /** The calls that were counted so far. */
  readonly calls: readonly HostCall[];
  /** The call that the fault struck; undefined while the N-th has not come. */
  readonly hit: HostCall | undefined;
};

/** What to do with the N-th call instead of making it; `make` makes it. Gives what the caller gets. */
type Strike = (call: HostCall, op: Operation, make: () => unknown) => unknown;

/** Only counts. */
export function countCalls(host: Host, options: FaultOptions = {}): FaultyHost {
  return strikeAt(host, 0, options, (_call, _op, make) => make());
}

/** What only looks: a process that dies after it leaves what it would have left before it. */
const LOOKS: ReadonlySet<string> = new Set<keyof Host>([
  ...(['readFile', 'readRange', 'readStream', 'stat', 'readLink', 'realPath', 'list', 'fileSystem', 'watchDir'] as const),
  ...(['processRef', 'isAlive', 'processUse', 'processTraffic', 'which'] as const),
]);

/** Told before and after each counted call; `changes`: what the call does to the system begins, and is done. */
export function watchCalls(
  host: Host,
  options: FaultOptions,
  heard: { readonly point: (when: 'before' | 'after', call: HostCall) => void; readonly changes: () => void },
): FaultyHost {
  return strikeAt(host, null, options, (call, _op, make) => {
    heard.point('before', call);
    const changes = LOOKS.has(call.method) ? () => {} : heard.changes;
    changes();
    const made = make();
    if (made instanceof Promise)
      return made.finally(() => {
        changes();
        heard.point('after', call);
      });
    return made;
  });
}

/** The N-th call fails, before it has done anything, as a failing system would make it fail. */
export function failNthCall(host: Host, n: number, options: FaultOptions & { readonly error?: Error } = {}): FaultyHost {
  return strikeAt(host, n, options, (call, op) => {
    const cause = Object.assign(new Error(`EIO: injected`), { code: 'EIO' });
    const error = options.error ?? op.error('internal', `injected failure of call ${n} (${call.method})`, { cause });
    return outcome(call, Promise.reject(error));
  });
}

/** The N-th call never comes back, but for the abort of its operation. */
export function hangNthCall(host: Host, n: number, options: FaultOptions = {}): FaultyHost {
  return strikeAt(host, n, options, (call, { signal, error }) => {
    const { promise, reject } = Promise.withResolvers<never>();
    const onAbort = (): void => reject(signal.reason instanceof Error ? signal.reason : error('cancelled', 'cancelled'));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    return outcome(call, promise);
  });
}

/** The N-th call is the last: the process dies before it is made, or as soon as it is done. */
export function dieAtNthCall(
  host: Host,
  n: number,
  options: FaultOptions & {
    readonly when?: 'before' | 'after';
    /** What dying is; `kill -9` of this process unless given. */
    readonly die?: (call: HostCall) => void;
  } = {},
): FaultyHost {
  const die = options.die ?? (() => void process.kill(process.pid, 'SIGKILL'));
  return strikeAt(host, n, options, (call, _op, make) => {
    if (options.when === 'after') {
      const made = make();
      if (made instanceof Promise) return made.finally(() => dead(call));
    }
    return dead(call);

    function dead(last: HostCall): unknown {
      die(last);
      return outcome(last, new Promise<never>(() => {}));
    }
  });
}

const FAULT = /^(fail|hang|die-before|die-after):(\d+)(?::([a-z][a-z0-9._-]*))?$/;

/**
 * The fault that a text asks for, so that a process started by a test can be given one in its
 * environment: `ACTION:N` or `ACTION:N:VERB`, ACTION being `fail`, `hang`, `die-before` or `die-after`.
 * For the tests' own entry files alone: the product knows nothing of it. The call that is hit is
 * appended to `reportPath` as a JSON line, synchronously, before anything happens to it.
 */
export function hostWithFault(host: Host, fault: string | undefined, reportPath?: string): Host {
  if (fault === undefined || fault === '') return host;
  const [, action, nText, verb] = FAULT.exec(fault) ?? [];
  if (action === undefined) throw new Error(`cannot read the fault ${fault}: it is ACTION:N or ACTION:N:VERB`);
  const n = Number(nText);
  const options: FaultOptions = {
    ...(verb === undefined ? {} : { only: { verb } }),
    ...(reportPath === undefined ? {} : { onHit: (call) => appendFileSync(reportPath, `${describeCall(call)}\n`) }),
  };
  switch (action) {
    case 'fail':
      return failNthCall(host, n, options);
    case 'hang':
      return hangNthCall(host, n, options);
    default:
      return dieAtNthCall(host, n, { ...options, when: action === 'die-after' ? 'after' : 'before' });
  }
}

const ARGUMENT_CHARS_MAX = 200;

/** One line of JSON, for a report or a failing test's message. */
export function describeCall(call: HostCall): string {
  const args = call.args.map((arg) => (arg instanceof Uint8Array ? `${arg.byteLength} bytes` : shortened(arg)));
  return JSON.stringify({ n: call.n, method: call.method, args });
}

function shortened(arg: unknown): unknown {
  const text =
    typeof arg === 'string' ? arg : (JSON.stringify(arg, (_key, value) => (typeof value === 'bigint' ? String(value) : value)) ?? '');
  return text.length > ARGUMENT_CHARS_MAX ? `${text.slice(0, ARGUMENT_CHARS_MAX)}…` : arg;
}

/** `n` null: every call. */
function strikeAt(host: Host, n: number | null, options: FaultOptions, strike: Strike): FaultyHost {
  const calls: HostCall[] = [];
  let hit: HostCall | undefined;
  return new Proxy(host as FaultyHost, {
    get(target, name, receiver) {
      if (name === 'calls') return calls;
      if (name === 'hit') return hit;
      const member: unknown = Reflect.get(target, name, receiver);
      if (typeof name !== 'string' || typeof member !== 'function') return member;
      return (...all: unknown[]) => {
        const make = (): unknown => Reflect.apply(member, target, all);
        const [op, ...args] = all;
        if (!isOperation(op) || !isCounted(op, options)) return make();
        const call = { n: calls.length + 1, method: name, args };
        calls.push(call);
        if (n !== null && call.n !== n) return make();
        hit = call;
        options.onHit?.(call);
        return strike(call, op, make);
      };
    },
  });
}

function isOperation(value: unknown): value is Operation {
  return typeof value === 'object' && value !== null && 'signal' in value && 'releasing' in value;
}

function isCounted(op: Operation, { only }: FaultOptions): boolean {
  if (only === undefined) return true;
  return 'opId' in only ? op.id === only.opId : op.verb === only.verb;
}

/** A promise in the shape that the method gives: streams fail at their first `next()`. */
function outcome(call: HostCall, settles: Promise<never>): unknown {
  if (call.method !== 'readStream' && call.method !== 'watchDir') return settles;
  settles.catch(() => {}); // nobody may ever ask the stream
  return {
    async *[Symbol.asyncIterator]() {
      yield await settles;
    },
  };
}
