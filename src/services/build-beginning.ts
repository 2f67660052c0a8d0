// What the sandbox of a stage is started from, where layers are there already: they are unpacked into it, file by file, or where they are
// large an image is made of them first. That image is found again by the next build, and goes by age as the rest of the cache does.
import { HutchError } from '../domain/errors.ts';
import type { Operation } from '../host/operation.ts';
import type { LayerRef } from '../images/build/layers.ts';

/** As their manifests call such images, which have no name on record: no reference reads like this. */
export const BEGINNING = '(beginning of a stage)';
const MIB = 2 ** 20;
/** Unpacking so much takes some three seconds on gVisor; an image of it takes one, and once. */
const LARGE_BYTES_MIN = 32 * MIB;
/** So much is unpacked all the same: an image that ends before it serves more builds. */
const REST_BYTES_MAX = 8 * MIB;

/**
 * How many of a stage's layers its sandbox should have from its image. `inImage`: of those that it has anyway. `settled`: of those that
 * were there before this build, or before this stage: what is made anew with each build is not worth an image.
 */
export function layersToBeginWith(layers: readonly Pick<LayerRef, 'sizeBytes'>[], inImage: number, settled: number): number {
  const sizeOf = (from: number, to: number) => layers.slice(from, to).reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  if (sizeOf(inImage, settled) < LARGE_BYTES_MIN) return inImage;
  let count = settled;
  while (count - 1 > inImage && sizeOf(count - 1, settled) <= REST_BYTES_MAX) count -= 1;
  return count;
}

/** Of one build, whose stages may begin with the same layers. */
export class Beginnings {
  readonly #make: (op: Operation, layers: readonly LayerRef[]) => Promise<string>;
  readonly #made = new Map<string, Promise<string | null>>();

  constructor(make: (op: Operation, layers: readonly LayerRef[]) => Promise<string>) {
    this.#make = make;
  }

  /** The image of these layers; null: there is no room for one. */
  async of(op: Operation, layers: readonly LayerRef[]): Promise<string | null> {
    const key = layers.map(({ diffId }) => diffId).join(' ');
    const making = this.#made.get(key) ?? this.#orNone(op, layers);
    this.#made.set(key, making);
    return await making;
  }

  async #orNone(op: Operation, layers: readonly LayerRef[]): Promise<string | null> {
    try {
      return await this.#make(op, layers);
    } catch (error) {
      if (!(error instanceof HutchError) || error.code !== 'resource_exhausted') throw error;
      op.log.info({ cause: error }, 'a stage begins without an image of its layers');
      return null;
    }
  }
}
