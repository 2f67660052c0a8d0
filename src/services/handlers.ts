// What answers each verb, typed by the verb table: the services implement this, the APIs call it.
import type { z } from 'zod';
import type { OpId } from '../domain/ids.ts';
import type { Call, Caller } from './call.ts';
import type { Operations } from './operations.ts';
import type { Previews } from './previews.ts';
import type { execRequest, Output, Parsed, VerbName, verbs } from './verbs.ts';

/** Bytes for a client, with what can be said before the first of them. */
export type Download = {
  readonly contentType: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Asked for the next chunk only when the last one was taken. */
  readonly bytes: AsyncIterable<Uint8Array>;
};

export type ExecStarted = {
  readonly execId: string;
  readonly pid: number;
  /** Where the output that follows begins. */
  readonly stdoutOffset: number;
  readonly stderrOffset: number;
  /** Where input goes on: what lies before it was accepted. */
  readonly inputOffset: number;
  readonly existing: boolean;
};

export type ExecItem =
  | { readonly type: 'output'; readonly channel: 'stdout' | 'stderr'; readonly bytes: Uint8Array }
  | { readonly type: 'dropped'; readonly channel: 'stdout' | 'stderr'; readonly offset: number; readonly bytes: number }
  | { readonly type: 'inputTaken' }
  | { readonly type: 'exit'; readonly exit: Output<'exec.start'> };

/** One client's hold on a command. Disposing it lets go; the command goes on. */
export type ExecSession = AsyncDisposable & {
  readonly started: ExecStarted;
  /** Output in order, the exit last. Throws when the sandbox cannot be reached any more. */
  items(): AsyncIterable<ExecItem>;
  /** Resolves when the bytes are on their way; waits while the command does not read. */
  write(bytes: Uint8Array): Promise<void>;
  endInput(): Promise<void>;
  resize(size: { readonly cols: number; readonly rows: number }): Promise<void>;
  signal(signal: string): Promise<void>;
  /** Called with the offset up to which input has reached the sandbox. */
  onInputAccepted(listener: (offset: number) => void): void;
  /** Once its client was lost: what that has not got stays for it, for a while. */
  keepPlace(): void;
};

/** A byte stream to a port or socket inside. */
export type Tunnel = Disposable & {
  bytes(): AsyncIterable<Uint8Array>;
  write(bytes: Uint8Array): Promise<void>;
  end(): void;
};

type VerbTable = typeof verbs;
type OfKind<K extends string> = { [N in VerbName]: VerbTable[N]['kind'] extends K ? N : never }[VerbName];
export type UnaryName = OfKind<'unary'>;
export type LinesName = OfKind<'lines'>;
export type DownloadName = OfKind<'download'>;
export type UploadName = OfKind<'upload'>;

export type ExecStartInput = Parsed<'exec.start'> & { readonly request: z.output<typeof execRequest> };

export type Handlers = { readonly [N in UnaryName]: (call: Call, input: Parsed<N>) => Promise<Output<N>> } & {
  /** Resolves once the first line can come, so that a refusal is an answer and not a line. */
  readonly [N in LinesName]: (call: Call, input: Parsed<N>) => Promise<AsyncIterable<Output<N>>>;
} & { readonly [N in DownloadName]: (call: Call, input: Parsed<N>) => Promise<Download> } & {
  readonly [N in UploadName]: (call: Call, input: Parsed<N>, source: AsyncIterable<Uint8Array>) => Promise<Output<N>>;
} & {
  readonly 'exec.start': (call: Call, input: ExecStartInput) => Promise<ExecSession>;
  readonly 'exec.attach': (call: Call, input: Parsed<'exec.attach'>) => Promise<ExecSession>;
  readonly 'ssh.connect': (call: Call, input: Parsed<'ssh.connect'>) => Promise<Tunnel>;
  readonly 'port.connect': (call: Call, input: Parsed<'port.connect'>) => Promise<Tunnel>;
};

/** What an API needs of the services. */
export type ApiServices = {
  readonly handlers: Handlers;
  readonly operations: Pick<Operations, 'run' | 'isClosing'>;
  readonly previews: Previews;
  newOpId(): OpId;
  /** The id under which another daemon was asked already, if it is one and nothing here has it; else null. */
  adoptOpId(told: string): Promise<OpId | null>;
  /** Null for a key that does not exist or was revoked. */
  authenticate(secret: string): Promise<Caller | null>;
};
