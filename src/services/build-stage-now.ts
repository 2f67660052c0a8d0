// Where a stage of a build stands: its key, what its image will say, its layers. Always true: the key alone decides what has been made, and a
// layer that the cache has is not made again.
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import { readPlace } from '../images/build/context.ts';
import { asCopyError, type Owner, ownerOf } from '../images/build/copy.ts';
import type { Instruction, Stage } from '../images/build/dockerfile.ts';
import { DockerfileError } from '../images/build/dockerfile-error.ts';
import type { LayerSource } from '../images/build/flatten.ts';
import type { Key } from '../images/build/keys.ts';
import { copiedLayer, type LayerRef, StageRoot, writeLayer } from '../images/build/layers.ts';
import { lookUp } from '../images/build/look.ts';
import { expandAt, newState, type StageState, variablesOf } from '../images/build/state.ts';
import type { Tree } from '../images/layers/tree.ts';
import { type Built, type HistoryEntry, type StageParts, stageName } from './build-stage-parts.ts';

const PASSWD_BYTES_MAX = 4 * 1024 * 1024;

export class StageNow {
  readonly parts: StageParts;
  readonly stage: Stage;
  key: Key = '';
  state: StageState = newState({}, null);
  root: StageRoot;
  #history: HistoryEntry[] = [];
  #atMs = 0;
  #image: Built['image'] = null;
  /** Of its layers, those that were there before it, and then before this build. */
  #settled = 0;
  #hasMade = false;

  constructor(parts: StageParts, stage: Stage) {
    this.parts = parts;
    this.stage = stage;
    this.root = new StageRoot(parts.sandbox.core.deps.host, parts.sandbox.staging.blobs, []);
  }

  get name(): string {
    return stageName(this.stage);
  }

  /** When its newest layer was made. */
  get atMs(): number {
    return this.#atMs;
  }

  get image(): Built['image'] {
    return this.#image;
  }

  get settled(): number {
    return this.#settled;
  }

  built(): Built {
    return { key: this.key, state: this.state, root: this.root, history: this.#history, atMs: this.#atMs, image: this.#image };
  }

  /** Goes on from an image, or from another stage. */
  beginWith(before: Built, key: Key): void {
    this.key = key;
    // A stage knows the ARGs of the stage that it goes on from; an image has none.
    this.state = { ...newState(before.state.config, before.state.author), args: before.state.args };
    this.root = before.root.copy();
    this.#history = [...before.history];
    this.#atMs = before.atMs;
    this.#image = before.image;
    this.#settled = before.root.layers.length;
  }

  globally(instruction: Pick<Instruction, 'line' | 'name'>, word: string): string {
    return expandAt(instruction, word, (name) => this.parts.globals.values.get(name) ?? undefined, this.parts.dockerfile.escapeChar);
  }

  where({ line, name }: Pick<Instruction, 'line' | 'name'>): string {
    return `${this.parts.context.dockerfile.name}:${line}: ${name}`;
  }

  /** An image that an instruction names. @throws HutchError with its line. */
  async base(op: Operation, from: Pick<Instruction, 'line' | 'name'>, name: string): Promise<Built> {
    try {
      return await this.parts.base(op, name);
    } catch (error) {
      if (!(error instanceof HutchError) || op.signal.aborted) throw error;
      throw op.error(error.code, `${this.where(from)}: ${error.message}`, {
        ...(error.hint === null ? {} : { hint: error.hint }),
        cause: error,
      });
    }
  }

  text(instruction: Instruction, word: string): string {
    return expandAt(instruction, word, variablesOf(this.state), this.parts.dockerfile.escapeChar);
  }

  note(text: string, isEmpty: boolean): void {
    this.#history.push({
      ...(this.#atMs === 0 ? {} : { created: new Date(this.#atMs).toISOString() }),
      ...{ created_by: text, comment: 'hutch build' },
      ...(isEmpty ? { empty_layer: true as const } : {}),
    });
  }

  /** The layer of a step: out of the cache, else made and put there. */
  async layer(op: Operation, text: string, key: Key, make: () => Promise<LayerRef | null>): Promise<void> {
    const { cache, request, log, sandbox } = this.parts;
    const known = request.noCache ? null : await cache.get(op, key);
    let entry = known;
    if (entry === null) {
      await this.parts.recorded();
      const sinceMs = sandbox.core.deps.host.monotonicMs();
      const layer = await make();
      const nowMs = sandbox.core.deps.host.nowMs();
      entry = { layer, atMs: request.epochSeconds === null ? nowMs : request.epochSeconds * 1_000 };
      await cache.put(op, key, entry);
      log.note(this.name, `done in ${((sandbox.core.deps.host.monotonicMs() - sinceMs) / 1_000).toFixed(1)} s`);
    } else log.note(this.name, 'CACHED');
    this.key = key;
    this.#atMs = Math.max(this.#atMs, entry.atMs);
    if (entry.layer !== null) this.root.add(entry.layer);
    this.#hasMade ||= known === null;
    if (!this.#hasMade) this.#settled = this.root.layers.length;
    this.note(text, entry.layer === null);
  }

  async write(op: Operation, tree: Pick<Tree, 'root'>, sources: readonly LayerSource[]): Promise<LayerRef> {
    const { staging } = this.parts.sandbox;
    return await writeLayer(op, staging, copiedLayer(tree, sources));
  }

  async copying<T>(step: Instruction, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      const own = asCopyError(error);
      if (own !== null) throw new DockerfileError(step.line, step.name, own.message);
      throw error;
    }
  }

  async owner(op: Operation, chown: string): Promise<Owner> {
    if (/^\d+:\d+$/.test(chown)) return ownerOf(chown, '', '');
    return ownerOf(chown, await this.file(op, '/etc/passwd'), await this.file(op, '/etc/group'));
  }

  /** A small file of the stage; '' where there is none. */
  async file(op: Operation, path: string): Promise<string> {
    const { inode } = lookUp(await this.root.tree(op), path, 'follow');
    if (inode?.type !== 'file' || inode.place === null || inode.sizeBytes > PASSWD_BYTES_MAX) return '';
    const layer = this.root.sources(op)[inode.place.layer];
    return layer === undefined ? '' : (await readPlace(layer, inode)).toString();
  }
}
