// A command in a sandbox on our own stdin, stdout and stderr, to its exit. Always true: the exit is
// told only after the last byte has left us, and bytes pass unchanged.
import { HutchError } from '../domain/errors.ts';
import type { ProcessExit, RemoteProcess } from '../sdk/process.ts';
import type { Context } from './context.ts';
import { SIGNALS } from './interrupts.ts';
import { ReaderGone } from './io.ts';
import { json } from './output.ts';
import { DetachKeys, onResize, rawMode, terminalSize } from './terminal.ts';

export type Carry = {
  /** Where its input comes from; `none`: it has none. */
  readonly input: 'terminal' | 'data' | 'none';
  /** Whether it has a terminal. */
  readonly tty: boolean;
  readonly detachKeys: Uint8Array;
  /** Ends it for good, when a signal to it did not: the third Ctrl-C comes after this. */
  readonly kill: () => Promise<void>;
};

export type Carried = { readonly outcome: 'exit'; readonly exit: ProcessExit } | { readonly outcome: 'detached' };

/** After a signal the command may take this long to end by itself. */
const SIGNAL_GRACE_MS = 5_000;

/** @throws HutchError when the command is lost, ReaderGone when our reader is gone and the command did not mind. */
export async function carry(context: Context, process: RemoteProcess, options: Carry): Promise<Carried> {
  const { io, interrupts } = context;
  const detached = Promise.withResolvers<'detached'>();
  using stack = new DisposableStack();
  if (options.tty && options.input === 'terminal') stack.use(rawMode());
  if (options.tty && (io.isTerminal.stdout || io.isTerminal.stdin)) {
    stack.use(onResize((size) => process.resize(size)));
    process.resize(terminalSize()); // it may have changed since the command was asked for
  }
  let grace: NodeJS.Timeout | undefined;
  stack.defer(() => clearTimeout(grace));
  const end = (signal: string, times: number): void => {
    if (times === 1) process.signal(signal);
    else options.kill().catch(() => {});
    grace ??= setTimeout(() => options.kill().catch(() => {}), SIGNAL_GRACE_MS);
  };
  stack.use(interrupts.handle((signal, times) => end(SIGNALS[signal].name, times)));
  const onReaderGone = (): void => end('PIPE', 1);
  io.readerGone.addEventListener('abort', onReaderGone, { once: true });
  stack.defer(() => io.readerGone.removeEventListener('abort', onReaderGone));
  stack.use(passInput(context, process, options, () => detached.resolve('detached')));
  const output = Promise.all([passOutput(context, process, 'stdout'), passOutput(context, process, 'stderr')]);
  const exited = (async () => {
    const [, exit] = await Promise.all([output, process.exit]);
    return exit;
  })();
  const outcome = await Promise.race([exited, detached.promise]);
  if (outcome === 'detached') {
    exited.catch(() => {});
    process.detach();
    return { outcome: 'detached' };
  }
  return { outcome: 'exit', exit: outcome };
}

async function passOutput(context: Context, process: RemoteProcess, channel: 'stdout' | 'stderr'): Promise<void> {
  const { io } = context;
  try {
    for await (const chunk of process[channel] as AsyncIterable<Uint8Array>) {
      // The rest is read and dropped once nobody wants it: the command has been told.
      if (io.readerGone.aborted) continue;
      if (context.json) await io.out(json({ type: channel, base64: Buffer.from(chunk).toString('base64') }));
      else if (channel === 'stdout') await io.out(chunk);
      else await io.err(chunk);
    }
  } catch (error) {
    if (error instanceof ReaderGone) {
      process[channel].resume();
      return;
    }
    // `exit` says the same, and better.
    if (!(error instanceof HutchError)) throw error;
  }
}

/** Ours to its, with back-pressure: we read only what it takes. */
function passInput(context: Context, remote: RemoteProcess, options: Carry, onDetach: () => void): Disposable {
  if (options.input === 'none') return { [Symbol.dispose]() {} };
  const { stdin } = process;
  const keys = options.tty && options.input === 'terminal' ? new DetachKeys(options.detachKeys) : null;
  const onData = (chunk: Uint8Array): void => {
    const { bytes, detached } = keys?.push(chunk) ?? { bytes: chunk, detached: false };
    if (bytes.byteLength > 0 && !remote.stdin.destroyed && !remote.stdin.write(bytes)) stdin.pause();
    if (detached) onDetach();
  };
  // Of a terminal it is never lost for good; a pipe must not lose its middle without a word.
  const onError = (error: Error): void => {
    if (!(error instanceof HutchError) || error.code !== 'conflict') return;
    context.io.err('warning: another client writes to it now; the rest of our input is not passed on\n').catch(() => {});
  };
  const onDrain = (): void => void stdin.resume();
  const onEnd = (): void => void remote.stdin.end();
  const stop = (): void => {
    stdin.off('data', onData);
    stdin.off('end', onEnd);
    remote.stdin.off('drain', onDrain);
    stdin.pause();
  };
  stdin.on('error', onEnd); // a terminal that hung up
  stdin.on('end', onEnd);
  remote.stdin.on('drain', onDrain);
  remote.stdin.on('error', onError);
  remote.stdin.on('close', stop);
  stdin.on('data', onData);
  return { [Symbol.dispose]: stop };
}
