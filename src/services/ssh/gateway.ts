// The SSH server of a sandbox: each connection is one stream of bytes that comes over the API, and what it asks for is done by the
// sandbox's agent. Always true: who is let in has an API key of the project, and the project's key; nothing is asked of the
// network, and nothing of the gateway outlives its connection.
import { timingSafeEqual } from 'node:crypto';
import { type Duplex, duplexPair } from 'node:stream';
import type { Algorithms, AuthContext, Connection, ParsedKey, PublicKeyAuthContext, ServerChannel, Session } from 'ssh2';
import type { Agent } from '../../guest/agent.ts';
import type { Operation } from '../../host/operation.ts';
import type { Awaken } from '../awaken.ts';
import type { Call } from '../call.ts';
import type { Core } from '../core.ts';
import type { Handlers, Tunnel } from '../handlers.ts';
import { SshKeys } from './keys.ts';
import { Outgoing } from './outgoing.ts';
import { hearReadersGone } from './readers-gone.ts';
import { serveRemotePorts } from './remote-ports.ts';
import { carryBetween, type Served, taken } from './served.ts';
import { serveSession } from './session.ts';

/** Who logs in as this one is the sandbox's own user. */
const OWN_USER = 'hutch';
/** What Node's own library does, which OpenSSH has since 2013; its favourite would be done in JavaScript, ten times slower. */
const ALGORITHMS = { cipher: ['aes128-gcm@openssh.com', 'aes256-gcm@openssh.com'] } satisfies Algorithms;
/** OpenSSH's client says only to one that is called so that nobody reads what it is sent (readers-gone.ts). */
const IDENT = 'OpenSSH_Hutch';
const LOGIN_MS = 30_000;
const TRIES_MAX = 6;
/** What one connection may have open at a time: a flood is one client's own. */
const CHANNELS_MAX = 64;

export function sshVerbs(
  core: Core,
  handlers: Pick<Handlers, 'exec.start' | 'exec.signal'>,
  awaken: Awaken,
): Pick<Handlers, 'ssh.identity' | 'ssh.connect'> {
  const { runs } = core;
  const keys = new SshKeys(core.deps);
  return {
    'ssh.identity': async ({ op, caller }) => {
      const [host, project] = await Promise.all([keys.host(op), keys.project(op, caller.projectId)]);
      return { hostKey: withoutComment(host.publicKey), publicKey: withoutComment(project.publicKey), privateKey: project.privateKey };
    },

    'ssh.connect': async (call, { ref }) => {
      const { op, caller } = call;
      const sandbox = await awaken.resolve(call, ref);
      const agent = await runs.agent(op, sandbox);
      const using = runs.of(op, sandbox).use();
      const [host, project] = await Promise.all([keys.host(op), keys.project(op, caller.projectId)]);
      const { Server, utils } = (await import('ssh2')).default;
      const allowed = utils.parseKey(project.publicKey);
      if (allowed instanceof Error) throw op.error('internal', 'the key of the project is damaged', { cause: allowed });
      const { user, imageId } = sandbox.spec;
      const ownUser = async () => user ?? (await core.deps.store.query('image', { id: imageId }))?.config.user ?? null;
      const [ours, theirs] = duplexPair();
      const outgoing = new Outgoing();
      const over = new AbortController();
      const alone: Operation = { ...op, signal: AbortSignal.any([op.signal, over.signal]) };
      let started = 0;
      const processId = (): string => {
        started += 1;
        return `x-${op.id.slice(3)}-${started}`;
      };
      const served: Served = { ref: sandbox.id, agent, handlers, name: sandbox.spec.name, ownUser, processId };
      const server = new Server({ hostKeys: [host.privateKey], ident: IDENT, algorithms: ALGORITHMS }, (client) =>
        serveConnection({ ...call, op: alone }, client, allowed, served),
      );
      server.on('error', (cause: Error) => op.log.debug({ cause }, 'a connection of SSH ended'));
      // As a socket does: who has ended is answered with the end.
      theirs.once('end', () => theirs.end());
      for (const event of ['finish', 'close']) theirs.once(event, () => outgoing.end());
      server.injectSocket(asSocket(theirs, outgoing) as unknown as Parameters<typeof server.injectSocket>[0]);
      return tunnelOf(ours, outgoing, op, () => {
        over.abort(op.error('cancelled', 'the SSH connection has ended'));
        theirs.destroy();
        using[Symbol.dispose]();
      });
    },
  };
}

