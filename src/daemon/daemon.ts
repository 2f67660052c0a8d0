// The composition root: the only place that constructs. Takes a Host, so that tests can wrap it, and
// what makes backends and boot sources, so that tests can bring their own.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { type Api, newApi } from '../api/native/server.ts';
import type { Backend } from '../backends/backend.ts';
import { loadConfig } from '../config/config.ts';
import { type Environment, type Places, placesOf } from '../config/places.ts';
import type { Config } from '../config/schema.ts';
import { HutchError } from '../domain/errors.ts';
import { newOpId } from '../domain/ids.ts';
import { once } from '../domain/once.ts';
import type { UidRange } from '../domain/users.ts';
import { errnoOf } from '../host/errors.ts';
import type { Host } from '../host/host.ts';
import { newOperation, type Operation } from '../host/operation.ts';
import { parseAddress, portOwner } from '../host/port-owner.ts';
import { removeOldCopies } from '../services/backup.ts';
import type { BootSource, Deps, Settings } from '../services/deps.ts';
import { newServices, type Services } from '../services/services.ts';
import { newTracer, tracedHost } from '../services/tracing.ts';
import type { Store } from '../store/contract.ts';
import { openStore } from '../store/store.ts';
import { openLog } from './log.ts';
import { openPeers, type RoleFlag, rolesHere } from './peers.ts';
import { withReserve } from './reserve.ts';
import { VERSION } from './version.ts';

export type Parts = {
  readonly backends: readonly Backend[];
  readonly boots: BootSource;
  readonly images: Deps['images'];
  readonly kernels: Deps['kernels'];
  readonly agentDigest: string | null;
  readonly qemuVersion: (op: Operation) => Promise<string | null>;
  /** Null where sandboxes run as ourselves. */
  readonly uids: UidRange | null;
  readonly leftovers: Deps['leftovers'];
  /** Lets go of what it has of the machine; sandboxes go on running. */
  close(op: Operation): Promise<void>;
};

export type DaemonOptions = {
  readonly host: Host;
  readonly env: Environment;
  readonly log: 'stderr' | 'file';
  /** Measures how long the event loop is held up; for the bench. */
  readonly measureLoop: boolean;
  readonly role: RoleFlag;
  readonly makeParts: (making: {
    op: Operation;
    host: Host;
    store: Store;
    places: Places;
    config: Config;
    env: Environment;
  }) => Promise<Parts>;
  /** Called when a client asks the daemon to end. */
  readonly onStop: () => void;
  /** Called when the data directory is gone: nothing is to be released there. */
  readonly onLost: () => void;
};

export type Daemon = {
  readonly pid: number;
  readonly socketPath: string;
  /** Null when only the unix socket is listened on. */
  readonly address: { readonly host: string; readonly port: number } | null;
  readonly ownerKeyPath: string;
  /** Lets go of everything: sandboxes go on running. */
  close(): Promise<void>;
  /** Writes down an error that nobody caught, before the process ends of it. */
  fatal(error: unknown): void;
};

/** Of a daemon whose sandboxes are another's. */
const NO_PARTS: Parts = {
  backends: [],
  boots: {
    initrds: () => new Set(),
    ownKernel: async () => false,
    prepare: async (op) => Promise.reject(op.error('failed_precondition', 'this daemon has no images')),
    renew: async (op) => Promise.reject(op.error('failed_precondition', 'this daemon has no images')),
    of: async (op) => Promise.reject(op.error('failed_precondition', 'this daemon has no images')),
  },
  images: null,
  kernels: null,
  agentDigest: null,
  qemuVersion: async () => null,
  uids: null,
  leftovers: async () => [],
  close: async () => {},
};

const CLOSE_GRACE_MS = 5_000;
const CONFIG_BYTES_MAX = 1024 * 1024;

