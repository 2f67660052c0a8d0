// `ssh -R`: ports of the sandbox's loopback that the client answers. Each is the connection's own: it ends with it, or when the
// client takes it back, and so does what is open through it.
import type { Connection, ServerChannel, TcpipBindInfo } from 'ssh2';
import type { Agent } from '../../guest/agent.ts';
import type { GuestListener } from '../../guest/agent-ports.ts';
import type { Operation } from '../../host/operation.ts';
import { carryBetween } from './served.ts';

/** So many ports one connection may have at a time. */
const PORTS_MAX = 16;

export type RemotePorts = {
  readonly op: Operation;
  readonly agent: Agent;
  readonly client: Connection;
  /** One channel more; null: there are enough. To be disposed when it is over. */
  readonly channel: () => Disposable | null;
};

/** Does what the client asks about ports of the other side. */
export function serveRemotePorts({ op, agent, client, channel }: RemotePorts): void {
  /** By the address that the client has said, and the port. Null: it is being opened. */
  const open = new Map<string, GuestListener | null>();
  client.on('request', (accept, reject, name, info) => {
    if (name === 'tcpip-forward') void listen(info as TcpipBindInfo, accept, reject);
    else if (name === 'cancel-tcpip-forward') cancel(info as TcpipBindInfo, accept, reject);
    else reject?.(); // sockets with a path
  });

  async function listen(
    { bindAddr, bindPort }: TcpipBindInfo,
    accept: ((port?: number) => void) | undefined,
    reject: (() => void) | undefined,
  ): Promise<void> {
    const asked = `${bindAddr} ${bindPort}`;
    if (open.size >= PORTS_MAX || open.has(asked)) return reject?.();
    open.set(asked, null);
    let listener: GuestListener;
    try {
      listener = await agent.listen(op, bindPort);
    } catch (cause) {
      op.log.debug({ cause }, 'a port of a sandbox could not be opened over SSH');
      return reject?.();
    } finally {
      open.delete(asked);
    }
    const { port, arrivals } = listener;
    const key = `${bindAddr} ${port}`;
    open.set(key, listener);
    accept?.(port);
    try {
      for await (const { id, address, port: from } of arrivals) void answer(id, { bindAddr, port, address, from });
    } catch (cause) {
      op.log.debug({ cause }, 'a port of a sandbox that was opened over SSH has ended');
    } finally {
      open.delete(key);
    }
  }

  function cancel({ bindAddr, bindPort }: TcpipBindInfo, accept: (() => void) | undefined, reject: (() => void) | undefined): void {
    const listener = open.get(`${bindAddr} ${bindPort}`) ?? null;
    if (listener === null) reject?.();
    else {
      void listener.arrivals.return();
      accept?.();
    }
  }

  type Came = { readonly bindAddr: string; readonly port: number; readonly address: string; readonly from: number };

  async function answer(id: number, { bindAddr, port, address, from }: Came): Promise<void> {
    try {
      using socket = await agent.accept(op, { id });
      using room = channel();
      if (room === null) return;
      const answered = await new Promise<ServerChannel>((resolve, reject) =>
        client.forwardOut(bindAddr, port, address, from, (error, made) => (error === undefined ? resolve(made) : reject(error))),
      );
      await carryBetween(op, socket, answered);
    } catch (cause) {
      op.log.debug({ cause }, 'who came to a port of a sandbox was not answered over SSH');
    }
  }
}
