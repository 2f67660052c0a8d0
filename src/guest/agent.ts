// The agent of one sandbox as typed calls: one per method of the protocol, named after it. Every call
// takes the operation first, hears its signal and has a bound; every answer was parsed.
import type { Duplex } from 'node:stream';
import type { Operation } from '../host/operation.ts';
import { type AgentFiles, type AgentTar, agentFiles, agentTar } from './agent-files.ts';
import {
  type AgentPorts,
  acceptFromGuest,
  agentPorts,
  connectInGuest,
  flowInGuest,
  type GuestFlow,
  type GuestListener,
  type GuestSocket,
  listenInGuest,
  type Target,
} from './agent-ports.ts';
import { type AgentProcesses, agentProcesses } from './agent-process.ts';
import { CALL_MS, events, open, unary } from './calls.ts';
import { type AgentConnection, type ConnectOptions, connect } from './connection.ts';
import {
  type AgentEvent,
  type Arrived,
  agentEvent,
  type Configured,
  clock,
  configured,
  type GuestPath,
  type Hello,
  hello,
  type Metrics,
  metrics,
  nothing,
  type Warmed,
  warmed,
} from './messages.ts';
import { pathParam } from './paths.ts';

export type Configuration = {
  /** A new one for each start, restore and fork: the same again changes nothing. */
  readonly generation: string;
  readonly hostname: string;
  /** 32 hex digits. */
  readonly machineId?: string;
  /** As a kernel writes its own; absent: it stays what it is. */
  readonly bootId?: string;
  /** Absolute, UTC; the guest's clock is stepped to it. */
  readonly clockMs?: number;
  /** Of one that goes on from memory: what it was connected to is another machine's. */
  readonly cutConnections?: boolean;
  /** 32 to 512 random bytes. */
  readonly entropy: Uint8Array;
  readonly network?: {
    readonly mac?: string;
    /** With prefix length. */
    readonly address: string;
    readonly gateway: string;
    readonly dns: readonly string[];
    readonly mtu?: number;
    readonly up: boolean;
  };
  readonly disk?: { readonly device: string; readonly mount: 'overlay'; readonly sizeBytes: number };
  /** Most processes and threads at once, the agent's own among them; absent: as many as the kernel takes. */
  readonly pids?: number;
  readonly env: Readonly<Record<string, string>>;
  /** Environment variables that no method gives back. */
  readonly secrets: Readonly<Record<string, string>>;
  readonly user?: string;
  readonly workdir?: string;
  readonly defaultPath?: string;
  readonly timezone?: string;
  /** Further disks with an ext4 each, and where they are mounted. */
  readonly volumes?: readonly { readonly device: string; readonly target: string; readonly readOnly: boolean }[];
  /** Directories of the host, over the machine's port for them, and where they are mounted. */
  readonly directories?: readonly { readonly target: string; readonly readOnly: boolean }[];
  readonly hosts?: readonly (readonly [address: string, name: string])[];
  readonly log?: { readonly bytesMax: number; readonly files: number };
  /** Of one that goes on from memory: the answer says what it has (`Configured.found`). */
  readonly look?: boolean;
};

export type Agent = Disposable & {
  /** Aborted once the connection is over; nothing works from then on. */
  readonly lost: AbortSignal;
  hello(op: Operation): Promise<Hello>;
  configure(op: Operation, configuration: Configuration): Promise<Configured>;
  /** UTC; stepped, and then what it says. */
  setClock(op: Operation, clockMs: number): Promise<number>;
  /** Before a template is saved: reads files into the guest's memory, so that their first use is quick. */
  warm(op: Operation, paths: readonly GuestPath[]): Promise<Warmed>;
  /** Everything written so far is on the disk. */
  sync(op: Operation): Promise<void>;
  metrics(op: Operation): Promise<Metrics>;
  /** Answered at once; then every process gets the signal, after `graceMs` KILL, and the guest powers off. */
  shutdown(op: Operation, how: { readonly graceMs: number; readonly signal?: string }): Promise<void>;
  /** The agent lets go of its socket and connects again later. */
  prepareCheckpoint(op: Operation, reconnectAfterMs: number): Promise<void>;
  watchEvents(op: Operation): Promise<AsyncGenerator<AgentEvent, void, undefined>>;
  readonly process: AgentProcesses;
  readonly file: AgentFiles;
  readonly tar: AgentTar;
  readonly ports: AgentPorts;
  connect(op: Operation, target: Target): Promise<GuestSocket>;
  /** The same without waiting, for who carries bytes as they come. */
  flow(op: Operation, target: Target): GuestFlow;
  /** A port of the sandbox's loopback that is answered here; 0: any that is free. */
  listen(op: Operation, port: number): Promise<GuestListener>;
  accept(op: Operation, arrived: Pick<Arrived, 'id'>): Promise<GuestSocket>;
  close(): void;
};

const HELLO_MS = 10_000;
/** It mounts and grows the disk, and brings up the network. */
const CONFIGURE_MS = 60_000;
/** It reads what a first use would, from a disk that may be emulated. */
const WARM_MS = 10 * CALL_MS;
/** A slow disk may have gigabytes to write. */
const SYNC_MS = 10 * CALL_MS;

/** Greets the agent at the other end of a byte stream, which belongs to it from here on. See `connect`. */
export async function connectAgent(op: Operation, duplex: Duplex, options: ConnectOptions = {}): Promise<Agent> {
  return agentOn(await connect(op, duplex, options));
}

export function agentOn(connection: AgentConnection): Agent {
  return {
    lost: connection.lost,
    hello: (op) => unary(op, connection, 'hello', null, hello, HELLO_MS),
    configure: (op, configuration) => unary(op, connection, 'configure', configuration, configured, CONFIGURE_MS),
    setClock: async (op, clockMs) => (await unary(op, connection, 'clock', { clockMs }, clock)).clockMs,
    warm: (op, paths) => unary(op, connection, 'warm', { paths: paths.map(pathParam) }, warmed, WARM_MS),
    sync: (op) => unary(op, connection, 'sync', null, nothing, SYNC_MS),
    metrics: (op) => unary(op, connection, 'metrics', null, metrics),
    shutdown: (op, how) => unary(op, connection, 'shutdown', how, nothing),
    prepareCheckpoint: (op, reconnectAfterMs) => unary(op, connection, 'prepareCheckpoint', { reconnectAfterMs }, nothing),
    async watchEvents(op) {
      const { stream } = await open(op, connection, 'watchEvents', null, nothing);
      connection.stands(stream);
      return events(op, connection, stream, ['oom', 'mainExited', 'diskError'], agentEvent);
    },
    process: agentProcesses(connection),
    file: agentFiles(connection),
    tar: agentTar(connection),
    ports: agentPorts(connection),
    connect: (op, target) => connectInGuest(op, connection, target),
    flow: (op, target) => flowInGuest(op, connection, target),
    listen: (op, port) => listenInGuest(op, connection, port),
    accept: (op, arrived) => acceptFromGuest(op, connection, arrived),
    close: () => connection.close(),
    [Symbol.dispose]: () => connection.close(),
  };
}
