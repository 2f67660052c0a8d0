// The package's entry: what programs may import. Everything else is inside.
// biome-ignore-all lint/performance/noBarrelFile: this is the package's one public entry
export { type ErrorCode, HutchError } from '../domain/errors.ts';
export type { CallOptions, Progress } from './client.ts';
export type { Content, FileChange, FileEntry } from './files.ts';
export { type ConnectOptions, type CreateOptions, type Event, Hutch, type Operation } from './hutch.ts';
export type { LogPiece } from './log-records.ts';
export type { ProcessExit, RemoteProcess, TerminalSize } from './process.ts';
export type { ExecOptions, Port, RunOptions, RunResult, Sandbox, SandboxInfo, Stats } from './sandbox.ts';
export type { Snapshots } from './snapshots.ts';
export { type SyncEvent, type SyncOptions, type SyncResult, syncDirectory } from './sync/sync.ts';
export type { Templates } from './templates.ts';
export { type BringOptions, type Brought, bringWorkspace, diffWorkspace } from './workspace/bring.ts';
export { type Prepared, type PrepareOptions, planWorkspace, prepareWorkspace } from './workspace/prepare.ts';
