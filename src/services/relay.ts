// One connection to a published port, carried to a port inside: bytes both ways, each side closed when
// the other one closes it, and reset where nobody listens inside. Nothing is waited for on the way: what the client
// says first goes out behind the call that connects, and bytes are passed on in the turn in which they came.
import type { Agent } from '../guest/agent.ts';
import type { GuestFlow } from '../guest/agent-ports.ts';
import type { TcpPeer } from '../host/host.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** Until the port inside has answered. While the sandbox is paused a connection waits for as long as its client does. */
const CONNECT_MS = 30_000;
/** What a client that is done has sent is still taken inside for so long, as a kernel keeps a connection that nobody owns. */
const LINGER_MS = 60_000;

/** What is needed of the run of a sandbox. */
export type Carrier = Pick<Run, 'id' | 'op' | 'link' | 'use'>;

/** Settles when the connection is over; never rejects. */
export async function relay(run: Carrier, port: number, peer: TcpPeer): Promise<void> {
  using _ = run.use();
  try {
    const agent = run.link.ready ?? (await reached(run, peer));
    if (peer.destroyed) return;
    const why = await joined(agent.flow(run.op, { tcp: { port } }), peer);
    if (why !== null) run.op.log.debug({ sandbox: run.id, port, why }, 'a connection to a published port failed');
  } catch (cause) {
    if (!run.op.signal.aborted) run.op.log.debug({ sandbox: run.id, port, cause }, 'a connection to a published port failed');
    peer.resetAndDestroy();
  }
}

/** Waits for as long as the client does. */
async function reached(run: Carrier, peer: TcpPeer): Promise<Agent> {
  const gone = new AbortController();
  const onClose = (): void => gone.abort();
  peer.once('close', onClose);
  try {
    const { id, log, signal } = run.op;
    const op: Operation = newOperation({ id, actor: 'daemon', log, signal: AbortSignal.any([signal, gone.signal]) });
    return await run.link.agent(op);
  } finally {
    peer.off('close', onClose);
  }
}

/** Until both ways have ended. Why it failed, or null. */
function joined(guest: GuestFlow, peer: TcpPeer): Promise<string | null> {
  return new Promise((resolve) => {
    let isOver = false;
    const over = (why: string | null): void => {
      if (isOver) return;
      isOver = true;
      clearTimeout(timer);
      if (why !== null) peer.resetAndDestroy();
      resolve(why);
    };
    let timer = setTimeout(() => {
      guest.cancel();
      over(`nothing answered within ${CONNECT_MS} ms`);
    }, CONNECT_MS);
    const goOn = (): void => void peer.resume();
    guest.flow({
      opened: () => clearTimeout(timer),
      data: (bytes) => peer.writable && peer.write(bytes),
      ended: () => void peer.end(),
      closed: (failure) => {
        if (failure === null) peer.destroySoon();
        over(failure?.message ?? null);
      },
    });
    peer.on('data', (bytes: Uint8Array) => {
      if (!guest.push(bytes, goOn)) peer.pause();
    });
    peer.on('drain', () => guest.flowed());
    peer.once('end', () => guest.end());
    peer.once('close', () => {
      if (isOver) return;
      if (!peer.readableEnded || !peer.writableFinished) {
        guest.cancel();
        return over(null);
      }
      clearTimeout(timer);
      timer = setTimeout(() => {
        guest.cancel();
        over(null);
      }, LINGER_MS);
      timer.unref();
    });
    peer.resume();
  });
}