/** @throws HutchError with a sentence that names what is in the way. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const { env } = options;
  const beganMs = options.host.monotonicMs();
  await using undo = new AsyncDisposableStack();
  const tracer = newTracer(VERSION);
  const host = tracedHost(options.host, tracer.spanOf);
  const places = placesOf({ uid: host.uid, env });
  const bare = newOperation({ id: newOpId(host.randomBytes), actor: 'daemon', log: SILENT });
  const { config, values } = await loadConfig({ paths: places.configPaths, readFile: (path) => readConfig(bare, host, path), env });

  await makePlaces(bare, host, places);
  const lock = await host.lockFile(bare, places.lockPath);
  if (lock === null) throw await lockedError(bare, host, places);
  undo.use(lock);
  await removeOldCopies(bare, host, places.dataDir);
  const logs = await openLog({
    level: config.daemon.log_level,
    ...(options.log === 'stderr' ? { to: 'stderr' } : { to: 'file', path: `${places.logDir}/hutchd.log`, host, op: bare }),
  });
  undo.defer(() => logs.close());
  const op = newOperation({ id: bare.id, actor: 'daemon', log: logs.logOf(bare.id) });
  const store = await withReserve(op, undo.use(await openStore({ path: places.storePath, host, op })), {
    ...{ host, path: `${places.dataDir}/reserve`, dir: places.dataDir },
  });
  const roles = rolesHere(options.role, config);
  const parts = roles.has('vm') ? await options.makeParts({ op, host, store, places, config, env }) : NO_PARTS;
  undo.defer(() =>
    parts.close(op).catch((cause: unknown) => op.log.warn({ cause }, 'what the daemon had of the machine is not given back')),
  );
  const services = newServices(
    {
      host,
      store,
      log: logs.log,
      settings: settingsOf(config, values, parts.uids, env),
      places,
      versions: { daemon: VERSION, agentDigest: parts.agentDigest, qemu: parts.qemuVersion },
      backends: parts.backends,
      boots: parts.boots,
      images: parts.images,
      kernels: parts.kernels,
      leftovers: parts.leftovers,
      stopDaemon: () => setImmediate(options.onStop),
      abandon: () => {
        logs.close();
        options.onLost();
      },
    },
    { tracer, logOf: logs.logOf },
  );
  const loop = options.measureLoop ? measureLoop(undo) : () => ({});
  await services.ensureOwnerKey(op, places.ownerKeyPath);
  await services.reconcile();
  undo.defer(() => services.close(CLOSE_GRACE_MS));
  const peers = openPeers(op, host, config, roles);
  for (const peer of peers) undo.use(peer);
  const api = newApi(services, {
    roles,
    peers,
    version: VERSION,
    guard: { hosts: config.daemon.allowed_hosts, origins: config.daemon.allowed_origins },
    log: logs.log,
    monotonicMs: () => host.monotonicMs(),
    health: loop,
  });
  undo.defer(() => api.close());
  const socketPath = config.daemon.socket ?? places.socketPath;
  const address = await listen(op, host, api, config, socketPath);
  services.previews.listensAt(address);
  op.log.info(
    {
      pid: process.pid,
      version: VERSION,
      socketPath,
      roles: [...roles].join(','),
      ...(address === null ? {} : { address: `${address.host}:${address.port}` }),
      lastClose: store.lastClose,
      tookMs: Math.round(host.monotonicMs() - beganMs),
    },
    'daemon is ready',
  );
  const owned = undo.move();
  return {
    pid: process.pid,
    socketPath,
    address,
    ownerKeyPath: places.ownerKeyPath,
    fatal: (error) => {
      op.log.error({ err: error }, 'a bug: an error that nobody caught ends the daemon; sandboxes go on');
      logs.close();
    },
    close: once(() => close(owned, api, services, host, op, socketPath)),
  };
}

/** Streams end in a way that their clients can resume; then everything is let go of, in reverse order. */
async function close(
  owned: AsyncDisposableStack,
  api: Api,
  services: Services,
  host: Host,
  op: Operation,
  socketPath: string,
): Promise<void> {
  op.log.info({}, 'daemon is shutting down; sandboxes go on');
  api.stopListening();
  await services.close(CLOSE_GRACE_MS);
  await owned.disposeAsync();
  using late = op.releasing(CLOSE_GRACE_MS);
  await host.remove(late, socketPath).catch(() => {}); // the next start removes it too
}

