// Where one sandbox's files lie. The shim's proofs stand in the run directory itself, which is ours;
// what the VMM must write lies in `vmm/`, its own: it cannot forge its end.
import { join } from 'node:path';
import type { SandboxPlan } from '../backend.ts';

/** In `vmm/`, which is the VMM's working directory: it knows its sockets by these names, whatever the length of the path. */
export const SOCKETS = { qmp: 'qmp.sock', agent: 'agent.sock', incoming: 'incoming.sock', state: 'state.sock' } as const;

export const FILES_DIR = 'files';
export const FILES_SOCKET = 'files.sock';
/** As the VMM knows it. */
export const FILES_SOCKET_BESIDE = `../${FILES_DIR}/${FILES_SOCKET}`;

type Dirs = Pick<SandboxPlan, 'dataDir' | 'runDir' | 'logDir'>;

export const diskPath = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'disk.img');
/** There as long as the disk is a copy of a template's that no guest has seen; says of which. */
export const freshMarkPath = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'fresh');
/** A copy of the template's disk for a sandbox whose own comes as another drive; as short-lived as its process. */
export const scratchDiskPath = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'scratch.img');
export const socketDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'vmm');
export const qmpSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(socketDir(dirs), SOCKETS.qmp);
export const agentSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(socketDir(dirs), SOCKETS.agent);
export const incomingSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(socketDir(dirs), SOCKETS.incoming);
export const stateSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(socketDir(dirs), SOCKETS.state);
/** Of the program that serves directories of the host, under a shim of its own: not the VMM's, which may only connect. */
export const filesDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, FILES_DIR);
export const filesSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(filesDir(dirs), FILES_SOCKET);
export const filesLogPath = (dirs: Pick<Dirs, 'logDir'>): string => join(dirs.logDir, 'files.log');
export const bootLogPath = (dirs: Pick<Dirs, 'logDir'>): string => join(dirs.logDir, 'boot.log');
export const vmmLogPath = (dirs: Pick<Dirs, 'logDir'>): string => join(dirs.logDir, 'vmm.log');