function serveConnection(call: Call, client: Connection, allowed: ParsedKey, served: Served): void {
  const { op } = call;
  let user: string | null = null;
  let tries = 0;
  let channels = 0;
  const timer = setTimeout(() => client.end(), LOGIN_MS);
  client.on('error', (cause) => op.log.debug({ sandbox: served.ref, cause }, 'a connection of SSH ended'));
  // Not at its 'close', which does not come for one that leaves before it has logged in.
  op.signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
  client.on('authentication', (context: AuthContext) => {
    tries += 1;
    if (tries > TRIES_MAX) return client.end();
    if (context.method === 'publickey' && isAllowed(context, allowed)) {
      user = context.username === OWN_USER ? null : context.username;
      return context.accept();
    }
    context.reject(['publickey']);
  });
  client.on('ready', () => {
    clearTimeout(timer);
    hearReadersGone(client);
    const channel = (): Disposable | null => {
      if (channels >= CHANNELS_MAX) return null;
      channels += 1;
      return {
        [Symbol.dispose]: () => {
          channels -= 1;
        },
      };
    };
    client.on('session', (accept, reject) => {
      const room = channel();
      if (room === null) return reject();
      const session = accept();
      nameClass(session);
      serveSession(call, session, served, user, () => room[Symbol.dispose]());
    });
    client.on('tcpip', (accept, reject, { destIP, destPort }) => {
      const room = channel();
      if (room === null) return reject();
      const to = { tcp: { port: destPort, host: destIP } };
      void carry(op, served.agent, to, accept, reject).finally(() => room[Symbol.dispose]());
    });
    serveRemotePorts({ op, agent: served.agent, client, channel });
  });
}

/** ssh2 knows a session by the name of its class, which a bundler changes: what it does at the end of a connection with an open one then throws. */
function nameClass(session: Session): void {
  Object.defineProperty(session.constructor, 'name', { value: 'Session' });
}

function isAllowed(context: PublicKeyAuthContext, allowed: ParsedKey): boolean {
  const wanted = allowed.getPublicSSH();
  const { data } = context.key;
  if (data.byteLength !== wanted.byteLength || !timingSafeEqual(data, wanted)) return false;
  // Without a signature it asks whether that key would do.
  if (context.signature === undefined || context.blob === undefined) return true;
  return allowed.verify(context.blob, context.signature, context.hashAlgo) === true;
}

async function carry(
  op: Operation,
  agent: Agent,
  target: Parameters<Agent['connect']>[1],
  accept: () => ServerChannel,
  reject: () => void,
): Promise<void> {
  let socket: Awaited<ReturnType<Agent['connect']>>;
  try {
    socket = await agent.connect(op, target);
  } catch (cause) {
    op.log.debug({ cause }, 'a port of a sandbox could not be reached over SSH');
    return reject();
  }
  using _held = socket;
  await carryBetween(op, socket, accept());
}

/** What it looks at of a socket, and a stream has not. */
function asSocket(stream: Duplex, outgoing: Outgoing): Duplex {
  const write = (bytes: Uint8Array): boolean => {
    outgoing.put(bytes);
    return true;
  };
  const nothing = { setNoDelay: () => stream, setKeepAlive: () => stream, setTimeout: () => stream, remoteAddress: 'hutch' };
  return Object.assign(stream, nothing, { write });
}

function tunnelOf(stream: Duplex, outgoing: Outgoing, op: Operation, release: () => void): Tunnel {
  stream.on('error', (cause) => op.log.debug({ cause }, 'a stream of SSH ended'));
  stream.resume(); // to its end: nothing comes there
  const end = (): void => {
    stream.destroy(op.signal.reason as Error);
    outgoing.end(op.signal.reason as Error);
  };
  op.signal.addEventListener('abort', end, { once: true });
  if (op.signal.aborted) end();
  return {
    bytes: () => outgoing.pieces(),
    write: async (bytes) => {
      await outgoing.room();
      await taken(stream, bytes);
    },
    end: () => void stream.end(),
    [Symbol.dispose]: () => {
      op.signal.removeEventListener('abort', end);
      stream.destroy();
      outgoing.end();
      release();
    },
  };
}

function withoutComment(line: string): string {
  return line.trim().split(/\s+/).slice(0, 2).join(' ');
}
