// What the composition root gives to the services. Nothing here is constructed by them.
import type { Backend, BootFiles, BootNeed } from '../backends/backend.ts';
import type { FileSync } from '../domain/file-sync.ts';
import type { ImageId, KernelId, SandboxId, VolumeId } from '../domain/ids.ts';
import type { Image, Kernel } from '../domain/image.ts';
import type { BackendName, NetworkMode } from '../domain/sandbox.ts';
import type { UidRange } from '../domain/users.ts';
import type { Host } from '../host/host.ts';
import type { Log, Operation } from '../host/operation.ts';
import type { KernelLibrary } from '../images/kernels.ts';
import type { ImageLibrary } from '../images/library.ts';
import type { Store } from '../store/contract.ts';

/** What a sandbox boots from. */
export type Boot = {
  readonly image: Image;
  readonly kernelId: KernelId | null;
  readonly files: BootFiles;
  /** Where what the image has in /run would lie, for guests that have memory there; null: they have the image's. */
  readonly runArchive: string | null;
};

/** `asked`: by whoever makes the sandbox; `default`: by whoever said what sandboxes boot that name none. */
export type KernelChoice = { readonly kernel: Kernel; readonly by: 'asked' | 'default' };

export type BootSource = {
  /** Paths of the initrds that this daemon has given to anybody: who is about to boot one must find it. */
  initrds(): ReadonlySet<string>;
  /**
   * By name, id or digest, or as `docker://REF` where the backend fetches that by itself; made or pulled on first use,
   * with progress. `kernel` is the one that it boots, where the backend boots one; an image that brings its own boots that
   * unless another is asked for. Null: what Hutch chose.
   * @throws HutchError `not_found`, `failed_precondition` when this backend cannot run it.
   */
  prepare(
    op: Operation,
    image: string,
    backend: Pick<Backend, 'name' | 'needs' | 'fetchImage'>,
    kernel: KernelChoice | null,
  ): Promise<Boot>;
  /**
   * Asks the registry of a name that can move, and pulls what it is now: the name is that one's then. An id, a digest, and what Hutch makes
   * itself stay what they are. @throws HutchError as a pull does, also where an image of that name is here.
   */
  renew(op: Operation, image: string): Promise<void>;
  /** Whether an image that is here brings a kernel. */
  ownKernel(image: string): Promise<boolean>;
  /** Of a sandbox that exists: never makes anything. @throws HutchError `failed_precondition` when it is gone. */
  of(op: Operation, spec: { readonly imageId: ImageId; readonly kernelId: KernelId | null }, needs: BootNeed): Promise<Boot>;
};

/** What of the configuration the services act on. */
export type Settings = {
  readonly image: string;
  readonly cpus: number;
  readonly memoryMiB: number;
  readonly diskMiB: number;
  readonly network: NetworkMode;
  readonly timeoutMs: number | null;
  /** A sandbox is stopped when nobody has touched it for so long; null: never. */
  readonly idleMs: number | null;
  readonly backend: BackendName | 'auto';
  /** Whether a RUN of a build sees the package settings of whoever builds. */
  readonly packageSettings: boolean;
  /** Sandboxes of the default kind that are kept ready. */
  readonly warm: number;
  readonly limits: { readonly sandboxes: number; readonly cpus: number; readonly memoryMiB: number; readonly diskMiB: number };
  /** With less than this free where data lies nothing new is begun; null: whatever is left. */
  readonly freeMiBMin: number | null;
  /** Which directories of this machine may be mounted; `allow` null: `home`, and where a client stands that is this daemon's user. */
  readonly volumes: { readonly allow: readonly string[] | null; readonly home: string | null };
  /** Paths of devices that may be asked for. */
  readonly devices: readonly string[];
  /** What every sandbox of the owner's project gets of the home. */
  readonly fileSync: readonly FileSync[];
  /** Below it each shared port has an address. */
  readonly previewDomain: string;
  /** From asking the processes to end until they are killed. */
  readonly stopGraceMs: number;
  /** Each sandbox's VMM runs as one of these users, its own; null: as ourselves, where we are not root. */
  readonly uids: UidRange | null;
  readonly retention: {
    readonly eventsMs: number;
    readonly operationsMs: number;
    readonly deletedMs: number;
    readonly templatesMs: number;
    /** Of what lies here only to save work later. */
    readonly cacheMs: number;
    readonly cacheMiBMax: number;
  };
  /** For `config.get`: each value and where it came from. */
  readonly values: readonly { readonly key: string; readonly value: unknown; readonly source: string }[];
};

/** Where the daemon keeps things, all absolute. */
export type Places = {
  readonly dataDir: string;
  /** Held as long as the daemon lives. */
  readonly lockPath: string;
  readonly runDir: string;
  readonly logDir: string;
};

export type Versions = {
  readonly daemon: string;
  readonly agentDigest: string | null;
  readonly qemu: (op: Operation) => Promise<string | null>;
};

export type Deps = {
  readonly host: Host;
  readonly store: Store;
  readonly log: Log;
  readonly settings: Settings;
  readonly places: Places;
  readonly versions: Versions;
  /** In the order of preference. */
  readonly backends: readonly Backend[];
  readonly boots: BootSource;
  /** Null where this daemon keeps none. */
  readonly images: ImageLibrary | null;
  /** Null where this daemon boots none. */
  readonly kernels: KernelLibrary | null;
  /** What Hutch has left on this machine that no backend knows of. */
  readonly leftovers: (op: Operation) => Promise<readonly { readonly kind: string; readonly what: string }[]>;
  /** Ends the daemon, once the answer has left. */
  readonly stopDaemon: () => void;
  /** Ends the process at once, and touches nothing where it lay: that may be another daemon's by now. */
  readonly abandon: () => void;
};

export function backendOf(deps: Pick<Deps, 'backends'>, op: Operation, name: BackendName): Backend {
  const backend = deps.backends.find((candidate) => candidate.name === name);
  if (backend === undefined) {
    const names = deps.backends.map((candidate) => candidate.name).join(', ');
    throw op.error('failed_precondition', `the backend ${name} is not part of this daemon; there is: ${names}`);
  }
  return backend;
}

/** Where the memory of one that is suspended lies. */
export function savedDir(places: Places, id: SandboxId): string {
  return `${placesOf(places, id).dir}/suspended`;
}

/** The directories of one sandbox. */
export type SandboxPlaces = {
  /** Ours: secrets. Holds `vmDir`. */
  readonly dir: string;
  /** The backend's. */
  readonly vmDir: string;
  readonly runDir: string;
  readonly logDir: string;
  readonly secretsPath: string;
};

export function placesOf(places: Places, id: SandboxId): SandboxPlaces {
  const dir = `${places.dataDir}/sandboxes/${id}`;
  return {
    dir,
    vmDir: `${dir}/vm`,
    runDir: `${places.runDir}/sandboxes/${id}`,
    logDir: `${places.logDir}/sandboxes/${id}`,
    secretsPath: `${dir}/secrets.json`,
  };
}

export function volumesDir({ dataDir }: Pick<Places, 'dataDir'>): string {
  return `${dataDir}/volumes`;
}

export function volumeDir(places: Pick<Places, 'dataDir'>, id: VolumeId): string {
  return `${volumesDir(places)}/${id}`;
}

/** The ext4. */
export function volumePath(places: Pick<Places, 'dataDir'>, id: VolumeId): string {
  return `${volumeDir(places, id)}/disk.img`;
}
