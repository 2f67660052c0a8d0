// What the layers of a snapshot take in the Engine, which says that of whole images alone: how much one is larger than the one that it was
// committed upon is what its last layer takes, and what is below that is in its label, as the one below may go before it.
import { createHash } from 'node:crypto';
import type { Holding } from '../../domain/holding.ts';
import { LABEL } from './config.ts';
import type { ImageAnswer } from './image.ts';
import type { Saved } from './saved.ts';

/** What an image was made upon: its size, and that of each of its layers above the image of the sandbox. */
export type StoodOn = { readonly sizeBytes: number; readonly layerBytes: readonly number[] };

const LABEL_TEXT = /^\d{1,16}(,\d{1,16})*$/;

export function layerBytesLabel({ sizeBytes, layerBytes }: StoodOn): string {
  return [sizeBytes, ...layerBytes].join(',');
}

/** Of each layer above `below`; null: an older version of Hutch made it, and nobody knows. */
export function layerBytesOf({ Size, RootFS, Config }: ImageAnswer, below: number): readonly number[] | null {
  const count = (RootFS?.Layers ?? []).length - below;
  if (count === 0) return [];
  const text = Config?.Labels?.[LABEL.layerBytes] ?? '';
  const [sizeBytes = 0, ...layerBytes] = LABEL_TEXT.test(text) ? text.split(',').map(Number) : [];
  if (layerBytes.length === count) return layerBytes;
  return layerBytes.length + 1 === count && text !== '' ? [...layerBytes, Math.max(0, Size - sizeBytes)] : null;
}

/** In that Engine a layer is the same where all below it are, too. Null: what they take is not known. */
export function layerHoldings({ layers, image }: Pick<Saved, 'layers' | 'image'>): readonly Holding[] | null {
  if (image === null) return [];
  const { layerBytes, below, engine } = image;
  if (layerBytes === undefined) return null;
  const chain = createHash('sha256').update(JSON.stringify([engine.identity, ...below]));
  return layers.map((digest, at) => ({
    what: `layer:${chain.update(digest).copy().digest('hex')}`,
    bytes: layerBytes[at] ?? 0,
  }));
}
