// What the composition root gives to the Docker backend. It reads no environment of its own: where the
// Engine is comes in as the few variables that the `docker` command itself would look at.
import type { Host } from '../../host/host.ts';
import type { BridgeNetwork } from '../../network/bridge.ts';

/** As the `docker` command reads them. */
export type DockerEnvironment = {
  readonly DOCKER_HOST?: string | undefined;
  readonly DOCKER_CONTEXT?: string | undefined;
  readonly DOCKER_CONFIG?: string | undefined;
  readonly DOCKER_TLS?: string | undefined;
  readonly DOCKER_TLS_VERIFY?: string | undefined;
  readonly DOCKER_CERT_PATH?: string | undefined;
  readonly HOME?: string | undefined;
  /** Where credential helpers and ssh are looked for first. */
  readonly PATH?: string | undefined;
  readonly SSH_AUTH_SOCK?: string | undefined;
  readonly XDG_RUNTIME_DIR?: string | undefined;
  readonly DBUS_SESSION_BUS_ADDRESS?: string | undefined;
};

/** What a program of the user's own needs of his environment: a credential helper, ssh. */
export function userEnvironment(env: DockerEnvironment): Record<string, string> {
  const { HOME, PATH, SSH_AUTH_SOCK, XDG_RUNTIME_DIR, DBUS_SESSION_BUS_ADDRESS } = env;
  const all = { HOME, PATH, SSH_AUTH_SOCK, XDG_RUNTIME_DIR, DBUS_SESSION_BUS_ADDRESS };
  return Object.fromEntries(Object.entries(all).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

export type DockerConfig = {
  readonly host: Host;
  readonly env: DockerEnvironment;
  /** The static agent, as built. */
  readonly agentPath: string;
  /** Durable and ours: the agent as containers see it, and images on their way into the Engine. */
  readonly workDir: string;
  /** The directories of all snapshots lie in it, each under its id. */
  readonly snapshotsDir: string;
  /** The run directories of all sandboxes lie in it. */
  readonly runRoot: string;
  /** Of this daemon alone on this machine: the label by which it knows its containers. */
  readonly instance: string;
  readonly network: BridgeNetwork;
};

/** One request to the Engine that is answered from memory or disk. */
export const REQUEST_MS = 30_000;
/** A request by which it is found out whether the Engine is there at all. */
export const PING_MS = 5_000;
/** The same behind ssh: logging in there, and starting its `docker`, come before. */
export const SSH_PING_MS = 25_000;
/** Starting a container: the Engine makes mounts, namespaces and a network. */
export const START_MS = 60_000;
/** From asking the container to end until it is killed, and from that to giving up. */
export const KILL_GRACE_MS = 3_000;
export const KILL_FORCE_MS = 15_000;
/** Importing or pulling an image. */
export const IMAGE_MS = 30 * 60_000;
export const RELEASE_MS = 20_000;

/** Engine 20.10. */
export const API_MIN = [1, 41] as const;
/** The newest that this was written against. */
export const API_MAX = [1, 47] as const;

/** Processes and threads of a sandbox that names no number. */
export const PIDS_MAX = 2_048;

export const LABEL = {
  sandbox: 'dev.hutch.sandbox',
  project: 'dev.hutch.project',
  instance: 'dev.hutch.instance',
  image: 'dev.hutch.image',
  /** Of an image of ours: which daemon has brought it in. Not `instance`, which its containers, whoever makes them, would have from it. */
  importer: 'dev.hutch.importer',
  /** Of an image: whose disk it is, and how many of its layers are below what was written. */
  snapshot: 'dev.hutch.snapshot',
  below: 'dev.hutch.below',
  /** Of an image: bytes of all of what it was committed upon, and of each layer above `below` there. */
  layerBytes: 'dev.hutch.layer-bytes',
} as const;