async function listen(op: Operation, host: Host, api: Api, config: Config, socketPath: string): Promise<Daemon['address']> {
  // The lock is ours: whoever left it is gone.
  await host.remove(op, socketPath);
  await api.listenUnix(socketPath);
  if (config.daemon.listen === null) return null;
  const wanted = parseAddress(config.daemon.listen);
  try {
    return await api.listenTcp(wanted);
  } catch (cause) {
    if (errnoOf(cause) !== 'EADDRINUSE')
      throw op.error('unavailable', `cannot listen on ${config.daemon.listen}: ${cause instanceof Error ? cause.message : String(cause)}`, {
        cause,
      });
    const owner = await portOwner(op, host, wanted.port).catch(() => null);
    throw op.error('conflict', `port ${wanted.port} is taken${owner === null ? '' : ` by ${owner}`}`, {
      hint: 'end it, or choose another: daemon.listen in the configuration, or HUTCH_DAEMON_LISTEN',
      cause,
    });
  }
}

async function makePlaces(op: Operation, host: Host, places: Places): Promise<void> {
  // Machines run as users of their own: they must get through, but not read.
  for (const dir of [places.dataDir, places.runDir, places.logDir]) {
    await host.makeDir(op, dir, 0o711);
    await host.makeDir(op, `${dir}/sandboxes`, 0o711);
  }
}

/** The data directory has a daemon already, or one that is starting: whoever wanted this one can use that. */
export class AnotherDaemon extends HutchError {}

async function lockedError(op: Operation, host: Host, places: Places): Promise<AnotherDaemon> {
  const pid = new TextDecoder().decode(await host.readFile(op, places.lockPath, 64).catch(() => new Uint8Array())).trim();
  return new AnotherDaemon({
    code: 'conflict',
    message: `another daemon has ${places.dataDir}${/^\d+$/.test(pid) ? ` (pid ${pid})` : ''}`,
    hint: 'use it, end it with: hutch daemon stop, or choose another place with HUTCH_HOME',
    opId: op.id,
  });
}

async function readConfig(op: Operation, host: Host, path: string): Promise<string | null> {
  if ((await host.stat(op, path)) === null) return null;
  return new TextDecoder().decode(await host.readFile(op, path, CONFIG_BYTES_MAX));
}

function settingsOf(config: Config, values: Settings['values'], uids: UidRange | null, env: Environment): Settings {
  const { sandbox, builds, limits, retention } = config;
  return {
    image: sandbox.image,
    cpus: sandbox.cpus,
    memoryMiB: sandbox.memory,
    diskMiB: sandbox.disk,
    network: sandbox.network,
    timeoutMs: sandbox.timeout,
    idleMs: sandbox.idle,
    stopGraceMs: sandbox.stop_grace,
    backend: sandbox.backend,
    packageSettings: builds.package_settings,
    warm: sandbox.warm,
    limits: { sandboxes: limits.sandboxes, cpus: limits.cpus, memoryMiB: limits.memory, diskMiB: limits.disk },
    freeMiBMin: limits.free,
    fileSync: sandbox.file_sync,
    previewDomain: config.daemon.preview_domain,
    devices: config.devices.allow,
    volumes: { allow: config.volumes.allow, home: env['HOME']?.startsWith('/') === true ? env['HOME'] : null },
    retention: {
      eventsMs: retention.events,
      operationsMs: retention.operations,
      deletedMs: retention.deleted,
      templatesMs: retention.templates,
      cacheMs: retention.cache,
      cacheMiBMax: retention.cache_size,
    },
    uids,
    values: values.map(({ key, value, source }) => ({ key, value, source })),
  };
}

/** Figures in milliseconds, of all the time since the last question. */
function measureLoop(undo: AsyncDisposableStack): () => object {
  const histogram = monitorEventLoopDelay({ resolution: 1 });
  histogram.enable();
  undo.defer(() => void histogram.disable());
  return () => {
    const ms = (nanoseconds: number) => Math.round(nanoseconds / 1e4) / 100;
    const figures = { p50Ms: ms(histogram.percentile(50)), p99Ms: ms(histogram.percentile(99)), maxMs: ms(histogram.max) };
    histogram.reset();
    return { eventLoopDelay: figures };
  };
}

const SILENT = { debug() {}, info() {}, warn() {}, error() {} };
