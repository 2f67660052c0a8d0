// A program whose input and output are one byte stream, such as a connection that ssh carries. Ending the stream ends the
// program; a program that ends before it has said anything ends the stream with what it complained of.
import { spawn } from 'node:child_process';
import { Duplex } from 'node:stream';
import { throwIfAborted } from './errors.ts';
import type { Operation } from './operation.ts';

const COMPLAINT_BYTES_MAX = 4_096;
/** From SIGTERM to SIGKILL. */
const TERM_GRACE_MS = 2_000;
/** The end of its output is seen before its own, and its own before what it complained of has been read. */
const EXIT_MS = 2_000;

/** What it said on stderr is the message; nothing of it is a HutchError yet. */
export class ProgramFailed extends Error {
  readonly exitCode: number | null;

  constructor(complaint: string, exitCode: number | null) {
    super(complaint);
    this.name = 'ProgramFailed';
    this.exitCode = exitCode;
  }
}

export async function connectProgram(op: Operation, argv: readonly string[], env: Readonly<Record<string, string>>): Promise<Duplex> {
  const [program = '', ...args] = argv;
  throwIfAborted(op, `run ${program}`);
  const child = spawn(program, args, { env, stdio: ['pipe', 'pipe', 'pipe'] });
  const { stdin, stdout, stderr } = child;
  let complaint = '';
  let hasSaid = false;
  stderr.on('data', (chunk: Buffer) => {
    complaint = `${complaint}${chunk.toString()}`.slice(-COMPLAINT_BYTES_MAX);
  });
  const stream = new Duplex({
    allowHalfOpen: true,
    read: () => void stdout.resume(),
    write: (chunk: Buffer, _encoding, done) => {
      if (stdin.destroyed)
        done(); // the end of its output says so
      else if (stdin.write(chunk)) done();
      else {
        const goOn = (): void => {
          stdin.off('drain', goOn).off('close', goOn);
          done();
        };
        stdin.on('drain', goOn).on('close', goOn);
      }
    },
    final: (done) => void stdin.end(done),
    destroy: (error, done) => {
      stdin.destroy();
      stdout.destroy();
      end();
      done(error);
    },
  });
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()).once('error', () => resolve()));
  // A program that it left behind may hold this open, as the one does by which ssh shares a connection.
  const complained = new Promise<void>((resolve) => stderr.once('close', resolve));
  function end(): void {
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
    child.kill('SIGTERM');
    const force = setTimeout(() => child.kill('SIGKILL'), TERM_GRACE_MS);
    child.once('exit', () => clearTimeout(force));
  }
  stdin.on('error', () => {}); // told by the end of its output
  child.once('error', (cause) => stream.destroy(cause));
  stdout.on('data', (chunk: Buffer) => {
    hasSaid = true;
    if (!stream.push(chunk)) stdout.pause();
  });
  stdout.once('end', async () => {
    if (!hasSaid) {
      let timer: NodeJS.Timeout | undefined;
      await Promise.race([Promise.all([ended, complained]), new Promise((late) => (timer = setTimeout(late, EXIT_MS)))]);
      clearTimeout(timer);
    }
    if (!hasSaid && child.exitCode !== 0) stream.destroy(new ProgramFailed(complaint.trim(), child.exitCode));
    else stream.push(null);
  });
  if (child.pid === undefined) await new Promise((settled) => child.once('error', settled));
  return stream;
}
