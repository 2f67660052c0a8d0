// What of squashfs 4.0 we read and write ourselves: numbers little-endian, tables in blocks of 8 KiB that
// announce their length. Data blocks are tar2sqfs's work and never looked at here.

export const MAGIC = 0x7371_7368;
export const SUPERBLOCK_BYTES = 96;
export const LZ4 = 5;
export const BLOCK_BYTES = 65_536;
export const METADATA_BYTES = 8_192;
/** In the length of a table's block: it is not compressed. */
export const STORED = 0x8000;
export const NO_FRAGMENT = 0xffff_ffff;
export const NO_XATTR = 0xffff_ffff;
export const NO_TABLE = 0xffff_ffff_ffff_ffffn;
/** tar2sqfs makes images of whole ones. */
export const DEVICE_BLOCK_BYTES = 4_096;

/** Of an inode; 7 more is the same with more room. */
export const TYPES = { directory: 1, file: 2, symlink: 3, block: 4, character: 5, fifo: 6 } as const;
export const EXTENDED = 7;

/** A piece of a packed file: a block of data, or the end of several small files together. */
export type Piece = { readonly start: number; readonly size: number };

/** Where the content of one file lies; offsets are of the area that all data of a layer makes. */
export type PackedFile = {
  readonly start: number;
  readonly sizeBytes: number;
  /** As squashfs has them: 0 for a hole, bit 24 set where it is not compressed. */
  readonly blocks: readonly number[];
  /** Index of the layer's own, null for none. */
  readonly fragment: number | null;
  readonly fragmentOffset: number;
};

/** One layer, packed: its data lies in `path`, from `offset` on. */
export type PackedLayer = {
  readonly path: string;
  readonly offset: number;
  readonly bytes: number;
  readonly fragments: readonly Piece[];
  /** By the ordinal of their entries. */
  readonly files: ReadonlyMap<number, PackedFile>;
  /** Of the data, where somebody has said it: then it is checked when it is used. */
  readonly sha256: string | null;
};
