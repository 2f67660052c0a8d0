// What OpenSSH's client says when nobody reads any more what it is sent, as in `ssh dev.hutch cat big | head` (`eow@openssh.com`, in
// OpenSSH's PROTOCOL, 2.1). The library passes it on to nobody; without it such a client takes and drops output for ever.
import type { EventEmitter } from 'node:events';
import type { Connection } from 'ssh2';

/** The event of a session, or of a channel, whose client takes no more output. */
export const READERS_GONE = 'eow';
const REQUEST = 'eow@openssh.com';

type Requested = (protocol: unknown, channel: number, type: string, ...rest: readonly unknown[]) => void;
type Inside = {
  readonly _protocol?: { readonly _handlers?: { CHANNEL_REQUEST?: Requested } };
  readonly _chanMgr?: { get(channel: number): EventEmitter | number | null | undefined };
};

/** Of one connection: its sessions emit `READERS_GONE` from now on. */
export function hearReadersGone(client: Connection): void {
  const { _protocol: protocol, _chanMgr: channels } = client as unknown as Inside;
  const handlers = protocol?._handlers;
  const usual = handlers?.CHANNEL_REQUEST;
  if (handlers === undefined || usual === undefined) return; // another version of the library: a test says so
  handlers.CHANNEL_REQUEST = (from, channel, type, ...rest) => {
    if (type !== REQUEST) return usual(from, channel, type, ...rest);
    const session = channels?.get(channel);
    if (typeof session === 'object' && session !== null) session.emit(READERS_GONE);
  };
}
