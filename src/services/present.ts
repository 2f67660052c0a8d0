// From records to what the API shows (views.ts). Secrets cannot appear: they are in no record.
import type { z } from 'zod';
import type { ImageId, OpId } from '../domain/ids.ts';
import { type Image, type ImageConfig, type NamedImage, OWN_KERNEL, REGISTERED, stopSignalOf } from '../domain/image.ts';
import { imageRules } from '../domain/image-rules.ts';
import type { LedgerEntry } from '../domain/ledger.ts';
import type { ApiKey, EventRecord, OperationRecord } from '../domain/records.ts';
import type { Sandbox } from '../domain/sandbox.ts';
import { exitCode } from '../guest/exit-code.ts';
import type { Entry, Exit, GuestPath } from '../guest/messages.ts';
import { showPath } from '../guest/paths.ts';
import type { AssetUser, Store } from '../store/contract.ts';
import type { Operations } from './operations.ts';
import type { Publisher } from './publisher.ts';
import * as view from './views.ts';

export type SandboxView = z.output<typeof view.sandbox>;

/** Shows sandboxes with what is not in their rows: their image's name, and what works on them now. */
export class Presenter {
  readonly #store: Store;
  readonly #operations: Operations;
  readonly #publisher: Publisher;
  readonly #images = new Map<ImageId, Image | null>();

  constructor(store: Store, operations: Operations, publisher: Publisher) {
    this.#store = store;
    this.#operations = operations;
    this.#publisher = publisher;
  }

  /** Names may have moved. */
  forgetImages(): void {
    this.#images.clear();
  }

