// Where one sandbox's files lie. The run directory is ours: the shim's proofs and the runtime's own
// state stand there. The sandbox sees one directory of it, read-only, in which the door to its agent is.
import { join } from 'node:path';
import type { SandboxPlan } from '../backend.ts';

type Dirs = Pick<SandboxPlan, 'dataDir' | 'runDir' | 'logDir'>;

/** Hutch's own files that something saved goes on with, beside the images, by digest (kept.ts). */
export const AGENT_DIR = 'agent-';
export const OVER_DIR = 'over-';
/** Of a digest, in these names. */
export const DIGEST_CHARS = 16;

/** Ours alone: what lies in there may have the set-user-id bit of a sandbox's making. */
export const layerDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'layer');
export const diskPath = (dirs: Pick<Dirs, 'dataDir'>): string => join(layerDir(dirs), 'disk.img');
/** Of a layer that is a directory of the host's. */
export const upperDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(layerDir(dirs), 'upper');
/** Overlayfs's own, on the same file system. */
export const overlayWorkDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(layerDir(dirs), 'work');

/** What one that stands still goes on from, and what one has gone on from (still.ts). */
export const stillDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'still');
export const goneOnDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'gone-on');
/** What it is taken up from, under a name that stays until that is done. */
export const takenUpDir = (dirs: Pick<Dirs, 'dataDir'>): string => join(dirs.dataDir, 'taken-up');

/** Empty for us: the overlay is mounted there in the runtime's namespace alone. */
export const rootDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'root');
/** As with the root: the image is mounted there, where it is not unpacked. */
export const imageMountDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'image');
/** As with the root: the disk with the private layer is mounted there. */
export const diskMountDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'disk');
/** As with the root: volumes are mounted there, each in a directory of its own. */
export const volumesDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'volumes');
/** As with the root: directories of the host are mounted there, each at one of its own. */
export const mountsDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'mounts');
/** As with the root: the network namespace is bound to it there. */
export const netnsPath = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'netns');
export const stateDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'runsc');
export const linkDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'link');
export const AGENT_SOCKET = 'agent.sock';
export const agentSocketPath = (dirs: Pick<Dirs, 'runDir'>): string => join(linkDir(dirs), AGENT_SOCKET);
/** passt's, which is not root. */
export const networkDir = (dirs: Pick<Dirs, 'runDir'>): string => join(dirs.runDir, 'net');
/** What passt waits at before it carries anything (gate.ts). */
export const gatePath = (dirs: Pick<Dirs, 'runDir'>): string => join(networkDir(dirs), 'gate');
/** As the network names it. */
export const passtLogPath = (dirs: Pick<Dirs, 'runDir'>): string => join(networkDir(dirs), 'passt.log');
export const runtimeLogPath = (dirs: Pick<Dirs, 'logDir'>): string => join(dirs.logDir, 'vmm.log');
