// The main process of a sandbox that does not run any more, for a client that missed its end: output
// from the log on the host, and the exit that was recorded.
import type { Sandbox } from '../domain/sandbox.ts';
import { LogRecords } from '../guest/log-records.ts';
import type { Operation } from '../host/operation.ts';
import type { Core } from './core.ts';
import { placesOf } from './deps.ts';
import type { ExecItem, ExecSession } from './handlers.ts';
import { lastLogDir } from './take-down.ts';

type Offsets = { readonly stdout: number; readonly stderr: number };

/** `asked` null: only its end. */
export async function replayMain(core: Core, op: Operation, sandbox: Sandbox, asked: Offsets | null): Promise<ExecSession> {
  const { name, main } = sandbox.spec;
  if (main === null)
    throw op.error('failed_precondition', `sandbox ${name} has no main process`, { hint: `run a command in it: hutch exec ${name} -- …` });
  const end = await lastEnd(core, sandbox);
  if (end === null)
    throw op.error('failed_precondition', `sandbox ${name} is ${sandbox.state}; its main process has not run`, {
      hint: `start it with: hutch start ${name}`,
    });
  const { logDir } = placesOf(core.deps.places, sandbox.id);
  const used = await core.logs.use(op, sandbox.id, sandbox.state === 'deleted' ? lastLogDir(core, sandbox.id) : logDir);
  const { log } = used;
  const from = asked ?? (log.lastRun() === null ? { stdout: 0, stderr: 0 } : log.counts);
  return {
    started: { execId: 'main', pid: 0, stdoutOffset: from.stdout, stderrOffset: from.stderr, inputOffset: 0, existing: true },
    async *items() {
      const begins = log.lastRun();
      if (begins !== null) yield* output(log.read(op, begins.from), begins, from);
      const { stdout, stderr } = begins === null ? { stdout: 0, stderr: 0 } : log.counts;
      yield { type: 'exit', exit: { ...end, stdoutBytes: stdout, stderrBytes: stderr, error: null } };
    },
    write: async () => {
      throw op.error('failed_precondition', `the main process of sandbox ${name} has ended; it takes no more input`);
    },
    endInput: async () => {},
    resize: async () => {},
    signal: async () => {
      throw op.error('failed_precondition', `the main process of sandbox ${name} has ended`);
    },
    onInputAccepted: () => {},
    keepPlace: () => {},
    [Symbol.asyncDispose]: async () => used[Symbol.dispose](),
  };
}

async function* output(
  bytes: AsyncIterable<Uint8Array>,
  begins: { readonly from: number } & Offsets,
  from: Offsets,
): AsyncGenerator<ExecItem, void, undefined> {
  const at = { stdout: begins.stdout, stderr: begins.stderr };
  for (const channel of ['stdout', 'stderr'] as const) {
    if (at[channel] > from[channel]) yield { type: 'dropped', channel, offset: from[channel], bytes: at[channel] - from[channel] };
  }
  const records = new LogRecords(begins.from);
  for await (const chunk of bytes) {
    for (const { channel, bytes: piece } of records.push(chunk)) {
      const skip = Math.max(0, from[channel] - at[channel]);
      at[channel] += piece.byteLength;
      if (skip < piece.byteLength) yield { type: 'output', channel, bytes: piece.subarray(skip) };
    }
  }
}

type End = {
  readonly exitCode: number;
  readonly signal: string | null;
  readonly oomKilled: boolean;
  readonly reason: 'exited' | 'signalled';
  readonly endedAtMs: number;
};

/** Null when no end of a main process was seen. */
async function lastEnd(core: Core, sandbox: Sandbox): Promise<End | null> {
  const events = await core.deps.store.query('lastEvents', { sandboxId: sandbox.id, limit: 100 });
  const detail = events.findLast((event) => event.type === 'sandbox.ended')?.detail;
  if (detail === undefined || typeof detail['exitCode'] !== 'number') return null;
  const signal = typeof detail['signal'] === 'string' ? detail['signal'] : null;
  return {
    exitCode: detail['exitCode'],
    signal,
    oomKilled: detail['oomKilled'] === true,
    reason: signal === null ? 'exited' : 'signalled',
    endedAtMs: typeof detail['endedAtMs'] === 'number' ? detail['endedAtMs'] : sandbox.changedAtMs,
  };
}