  /** `self` is the operation that asks: it is not what keeps the sandbox busy. */
  async sandbox(sandbox: Sandbox, self: OpId | null = null): Promise<SandboxView> {
    const { imageId } = sandbox.spec;
    if (!this.#images.has(imageId)) this.#images.set(imageId, await this.#store.query('image', { id: imageId }));
    const publish = await this.#publisher.of(sandbox.id);
    return {
      ...sandboxView(sandbox, this.#images.get(imageId) ?? null, this.#operations.busyOn(sandbox.id, self)),
      publish: publish.map((port) => ({ ...port })),
    };
  }

  async sandboxes(sandboxes: readonly Sandbox[]): Promise<SandboxView[]> {
    const views: SandboxView[] = [];
    for (const sandbox of sandboxes) views.push(await this.sandbox(sandbox));
    return views;
  }
}

function sandboxView(sandbox: Sandbox, image: Image | null, busyOpId: string | null): Omit<SandboxView, 'publish'> {
  const { spec } = sandbox;
  return {
    id: sandbox.id,
    name: spec.name,
    projectId: sandbox.projectId,
    state: sandbox.state,
    backend: spec.backend,
    imageId: spec.imageId,
    imageName: image?.name ?? null,
    imageConfig: image === null ? null : imageConfigView(image.config),
    imageRules: image === null ? null : imageRules(image.config, spec),
    kernelId: spec.kernelId,
    shape: { ...spec.shape },
    network: spec.network,
    mounts: (spec.mounts ?? []).map((mount) => ({ ...mount, volumeId: mount.volumeId ?? null })),
    devices: [...(spec.devices ?? [])],
    fileSync: (spec.fileSync ?? []).map((file) => ({ ...file })),
    env: { ...spec.env },
    secretNames: [...spec.secretNames],
    labels: { ...spec.labels },
    workdir: spec.workdir,
    user: spec.user,
    main: spec.main === null ? null : { ...spec.main, argv: [...spec.main.argv] },
    workspace: spec.workspace === undefined ? null : { ...spec.workspace },
    autoRemove: spec.autoRemove,
    timeoutMs: spec.timeoutMs,
    restart: spec.restart ?? 'no',
    idleMs: spec.idleMs ?? null,
    idleAction: spec.idleAction ?? 'stop',
    undo: spec.undo ?? 0,
    pending: spec.pending === undefined ? null : { ...spec.pending },
    deadlineAtMs: sandbox.state === 'running' || sandbox.state === 'paused' ? sandbox.deadlineAtMs : null,
    createdAtMs: sandbox.createdAtMs,
    changedAtMs: sandbox.changedAtMs,
    startedAtMs: sandbox.openComputeSinceMs,
    openComputeSinceMs: sandbox.openComputeSinceMs,
    startCount: sandbox.startCount,
    generation: sandbox.generation,
    ended: sandbox.state === 'stopped' || sandbox.state === 'error' ? sandbox.ended : null,
    errorCause: sandbox.state === 'error' ? sandbox.cause : null,
    lastOpId: sandbox.lastOpId,
    busyOpId,
  };
}

/** A sandbox by its name alone, as people know it. */
export function userText({ kind, name }: AssetUser): string {
  return kind === 'sandbox' ? name : `${kind} ${name}`;
}

export function imageView(image: NamedImage, usedBy: readonly string[]): z.output<typeof view.image> {
  const { id, name, names, digest, architecture, sizeBytes, createdAtMs, config } = image;
  const kernelId = image.detail[OWN_KERNEL];
  return {
    id,
    name,
    names: [...names],
    digest,
    architecture,
    sizeBytes,
    createdAtMs,
    config: imageConfigView(config),
    usedBy: [...usedBy],
    registered: registeredFiles(image),
    kernelId: typeof kernelId === 'string' ? kernelId : null,
  };
}

const registered = view.image.shape.registered;

function registeredFiles({ detail }: NamedImage): z.output<typeof registered> {
  const said = detail[REGISTERED];
  return typeof said === 'object' && said !== null && 'files' in said ? registered.parse(said.files) : [];
}

function imageConfigView(config: ImageConfig): NonNullable<SandboxView['imageConfig']> {
  const { entrypoint, command, env, workdir, user, exposedPorts } = config;
  return {
    entrypoint: [...entrypoint],
    command: [...command],
    env: { ...env },
    workdir,
    user,
    stopSignal: `SIG${stopSignalOf(config)}`,
    exposedPorts: [...exposedPorts],
  };
}

/** `names` has those of keys by their ids. */
export function operationView(record: OperationRecord, names: ReadonlyMap<string, string>): z.output<typeof view.operation> {
  const { projectId: _, error, ...rest } = record;
  return { ...rest, actorName: names.get(record.actor) ?? null, error: error === null ? null : { ...error } };
}

export function eventView(record: EventRecord, names: ReadonlyMap<string, string>): z.output<typeof view.event> {
  const { projectId: _, detail, ...rest } = record;
  return { ...rest, actorName: names.get(record.actor) ?? null, detail: { ...detail } };
}

/** `projects` has the names of projects by their ids. */
export function keyView(key: ApiKey, projects: ReadonlyMap<string, string>): z.output<typeof view.key> {
  const { id, name, projectId, createdAtMs, revokedAtMs } = key;
  return { id, name, projectId, project: projects.get(projectId) ?? projectId, createdAtMs, revokedAtMs };
}

export function ledgerView(entry: LedgerEntry): z.output<typeof view.ledgerEntry> {
  return { ...entry, shape: { ...entry.shape } };
}

export function exitView(exit: Exit): z.output<typeof view.processExit> {
  const { signal, oomKilled, reason, stdoutBytes, stderrBytes, endedAtMs } = exit;
  return { exitCode: exitCode(exit), signal, oomKilled, reason, stdoutBytes, stderrBytes, endedAtMs, error: null };
}

export function entryView(entry: Entry): z.output<typeof view.fileEntry> {
  const { path, name, type, size, mode, uid, gid, user, group, mtimeMs, target } = entry;
  return {
    path: pathText(path),
    name: pathText(name),
    type,
    size,
    mode,
    uid,
    gid,
    user,
    group,
    mtimeMs,
    target: target === null ? null : pathText(target),
  };
}

/** Text stays as it is, so that it can be asked for again; what is no UTF-8 is shown escaped. */
export function pathText(path: GuestPath): string {
  return typeof path === 'string' ? path : showPath(path);
}
