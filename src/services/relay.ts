// One connection to a published port, carried to a port inside: bytes both ways, each side closed when
// the other one closes it, and reset where nobody listens inside.
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import type { GuestSocket } from '../guest/agent-ports.ts';
import type { TcpPeer } from '../host/host.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import type { Run } from './run.ts';

/** Until the port inside has answered. While the sandbox is paused a connection waits for as long as its client does. */
const CONNECT_MS = 30_000;

/** Settles when the connection is over; never rejects. */
export async function relay(run: Run, port: number, peer: TcpPeer): Promise<void> {
  const gone = new AbortController();
  peer.once('close', () => gone.abort());
  const { id, log, signal } = run.op;
  const op = newOperation({ id, actor: 'daemon', log, signal: AbortSignal.any([signal, gone.signal]) });
  using _ = run.use();
  try {
    using guest = await connected(op, run, port);
    await Promise.all([inward(op, peer, guest), outward(op, guest, peer)]);
    peer.destroySoon();
  } catch (cause) {
    if (!op.signal.aborted) log.debug({ sandbox: run.id, port, cause }, 'a connection to a published port failed');
    peer.resetAndDestroy();
  }
}

async function connected(op: Operation, run: Run, port: number): Promise<GuestSocket> {
  const agent = await run.link.agent(op);
  using limited = op.within(CONNECT_MS, `connecting to port ${port}`);
  return await agent.connect(limited, { tcp: { port } });
}

async function inward(op: Operation, peer: Duplex, guest: GuestSocket): Promise<void> {
  try {
    // Its end is not the connection's: the guest may have more to say.
    for await (const chunk of peer.iterator({ destroyOnReturn: false })) await guest.write(op, chunk as Uint8Array);
    guest.end();
  } catch (error) {
    guest[Symbol.dispose](); // the other way must not wait for a client that is gone
    throw error;
  }
}

async function outward(op: Operation, guest: GuestSocket, peer: Duplex): Promise<void> {
  for await (const bytes of guest.bytes(op)) {
    if (!peer.write(bytes)) await Promise.race([once(peer, 'drain'), once(peer, 'close')]);
  }
  peer.end();
}
