// Tables of squashfs being written: bytes in blocks of 8 KiB, each announced by its length. Not compressed:
// they are a hundredth of an image, and a guest reads them quicker so.
import { METADATA_BYTES, STORED } from './format.ts';

const HEADER_BYTES = 2;

export class MetadataTable {
  readonly #blocks: Buffer[] = [];
  #open = Buffer.allocUnsafe(HEADER_BYTES + METADATA_BYTES);
  #filled = 0;

  /** Where the next byte comes to lie: the block's offset in the table, and the place in the block. */
  get here(): { readonly block: number; readonly offset: number } {
    return { block: this.#blocks.length * (HEADER_BYTES + METADATA_BYTES), offset: this.#filled };
  }

  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const taken = Math.min(bytes.byteLength - at, METADATA_BYTES - this.#filled);
      this.#open.set(bytes.subarray(at, at + taken), HEADER_BYTES + this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled === METADATA_BYTES) this.#close();
    }
  }

  /** All blocks. Nothing is appended afterwards. */
  finish(): readonly Buffer[] {
    if (this.#filled > 0) this.#close();
    return this.#blocks;
  }

  #close(): void {
    this.#open.writeUInt16LE(STORED | this.#filled, 0);
    this.#blocks.push(this.#open.subarray(0, HEADER_BYTES + this.#filled));
    this.#open = Buffer.allocUnsafe(HEADER_BYTES + METADATA_BYTES);
    this.#filled = 0;
  }
}

export function lengthOf(blocks: readonly Buffer[]): number {
  return blocks.reduce((sum, { byteLength }) => sum + byteLength, 0);
}

/** A table behind its index: blocks from `at` on, then where each begins. */
export function indexed(table: MetadataTable, at: number): { readonly blocks: readonly Buffer[]; readonly index: Buffer } {
  const blocks = table.finish();
  const index = Buffer.alloc(8 * blocks.length);
  let next = at;
  for (const [number, block] of blocks.entries()) {
    index.writeBigUInt64LE(BigInt(next), 8 * number);
    next += block.byteLength;
  }
  return { blocks, index };
}
